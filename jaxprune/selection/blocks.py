"""Leaves as flat arrays of whole blocks, read in place, and their rests, copied into one matrix.

The forms here are those that XLA:CPU turns into loops nearly as fast as the memory: sums over the
middle axis of (n, 16, 8) or (n, 32, 8). Sums over longer axes it rewrites into trees, with large
buffers. Four thresholds are counted in one reading, in the four bytes of a word.

XLA:CPU compiles equal kernels once. So kernels of leaves of one size are made equal: what differs
between leaves (a threshold, a number) comes in as an operand and never as a constant: see
`_with_numbers`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.selection.keys import NAN, OUTSIDE, Order, Ranked, bits_of, codes_of
from jaxprune.selection.limits import varying_like

BLOCK = 256
"""Entries in a block."""

TRIED = 4
"""Thresholds counted in one pass."""

_LANES = 8
_ROWS = 16
"""What is summed into one number, where these are bytes of one count, or floating."""

_COLUMNS = BLOCK // _ROWS
_WORD_ROWS = 32
"""What is summed into one word of four counts: enough to halve the words, and a byte holds it."""


class Blocks(NamedTuple):
    """The leaves, cut.

    Attributes:
      leaves: the leaves as flat arrays.
      rests: codes of what is left of the leaves named in `with_rest`, padded with 0, `[R, BLOCK]`.
      with_rest: the numbers of the leaves that are no multiple of a block.
      true: always true, which XLA does not know.
      order: the order of the scores.
    """

    leaves: list[Ranked]
    rests: jax.Array
    with_rest: list[int]
    true: jax.Array
    order: Order

    @property
    def whole(self) -> np.ndarray:
        """Blocks in each leaf without its rest."""
        return np.asarray([leaf.values.size // BLOCK for leaf in self.leaves])

    @property
    def lengths(self) -> np.ndarray:
        """Blocks in each leaf, the rest counted as one."""
        return np.asarray([-(-leaf.values.size // BLOCK) for leaf in self.leaves])

    @property
    def leaf_of_block(self) -> np.ndarray:
        """The number of the leaf each block belongs to."""
        return np.repeat(np.arange(len(self.leaves)), self.lengths)


def split(leaves: Sequence[Ranked], order: Order) -> Blocks:
    """Cuts leaves into blocks."""
    flat = [_each(leaf, lambda x: x.reshape(-1)) for leaf in leaves]
    with_rest = [i for i, leaf in enumerate(flat) if leaf.values.size % BLOCK]
    rests = [_rest(flat[i], order) for i in with_rest]
    empty = jnp.zeros((0, BLOCK), order.unsigned)
    rest = lax.optimization_barrier(jnp.stack(rests)) if rests else empty
    first = codes_of(_each(flat[0], lambda x: x[:1]), order)[0]
    return Blocks(flat, rest, with_rest, first <= order.unsigned.type(order.highest), order)


def _each(leaf: Ranked, change: Callable[[jax.Array], jax.Array]) -> Ranked:
    candidates = None if leaf.candidates is None else change(leaf.candidates)
    return Ranked(change(leaf.values), leaf.magnitude, candidates)


def _whole(x: jax.Array) -> jax.Array:
    """The whole blocks of a flat array."""
    return lax.slice(x, (0,), (x.size // BLOCK * BLOCK,))


def _whole_and_rest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The whole blocks of an array of any shape, flat, and what is left of it."""
    flat = x.reshape(-1)
    return _whole(flat), lax.slice(flat, (flat.size // BLOCK * BLOCK,), flat.shape)


def _rest(leaf: Ranked, order: Order) -> jax.Array:
    """The codes of what is left of a flat leaf, as one block."""
    start = leaf.values.size // BLOCK * BLOCK
    codes = codes_of(_each(leaf, lambda x: lax.slice(x, (start,), x.shape)), order)
    return jnp.pad(codes, (0, BLOCK - codes.size))


def _keys(leaf: Ranked, order: Order) -> jax.Array:
    """The scores in few integer operations: in the order of codes, but NaN wrapped to below.

    Only comparisons with `_keys_of` mean something.
    """
    unsigned, bits = order.unsigned.type, bits_of(leaf, order)
    if leaf.magnitude:
        return (bits << unsigned(1)) + unsigned(2**order.width - 2 * (order.infinity + 1))
    sign = unsigned(1 << (order.width - 1))
    value = jnp.where(bits >= sign, sign - bits, bits)
    return value + unsigned(2**order.width - (order.infinity + 1))


def _keys_of(codes: jax.Array, leaves: Sequence[Ranked], order: Order) -> jax.Array:
    """For a code in each leaf the key such that ``key > keys_of(code)`` is ``code' > code``."""
    unsigned, below_zero = order.unsigned.type, order.unsigned.type(order.infinity + 1)
    signed = codes + unsigned(2**order.width - 2 * order.infinity - 3)
    nan = _key_of_nan(True, order)
    doubled = ((jnp.maximum(codes, below_zero) - below_zero) << unsigned(1)) + nan
    doubled = jnp.where(codes == unsigned(OUTSIDE), nan - unsigned(2), doubled)
    magnitude = np.asarray([leaf.magnitude for leaf in leaves])
    return jnp.where(np.broadcast_to(magnitude, codes.shape), doubled, signed)


def _key_of_nan(magnitude: bool, order: Order) -> np.unsignedinteger:
    """The highest key that a NaN can have."""
    nans = 2 * order.infinity + (4 if magnitude else 3 - NAN)
    return order.unsigned.type(2**order.width - nans)


def _with_numbers(
    blocks: Blocks, run: Callable[[list[jax.Array]], list[jax.Array]], like: Any
) -> list[jax.Array]:
    """Runs a function of the numbers of the leaves, with these as operands.

    XLA folds a constant into the kernels that read it, but not into those of a branch.
    """

    def never(numbers: list[jax.Array]) -> list[jax.Array]:
        shapes = jax.eval_shape(run, numbers)
        return jax.tree.map(lambda x: varying_like(jnp.zeros(x.shape, x.dtype), like), shapes)

    numbers = lax.optimization_barrier([jnp.int32(i) for i in range(len(blocks.leaves))])
    return lax.cond(blocks.true, run, never, numbers)


def _at(vector: jax.Array, number: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(vector, number, keepdims=False)


def candidates(blocks: Blocks) -> jax.Array:
    """How many candidates each block has, `[B]`."""
    if all(leaf.candidates is None for leaf in blocks.leaves):
        sizes = [leaf.values.size for leaf in blocks.leaves]
        full = [np.clip(n - BLOCK * np.arange(-(-n // BLOCK)), 0, BLOCK) for n in sizes]
        return jnp.asarray(np.concatenate(full), jnp.uint32)

    def columns(leaf: Ranked) -> jax.Array:
        if leaf.candidates is None:
            return jnp.full((leaf.values.size // BLOCK, _COLUMNS), BLOCK // _COLUMNS, jnp.int8)
        return _columns(_whole(leaf.candidates))

    rests = jnp.sum(blocks.rests > blocks.order.unsigned.type(OUTSIDE), axis=1, dtype=jnp.uint32)
    found = [columns(leaf) for leaf in blocks.leaves if leaf.values.size >= BLOCK]
    *joined, rests = lax.optimization_barrier([*found, rests])
    if not joined:
        return rests
    columns_of_block = jnp.concatenate(joined).astype(jnp.uint32)
    return _in_order(blocks, jnp.sum(columns_of_block, axis=1, dtype=jnp.uint32), rests)


def count_above(blocks: Blocks, codes: jax.Array, read: jax.Array) -> jax.Array:
    """How many scores of each block lie above each code of its leaf; 0 in leaves not read.

    Args:
      blocks: the leaves.
      codes: at least 1, `[TRIED, L]`.
      read: which leaves to read, `[L]`.

    Returns:
      `uint32[B, TRIED]`, leaf after leaf.
    """
    keys = _keys_of(codes, blocks.leaves, blocks.order)

    def words(numbers: list[jax.Array]) -> list[jax.Array]:
        return [
            _words_above(leaf, keys, number, read, blocks.order)
            for leaf, number in zip(blocks.leaves, numbers, strict=True)
            if leaf.values.size >= BLOCK
        ]

    found = _with_numbers(blocks, words, (blocks.leaves, keys, read))
    numbers = np.asarray(blocks.with_rest, int)
    rests = words_of(blocks.rests.reshape(-1), jnp.repeat(codes[:, numbers], BLOCK, axis=1))
    # The barrier keeps XLA from joining within the kernels that count: seven times slower.
    joined = lax.optimization_barrier([*found, rests])
    counts = counts_in(jnp.concatenate(joined))
    rests = jnp.where(read[numbers][:, None], counts[len(counts) - len(numbers) :], jnp.uint32(0))
    return _in_order(blocks, counts[: len(counts) - len(numbers)], rests)


def words_of(keys: jax.Array, limits: Sequence[jax.Array] | jax.Array) -> jax.Array:
    """Counts of keys above each of four limits, a byte each, in 32 bits; `[n] -> [n / 32]`."""
    word = sum(
        jnp.where(keys > limit, np.uint32(1 << 8 * place), np.uint32(0))
        for place, limit in enumerate(limits)
    )
    rows = jnp.asarray(word).reshape(-1, _WORD_ROWS, _LANES)
    return lax.reduce(rows, np.uint32(0), lax.add, (1,)).reshape(-1)


def counts_in(words: jax.Array) -> jax.Array:
    """The counts of each block that its words hold, `[B * BLOCK / 32] -> [B, TRIED]`.

    A byte of a word holds at most 32, the sum over a block 256: bytes are first moved apart, those
    of the first and third threshold into the halves of one word, the others into those of another.
    """
    pairs = words.reshape(-1, 2, BLOCK // _WORD_ROWS // 2)
    every_other = np.uint32(0x00FF00FF)
    even = lax.reduce(pairs & every_other, np.uint32(0), lax.add, (1,))
    odd = lax.reduce((pairs >> np.uint32(8)) & every_other, np.uint32(0), lax.add, (1,))
    both = jnp.sum(jnp.stack([even, odd], axis=1), axis=2, dtype=jnp.uint32)
    halves = jnp.stack([both & np.uint32(0xFFFF), both >> np.uint32(16)], axis=1)
    return halves.reshape(-1, TRIED)


def _columns(hits: jax.Array) -> jax.Array:
    rows = hits.astype(jnp.int8).reshape(-1, _ROWS, _LANES)
    return lax.reduce(rows, np.int8(0), lax.add, (1,)).reshape(-1, _COLUMNS)


def count_true(hits: jax.Array) -> jax.Array:
    """How many entries are True of a bool array that nobody has written yet, and nobody will."""
    whole, rest = _whole_and_rest(hits)
    return jnp.sum(_columns(whole), dtype=jnp.int32) + jnp.sum(rest, dtype=jnp.int32)


def sum_of(values: jax.Array) -> jax.Array:
    """The sum of an array of numbers that nobody has written yet, and nobody will."""
    whole, rest = _whole_and_rest(values)
    rows = whole.reshape(-1, _ROWS, _LANES)

    def add(a: jax.Array, b: jax.Array) -> jax.Array:
        # A plain sum XLA gives to a library, and writes the numbers to memory for it.
        return jnp.where(b == b, a + b, b)

    columns = lax.reduce(rows, np.zeros((), rest.dtype), add, (1,))
    return jnp.sum(lax.optimization_barrier(columns)) + jnp.sum(rest)


def largest_of(values: jax.Array) -> jax.Array:
    """The largest of an array of numbers, 0 or above, that nobody has written yet."""
    whole, rest = _whole_and_rest(values)
    rows = whole.reshape(-1, BLOCK // _COLUMNS, _COLUMNS)
    columns = lax.reduce(rows, np.zeros((), rest.dtype), lax.max, (1,))
    return jnp.maximum(jnp.max(columns, initial=0), jnp.max(rest, initial=0))


def _words_above(
    leaf: Ranked, keys: jax.Array, number: jax.Array, read: jax.Array, order: Order
) -> jax.Array:
    def count() -> jax.Array:
        # The barrier keeps XLA from computing all keys once, outside the loop, and storing them.
        values, chosen, limits = lax.optimization_barrier((leaf.values, leaf.candidates, keys))
        found = _keys(Ranked(_whole(values), leaf.magnitude), order)
        if chosen is not None:
            found = jnp.where(_whole(chosen), found, order.unsigned.type(0))
        return words_of(found, [_at(row, number) for row in limits])

    zeros = jnp.zeros(leaf.values.size // BLOCK * (BLOCK // _WORD_ROWS), jnp.uint32)
    zeros = varying_like(zeros, (leaf, keys, read))
    return lax.cond(_at(read, number), count, lambda: zeros)


def _in_order(blocks: Blocks, whole: jax.Array, rests: jax.Array) -> jax.Array:
    """What belongs to blocks, leaf after leaf, from that of the whole ones and of the rests."""
    if not blocks.with_rest:
        return whole
    owners = np.repeat(np.arange(len(blocks.leaves)), blocks.whole)
    place = np.argsort(np.concatenate([owners, blocks.with_rest]), kind="stable")
    return jnp.concatenate([whole, rests])[place]


def rows_of(blocks: Blocks, numbers: Sequence[jax.Array]) -> list[jax.Array]:
    """The codes of some of the whole blocks of each leaf.

    Args:
      blocks: the leaves.
      numbers: for each leaf the numbers of blocks within it, or -1 for a row of zeros.

    Returns:
      ``[n, BLOCK]`` for each leaf of a block or more.
    """

    def cut_out(_: list[jax.Array]) -> list[jax.Array]:
        pairs = zip(blocks.leaves, numbers, strict=True)
        return [_rows(leaf, n, blocks.order) for leaf, n in pairs if leaf.values.size >= BLOCK]

    return _with_numbers(blocks, cut_out, (blocks.leaves, list(numbers)))


def _rows(leaf: Ranked, numbers: jax.Array, order: Order) -> jax.Array:
    def rows(x: jax.Array) -> jax.Array:
        return jnp.take(_whole(x).reshape(-1, BLOCK), numbers, axis=0, mode="clip")

    codes = codes_of(_each(leaf, rows), order)
    return jnp.where(
        jnp.repeat(numbers[:, None] >= 0, BLOCK, axis=1), codes, order.unsigned.type(0)
    )


def index_behind_tie(
    blocks: Blocks, tied: jax.Array, cuts: jax.Array, share: jax.Array, inside: jax.Array
) -> jax.Array:
    """The index behind the share-th tie of each leaf that is cut inside: its block, then its place.

    Args:
      blocks: the leaves.
      tied: how many entries of each block are at the cut, `[B]`.
      cuts: the code at which each leaf is cut, `[L]`.
      share: how many of its entries with that code a leaf keeps, `[L]`.
      inside: whether that is neither none nor all of them; other leaves are not searched, `[L]`.

    Returns:
      `uint32[L]`.
    """
    first = jnp.asarray(np.cumsum(blocks.lengths) - blocks.lengths, jnp.uint32)
    running = jnp.pad(jnp.cumsum(tied, dtype=jnp.uint32), (1, 0))
    goals = running[first] + share
    found = jnp.searchsorted(running[1:], goals).astype(jnp.uint32)
    found = jnp.where(inside, found, first)
    starts = (found - first) * np.uint32(BLOCK)
    # A window at the end of a leaf begins in the block before.
    last = [max(leaf.values.size - BLOCK, 0) for leaf in blocks.leaves]
    begins = jnp.minimum(starts, jnp.asarray(last, jnp.uint32))

    def cut_out(numbers: list[jax.Array]) -> list[jax.Array]:
        pairs = zip(blocks.leaves, numbers, strict=True)
        return [_window(leaf, _at(begins, number), blocks.order) for leaf, number in pairs]

    windows = _with_numbers(blocks, cut_out, (blocks.leaves, begins))
    ties = jnp.stack(lax.optimization_barrier(windows)) == cuts[:, None]
    ties &= lax.broadcasted_iota(jnp.uint32, ties.shape, 1) >= (starts - begins)[:, None]
    places = jnp.cumsum(ties, axis=1, dtype=jnp.uint32)
    left = goals - running[found]
    return begins + jnp.sum(places < left[:, None], axis=1, dtype=jnp.uint32) + np.uint32(1)


def _window(leaf: Ranked, begin: jax.Array, order: Order) -> jax.Array:
    """The codes of one block of a leaf from an index on."""
    width = min(BLOCK, leaf.values.size)
    part = _each(leaf, lambda x: lax.dynamic_slice(x, (begin,), (width,)))
    return jnp.pad(codes_of(part, order), (0, BLOCK - width))


def written(blocks: Blocks, cuts: jax.Array, limits: jax.Array) -> list[jax.Array]:
    """The flat masks of what lies above the cuts, and of what lies at them below an index.

    Only scalars pass a conditional here: what reads a mask next can be fused with its kernel.
    """
    order, number = blocks.order, len(blocks.leaves)
    keys = _keys_of(cuts, blocks.leaves, order)

    def own(numbers: list[jax.Array]) -> list[jax.Array]:
        return [_at(x, number) for x in (keys, limits) for number in numbers]

    scalars = _with_numbers(blocks, own, (keys, limits))
    pairs = zip(blocks.leaves, scalars[:number], scalars[number:], strict=True)
    return [_mask(leaf, key, limit, order) for leaf, key, limit in pairs]


def _mask(leaf: Ranked, key: jax.Array, limit: jax.Array, order: Order) -> jax.Array:
    keys = jnp.maximum(_keys(leaf, order), _key_of_nan(leaf.magnitude, order))
    index = lax.iota(jnp.uint32, leaf.values.size)
    mask = (keys > key) | ((keys == key) & (index < limit))
    return mask if leaf.candidates is None else mask & leaf.candidates
