"""Selection on one CPU: four thresholds a pass, placed so well that few passes are needed.

A pass counts, in each leaf, the scores above four thresholds of its group. Each group has a
bracket, ``count(code > low) >= k > count(code > high)``, which every pass narrows; `thresholds`
places the next ones. A leaf whose counts agree at both ends has nothing inside the bracket, and is
not read again. As soon as so few scores lie inside the brackets that there is room for the blocks
they lie in, these are copied into a matrix (`rows`), and the search ends there. Small leaves begin
there.

Leaves are read where they lie, as flat arrays of whole blocks (`blocks`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.selection import rows, thresholds
from jaxprune.selection.blocks import (
    TRIED,
    Blocks,
    candidates,
    count_above,
    index_behind_tie,
    split,
    written,
)
from jaxprune.selection.keys import Order, Ranked
from jaxprune.selection.limits import Found, Points, group_sums, leaf_sums, shares, varying_like

_NONE = np.uint32(0)


class Bracket(NamedTuple):
    """What the passes so far have found out. Units are blocks, or rows of the matrix.

    Attributes:
      passes: how many there were.
      low: codes with ``count(code > low) >= k``, `[G]`.
      high: codes with ``count(code > high) < k`` (or k = 0), `[G]`.
      above_low: entries of each leaf above its group's low code, `[L]`.
      above_high: entries of each leaf above its group's high code, `[L]`.
      units_low: the same as `above_low` for each unit, `[U]`.
      units_high: the same as `above_high` for each unit, `[U]`.
      going: whether more passes are needed here, `[G]`; in the first pass all of them.
      stuck: whether the last pass moved no count, `[G]`.
      tried: the first pass's upper and lower of the three thresholds around the goal, `[2, G]`.
      reached: how many scores lie above them, `[2, G]`.
      numbers: candidates of each leaf that are not NaN, counted by the first pass, `[L]`.
    """

    passes: jax.Array
    low: jax.Array
    high: jax.Array
    above_low: jax.Array
    above_high: jax.Array
    units_low: jax.Array
    units_high: jax.Array
    going: jax.Array
    stuck: jax.Array
    tried: jax.Array
    reached: jax.Array
    numbers: jax.Array


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
      near: the points that the last search has found.

    Returns:
      Bool masks of the leaves' shapes, the points of the cuts, and whether there is a NaN.
    """
    return keep_largest_and_passes(leaves, counts, groups, order, near)[0]


def keep_largest_and_passes(
    leaves: Sequence[Ranked],
    counts: jax.Array,
    groups: Sequence[int],
    order: Order,
    near: Points | None = None,
) -> tuple[Found, tuple[jax.Array, jax.Array]]:
    """As `keep_largest`, with the numbers of passes over the scores, and over the matrix."""
    blocks = split(leaves, order)
    everything = candidates(blocks)
    sizes = leaf_sums(everything, blocks.leaf_of_block, len(leaves))
    counts = jnp.minimum(counts, group_sums(sizes, groups, len(counts)))
    search = _Search(blocks, counts, np.asarray(groups))
    like = (blocks.leaves, counts, near)
    found, passes = search.found(_start(blocks, everything, sizes, counts, like), near)
    exact = search.per_group(found.above_low) == counts
    group_cuts = jnp.where(exact, found.low, found.high)
    cuts, of_leaf = group_cuts[search.groups], exact[search.groups]
    above = jnp.where(of_leaf, found.above_low, found.above_high)
    share = shares(counts, above, found.above_low - found.above_high, groups)
    limits = _limits(blocks, found, cuts, share)
    masks = written(blocks, cuts, limits)
    masks = [mask.reshape(x.values.shape) for mask, x in zip(masks, leaves, strict=True)]
    points = thresholds.points(group_cuts, search.per_group(above), found)
    return Found(masks, points, jnp.any(found.numbers != sizes)), passes


