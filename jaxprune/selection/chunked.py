"""Selection on one CPU: one threshold a pass, placed so well that few passes are needed.

A pass counts, in each leaf, the scores above its group's threshold; it costs what one sum over the
leaves costs. Each group has a bracket, ``count(code > low) >= k > count(code > high)``, which every
pass narrows; `thresholds` places the next one. A leaf whose counts agree at both ends has nothing
inside the bracket, and is not read again.

Leaves are read where they lie, as flat arrays of whole blocks (`blocks`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.selection import thresholds
from jaxprune.selection.blocks import (
    Blocks,
    candidates,
    count_above,
    index_behind_tie,
    per_leaf,
    split,
    written,
)
from jaxprune.selection.keys import Order, Ranked
from jaxprune.selection.limits import group_sums, shares, varying_like


class Bracket(NamedTuple):
    """What the passes so far have found out.

    Attributes:
      passes: how many there were.
      low: codes with ``count(code > low) >= k``, `[G]`.
      high: codes with ``count(code > high) < k`` (or k = 0), `[G]`.
      above_low: entries of each leaf above its group's low code, `[L]`.
      above_high: entries of each leaf above its group's high code, `[L]`.
      blocks_low: the same as `above_low` for each block, `[B]`.
      blocks_high: the same as `above_high` for each block, `[B]`.
      stuck: whether the last pass moved no count, `[G]`.
    """

    passes: jax.Array
    low: jax.Array
    high: jax.Array
    above_low: jax.Array
    above_high: jax.Array
    blocks_low: jax.Array
    blocks_high: jax.Array
    stuck: jax.Array


def keep_largest(
    leaves: Sequence[Ranked], counts: jax.Array, groups: Sequence[int], order: Order
) -> list[jax.Array]:
    """The masks of `jaxprune.selection.keep_largest`.

    Args:
      leaves: the scores, none empty.
      counts: how many to keep in each group, `uint32[G]`.
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
    blocks, numbers = split(leaves, order), np.asarray(groups)
    everything = candidates(blocks)
    sizes = per_leaf(blocks, everything)
    counts = jnp.minimum(counts, group_sums(sizes, groups, len(counts)))
    start = _start(blocks, everything, sizes, counts)
    found = _narrow(start, blocks, counts, groups)
    exact = group_sums(found.above_low, groups, len(counts)) == counts
    cuts = jnp.where(exact, found.low, found.high)[numbers]
    above = jnp.where(exact[numbers], found.above_low, found.above_high)
    share = shares(counts, above, found.above_low - found.above_high, groups)
    limits = _limits(blocks, found, cuts, share)
    masks = written(blocks, cuts, limits)
    shapes = [leaf.values.shape for leaf in leaves]
    return [mask.reshape(s) for mask, s in zip(masks, shapes, strict=True)], found.passes


def _start(blocks: Blocks, everything: jax.Array, sizes: jax.Array, counts: jax.Array) -> Bracket:
    unsigned, number = blocks.order.unsigned, len(counts)
    start = Bracket(
        passes=jnp.int32(0),
        low=jnp.zeros(number, unsigned),
        high=jnp.full(number, blocks.order.highest, unsigned),
        above_low=sizes,
        above_high=jnp.zeros_like(sizes),
        blocks_low=everything,
        blocks_high=jnp.zeros_like(everything),
        stuck=jnp.zeros(number, bool),
    )
    return Bracket(*(varying_like(x, (blocks.leaves, counts)) for x in start))


def _narrow(start: Bracket, blocks: Blocks, counts: jax.Array, groups: Sequence[int]) -> Bracket:
    """Passes over the scores until each bracket holds one code, or separates exactly k scores."""
    numbers, order = np.asarray(groups), blocks.order
    sample = thresholds.sample(blocks.leaves, groups, len(counts), order)
    leaf_of_block = blocks.leaf_of_block
    group_of_block = numbers[leaf_of_block]

    def per_group(per_leaf: jax.Array) -> jax.Array:
        return group_sums(per_leaf, groups, len(counts))

    def unfinished(state: Bracket) -> jax.Array:
        narrow = state.high - state.low <= order.unsigned.type(1)
        return ~(narrow | (per_group(state.above_low) == counts) | (counts == jnp.uint32(0)))

    def one_pass(state: Bracket) -> Bracket:
        going = unfinished(state)
        at_low, at_high = per_group(state.above_low), per_group(state.above_high)
        tried = thresholds.choose(state, counts, at_low, at_high, sample, order)
        read = going[numbers] & (state.above_low != state.above_high)
        in_blocks = count_above(blocks, tried[numbers], read)
        in_blocks = jnp.where(read[leaf_of_block], in_blocks, state.blocks_low)
        above = jnp.where(read, per_leaf(blocks, in_blocks), state.above_low)
        at = per_group(above)
        raised, lowered = going & (at >= counts), going & (at < counts)
        return Bracket(
            passes=state.passes + 1,
            low=jnp.where(raised, tried, state.low),
            high=jnp.where(lowered, tried, state.high),
            above_low=jnp.where(raised[numbers], above, state.above_low),
            above_high=jnp.where(lowered[numbers], above, state.above_high),
            blocks_low=jnp.where(raised[group_of_block], in_blocks, state.blocks_low),
            blocks_high=jnp.where(lowered[group_of_block], in_blocks, state.blocks_high),
            stuck=(at == at_low) | (at == at_high),
        )

    return lax.while_loop(lambda state: jnp.any(unfinished(state)), one_pass, start)


def _limits(blocks: Blocks, found: Bracket, cuts: jax.Array, share: jax.Array) -> jax.Array:
    """The index in each leaf below which entries at the cut are kept."""
    inside = (share > jnp.uint32(0)) & (share < found.above_low - found.above_high)
    sizes = jnp.asarray([leaf.values.size for leaf in blocks.leaves], jnp.uint32)
    whole = jnp.where(share > jnp.uint32(0), sizes, jnp.uint32(0))
    tied = found.blocks_low - found.blocks_high
    searched = lax.cond(
        jnp.any(inside),
        lambda: index_behind_tie(blocks, tied, cuts, share, inside),
        lambda: whole,
    )
    return jnp.where(inside, searched, whole)
