"""Selection on leaves as they are, sharded or not: sums over each leaf's own shape, nothing else.

The code of the last kept entry is found digit by digit, fifteen thresholds a pass: eight passes for
32 bits. What crosses devices is counts.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.selection.keys import NAN, OUTSIDE, Order, Ranked, codes_of
from jaxprune.selection.limits import Found, Points, group_sums, shares, varying_like

_DIGIT = 4
"""Bits found in one pass."""


def keep_largest(
    leaves: Sequence[Ranked],
    counts: jax.Array,
    groups: Sequence[int],
    order: Order,
    near: Points | None = None,
) -> Found:
    """What `jaxprune.selection.search` finds.

    Args:
      leaves: the scores, none empty.
      counts: how many to keep in each group, `uint32[G]`.
      groups: the group of each leaf.
      order: the order of the scores.
      near: not used; the number of passes is always the same.

    Returns:
      Bool masks of the leaves' shapes, the points of the cuts, and whether there is a NaN.
    """
    del near
    everything = [_candidates(leaf) for leaf in leaves]
    counts = jnp.minimum(counts, group_sums(jnp.stack(everything), groups, len(counts)))

    def group_counts(thresholds: jax.Array) -> jax.Array:
        reached = [
            _count(codes_of(leaf, order), thresholds[group])
            for leaf, group in zip(leaves, groups, strict=True)
        ]
        sums: list[jax.Array] = [jnp.zeros(thresholds.shape[1], jnp.uint32)] * len(counts)
        for count, group in zip(reached, groups, strict=True):
            sums[group] = sums[group] + count
        return jnp.stack(sums)

    unsigned_nan = order.unsigned.type(NAN)
    cuts = _largest_reaching(group_counts, counts, order.width, order.unsigned, leaves)
    above, equal = [], []
    for leaf, group in zip(leaves, groups, strict=True):
        codes = codes_of(leaf, order)
        above.append(jnp.sum(codes > cuts[group], dtype=jnp.uint32))
        equal.append(jnp.sum(codes == cuts[group], dtype=jnp.uint32))
    share = shares(counts, jnp.stack(above), jnp.stack(equal), groups)
    limits = _limits(leaves, cuts[np.asarray(groups)], share, jnp.stack(equal), order)
    masks = [
        _mask(codes_of(leaf, order), cuts[group], limit)
        for leaf, group, limit in zip(leaves, groups, limits, strict=True)
    ]
    nan = [jnp.sum(codes_of(leaf, order) == unsigned_nan, dtype=jnp.uint32) > 0 for leaf in leaves]
    reached = cuts, group_sums(jnp.stack(above), groups, len(counts))
    points = Points(*[jnp.stack([x, jnp.zeros_like(x)]) for x in reached])
    return Found(masks, points, jnp.any(jnp.stack(nan)))


def _candidates(leaf: Ranked) -> jax.Array:
    if leaf.candidates is None:
        return jnp.uint32(leaf.values.size)
    return jnp.sum(leaf.candidates, dtype=jnp.uint32)


def _count(codes: jax.Array, thresholds: jax.Array) -> jax.Array:
    """How many codes reach each threshold."""
    reach = jnp.expand_dims(codes, -1) >= lax.expand_dims(thresholds, range(codes.ndim))
    return jnp.sum(reach, axis=tuple(range(codes.ndim)), dtype=jnp.uint32)


def _largest_reaching(
    count: Callable[[jax.Array], jax.Array],
    wanted: jax.Array,
    width: int,
    unsigned: np.dtype,
    like: object,
) -> jax.Array:
    """The largest t in each row with ``count(t) >= wanted``, for counts that fall with t.

    `count` takes several thresholds a row, `[rows, 15]`, and counts what reaches each.
    """
    digits = jnp.arange(1, 1 << _DIGIT, dtype=unsigned)
    passes = -(-width // _DIGIT)

    def one_pass(done: jax.Array, found: jax.Array) -> jax.Array:
        shift = (_DIGIT * (passes - 1 - done)).astype(unsigned)
        tried = found[:, None] + (digits << shift)[None, :]
        digit = jnp.sum(count(tried) >= wanted[:, None], axis=1, dtype=unsigned)
        return found + (digit << shift)

    start = varying_like(jnp.zeros(wanted.shape, unsigned), like)
    return lax.fori_loop(0, passes, one_pass, start)


def _limits(
    leaves: Sequence[Ranked], cuts: jax.Array, share: jax.Array, equal: jax.Array, order: Order
) -> jax.Array:
    """The flat index in each leaf below which entries at the cut are kept."""
    sizes = jnp.asarray([leaf.values.size for leaf in leaves], jnp.uint32)
    width = max(leaf.values.size for leaf in leaves).bit_length()

    def tied_below(bounds: jax.Array) -> jax.Array:
        rows = []
        for leaf, cut, bound in zip(leaves, cuts, bounds, strict=True):
            tied = codes_of(leaf, order) == cut
            late = flat_index(leaf.values.shape)[..., None] >= lax.expand_dims(
                bound, range(leaf.values.ndim)
            )
            axes = tuple(range(leaf.values.ndim))
            rows.append(jnp.sum(tied[..., None] & late, axis=axes, dtype=jnp.uint32))
        return jnp.stack(rows)

    def search() -> jax.Array:
        # The entries from the limit on are those that are tied and not kept.
        last = _largest_reaching(tied_below, equal - share, width, np.dtype("u4"), (leaves, cuts))
        return jnp.where(share == equal, sizes, last)

    inside = jnp.any((share > 0) & (share < equal))
    return lax.cond(inside, search, lambda: jnp.where(share == equal, sizes, jnp.uint32(0)))


def flat_index(shape: tuple[int, ...]) -> jax.Array:
    """The position of each entry in the flattened leaf; it costs no memory inside a fusion."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]))
        index = index + lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return index


def _mask(codes: jax.Array, cut: jax.Array, limit: jax.Array) -> jax.Array:
    kept = (codes > cut) | ((codes == cut) & (flat_index(codes.shape) < limit))
    return kept & (codes != codes.dtype.type(OUTSIDE))
