"""What both lowerings share: what they find, who gets the places left for ties, sums."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Points(NamedTuple):
    """How many scores lie above two codes, of each of G groups: where to begin the next search.

    The first code is one at which the group can be cut: no kept score lies below it, and no other
    one above it. The second is the farther of two that its first pass tried; 0 if there was none.

    Attributes:
      codes: unsigned integers, `[2, G]`.
      counts: how many scores lie above them, `uint32[2, G]`.
    """

    codes: jax.Array
    counts: jax.Array


class Found(NamedTuple):
    """What a selection finds.

    Attributes:
      masks: one bool array a leaf; True = kept.
      points: where it found the end of each group.
      nan: whether the score of a candidate is NaN.
    """

    masks: list[jax.Array]
    points: Points
    nan: jax.Array


def shares(
    counts: jax.Array, above: jax.Array, equal: jax.Array, groups: Sequence[int]
) -> jax.Array:
    """How many entries equal to the cut each leaf keeps: earlier leaves of a group come first.

    Args:
      counts: how many each group keeps, `[G]`.
      above: how many entries of each leaf lie above its group's cut, `[L]`.
      equal: how many are equal to it, `[L]`.
      groups: the group of each leaf.

    Returns:
      `[L]`, each at most `equal`.
    """
    # In the order of groups, what precedes a leaf within its group is a difference of running sums.
    by_group = np.argsort(np.asarray(groups), kind="stable")
    sorted_groups = np.asarray(groups)[by_group]
    first = np.searchsorted(sorted_groups, sorted_groups)
    ranked = equal[by_group]
    running = jnp.cumsum(ranked, dtype=equal.dtype) - ranked
    before = (running - running[first])[np.argsort(by_group)]
    left = (counts - group_sums(above, groups, len(counts)))[np.asarray(groups)]
    return jnp.minimum(jnp.where(left > before, left - before, jnp.zeros_like(left)), equal)


def group_sums(per_leaf: jax.Array, groups: Sequence[int], number: int) -> jax.Array:
    """Sums over the leaves of each group, `[L] -> [number]`."""
    if number == 1:
        return jnp.sum(per_leaf, keepdims=True, dtype=per_leaf.dtype)
    if list(groups) == list(range(number)):
        return per_leaf
    members = np.arange(number)[:, None] == np.asarray(groups)[None, :]
    zero = jnp.zeros((), per_leaf.dtype)
    return jnp.sum(jnp.where(members, per_leaf[None, :], zero), axis=1, dtype=per_leaf.dtype)


def leaf_sums(per_unit: jax.Array, leaf_of_unit: np.ndarray, number: int) -> jax.Array:
    """Sums over the units of each leaf, `[U, ...] -> [number, ...]`."""
    return jax.ops.segment_sum(per_unit, leaf_of_unit, number)


def varying_like(start: jax.Array, like: Any) -> jax.Array:
    """A loop's first value, varying over the same mesh axes as what the loop reads (shard_map)."""
    axes = frozenset[str]().union(*map(_varying_axes, jax.tree.leaves(like)))
    axes -= _varying_axes(start)
    return lax.pcast(start, tuple(sorted(axes)), to="varying") if axes else start


def _varying_axes(x: Any) -> frozenset[str]:
    """The manual mesh axes over which a value varies; JAX has renamed the attribute."""
    kind: Any = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, "mat") else kind.vma
