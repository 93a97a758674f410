"""Some blocks of leaves in one matrix, in which a search ends without reading the leaves again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.selection.blocks import BLOCK, Blocks, counts_in, rows_of, words_of
from jaxprune.selection.keys import NAN
from jaxprune.selection.limits import leaf_sums

_SHARE = 80
"""There is room for one block of a leaf in so many,"""

_LEAST = 64
"""or for so many, if that is more and the leaf has them."""


class Rows(NamedTuple):
    """Blocks, copied.

    Attributes:
      codes: the codes of each block, 0 in rows without one, `[R, BLOCK]`.
      block: the number of the block, or that of all blocks where there is none, `[R]`.
      leaf_of_row: the leaf of each row.
    """

    codes: jax.Array
    block: jax.Array
    leaf_of_row: np.ndarray


def _most(blocks: Blocks) -> np.ndarray:
    """How many whole blocks of each leaf the matrix has room for; rests are always in it."""
    return np.minimum(blocks.whole, np.maximum(_LEAST, blocks.whole // _SHARE))


def _without_rests(blocks: Blocks, active: jax.Array) -> jax.Array:
    """Active blocks that are no rests."""
    lengths = blocks.lengths
    is_rest = np.zeros(int(lengths.sum()), bool)
    is_rest[np.cumsum(lengths)[blocks.with_rest] - 1] = True
    return active & ~is_rest


def fit(blocks: Blocks, entries: jax.Array) -> jax.Array:
    """Whether there is room for the blocks of so many entries of each leaf, wherever they lie."""
    most = _most(blocks)
    return (entries <= most.astype(np.uint32)) | (most == blocks.whole)


def taken(blocks: Blocks, active: jax.Array) -> Rows:
    """The active blocks, as many as there is room for, and all rests."""
    lengths, most = blocks.lengths.astype(np.int32), _most(blocks).astype(np.int32)
    first, total = np.cumsum(lengths, dtype=np.int32) - lengths, int(lengths.sum())
    slots = np.cumsum(most, dtype=np.int32) - most
    whole, leaf = _without_rests(blocks, active), blocks.leaf_of_block
    running = jnp.cumsum(whole, dtype=jnp.int32)
    rank = running - jnp.pad(running, (1, 0))[first][leaf] - 1
    slot = jnp.where(whole & (rank < most[leaf]), slots[leaf] + rank, int(most.sum()))
    empty = jnp.full(int(most.sum()), -1, jnp.int32)
    inside = empty.at[slot].set(np.arange(total, dtype=np.int32) - first[leaf], mode="drop")
    leaf_of_slot = np.repeat(np.arange(len(lengths)), most)
    parts = rows_of(blocks, jnp.split(inside, slots[1:]))
    codes = jnp.concatenate(jax.lax.optimization_barrier([*parts, blocks.rests]))
    with_rest = np.asarray(blocks.with_rest, int)
    block = jnp.where(inside >= 0, first[leaf_of_slot] + inside, total)
    block = jnp.concatenate([block, (first + lengths - 1)[with_rest]])
    leaf_of_row = np.concatenate([leaf_of_slot, with_rest])
    return Rows(jax.lax.optimization_barrier(codes), block, leaf_of_row)


def room(blocks: Blocks, groups: np.ndarray, number: int) -> np.ndarray:
    """How many entries of a group, evenly spread, have room if each is in another block, `[G]`."""
    sizes, most = np.asarray([leaf.values.size for leaf in blocks.leaves]), _most(blocks)
    shares = np.where(most < blocks.whole, most / sizes, 1.0)
    members = [np.flatnonzero(groups == group) for group in range(number)]
    return np.asarray([sizes[leaves].sum() * shares[leaves].min() for leaves in members])


def hold_all(blocks: Blocks) -> bool:
    """Whether there is room for all blocks of all leaves."""
    return bool((_most(blocks) == blocks.whole).all())


def everything(blocks: Blocks) -> Rows:
    """All blocks, where there is room for them."""
    lengths, with_rest = blocks.lengths, np.asarray(blocks.with_rest, int)
    whole, first = blocks.whole, np.cumsum(lengths) - lengths
    block = [start + np.arange(n) for start, n in zip(first, whole, strict=True)]
    block = np.concatenate([*block, (first + lengths - 1)[with_rest]])
    owners = np.concatenate([np.repeat(np.arange(len(whole)), whole), with_rest])
    parts = rows_of(blocks, [jnp.arange(n, dtype=jnp.int32) for n in whole])
    codes = jnp.concatenate(jax.lax.optimization_barrier([*parts, blocks.rests]))
    return Rows(jax.lax.optimization_barrier(codes), jnp.asarray(block, jnp.int32), owners)


def numbers(rows: Rows, leaves: int) -> jax.Array:
    """How many entries of each leaf are neither NaN nor no candidates, `[L]`."""
    here = jnp.sum(rows.codes > rows.codes.dtype.type(NAN), axis=1, dtype=jnp.uint32)
    return leaf_sums(here, rows.leaf_of_row, leaves)


def of_blocks(rows: Rows, per_block: jax.Array) -> jax.Array:
    """What belongs to the blocks, for each row; 0 in rows without one."""
    return per_block.at[rows.block].get(mode="fill", fill_value=0)


def put(rows: Rows, per_block: jax.Array, per_row: jax.Array) -> jax.Array:
    """What belongs to the blocks, renewed where there is a row."""
    return per_block.at[rows.block].set(per_row, mode="drop")


def count_above(rows: Rows, codes: jax.Array, read: jax.Array) -> jax.Array:
    """As `blocks.count_above`, for each row."""
    limits = jnp.repeat(codes[:, rows.leaf_of_row], BLOCK, axis=1)
    found = counts_in(words_of(rows.codes.reshape(-1), limits))
    return jnp.where(read[rows.leaf_of_row][:, None], found, jnp.uint32(0))
