"""The one search for the k-th largest: brackets, narrowed by counting how many scores lie above.

Each group of leaves has a bracket, ``count(score > low) >= k > count(score > high)``. A pass
counts, in each leaf, the scores above a few thresholds and narrows it: around where the k-th
largest is expected while many scores are inside, in equal parts when few are, and in every third
pass, which bounds their number. When a bracket holds one code, and more scores than wanted have it,
the same loop goes on among their places: earlier ones are higher.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.selection.counting import count_true, counts_of
from jaxprune.selection.keys import NAN, OUTSIDE, Order, codes_of
from jaxprune.types import Ranked

_SAMPLED, _SAMPLED_IN_GROUP, _FEW = 32768, 1024, 64
_WITH_SAMPLE, _WITHOUT = 4, 15
"""Thresholds a pass: three around the goal and a middle; or all in equal parts at first."""


class Bracket(NamedTuple):
    """What the passes so far have found out; `[G]` by group, `[L]` by leaf.

    Attributes:
      passes: how many there were.
      low: a code with ``count(score > low) >= wanted``, `[G]`.
      high: one with ``count(score > high) < wanted``, `[G]`.
      above_low: entries of each leaf above its group's low, `[L]`.
      above_high: above its high, `[L]`.
      wanted: how many are still to be found, `[G]`.
      tied: whether places are searched, among the scores that are `cut`, `[G]`.
      cut: the code of the last one kept, where `tied`, `[G]`.
      numbers: candidates that are no NaN, `[L]`.
    """

    passes: jax.Array
    low: jax.Array
    high: jax.Array
    above_low: jax.Array
    above_high: jax.Array
    wanted: jax.Array
    tied: jax.Array
    cut: jax.Array
    numbers: jax.Array


class Search(NamedTuple):
    """The leaves of a search, the group of each, and the order of their scores."""

    leaves: Sequence[Ranked]
    groups: np.ndarray
    number: int
    order: Order

    @property
    def sampled(self) -> bool:
        """Whether first thresholds come from a sample: slicing sharded leaves would move them."""
        return jax.device_count() == 1

    @property
    def tries(self) -> int:
        """Thresholds a pass."""
        return _WITH_SAMPLE if self.sampled else _WITHOUT

    @property
    def spread(self) -> np.ndarray:
        """From -1 to 1: where the thresholds around a goal lie."""
        return np.linspace(-1, 1, self.tries - 1, dtype=np.float32)[:, None]

    @property
    def first_places(self) -> np.ndarray:
        """The place of each leaf's first entry; places fall through the leaves of a group."""
        sizes = np.asarray([leaf.values.size for leaf in self.leaves])
        rest = [sizes[i:][self.groups[i:] == g].sum() for i, g in enumerate(self.groups)]
        return np.asarray(rest, np.uint32)

    def sizes(self) -> jax.Array:
        """Candidates of each leaf, `[L]`."""
        return jnp.stack(
            [
                jnp.uint32(leaf.values.size)
                if leaf.mask is None
                else count_true(leaf.candidates).astype(jnp.uint32)
                for leaf in self.leaves
            ]
        )

    # ---------------------------------------------------------------------------------- counting

    def counted(self, s: Bracket, tried: jax.Array) -> jax.Array:
        """How many scores of each leaf lie above each threshold, `[T, L]`."""

        def count() -> jax.Array:
            counts = []
            for i, leaf in enumerate(self.leaves):
                group = self.groups[i]
                score = self._score(i, codes_of(leaf, self.order), s.tied[group], s.cut[group])
                counts.append(counts_of([score > limit for limit in tried[:, group]]))
            return jnp.stack(counts, axis=1)

        # As a branch: else XLA computes all codes once, before the loop, and writes them to memory.
        shape = (self.tries, len(self.leaves))
        none = varying_like(jnp.zeros(shape, jnp.uint32), (self.leaves, s))
        return lax.cond(s.passes >= 0, count, lambda: none)

    def _score(self, i: int, codes: jax.Array, tied: jax.Array, cut: jax.Array) -> jax.Array:
        """The codes; among ties the place of what is at the cut, and 0 for all else."""
        place = self.first_places[i] - flat_index(codes.shape)
        at_cut = jnp.where(codes == cut, place.astype(codes.dtype), codes.dtype.type(0))
        return jnp.where(tied, at_cut, codes)

    def of_groups(self, per_leaf: jax.Array) -> jax.Array:
        """Sums over the leaves of each group, `[L] -> [G]`."""
        if list(self.groups) == list(range(self.number)):
            return per_leaf
        members = np.arange(self.number)[:, None] == self.groups[None, :]
        return jnp.sum(
            jnp.where(members, per_leaf[None], jnp.zeros_like(per_leaf[None])),
            axis=1,
            dtype=per_leaf.dtype,
        )

    # --------------------------------------------------------------------------------- thresholds

    def sample(self, wanted: jax.Array, sizes: jax.Array) -> jax.Array:
        """Codes around the k-th largest of a sample of each group, `[T - 1, G]`."""
        rows: list[list[jax.Array]] = [[] for _ in range(self.number)]
        whole = np.zeros(self.number, int)
        np.add.at(whole, self.groups, [leaf.values.size for leaf in self.leaves])
        for leaf, group in zip(self.leaves, self.groups, strict=True):
            step = -(-int(whole[group]) // max(_SAMPLED_IN_GROUP, _SAMPLED // self.number))
            some = _strided(leaf, min(step // 2, leaf.values.size - 1), step)
            rows[group].append(codes_of(some, self.order))
        longest = max(sum(x.size for x in row) for row in rows)
        drawn = [jnp.concatenate(lax.optimization_barrier(row)) for row in rows]
        drawn = jnp.stack([jnp.pad(x, (0, longest - x.size)) for x in drawn]).T
        drawn = jnp.sort(drawn, axis=0, descending=True)
        usable = jnp.sum(drawn > OUTSIDE, axis=0, dtype=jnp.float32)
        share = wanted.astype(jnp.float32) / jnp.maximum(sizes, 1).astype(jnp.float32)
        share = jnp.minimum(share, 1)
        error = 2 * jnp.sqrt(usable * share * (1 - share)) + 1
        last = jnp.maximum(usable - 1, 0)[None]
        ranks = jnp.clip((share * usable)[None] + self.spread * error[None], 0, last)
        codes = jnp.take_along_axis(drawn, ranks.astype(jnp.int32), axis=0)
        return codes - ((self.spread >= 0) & (codes > OUTSIDE)).astype(codes.dtype)  # equals count

    def aimed(self, s: Bracket, at_low: jax.Array, at_high: jax.Array) -> jax.Array:
        """The middle, and codes around the goal if counts fell evenly in between, `[T, G]`."""
        inside = (at_low - at_high).astype(jnp.float32)
        width = (s.high - s.low).astype(jnp.float32)
        share = (s.wanted - at_high).astype(jnp.float32) / jnp.maximum(inside, 1)
        bend = jnp.where(s.tied, 0.0, width / 2.0 ** (jnp.finfo(self.order.dtype).nmant + 2))
        error = 2 * jnp.sqrt(share * jnp.abs(1 - share) / jnp.maximum(inside, 1)) + bend
        back = jnp.clip(share[None] + self.spread * error[None], 0, 1) * width[None]
        middle = s.low + (s.high - s.low) // s.high.dtype.type(2)
        return jnp.concatenate([middle[None], s.high[None] - back.astype(s.high.dtype)])

    def equal_parts(self, s: Bracket) -> jax.Array:
        """Codes that cut each bracket in equal parts, `[T, G]`."""
        parts = np.arange(1, self.tries + 1, dtype=s.high.dtype)[:, None]
        number, width = s.high.dtype.type(self.tries + 1), (s.high - s.low)[None]
        return s.low[None] + width // number * parts + width % number * parts // number

    def tried(self, s: Bracket, first: jax.Array) -> jax.Array:
        """The thresholds of a pass, `[T, G]`."""
        at_low, at_high = self.of_groups(s.above_low), self.of_groups(s.above_high)
        in_parts = (at_low - at_high <= _FEW) | (s.passes % 4 == 3)
        late = jnp.where(in_parts[None], self.equal_parts(s), self.aimed(s, at_low, at_high))
        one = s.high.dtype.type(1)
        tried = jnp.where(s.passes == 0, first, late)
        return jnp.clip(tried, jnp.maximum(s.low, one)[None], s.high[None])

    # --------------------------------------------------------------------------------- the search

    def found(self, counts: jax.Array) -> Bracket:
        """The last bracket of each group: one code, or one place among equal ones."""
        sizes, unsigned = self.sizes(), self.order.unsigned
        wanted = jnp.minimum(counts, self.of_groups(sizes))
        low = jnp.zeros(self.number, unsigned)
        high = jnp.full_like(low, self.order.highest)
        none = jnp.zeros_like(sizes)
        start = Bracket(jnp.int32(0), low, high, sizes, none, wanted, low > 0, low, sizes)
        start = jax.tree.map(lambda x: varying_like(x, (self.leaves, counts)), start)
        if self.sampled:
            first = self.sample(wanted, self.of_groups(sizes))
        else:
            first = self.equal_parts(start)[1:]
        first = jnp.concatenate([jnp.full((1, self.number), NAN, unsigned), first])
        return lax.while_loop(
            lambda s: (s.passes == 0) | jnp.any(self.going(s)),
            lambda s: self.one_pass(s, first),
            start,
        )

    def going(self, s: Bracket) -> jax.Array:
        """Which groups are not cut yet, `[G]`."""
        open_still = s.high - s.low > s.high.dtype.type(1)
        return open_still & (self.of_groups(s.above_low) != s.wanted) & (s.wanted > 0)

    def one_pass(self, s: Bracket, first: jax.Array) -> Bracket:
        """The brackets after one reading of all leaves."""
        going, tried = self.going(s), self.tried(s, first)
        counts = self.counted(s, tried)
        s = s._replace(passes=s.passes + 1, numbers=jnp.where(s.passes == 0, counts[0], s.numbers))
        for threshold, above in zip(tried, counts, strict=True):
            reach = self.of_groups(above) >= s.wanted
            up, down = going & reach & (threshold > s.low), going & ~reach & (threshold < s.high)
            s = s._replace(
                low=jnp.where(up, threshold, s.low),
                high=jnp.where(down, threshold, s.high),
                above_low=jnp.where(up[self.groups], above, s.above_low),
                above_high=jnp.where(down[self.groups], above, s.above_high),
            )
        return self.among_ties(s)

    def among_ties(self, s: Bracket) -> Bracket:
        """Goes on among places where one code is left, and more scores than wanted have it."""
        one = s.high.dtype.type(1)
        more = (self.of_groups(s.above_low) != s.wanted) & (s.wanted > 0)
        tie = ~s.tied & (s.high - s.low <= one) & more
        tops = np.zeros(self.number, np.uint32)
        np.maximum.at(tops, self.groups, self.first_places)
        left, of_leaf = s.wanted - self.of_groups(s.above_high), tie[self.groups]
        return s._replace(
            tied=s.tied | tie,
            cut=jnp.where(tie, s.high, s.cut),
            wanted=jnp.where(tie, left, s.wanted),
            low=jnp.where(tie, jnp.zeros_like(s.low), s.low),
            high=jnp.where(tie, jnp.asarray(tops).astype(s.high.dtype), s.high),
            above_low=jnp.where(of_leaf, s.above_low - s.above_high, s.above_low),
            above_high=jnp.where(of_leaf, jnp.zeros_like(s.above_high), s.above_high),
        )

    def masks(self, s: Bracket) -> list[jax.Array]:
        """What lies above the cut, or is at it and has one of the first places."""
        exact = self.of_groups(s.above_low) == s.wanted
        least = jnp.where(exact, s.low, s.high - s.high.dtype.type(1))
        least = jnp.where(s.wanted == 0, jnp.full_like(least, self.order.highest), least)
        masks = []
        for i, leaf in enumerate(self.leaves):
            g, codes = self.groups[i], codes_of(leaf, self.order)
            place = (self.first_places[i] - flat_index(codes.shape)).astype(codes.dtype)
            at_cut = (codes == s.cut[g]) & (place > least[g])
            kept = jnp.where(s.tied[g], (codes > s.cut[g]) | at_cut, codes > least[g])
            masks.append(kept & (codes != OUTSIDE))
        return masks

    def any_nan(self, s: Bracket) -> jax.Array:
        """Whether the score of a candidate is NaN."""
        return jnp.any(s.numbers != self.sizes())


def _strided(leaf: Ranked, start: int, step: int) -> Ranked:
    # The barrier keeps XLA from computing the codes of all before it slices.
    return leaf.of_arrays(lambda x: lax.optimization_barrier(x.reshape(-1)[start::step]))


def flat_index(shape: tuple[int, ...]) -> jax.Array:
    """The position of each entry in the flattened leaf; it costs no memory inside a fusion."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]))
        index = index + lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return index


def varying_like(start: jax.Array, like: Any) -> jax.Array:
    """A loop's first value, varying over the same mesh axes as what the loop reads (shard_map)."""
    axes = frozenset[str]().union(*map(_varying_axes, jax.tree.leaves(like)))
    axes -= _varying_axes(start)
    return lax.pcast(start, tuple(sorted(axes)), to="varying") if axes else start


def _varying_axes(x: Any) -> frozenset[str]:
    """The manual mesh axes over which a value varies; JAX has renamed the attribute."""
    kind: Any = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, "mat") else kind.vma
