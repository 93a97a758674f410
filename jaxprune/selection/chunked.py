"""Selection on one CPU: one threshold a pass, placed so well that few passes are needed.

A pass counts, in each leaf, the scores above its group's threshold; it costs what one sum over the
leaves costs. Each group has a bracket, ``count(code > low) >= k > count(code > high)``, which every
pass narrows. `thresholds` places the next one. A leaf whose counts agree at both ends has nothing
inside the bracket, and is not read again.

Leaves are read where they lie, as flat arrays cut into blocks of `BLOCK` and a rest.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.selection import thresholds
from jaxprune.selection.keys import Order, Ranked, bits_of
from jaxprune.selection.limits import group_sums, shares, varying_like

BLOCK = 1024
"""Entries in a block of a leaf."""

_ROWS = 32
"""XLA:CPU sums (32, n) bytes over the first axis as fast as it reads; with 64 rows it does not."""


class Bracket(NamedTuple):
    """What the passes so far have found out.

    Attributes:
      passes: how many there were.
      low: codes with ``count(code > low) >= k``, `[G]`.
      high: codes with ``count(code > high) < k`` (or k = 0), `[G]`.
      above_low: entries of each leaf above its group's low code, `[L]`.
      above_high: entries of each leaf above its group's high code, `[L]`.
      stuck: whether the last pass moved no count, `[G]`.
    """

    passes: jax.Array
    low: jax.Array
    high: jax.Array
    above_low: jax.Array
    above_high: jax.Array
    stuck: jax.Array


def keep_largest(
    leaves: Sequence[Ranked], counts: jax.Array, groups: Sequence[int], order: Order
) -> list[jax.Array]:
    """The masks of `jaxprune.selection.keep_largest`.

    Args:
      leaves: the scores, none empty.
      counts: how many to keep in each group, at most the number of its candidates; `uint32[G]`.
      groups: the group of each leaf.
      order: the order of the scores.

    Returns:
      Bool masks of the leaves' shapes.
    """
    return keep_largest_and_passes(leaves, counts, groups, order)[0]


def keep_largest_and_passes(
    leaves: Sequence[Ranked], counts: jax.Array, groups: Sequence[int], order: Order
) -> tuple[list[jax.Array], jax.Array]:
    """As `keep_largest`, with the number of passes over the scores."""
    flat = [_flat(leaf) for leaf in leaves]
    found = _narrow(flat, counts, groups, order)
    numbers = np.asarray(groups)
    exact = group_sums(found.above_low, groups, len(counts)) == counts
    cuts = jnp.where(exact, found.low, found.high)[numbers]
    above = jnp.where(exact[numbers], found.above_low, found.above_high)
    equal = found.above_low - found.above_high
    share = shares(counts, above, equal, groups)
    limits = _limits(flat, cuts, share, equal, order)
    masks = [
        _mask(x, cuts[i], limits[i], order).reshape(leaf.values.shape)
        for i, (x, leaf) in enumerate(zip(flat, leaves, strict=True))
    ]
    return masks, found.passes


def _flat(leaf: Ranked) -> Ranked:
    candidates = None if leaf.candidates is None else leaf.candidates.reshape(-1)
    return Ranked(leaf.values.reshape(-1), leaf.magnitude, candidates)


def _narrow(
    flat: list[Ranked], counts: jax.Array, groups: Sequence[int], order: Order
) -> Bracket:
    """Passes over the scores until each bracket holds one code, or separates exactly k scores."""
    numbers, group_count = np.asarray(groups), len(counts)
    sample = thresholds.sample(flat, groups, group_count, order)

    def open_groups(state: Bracket) -> jax.Array:
        reached = group_sums(state.above_low, groups, group_count)
        narrow = state.high - state.low <= order.unsigned.type(1)
        return ~(narrow | (reached == counts) | (counts == 0))

    def one_pass(state: Bracket) -> Bracket:
        unfinished = open_groups(state)
        at_low = group_sums(state.above_low, groups, group_count)
        at_high = group_sums(state.above_high, groups, group_count)
        tried = thresholds.choose(state, counts, at_low, at_high, sample, order)
        read = unfinished[numbers] & (state.above_low != state.above_high)
        above = _count_above(flat, tried[numbers], read, state.above_low, order)
        at = group_sums(above, groups, group_count)
        raised = unfinished & (at >= counts)
        lowered = unfinished & (at < counts)
        return Bracket(
            state.passes + 1,
            jnp.where(raised, tried, state.low),
            jnp.where(lowered, tried, state.high),
            jnp.where(raised[numbers], above, state.above_low),
            jnp.where(lowered[numbers], above, state.above_high),
            (at == at_low) | (at == at_high),
        )

    sizes = jnp.stack([_candidates(leaf) for leaf in flat])
    start = Bracket(
        jnp.int32(0),
        jnp.zeros(group_count, order.unsigned),
        jnp.full(group_count, order.highest, order.unsigned),
        sizes,
        jnp.zeros_like(sizes),
        jnp.zeros(group_count, bool),
    )
    start = Bracket(*(varying_like(x, (flat, counts)) for x in start))
    return lax.while_loop(lambda state: jnp.any(open_groups(state)), one_pass, start)


def _candidates(leaf: Ranked) -> jax.Array:
    if leaf.candidates is None:
        return jnp.uint32(leaf.values.size)
    return jnp.sum(leaf.candidates, dtype=jnp.uint32)


def _keys(leaf: Ranked, order: Order) -> jax.Array:
    """The scores in two or three integer operations: in the order of codes, NaN wrapped to below.

    Only comparisons with `_key_of` of the same leaf mean something.
    """
    unsigned, bits = order.unsigned.type, bits_of(leaf, order)
    if leaf.magnitude:
        return (bits << unsigned(1)) + unsigned(2**order.width - 2 * (order.infinity + 1))
    signs = lax.bitcast_convert_type(bits, np.dtype(f"int{order.width}")) >> (order.width - 1)
    signs = lax.bitcast_convert_type(signs, order.unsigned)
    value = (bits ^ (signs & unsigned(2 ** (order.width - 1) - 1))) - signs
    return value + unsigned(2**order.width - (order.infinity + 1))


def _key_of(code: jax.Array, magnitude: bool, order: Order) -> jax.Array:
    """What `_keys` gives for a code, such that ``key > key_of(code)`` is ``code' > code``."""
    unsigned, infinity = order.unsigned.type, order.infinity
    if not magnitude:
        return code + unsigned(2**order.width - 2 * infinity - 3)
    below_zero = unsigned(infinity + 1)
    doubled = (jnp.maximum(code, below_zero) - below_zero) << unsigned(1)
    nan = unsigned(2**order.width - 2 * (infinity + 1) - 2)
    return jnp.where(code == unsigned(0), nan - unsigned(2), doubled + nan)


