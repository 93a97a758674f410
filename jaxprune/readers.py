"""Pure readers of the optimizer state: masks, sparsity, phase, and networks made of them.

They find the pruning state through any nesting of optax states and inside an `nnx.Optimizer`; two
pruning transformations side by side in one `multi_transform` are read as one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune import trees
from jaxprune.state import seen_by, signals_of, states_of
from jaxprune.types import Phase, wrong
from jaxprune.views import masked


def get_masks(opt_state: Any) -> Any:
    """The masks, True = kept, in the containers of the params.

    Args:
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      A tree of bool arrays; unpruned leaves are holes (`optax.MaskedNode`). Before the first update
      those given by ``start``, else all kept.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> state = tx.init({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
      >>> print(jaxprune.get_masks(state)["kernel"].sum())
      2

    References:
      original.
    """
    merged, *others = [state.prune_mask for state in states_of(opt_state)]
    for other in others:
        merged = trees.from_paths(merged, {**trees.by_path(other), **trees.by_path(merged)})
    return merged


def sparsity_of(opt_state: Any) -> jax.Array:
    """Share of the prunable weights that the masks prune: ``1 - kept / total``.

    Args:
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      A float32 scalar in [0, 1]; works under jit.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> print(jaxprune.sparsity_of(tx.init({"kernel": jnp.ones((2, 2))})))
      0.5

    References:
      original.
    """
    masks = jax.tree.leaves(get_masks(opt_state))
    kept = sum(jnp.sum(mask, dtype=jnp.int32) for mask in masks)
    total = sum(mask.size for mask in masks)
    return jnp.float32(total - kept) / jnp.float32(total)


def phase_of(opt_state: Any) -> Phase:
    """Which phase of the method the coming forward pass belongs to.

    Args:
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      ``Phase(index, step, length)``, int32 scalars that work under jit, with a ``name`` outside it.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.magnitude_attention(optax.sgd(0.1), sparsity=0.5, ramp=(0, 9))
      >>> jaxprune.phase_of(tx.init({"kernel": jnp.ones((2, 2))})).name
      'explore'

    References:
      original.
    """
    state = states_of(opt_state)[0]
    phases = state.prune_spec.parts.phases
    if phases is None:
        return Phase(jnp.int32(0), state.prune_count, jnp.int32(-1), ("train",))
    return phases(state.prune_count)


def get_learned(opt_state: Any) -> Any:
    """What a method has learned beside the weights: attentions, thresholds, scores.

    Args:
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      ``{path: array}``, float32; of several methods side by side, of all that learn.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state, or no method in it learns anything.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.layer_attention(
      ...     optax.sgd(0.1), sparsity=0.9, attention_optimizer=optax.sgd(0.1), target_anneal=(0, 9)
      ... )
      >>> learned = jaxprune.get_learned(tx.init({"kernel": jnp.ones((2, 2))}))
      >>> print(learned["kernel"])
      0.99

    References:
      original.
    """
    states = states_of(opt_state)
    learning = [state for state in states if state.prune_spec.parts.learner is not None]
    if not learning:
        names = [state.prune_spec.describe()["method"] for state in states]
        raise ValueError(wrong("opt_state", "hold a method that learns scores", ", ".join(names)))
    if len(learning) == 1:
        return learning[0].prune_learned
    return {path: x for state in learning for path, x in state.prune_learned.items()}


def view_params(params: Any, opt_state: Any) -> Any:
    """The network as the state says it is: the view of the dense weights, or of the params.

    Equal to ``params`` from the first update on; before it, an exact step 0.

    Args:
      params: the params that the optimizer trains.
      opt_state: its state.

    Returns:
      A tree like ``params``, in its types.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> print(jaxprune.view_params(params, tx.init(params))["kernel"])
      [[1. 0.]
       [0. 1.]]

    References:
      original.
    """
    weights = trees.by_path(params)
    for state in states_of(opt_state):
        weights |= seen_by(state, weights)
    return trees.from_paths(params, weights)


def active_params(params: Any, opt_state: Any) -> Any:
    """The network one would ship at this moment, also while a method explores.

    Args:
      params: the params that the optimizer trains.
      opt_state: its state.

    Returns:
      A tree like ``params``, exactly 0 off the masks.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> params = {"kernel": jnp.full((2, 2), 3.0)}
      >>> print(jaxprune.active_params(params, tx.init(params))["kernel"])
      [[3. 0.]
       [0. 3.]]

    References:
      original.
    """
    return project(view_params(params, opt_state), opt_state)


def project(tree: Any, opt_state: Any) -> Any:
    """Any tree shaped like the params with the masks applied: an average of weights, a gradient.

    Args:
      tree: arrays at the paths of the params; paths without a mask pass untouched.
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      The tree with exactly +0.0 off the masks.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> state = tx.init({"kernel": jnp.ones((2, 2))})
      >>> average = {"kernel": jnp.full((2, 2), 0.5)}
      >>> print(jaxprune.project(average, state)["kernel"])
      [[0.5 0. ]
       [0.  0.5]]

    References:
      original.
    """
    leaves, masks = trees.by_path(tree), trees.by_path(get_masks(opt_state))
    for path in masks:
        trees.known(path, leaves, "tree", "have every leaf that is pruned")
    return trees.from_paths(tree, {**leaves, **masked(leaves, masks)})


def eval_params(opt_state: Any, f: Callable[[Any, Any], Any], params: Any = None) -> Any:
    """The network to evaluate for optimizers that train one point and ship another.

    Schedule-free optimizers train y and ship x, an average: ``f`` makes x of their state, and the
    view makes the pruned network of x.

    Args:
      opt_state: an optimizer state that holds one pruning state.
      f: ``f(inner_state, dense) -> tree``, the optimizer's own evaluation function.
      params: the params; needed unless every leaf has a dense copy in the state, which unpruned
        leaves and those of methods with hard masks have not.

    Returns:
      What ``f`` returns, through the view.

    Raises:
      ValueError: if ``opt_state`` does not hold exactly one pruning state, or ``params`` is needed.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> inner = optax.contrib.schedule_free_sgd(0.1)
      >>> tx = jaxprune.static(inner, masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> shipped = jaxprune.eval_params(
      ...     tx.init(params), optax.contrib.schedule_free_eval_params, params
      ... )
      >>> print(shipped["kernel"])
      [[1. 0.]
       [0. 1.]]

    References:
      Defazio et al., The Road Less Scheduled, 2024, https://arxiv.org/abs/2405.15682.
    """
    states = states_of(opt_state)
    if len(states) != 1:
        raise ValueError(wrong("opt_state", "hold one jaxprune method", len(states)))
    state = states[0]
    copies, dense = trees.by_path(state.prune_dense), state.prune_dense
    if params is not None:
        dense = trees.from_paths(params, signals_of(state, trees.by_path(params)).dense)
    elif len(copies) < len(trees.all_paths(state.prune_mask)):
        hint = "unpruned leaves, and all leaves of methods with hard masks, are not in the state"
        raise ValueError(wrong("params", "be given where leaves have no dense copy", None, hint))
    result = f(jax.tree.map(trees.unbox, state.prune_inner, is_leaf=trees.is_box), dense)
    leaves = trees.by_path(result)
    signals = signals_of(state, leaves)
    signals = signals._replace(dense={**signals.dense, **leaves})
    seen = state.prune_spec.parts.view.apply(signals)
    return trees.from_paths(result, {**leaves, **seen})


def state_shardings(tx: optax.GradientTransformation, abstract_params: Any) -> Any:
    """The shardings of ``tx.init(params)``: masks, copies and slots like their parameters.

    For ``jax.jit(tx.init, out_shardings=state_shardings(tx, params))``: on a mesh of Auto axes the
    masks would be replicated without it.

    Args:
      tx: the whole transformation.
      abstract_params: the params, or `jax.ShapeDtypeStruct` leaves with a ``sharding``.

    Returns:
      A tree like the state, of shardings; what belongs to no parameter is replicated.

    Raises:
      ValueError: if a leaf of the params has no sharding.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, jaxprune
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> tx = jaxprune.gradual_magnitude(optax.adam(0.1), sparsity=0.5, ramp=(0, 9))
      >>> shardings = jaxprune.state_shardings(tx, params)
      >>> state = jax.jit(tx.init, out_shardings=shardings)(params)

    References:
      original.
    """
    params = trees.by_path(abstract_params)
    for path, leaf in params.items():
        if getattr(leaf, "sharding", None) is None:
            raise ValueError(wrong("abstract_params", "have a sharding on every leaf", path))
    anywhere = next(iter(params.values())).sharding

    def sharding(path: str, leaf: Any) -> Any:
        if trees.is_hole(leaf) or not isinstance(anywhere, NamedSharding):
            return leaf if trees.is_hole(leaf) else anywhere
        if anywhere.mesh.are_all_axes_explicit:  # the types tell, in full rank
            spec = () if leaf.sharding is None else leaf.sharding.spec
            return NamedSharding(anywhere.mesh, PartitionSpec(*_padded(spec, leaf.ndim)))
        owner = trees.parameter_of(path, leaf.shape, params)
        if owner is None:
            return NamedSharding(anywhere.mesh, PartitionSpec())
        spec = _padded(params[owner].sharding.spec, leaf.ndim)
        sizes = zip(spec, leaf.shape, params[owner].shape, strict=True)
        kept = [axis if size == whole else None for axis, size, whole in sizes]
        while kept and kept[-1] is None:  # as jit writes outputs: else the step compiles twice
            kept.pop()
        return NamedSharding(anywhere.mesh, PartitionSpec(*kept))

    return trees.map_with_path(sharding, jax.eval_shape(tx.init, abstract_params))


def _padded(spec: Any, ndim: int) -> tuple[Any, ...]:
    return (*spec, *[None] * ndim)[:ndim]
