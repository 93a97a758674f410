"""The state of a pruning transformation, and the static node that says what it was made from."""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import trees
from jaxprune.numbers import is_traced
from jaxprune.trees import OutputAxis, Where
from jaxprune.types import (
    Candidates,
    Learner,
    Leaves,
    MaskUpdate,
    Memory,
    Phase,
    Signals,
    View,
    wrong,
)

PRNG = "threefry2x32"  # whatever the user's default is: raw key data has one shape


class Parts(NamedTuple):
    """The parts of a method, as `prune` was given them."""

    mask_updates: tuple[MaskUpdate, ...]
    view: View
    memory: Memory | None = None
    phases: Callable[[Any], Phase] | None = None
    where: Where | None = None
    start: Any = None
    output_axis: OutputAxis = None
    note: str | Callable[[Leaves], str] = ""
    learner: Learner | None = None

    @property
    def grows(self) -> bool:
        """Whether pruned entries can come back that did not move meanwhile."""
        candidates = {update.candidates for update in self.mask_updates}
        held = self.learner is not None and self.view.update_scale is not None
        return Candidates.PRUNED in candidates or (
            Candidates.ALL in candidates and (held or not self.view.copy)
        )


@jax.tree_util.register_static
class Spec:
    """What a state was made from: the parts, and the method and values that determine them.

    A leafless node: readers find the parts in the state, so nobody has to hold the transformation.
    Two specs are equal if their methods and values are; of a custom `prune(...)`, whose parts have
    no name, if the parts themselves are (functions by identity, partials by value).

    Attributes:
      parts: the parts.
      method: the method's function, or None for a custom `prune(...)`.
      values: the keyword values the method was called with; an optimizer is "given".
    """

    def __init__(
        self,
        parts: Parts,
        method: Callable[..., Any] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the parts; a method's name and values take their place in comparisons."""
        self.parts, self.method = parts, method
        self.values = {name: _settled(value) for name, value in (values or {}).items()}
        self._identity = _canonical(tuple(parts) if method is None else self.values)
        _register_with_flax()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Spec)
            and self.method == other.method
            and self._identity == other._identity
        )

    def __hash__(self) -> int:
        return hash((self.method, self._identity))

    def __repr__(self) -> str:
        return f"Spec({self.describe()})"

    def __reduce__(self) -> tuple:
        if self.method is None:
            return Spec, (self.parts,)
        return _from_method, (self.method, self.values)

    def describe(self) -> dict[str, Any]:
        """The method and its values as JSON."""
        if self.method is None:
            return {"method": "prune", **_json(self.parts._asdict())}
        return {"method": self.method.__name__, **_json(self.values)}


def _from_method(method: Callable[..., Any], values: dict[str, Any]) -> Spec:
    optimizers = {name: optax.identity() for name, x in values.items() if x == "given"}
    return method(**(values | optimizers)).init.__self__.spec


def _settled(value: Any) -> Any:
    """A number for an array of one, which its owner may donate; anything else as it is."""
    if isinstance(value, jax.Array) and value.ndim == 0 and not is_traced(value):
        return float(str(np.asarray(value))) if trees.is_floating(value) else value.item()
    return value


def _digest(array: Any) -> str:
    array = np.asarray(array)
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def _canonical(value: Any) -> Any:
    """A hashable stand-in for a value: equal values, equal stand-ins."""
    if isinstance(value, functools.partial):
        return ("partial", value.func, _canonical(value.args), _canonical(value.keywords))
    if jax.tree_util.all_leaves([value]):  # an empty dict is none
        return _canonical_leaf(value)
    if isinstance(value, Mapping):  # in order: of patterns, the first that matches wins
        return "mapping", *((key, _canonical(item)) for key, item in value.items())
    leaves, structure = jax.tree.flatten(value)
    return structure, tuple(_canonical(leaf) for leaf in leaves)