def _part(leaf: Ranked, start: int, stop: int) -> Ranked:
    candidates = None if leaf.candidates is None else leaf.candidates[start:stop]
    return Ranked(leaf.values[start:stop], leaf.magnitude, candidates)


def _count_above(
    flat: list[Ranked], codes: jax.Array, read: jax.Array, unread: jax.Array, order: Order
) -> jax.Array:
    """How many scores of each leaf lie above a code, `[L]`; `unread` where a leaf is not read."""
    counted = [
        lax.cond(read[i], _counting(leaf, codes[i], order), _constant(unread[i]))
        for i, leaf in enumerate(flat)
    ]
    return jnp.stack(lax.optimization_barrier(counted))


def _counting(leaf: Ranked, code: jax.Array, order: Order) -> Callable[[], jax.Array]:
    return lambda: _count_leaf(leaf, _key_of(code, leaf.magnitude, order), order)


def _constant(value: jax.Array) -> Callable[[], jax.Array]:
    return lambda: value


def _count_leaf(leaf: Ranked, key: jax.Array, order: Order) -> jax.Array:
    # The barrier keeps XLA from computing the keys once, outside the loop, and storing them.
    values, key, candidates = lax.optimization_barrier((leaf.values, key, leaf.candidates))
    leaf = Ranked(values, leaf.magnitude, candidates)
    main = values.size // BLOCK * BLOCK
    total = jnp.uint32(0)
    if main:
        hits = _hits(_part(leaf, 0, main), key, order).reshape(_ROWS, -1)
        bytes_ = lax.reduce(hits.astype(jnp.int8), np.int8(0), lax.add, (0,))
        total += jnp.sum(bytes_.astype(jnp.uint32), dtype=jnp.uint32)
    if main < values.size:
        total += jnp.sum(_hits(_part(leaf, main, values.size), key, order), dtype=jnp.uint32)
    return total