def _start(
    blocks: Blocks, everything: jax.Array, sizes: jax.Array, counts: jax.Array, like: Any
) -> Bracket:
    unsigned, number = blocks.order.unsigned, len(counts)
    start = Bracket(
        passes=jnp.int32(0),
        low=jnp.zeros(number, unsigned),
        high=jnp.full(number, blocks.order.highest, unsigned),
        above_low=sizes,
        above_high=jnp.zeros_like(sizes),
        units_low=everything,
        units_high=jnp.zeros_like(everything),
        going=jnp.ones(number, bool),
        stuck=jnp.zeros(number, bool),
        tried=jnp.zeros((2, number), unsigned),
        reached=jnp.zeros((2, number), jnp.uint32),
        numbers=sizes,
    )
    return Bracket(*(varying_like(x, like) for x in start))


class _Search(NamedTuple):
    """The search for the cut of each group."""

    blocks: Blocks
    counts: jax.Array
    groups: np.ndarray

    def per_group(self, per_leaf: jax.Array) -> jax.Array:
        return group_sums(per_leaf, list(self.groups), len(self.counts))

    def unfinished(self, state: Bracket) -> jax.Array:
        """Groups whose bracket holds several codes, and more or fewer than k scores above it."""
        narrow = state.high - state.low <= self.blocks.order.unsigned.type(1)
        exact = self.per_group(state.above_low) == self.counts
        return ~(narrow | exact | (self.counts == jnp.uint32(0)))

    def found(
        self, start: Bracket, near: Points | None
    ) -> tuple[Bracket, tuple[jax.Array, jax.Array]]:
        """Passes over the scores, then over the blocks in which brackets have entries."""
        blocks, order = self.blocks, self.blocks.order
        if rows.hold_all(blocks):
            matrix = rows.everything(blocks)
            numbers = rows.numbers(matrix, len(self.groups))
            return self.ended(start._replace(numbers=numbers), matrix)

        def sample() -> thresholds.Sample:
            drawn = thresholds.sample(blocks.leaves, list(self.groups), len(self.counts), order)
            return jax.tree.map(lambda x: varying_like(x, (self.counts, near)), drawn)

        room = rows.room(blocks, self.groups, len(self.counts))
        if near is None:
            drawn, late = sample(), None
        else:  # drawn when it is asked for: where all begin warm, after a pass
            late = jnp.all(thresholds.is_warm(near, order)).astype(jnp.int32)
            shapes, like = jax.eval_shape(sample), (blocks.leaves, self.counts, near)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            drawn = jax.tree.map(lambda x: varying_like(x, like), zeros)

        def one_pass(carry: tuple[Bracket, thresholds.Sample]) -> tuple:
            state, drawn = carry
            if late is not None:
                drawn = lax.cond(state.passes == late, sample, lambda: drawn)
            ends = self.per_group(state.above_low), self.per_group(state.above_high)
            tried = thresholds.choose(state, self.counts, *ends, drawn, near, room, order)
            count = functools.partial(count_above, blocks)
            state = self.narrowed(state, tried, blocks.leaf_of_block, count)
            left = self.unfinished(state)
            many = ~rows.fit(blocks, state.above_low - state.above_high)
            going = left & (self.per_group(many.astype(jnp.int32)) > 0)
            return state._replace(going=going), drawn

        def going(carry: tuple[Bracket, thresholds.Sample]) -> jax.Array:
            return jnp.any(carry[0].going)

        whole, _ = lax.while_loop(going, one_pass, (start, drawn))
        left = jnp.any(self.unfinished(whole))
        none = jnp.zeros_like(whole.passes)
        return lax.cond(left, self.followed, lambda state: (state, (state.passes, none)), whole)

    def followed(self, state: Bracket) -> tuple[Bracket, tuple[jax.Array, jax.Array]]:
        """The rest of the search, among the blocks that hold what lies inside the brackets."""
        left = self.unfinished(state)[self.groups][self.blocks.leaf_of_block]
        active = left & (state.units_low != state.units_high)
        return self.ended(state, rows.taken(self.blocks, active))

    def ended(
        self, state: Bracket, matrix: rows.Rows
    ) -> tuple[Bracket, tuple[jax.Array, jax.Array]]:
        """The search among the rows of a matrix."""
        left = self.unfinished(state)
        ends = [rows.of_blocks(matrix, x) for x in (state.units_low, state.units_high)]
        start = state._replace(units_low=ends[0], units_high=ends[1], going=left)
        elsewhere = state.above_high - leaf_sums(ends[1], matrix.leaf_of_row, len(self.groups))

        def one_pass(inner: Bracket) -> Bracket:
            tried = thresholds.sections(inner.low, inner.high)
            count = functools.partial(rows.count_above, matrix)
            inner = self.narrowed(inner, tried, matrix.leaf_of_row, count, elsewhere)
            return inner._replace(going=self.unfinished(inner))

        end = lax.while_loop(lambda inner: jnp.any(inner.going), one_pass, start)
        low = rows.put(matrix, state.units_low, end.units_low)
        high = rows.put(matrix, state.units_high, end.units_high)
        passes = state.passes, end.passes - state.passes
        # What only placed thresholds is not carried on: XLA then leaves it out of the loop.
        ended = state._replace(low=end.low, high=end.high)
        ended = ended._replace(above_low=end.above_low, above_high=end.above_high)
        return ended._replace(units_low=low, units_high=high), passes

    def narrowed(
        self,
        state: Bracket,
        tried: jax.Array,
        leaf_of_unit: np.ndarray,
        count: Callable[[jax.Array, jax.Array], jax.Array],
        elsewhere: Any = _NONE,
    ) -> Bracket:
        """The brackets after one pass.

        Args:
          state: the brackets before it.
          tried: its thresholds, `[TRIED, G]`.
          leaf_of_unit: the leaf each unit belongs to.
          count: (thresholds of leaves, which leaves to read) -> counts, `[U, TRIED]`.
          elsewhere: entries above every bracket that no unit holds, `[L]`.
        """
        left, groups = self.unfinished(state) & state.going, self.groups
        first = state.passes == 0
        read = state.going[groups] & (state.above_low != state.above_high)
        in_units = count(tried[:, groups], read)
        above = leaf_sums(in_units, leaf_of_unit, len(groups)).T
        above = [jnp.where(read, row + elsewhere, state.above_low) for row in above]
        at = [self.per_group(row) for row in above]
        low = high = jnp.full(len(self.counts), TRIED, jnp.int32)
        codes_low, codes_high = state.low, state.high
        for place in range(TRIED):
            code = tried[place]
            raises = left & (at[place] >= self.counts) & (code > codes_low)
            lowers = left & (at[place] < self.counts) & (code < codes_high)
            low, codes_low = jnp.where(raises, place, low), jnp.where(raises, code, codes_low)
            high, codes_high = jnp.where(lowers, place, high), jnp.where(lowers, code, codes_high)

        def chosen(place: jax.Array, per_place: Any, old: jax.Array) -> jax.Array:
            for i in range(TRIED):
                old = jnp.where(place == i, per_place[i], old)
            return old

        of_leaf = [jnp.where(read, place[groups], TRIED) for place in (low, high)]
        of_unit = [place[leaf_of_unit] for place in of_leaf]
        ends = [self.per_group(x) for x in (state.above_low, state.above_high)]
        stuck = (chosen(low, at, ends[0]) == ends[0]) & (chosen(high, at, ends[1]) == ends[1])
        return Bracket(
            passes=state.passes + 1,
            low=codes_low,
            high=codes_high,
            above_low=chosen(of_leaf[0], above, state.above_low),
            above_high=chosen(of_leaf[1], above, state.above_high),
            units_low=chosen(of_unit[0], in_units.T, state.units_low),
            units_high=chosen(of_unit[1], in_units.T, state.units_high),
            going=state.going,
            stuck=stuck,
            tried=jnp.where(first, tried[1::2], state.tried),
            reached=jnp.where(first, jnp.stack(at[1::2]), state.reached),
            numbers=jnp.where(first, above[0], state.numbers),
        )


def _limits(blocks: Blocks, found: Bracket, cuts: jax.Array, share: jax.Array) -> jax.Array:
    """The index in each leaf below which entries at the cut are kept."""
    inside = (share > jnp.uint32(0)) & (share < found.above_low - found.above_high)
    sizes = jnp.asarray([leaf.values.size for leaf in blocks.leaves], jnp.uint32)
    whole = jnp.where(share > jnp.uint32(0), sizes, jnp.uint32(0))
    tied = found.units_low - found.units_high
    searched = lax.cond(
        jnp.any(inside),
        lambda: index_behind_tie(blocks, tied, cuts, share, inside),
        lambda: whole,
    )
    return jnp.where(inside, searched, whole)
