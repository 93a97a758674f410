"""The state of a pruning transformation, and how to find it and look into it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.fences import either
from jaxprune.spec import Parts, Spec
from jaxprune.types import Leaves, Signals, wrong

PRNG = "threefry2x32"  # whatever the user's default is: raw key data has one shape


class PruneState(NamedTuple):
    """State of a pruning transformation; its fields are found by `optax.tree.get`.

    Attributes:
      prune_count: updates completed, an int32 scalar.
      prune_mask: the masks, in the params' containers, with holes for unpruned leaves; or of
        channels, by the names of their groups.
      prune_dense: the dense weights of the leaves the view changes, float32 at least, holes
        elsewhere: everywhere, where the params themselves are the dense weights.
      prune_memory: what the method's `Memory` remembers.
      prune_learned: what the method's `Learner` has learned.
      prune_learner: the state of the learner's optimizer.
      prune_key: raw uint32 key data, from the seed.
      prune_skipped: refreshes skipped because a score was NaN, int32.
      prune_loaded: whether the dense copies hold the weights: before the first update they do not,
        since weights may be loaded after `init`; bool.
      prune_inner: the state of the inner optimizer.
      prune_spec: what the state was made from; no leaves.
    """

    prune_count: jax.Array
    prune_mask: Any
    prune_dense: Any
    prune_memory: Any
    prune_learned: Any
    prune_learner: Any
    prune_key: jax.Array
    prune_skipped: jax.Array
    prune_loaded: jax.Array
    prune_inner: Any
    prune_spec: Spec


def is_state(node: Any) -> bool:
    """Whether a node of an optimizer state is that of a pruning transformation."""
    return isinstance(node, PruneState)


def dense_copy(leaf: jax.Array) -> jax.Array:
    """A copy of a parameter to move: float32 at least, in memory of its own."""
    wide = leaf.dtype if jnp.finfo(leaf.dtype).bits >= 32 else jnp.float32
    return leaf.copy() if leaf.dtype == wide else leaf.astype(wide)


def _loaded(first: jax.Array, weights: Leaves, copies: Leaves) -> Leaves:
    """The copies; on the first update the params, since weights may be loaded after `init`."""

    def loaded() -> Leaves:
        # Selected where one would do: passed on as they are, XLA copies the copies in every step.
        wide = {path: weights[path].astype(copy.dtype) for path, copy in copies.items()}
        return {path: jnp.where(first, wide[path], copy) for path, copy in copies.items()}

    # As a `where` it would be one more pass over the weights in every step.
    return either(first, loaded, lambda: dict(copies))


def signals_of(state: PruneState, weights: Leaves, grads: Leaves | None = None) -> Signals:
    """What the parts see of a state: on the first update the params themselves are the weights.

    Args:
      state: the state, unboxed.
      weights: the params by path.
      grads: gradients by path, cast to the types of the dense weights.

    Returns:
      The signals at the state's age.
    """
    masks = trees.by_path(state.prune_mask)
    copies = trees.by_path(state.prune_dense)
    for path in [*state.prune_spec.parts.units.members(masks), *copies]:
        trees.known(path, weights, "params", "have every leaf that is pruned")
    dense = {**weights, **_loaded(~state.prune_loaded, weights, copies)}
    return Signals(
        state.prune_count,
        dense,
        masks,
        {path: trees.cast(grad, dense[path].dtype) for path, grad in (grads or {}).items()},
        learned=state.prune_learned,
        memory=state.prune_memory,
        key=state.prune_key,
        units=state.prune_spec.parts.units,
    )


def probed(state: PruneState) -> Signals:
    """What the parts see of a state alone: ones for weights that it holds no copy of.

    For what does not depend on the weights: which entries are seen, which move, what is read.

    Args:
      state: the state, unboxed.

    Returns:
      The signals at the state's age.
    """
    masks, units = trees.by_path(state.prune_mask), state.prune_spec.parts.units
    one = np.ones((), np.float32)  # in numpy, where a tree of them takes no memory
    ones = {path: np.broadcast_to(one, shape) for path, shape in units.shapes(masks).items()}
    dense = ones | trees.by_path(state.prune_dense)
    return Signals(
        state.prune_count,
        dense,
        masks,
        dense,
        learned=state.prune_learned,
        memory=state.prune_memory,
        key=state.prune_key,
        units=units,
    )


def shown(parts: Parts, s: Signals) -> dict[str, jax.Array]:
    """Which entries of the leaves that are pruned the view does not make 0, of ones too."""
    ones = {path: jnp.ones_like(s.dense[path]) for path in s.support}
    seen = parts.view.apply(s._replace(dense={**s.dense, **ones}))
    return {path: seen[path] != 0 for path in ones}


def seen_by(state: PruneState, weights: Leaves, shipped: bool = False) -> dict[str, jax.Array]:
    """What the view makes of the leaves it changes, in the types of the params.

    Args:
      state: the state, unboxed.
      weights: the params by path.
      shipped: whether it is the network one would ship, where the loss sees another one.
    """
    view = state.prune_spec.parts.view
    seen = (view.ship if shipped and view.ship else view.apply)(signals_of(state, weights))
    return {path: leaf.astype(weights[path].dtype) for path, leaf in seen.items()}


def states_of(opt_state: Any, argument: str = "opt_state") -> list[PruneState]:
    """All pruning states in an optimizer state, their arrays unboxed.

    Args:
      opt_state: an optax state of any nesting, an `nnx.Optimizer` or its `opt_state`.
      argument: what the caller knows it as, for the error.

    Returns:
      The states, in order; at least one.

    Raises:
      ValueError: if there is none, or one lies inside another.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> from jaxprune import state
      >>> tx = optax.chain(jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=0.5, ramp=(0, 9)))
      >>> len(state.states_of(tx.init({"kernel": jnp.ones((2, 2))})))
      1
    """
    states = trees.nodes(getattr(opt_state, "opt_state", opt_state), is_state)
    if not states:
        hint = "restore checkpoints with a target tree, else states come back as plain dicts"
        if argument != "opt_state":
            raise ValueError(wrong(argument, "hold a jaxprune method", "none"))
        raise ValueError(
            wrong(argument, "hold the state of a jaxprune method", type(opt_state), hint)
        )
    check_alone(states, argument)
    return [unboxed(state) for state in states]


def weights_and_states(
    params: Any, opt_state: Any, argument: str = "params"
) -> tuple[dict[str, Any], list[PruneState]]:
    """The params by path and the pruning states, if they belong to each other.

    Args:
      params: the params that an optimizer trains.
      opt_state: its state.
      argument: what the caller knows the params as, for the error.

    Returns:
      ``{path: leaf}``, and the states of `states_of`.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state, or one of other params.
    """
    if trees.nodes(params, is_state):
        raise ValueError(wrong(argument, "come first, then the state", "a state in their place"))
    weights, states = trees.by_path(params), states_of(opt_state)
    for state in states:
        units, masks = state.prune_spec.parts.units, trees.by_path(state.prune_mask)
        for path, shape in units.shapes(masks).items():
            trees.known(path, weights, argument, "be those of the state, and have every leaf of it")
            have = jnp.shape(weights[path])
            if len(have) < len(shape) or any(n not in (1, m) for n, m in zip(shape, have)):  # noqa: B905
                expected = f"be those of the state, of shape {shape} at '{path}'"
                raise ValueError(wrong(argument, expected, have))
    return weights, states


def check_apart(states: list[PruneState], argument: str = "opt_state") -> None:
    """Raises a ValueError where two states prune the same leaf."""
    seen: set[str] = set()
    for state in states:
        sites = trees.by_path(state.prune_mask)
        for site in sites:
            if site in seen:
                expected = "hold the state of one network, in which one method prunes a leaf"
                raise ValueError(wrong(argument, expected, f"two masks of '{site}'"))
        seen |= {*sites}


def check_single(states: list[PruneState]) -> None:
    """Raises a ValueError where states are stacked, as `vmap` leaves those of an ensemble."""
    for state in states:
        if jnp.ndim(state.prune_count):
            hint = "index one member first, of the params as well"
            came = f"a stack of {jnp.shape(state.prune_count)}"
            raise ValueError(wrong("opt_state", "be the state of one network", came, hint))


def check_alone(states: list[PruneState], argument: str) -> None:
    """Raises a ValueError if one of some states holds another in its inner optimizer's."""
    for state in states:
        if trees.nodes(state.prune_inner, is_state):
            expected = "hold methods side by side"
            hint = "to go on by other rules there is `next_stage`"
            raise ValueError(wrong(argument, expected, "one inside another", hint))


def unboxed(state: PruneState) -> PruneState:
    """The scalars and keys of a state without the boxes that `nnx.Optimizer` puts them in."""
    scalars = {
        name: trees.unbox(getattr(state, name))
        for name in ("prune_count", "prune_key", "prune_skipped", "prune_loaded")
    }
    trees_of_arrays = {
        name: jax.tree.map(trees.unbox, getattr(state, name), is_leaf=trees.is_box)
        for name in ("prune_memory", "prune_learned")
    }
    return state._replace(**scalars, **trees_of_arrays)
