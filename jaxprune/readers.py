"""Pure readers of the optimizer state: masks, sparsity, phase, and what is learned.

They find the pruning state through any nesting of optax states and inside an `nnx.Optimizer`; two
pruning transformations side by side in one `multi_transform` are read as one.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.state import check_apart, check_single, probed, shown, states_of
from jaxprune.types import Phase, wrong


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
    """
    states = states_of(opt_state)
    merged, *others = [state.prune_mask for state in states]
    check_apart(states)
    for other in others:
        merged = trees.from_paths(merged, {**trees.by_path(other), **trees.by_path(merged)})
    return merged


def masks_by_path(opt_state: Any) -> dict[str, jax.Array]:
    """The masks by path, without holes.

    Args:
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      ``{path: bool array}`` of the leaves that are pruned, or ``{group: bool vector}``.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state, or two that prune the same leaf.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> state = tx.init({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
      >>> list(jaxprune.masks_by_path(state))
      ['kernel']
    """
    states = states_of(opt_state)
    check_apart(states)
    masks = [trees.by_path(state.prune_mask) for state in states]
    return {site: mask for each in masks for site, mask in each.items()}


def support_of(opt_state: Any) -> Any:
    """What the masks keep of each leaf: those of channels as entries, in the params' containers.

    Args:
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      bool arrays that broadcast to the leaves, 1 along axes of which nothing is cut; holes at
      leaves that are not pruned.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state, or two that prune the same leaf.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> from jaxprune.units import Group
      >>> groups = {"hidden": Group(3, {"first": 1, "last": 0})}
      >>> masks = {"hidden": jnp.array([True, False, True])}
      >>> tx = jaxprune.static(optax.sgd(0.1), masks=masks, channels=groups)
      >>> state = tx.init({"first": jnp.ones((2, 3)), "last": jnp.ones((3, 1))})
      >>> print(jaxprune.support_of(state)["first"])
      [[ True False  True]]
    """
    states = states_of(opt_state)
    check_apart(states)
    support = {path: m for state in states for path, m in probed(state).support.items()}
    return trees.from_paths(states[0].prune_dense, support)


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
    """
    masks = [*masks_by_path(opt_state).values()]
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
      'moving'
    """
    state = states_of(opt_state)[0]
    phases = state.prune_spec.parts.phases
    if phases is None:
        return Phase(jnp.int32(0), state.prune_count, jnp.int32(-1), ("train",))
    return phases(state.prune_count)


def sees_dense(opt_state: Any) -> jax.Array:
    """Whether the coming forward pass sees another network than the masks keep: one to explore.

    It sees more, or scores that are learned while the weights stand still.

    What it computes is not the network one would ship: statistics of batch norm should then be left
    as they are, and `active_params` is what to evaluate. The first pass is that of params as they
    are given: what is said of it is said of the network that the masks mean.

    Args:
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      A bool scalar; works under jit.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> stages = {"measure_steps": 1, "improve_steps": 0, "explore_steps": 1}
      >>> tx = jaxprune.prune_and_grow(optax.sgd(0.1), sparsity=0.5, stop=2, **stages)
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> state, seen = tx.init(params), []
      >>> for _ in range(3):
      ...     seen.append(bool(jaxprune.sees_dense(state)))
      ...     updates, state = tx.update(params, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> seen
      [False, True, False]
    """
    more = jnp.zeros((), bool)
    for state in states_of(opt_state):
        s = probed(state)
        seen, learner = shown(state.prune_spec.parts, s), state.prune_spec.parts.learner
        for path, kept in s.support.items():
            more |= jnp.any(seen[path] & ~kept)
        if learner is not None and learner.alternate is not None:
            more |= ~learner.alternate(s.step)[0]
    return more


def metrics(opt_state: Any) -> dict[str, jax.Array]:
    """Numbers for any logger: what is pruned, what was skipped, where the method stands.

    Args:
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      Scalars by name, under jit too: ``sparsity``; ``density/<path>`` of each leaf; ``skipped``
      refreshes; ``phase``, its number, and ``sees_dense``; ``learned/<path>``, the mean of what is
      learned of a leaf.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state, two that prune the same leaf, or those of
        an ensemble: take the metrics of each member under `jax.vmap`.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> {k: float(x) for k, x in jaxprune.metrics(tx.init({"kernel": jnp.ones((2, 2))})).items()}
      {'sparsity': 0.5, 'density/kernel': 0.5, 'skipped': 0.0, 'phase': 0.0, 'sees_dense': 0.0}
    """
    states = states_of(opt_state)
    check_single(states)
    masks = masks_by_path(opt_state)
    found = {"sparsity": sparsity_of(opt_state)}
    found |= {f"density/{site}": jnp.mean(m, dtype=jnp.float32) for site, m in masks.items()}
    found["skipped"] = sum((state.prune_skipped for state in states), jnp.zeros((), jnp.int32))
    found["phase"] = phase_of(opt_state).index
    found["sees_dense"] = sees_dense(opt_state)
    for state in states:
        learned = trees.by_path(state.prune_learned)
        found |= {f"learned/{path}": jnp.mean(x) for path, x in learned.items()}
    return found


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
      ...     optax.sgd(0.1), sparsity=0.9, learner=optax.sgd(0.1), ramp=(0, 9)
      ... )
      >>> learned = jaxprune.get_learned(tx.init({"kernel": jnp.ones((2, 2))}))
      >>> print(learned["kernel"])
      0.99
    """
    states = states_of(opt_state)
    learning = [state for state in states if state.prune_spec.parts.learner is not None]
    if not learning:
        names = [state.prune_spec.describe()["method"] for state in states]
        raise ValueError(wrong("opt_state", "hold a method that learns scores", ", ".join(names)))
    if len(learning) == 1:
        return learning[0].prune_learned
    return {path: x for state in learning for path, x in state.prune_learned.items()}