def _hits(leaf: Ranked, key: jax.Array, order: Order) -> jax.Array:
    hits = _keys(leaf, order) > key
    return hits if leaf.candidates is None else hits & leaf.candidates


def _ties(leaf: Ranked, code: jax.Array, order: Order) -> jax.Array:
    """Where the code of a flat leaf is the given one."""
    nan = _key_of(order.unsigned.type(1), leaf.magnitude, order)
    ties = jnp.maximum(_keys(leaf, order), nan) == _key_of(code, leaf.magnitude, order)
    return ties if leaf.candidates is None else ties & leaf.candidates


def _limits(
    flat: list[Ranked], cuts: jax.Array, share: jax.Array, equal: jax.Array, order: Order
) -> jax.Array:
    """The index in each leaf below which entries at the cut are kept."""
    inside = (share > 0) & (share < equal)
    sizes = jnp.asarray([leaf.values.size for leaf in flat], jnp.uint32)
    whole = jnp.where(share > 0, sizes, jnp.uint32(0))

    def search() -> jax.Array:
        return _behind_tie(flat, cuts, share, inside, order)

    found = lax.cond(jnp.any(inside), search, lambda: whole)
    return jnp.where(inside, found, whole)


def _behind_tie(
    flat: list[Ranked], cuts: jax.Array, share: jax.Array, inside: jax.Array, order: Order
) -> jax.Array:
    """The index behind the share-th tie of each leaf that is cut inside: its block, then its place."""
    blocks = [_tied_blocks(x, cuts[i], inside[i], order) for i, x in enumerate(flat)]
    blocks = lax.optimization_barrier(blocks)
    first = np.cumsum([0] + [x.size for x in blocks[:-1]])
    running = jnp.concatenate([jnp.zeros(1, jnp.uint32), jnp.cumsum(jnp.concatenate(blocks))])
    goals = running[first] + share
    found = jnp.searchsorted(running[1:], goals).astype(jnp.uint32)
    found = jnp.where(inside, found, jnp.asarray(first, jnp.uint32))
    left = goals - running[found]
    places = []
    for i, leaf in enumerate(flat):
        width = min(BLOCK, leaf.values.size)
        start = (found[i] - np.uint32(first[i])) * np.uint32(BLOCK)
        # A window at the end of the leaf begins in the block before.
        begin = jnp.minimum(start, np.uint32(leaf.values.size - width))
        window = _ties(_sliced(leaf, begin, width), cuts[i], order)
        window &= lax.iota(jnp.uint32, width) >= start - begin
        place = jnp.cumsum(window, dtype=jnp.uint32)
        places.append(begin + jnp.sum(place < left[i], dtype=jnp.uint32) + np.uint32(1))
    return jnp.stack(places)


def _sliced(leaf: Ranked, begin: jax.Array, width: int) -> Ranked:
    def window(x: jax.Array) -> jax.Array:
        return lax.dynamic_slice(x, (begin,), (width,))

    candidates = None if leaf.candidates is None else window(leaf.candidates)
    return Ranked(window(leaf.values), leaf.magnitude, candidates)


def _tied_blocks(leaf: Ranked, cut: jax.Array, read: jax.Array, order: Order) -> jax.Array:
    """How many ties each block of a leaf holds."""
    size = leaf.values.size
    main = size // BLOCK * BLOCK

    def count() -> jax.Array:
        ties = _ties(leaf, cut, order)
        blocks = jnp.sum(ties[:main].reshape(-1, BLOCK), axis=1, dtype=jnp.uint32)
        rest = jnp.sum(ties[main:], keepdims=True, dtype=jnp.uint32)
        return blocks if main == size else jnp.concatenate([blocks, rest])

    def nothing() -> jax.Array:
        return varying_like(jnp.zeros(-(-size // BLOCK), jnp.uint32), (leaf, cut, read))

    return lax.cond(read, count, nothing)


def _mask(leaf: Ranked, cut: jax.Array, limit: jax.Array, order: Order) -> jax.Array:
    nan = _key_of(order.unsigned.type(1), leaf.magnitude, order)
    keys, key = jnp.maximum(_keys(leaf, order), nan), _key_of(cut, leaf.magnitude, order)
    index = lax.iota(jnp.uint32, leaf.values.size)
    mask = (keys > key) | ((keys == key) & (index < limit))
    return mask if leaf.candidates is None else mask & leaf.candidates
