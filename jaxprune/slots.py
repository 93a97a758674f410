"""The slots of a foreign optimizer: what it remembers of each entry, found by path and shape."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.numbers import is_traced
from jaxprune.selection import count_true
from jaxprune.types import Leaves


def restarted(inner: Any, begin: Leaves, kept: Leaves, params: Leaves) -> Any:
    """The state of an optimizer in which some entries start anew.

    Slots of one kind (all momenta, all second moments) are judged together. Where one has a
    negative entry they restart at 0. Where none has (second moments, step sizes) they restart at
    the mean over the kept entries of the leaf, or of all leaves where this one has none: at 0,
    Adam's first steps would be several times the learning rate, since its count of steps is that
    of the whole tree.

    Args:
      inner: the state of any optimizer; slots are the arrays whose path ends in that of a parameter
        and that have its shape, whatever their containers are.
      begin: ``{path: bool array}``, the entries that begin.
      kept: ``{path: mask}``; means are those of the kept entries that do not begin.
      params: all parameters by path.

    Returns:
      The state, in the same containers; every other number as it was, bit for bit.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxprune import slots
      >>> state = optax.ScaleByAdamState(
      ...     jnp.int32(9), {"w": jnp.array([1.0, -1.0, 5.0])}, {"w": jnp.array([2.0, 4.0, 9.0])}
      ... )
      >>> kept = jnp.array([True, True, False])
      >>> state = slots.restarted(state, {"w": ~kept}, {"w": kept}, {"w": kept})
      >>> state.mu["w"].tolist(), state.nu["w"].tolist()
      ([1.0, -1.0, 0.0], [2.0, 4.0, 3.0])

    References:
      original.
    """
    if not begin:
        return inner
    found: dict[str, dict[str, Any]] = {}
    owners: dict[str, tuple[str, str]] = {}
    for path, slot in trees.by_path(inner).items():
        owner = trees.parameter_of(path, slot.shape, params) if trees.is_floating(slot) else None
        if owner is not None and owner in begin and slot.shape == begin[owner].shape:
            kind = path.removesuffix(owner)
            found.setdefault(kind, {})[owner] = slot
            owners[path] = kind, owner
    stay = {path: kept[path] & ~m for path, m in begin.items()}
    fresh = {kind: _fresh(slots, stay) for kind, slots in found.items()}

    def restart(path: str, slot: Any) -> Any:
        if path not in owners:
            return slot
        kind, owner = owners[path]
        return jnp.where(begin[owner], fresh[kind][owner].astype(slot.dtype), slot)

    return trees.map_with_path(restart, inner)


def _fresh(slots: Leaves, stay: Leaves) -> dict[str, jax.Array]:
    """What entries of slots of one kind start from: 0, or means of what is never negative."""
    zeros = {path: jnp.zeros((), jnp.float32) for path in slots}
    if any(trees.is_complex(slot) for slot in slots.values()):
        return zeros

    def means() -> dict[str, jax.Array]:
        numbers = {path: count_true(stay[path]).astype(jnp.float32) for path in slots}
        sums = {
            path: jnp.sum(jnp.where(stay[path], slot, 0).astype(jnp.float32))
            for path, slot in slots.items()
        }
        of_all = sum(sums.values()) / jnp.maximum(sum(numbers.values()), 1)
        return {
            path: jnp.where(numbers[path] > 0, total / jnp.maximum(numbers[path], 1), of_all)
            for path, total in sums.items()
        }

    signed = jnp.any(jnp.stack([count_true(slot < 0) > 0 for slot in slots.values()]))
    if not is_traced(signed):
        return zeros if signed else means()
    return jax.lax.cond(signed, lambda: zeros, means)
