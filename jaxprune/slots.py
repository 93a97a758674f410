"""The slots of a foreign optimizer: what it remembers of each entry, found by path and shape."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.schedules.numbers import is_traced
from jaxprune.selection import count_true
from jaxprune.types import Leaves


def restarted(inner: Any, begin: Leaves, kept: Leaves) -> Any:
    """The state of an optimizer in which some entries start anew.

    A slot with a negative entry (momentum) restarts at 0. One without (second moments, step sizes)
    restarts at its mean over the kept entries of the leaf: at 0, Adam's first steps would be
    several times the learning rate, since its count of steps is that of the whole tree.

    Args:
      inner: the state of any optimizer; slots are the arrays whose path ends in that of a leaf and
        that have its shape, whatever their containers are.
      begin: ``{path: bool array}``, the entries that begin.
      kept: ``{path: mask}``; the mean is that of the kept entries that do not begin.

    Returns:
      The state, in the same containers; every other number as it was, bit for bit.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxprune import slots
      >>> state = optax.ScaleByAdamState(
      ...     jnp.int32(9), {"w": jnp.array([1.0, -1.0, 5.0])}, {"w": jnp.array([2.0, 4.0, 9.0])}
      ... )
      >>> kept = jnp.array([True, True, False])
      >>> state = slots.restarted(state, {"w": ~kept}, {"w": kept})
      >>> state.mu["w"].tolist(), state.nu["w"].tolist()
      ([1.0, -1.0, 0.0], [2.0, 4.0, 3.0])

    References:
      original.
    """
    if not begin:
        return inner

    def restart(path: str, slot: Any) -> Any:
        if not trees.is_floating(slot):
            return slot
        owner = trees.parameter_of(path, slot.shape, begin)
        if owner is None or slot.shape != begin[owner].shape:
            return slot
        return jnp.where(begin[owner], _fresh(slot, kept[owner] & ~begin[owner]), slot)

    return trees.map_with_path(restart, inner)


def _fresh(slot: jax.Array, kept: jax.Array) -> jax.Array:
    """What one entry of a slot starts from: 0, or the mean of numbers that are never negative."""
    if trees.is_complex(slot):
        return jnp.zeros((), slot.dtype)

    def mean() -> jax.Array:
        total = jnp.sum(jnp.where(kept, slot, 0), dtype=slot.dtype)
        return total / jnp.maximum(count_true(kept), 1).astype(slot.dtype)

    signed = count_true(slot < 0) > 0
    if not is_traced(signed):
        return jnp.zeros((), slot.dtype) if signed else mean()
    return jax.lax.cond(signed, lambda: jnp.zeros((), slot.dtype), mean)