def _canonical_leaf(value: Any) -> Any:
    if is_traced(value):
        return ("traced", id(value))
    if isinstance(value, (jax.Array, np.ndarray)):
        return ("array", value.shape, str(value.dtype), _digest(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((f.name, _canonical(getattr(value, f.name))) for f in dataclasses.fields(value))
        return (type(value), *fields)
    return type(value), value


def _json(value: Any) -> Any:
    """A value as plain JSON; functions by name, arrays by shape, type and digest."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if is_traced(value):
        return "traced"
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return value.item() if value.ndim == 0 else _json_array(value)
    if isinstance(value, functools.partial):
        return {"partial": _json(value.func), "of": _json([*value.args, dict(value.keywords)])}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {type(value).__name__: fields}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if not jax.tree_util.all_leaves([value]):
        return {
            jax.tree_util.keystr(path): _json(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(value)
        }
    return getattr(value, "__qualname__", None) or str(value)


def _json_array(array: Any) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": _digest(array)}


def _register_with_flax() -> None:
    """Let `flax.serialization` pass over the node, where the user has flax."""
    flax = sys.modules.get("flax.serialization")
    if flax is not None and not flax.is_serializable(Spec):
        flax.register_serialization_state(Spec, lambda spec: {}, lambda spec, state: spec)


class PruneState(NamedTuple):
    """State of a pruning transformation; its fields are found by `optax.tree.get`.

    Attributes:
      prune_count: updates completed, an int32 scalar.
      prune_mask: the masks, in the params' containers; unpruned leaves are holes.
      prune_dense: the dense weights of the leaves the view changes, float32 at least, holes
        elsewhere: everywhere, where the params themselves are the dense weights.
      prune_memory: what the method's `Memory` remembers.
      prune_learned: what the method's `Learner` has learned.
      prune_learner: the state of the learner's optimizer.
      prune_cuts: for each change of masks that starts warm, where the last search ended
        (`selection.Points`).
      prune_key: raw uint32 key data, from the seed.
      prune_drift: entries off the mask that something else wrote, counted at refreshes, at every
        16th of them where each update has one; int32.
      prune_skipped: refreshes skipped because a score was NaN, int32.
      prune_revived: zeros of a sparse network that the first update let grow again, int32.
      prune_inner: the state of the inner optimizer.
      prune_spec: what the state was made from; no leaves.
    """

    prune_count: jax.Array
    prune_mask: Any
    prune_dense: Any
    prune_memory: Any
    prune_learned: Any
    prune_learner: Any
    prune_cuts: Any
    prune_key: jax.Array
    prune_drift: jax.Array
    prune_skipped: jax.Array
    prune_revived: jax.Array
    prune_inner: Any
    prune_spec: Spec


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

    if not is_traced(first):
        return loaded() if first else copies
    # As a `where` it would be one more pass over the weights in every step.
    return jax.lax.cond(first, loaded, lambda: dict(copies))


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
    for path in [*masks, *copies]:
        trees.known(path, weights, "params", "have every leaf that is pruned")
    dense = {**weights, **_loaded(state.prune_count == 0, weights, copies)}
    return Signals(
        state.prune_count,
        dense,
        masks,
        {path: trees.cast(grad, dense[path].dtype) for path, grad in (grads or {}).items()},
        learned=state.prune_learned,
        memory=state.prune_memory,
        key=state.prune_key,
    )


def seen_by(state: PruneState, weights: Leaves) -> dict[str, jax.Array]:
    """What the view makes of the leaves it changes, in the types of the params."""
    seen = state.prune_spec.parts.view.apply(signals_of(state, weights))
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

    References:
      original.
    """
    opt_state = getattr(opt_state, "opt_state", opt_state)

    def is_state(node: Any) -> bool:
        return isinstance(node, PruneState)

    states = [s for s in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(s)]
    if not states:
        hint = "restore checkpoints with a target tree, else states come back as plain dicts"
        if argument != "opt_state":
            raise ValueError(wrong(argument, "hold a jaxprune method", "none"))
        raise ValueError(
            wrong(argument, "hold the state of a jaxprune method", type(opt_state), hint)
        )
    for state in states:
        nested = jax.tree.leaves(state.prune_inner, is_leaf=is_state)
        if any(map(is_state, nested)):
            raise ValueError(wrong(argument, "hold methods side by side", "one inside another"))
    return [unboxed(state) for state in states]


def unboxed(state: PruneState) -> PruneState:
    """The scalars and keys of a state without the boxes that `nnx.Optimizer` puts them in."""
    scalars = {
        name: trees.unbox(getattr(state, name))
        for name in ("prune_count", "prune_key", "prune_drift", "prune_skipped", "prune_revived")
    }
    trees_of_arrays = {
        name: jax.tree.map(trees.unbox, getattr(state, name), is_leaf=trees.is_box)
        for name in ("prune_memory", "prune_learned", "prune_cuts")
    }
    return state._replace(**scalars, **trees_of_arrays)
