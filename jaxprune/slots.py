"""The slots of a foreign optimizer: what it remembers of each entry, found by path and shape."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.numbers import is_traced
from jaxprune.selection import count_true, sum_of
from jaxprune.types import Leaves, wrong


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
    fresh = {kind: _fresh(slots, begin, kept) for kind, slots in found.items()}

    def restart(path: str, slot: Any) -> Any:
        if path not in owners:
            return slot
        kind, owner = owners[path]
        return jnp.where(begin[owner], fresh[kind][owner].astype(slot.dtype), slot)

    return trees.map_with_path(restart, inner)


def check_owned(inner: Any, params: Leaves, pruned: Iterable[str]) -> None:
    """Refuses an optimizer whose memory of entries that may begin anew cannot be found.

    Args:
      inner: its state.
      params: all parameters by path.
      pruned: the paths of those that are pruned.

    Raises:
      ValueError: naming a floating array that could hold the entries of a pruned parameter, and
        belongs to none by its path, or holds them in another shape: as where updates are flattened
        into one vector.
    """
    least = min(params[path].size for path in pruned)
    for path, slot in trees.by_path(inner).items():
        if not trees.is_floating(slot) or slot.size < least:
            continue
        owners = [p for p in params if not p or f"/{p}/" in f"/{path}/"]
        alike = [p for p in owners if params[p].size != slot.size or params[p].shape == slot.shape]
        if not alike:
            expected = "keep what it remembers at the paths of the params, where weights grow"
            came = f"an array of shape {slot.shape} at '{path}'"
            hint = "use it without what flattens or renames leaves, such as `optax.flatten`"
            raise ValueError(wrong("inner", expected, came, hint))


def _fresh(slots: Leaves, begin: Leaves, kept: Leaves) -> dict[str, jax.Array]:
    """What entries of slots of one kind start from: 0, or means of what is never negative.

    Means are those of entries that are kept and do not begin. Counts and sums say so in words of
    their own: said once, XLA would write the answer to memory.
    """
    zeros = {path: jnp.zeros((), jnp.float32) for path in slots}
    if any(trees.is_complex(slot) for slot in slots.values()):
        return zeros

    def means() -> dict[str, jax.Array]:
        numbers = {p: count_true(kept[p] & ~begin[p]).astype(jnp.float32) for p in slots}
        sums = {
            path: sum_of(
                jnp.where(begin[path], 0, jnp.where(kept[path], slot, 0)).astype(jnp.float32)
            )
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
