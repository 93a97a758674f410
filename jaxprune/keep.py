"""Who stays: the closed set of words that a change of masks ends with.

Each is a function ``(scores, s, kept) -> Chosen``: the masks by site, where ``kept`` holds what
stays whatever its score. `at_end` tells beforehand how many stay in the end.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import masks, trees
from jaxprune.distributions import Budget
from jaxprune.masks.patterns import block_means, block_shape, check_groups, spread_blocks
from jaxprune.masks.ranking import largest as ranked_largest
from jaxprune.numbers import is_traced
from jaxprune.schedules import Ramp
from jaxprune.selection import any_nan, as_array, count_true, is_above
from jaxprune.types import Chosen, Counts, Keep, Leaves, Ranked, Signals, wrong
from jaxprune.units import Channels, Layers, units_of

Scores = Mapping[str, Ranked]


@dataclasses.dataclass(frozen=True)
class largest:
    """As many of the highest as a budget says; of what grows, as many as are missing.

    Attributes:
      budget: a `Budget`; one number for all sites together; or a function of `Signals` that returns
        ``{site: number}``, or ``{(site, ...): number}`` for sites that share one.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import keep
      >>> from jaxprune.types import Ranked, Signals
      >>> scores = {"a": Ranked(jnp.array([3.0, 1.0])), "b": Ranked(jnp.array([2.0, 0.0]))}
      >>> s = Signals(jnp.int32(1), {}, {"a": jnp.ones(2, bool), "b": jnp.ones(2, bool)})
      >>> found = keep.largest(2)(scores, s, {})
      >>> found.masks["a"].tolist(), found.masks["b"].tolist()
      ([True, False], [True, False])
    """

    budget: Budget | int | Callable[[Signals], Any]

    def __call__(self, scores: Scores, s: Signals, kept: Leaves) -> Chosen:
        """The masks after a change."""
        counts, units = self._counts(scores, s), units_of(s)
        found = self._chosen(scores, s, kept, counts)
        if isinstance(units, Channels) and units.rounds and self._final:
            # Of channels that are ranked together nobody knows before how many each group keeps.
            kept_now = {site: count_true(mask) for site, mask in found.masks.items()}
            counts = {(site,): units.rounded(site, n) for site, n in kept_now.items()}
            found = self._chosen(scores, s, kept, counts)
        return found

    @property
    def _final(self) -> bool:
        """Whether it is not for a moment: what drops now and grows at once is counted as it is."""
        return getattr(self.budget, "share", None) is None

    def _chosen(self, scores: Scores, s: Signals, kept: Leaves, counts: Counts) -> Chosen:
        if not kept:
            joint = any(len(sites) > 1 for sites in counts)
            least = self.budget.least(s) if joint and isinstance(self.budget, Budget) else {}
            return ranked_largest(scores, counts, least)
        # What stays is counted, and no floor asks for more of it.
        missing = {sites: _missing(n, [kept[x] for x in sites]) for sites, n in counts.items()}
        found = ranked_largest(scores, missing)
        return Chosen({site: m | kept[site] for site, m in found.masks.items()}, found.nan)

    def _counts(self, scores: Scores, s: Signals) -> Counts:
        given = self.budget(s) if callable(self.budget) else self.budget
        if not isinstance(given, Mapping):
            return {tuple(scores): given}
        counts = {(site,) if isinstance(site, str) else site: n for site, n in given.items()}
        named = {site for sites in counts for site in sites}
        for site in sorted(named):
            trees.known(site, scores, "budget", "return numbers of sites that are ranked")
        if left := {*scores} - named:
            expected = "return a number for every site that is ranked"
            raise ValueError(wrong("budget", expected, f"none for '{min(left)}'"))
        return counts

    def at_end(self, layers: Layers) -> dict[tuple[str, ...], int] | None:
        """What `at_end` gives."""
        counts = self.budget.at_end(layers) if isinstance(self.budget, Budget) else None
        if counts is None or layers.rounded is None or not self._final:
            return counts
        if any(len(sites) > 1 for sites in counts):
            return None
        return {sites: layers.rounded(sites[0], n) for sites, n in counts.items()}


def _missing(count: Any, kept: list[jax.Array]) -> jax.Array:
    """How many are to grow, so that as many as counted are kept; of a stack in each slice."""
    if jnp.ndim(count) and jnp.size(count) != 1:
        together = [axis for axis, n in enumerate(jnp.shape(count)) if n == 1]
        return jnp.maximum(count - jnp.sum(kept[0], together, jnp.int32, keepdims=True), 0)
    return jnp.maximum(jnp.reshape(count, ()) - sum(map(count_true, kept)), 0)


@dataclasses.dataclass(frozen=True)
class n_of_m:
    """The n highest of every m neighbours along the contraction; along a ramp, more at first.

    Attributes:
      n: how many stay of each group, in [1, m].
      m: how many make a group, at least 2.
      course: a `Ramp` along whose progress p a group keeps ``ceil(m - (m - n) p)``; None for n.

    Raises:
      TypeError: if ``n`` or ``m`` is not an integer.
      ValueError: if ``n`` lies outside [1, m] or ``m`` is below 2; at a call if groups do not fit
        the contraction of a leaf, or it is not known along which axes that lies.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import keep
      >>> from jaxprune.types import Ranked, Signals
      >>> scores = {"kernel": Ranked(jnp.array([[3.0], [1.0], [2.0], [4.0]]))}
      >>> s = Signals(jnp.int32(1), {}, {"kernel": jnp.ones((4, 1), bool)})
      >>> keep.n_of_m(1, 2)(scores, s, {}).masks["kernel"][:, 0].tolist()
      [True, False, False, True]
    """

    n: int
    m: int
    course: Ramp | None = None

    def __post_init__(self) -> None:
        """Refuses groups that cannot be pruned."""
        check_groups(self.n, self.m)
        if self.m < 2:
            raise ValueError(wrong("m", "be at least 2", self.m, "a group of one is kept or empty"))
        if not self.n:
            raise ValueError(wrong("n", f"lie in [1, m] with m = {self.m}", self.n))

    @property
    def sparsity(self) -> float:
        """``(m - n) / m``."""
        return (self.m - self.n) / self.m

    def __call__(self, scores: Scores, s: Signals, kept: Leaves) -> Chosen:
        """The masks after a change; what stays is the first of its group."""
        written = {site: as_array(score) for site, score in scores.items()}
        for site, m in kept.items():
            x = written[site]
            # Not by a minimum, which takes denormals for 0.
            below = jnp.where(x == jnp.inf, jnp.finfo(x.dtype).max, x)
            written[site] = jnp.where(m, jnp.inf, below)
        found = masks.n_of_m(written, self._number(s.step), self.m, self.axes(s))
        if not kept:  # what is no candidate has no place in its group, which may keep fewer then
            found = {
                site: m if scores[site].mask is None else m & scores[site].candidates
                for site, m in found.items()
            }
        return Chosen(found, any_nan([*scores.values()]))

    def _number(self, step: Any) -> Any:
        if self.course is None:
            return self.n
        way = self.course.progress(step)
        number = jnp.ceil(self.m - (self.m - self.n) * way).astype(jnp.int32)
        return number if is_traced(number) else int(number)

    def axes(self, s: Signals) -> dict[str, tuple[int, ...]]:
        """Along which axes of each leaf groups lie; an error that names all where that fails."""
        inputs = units_of(s).inputs(s.mask)
        unfit = {path: number for path, number in inputs.items() if number and number % self.m}
        if unfit:
            hint = 'leave these leaves out by `exclude`, or dense by unfit="skip"'
            if unknown := [path for path, number in inputs.items() if number is None]:
                hint += f"; and say the `output_axis` of {', '.join(unknown)}"
            expected = f"sum multiples of m = {self.m} inputs in every leaf"
            raise ValueError(wrong("params", expected, unfit, hint))
        return known_axes(s)

    def at_end(self, layers: Layers) -> dict[tuple[str, ...], int]:
        """What `at_end` gives."""
        return {(site,): layers.size(site) * self.n // self.m for site in layers.whole}


def known_axes(s: Signals) -> dict[str, tuple[int, ...]]:
    """Along which axes of each leaf inputs are summed.

    Args:
      s: of which the masks' shapes and the units are read.

    Returns:
      ``{path: axes}``, the fastest last.

    Raises:
      ValueError: naming all leaves that do not tell.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import keep
      >>> from jaxprune.types import Signals
      >>> keep.known_axes(Signals(jnp.int32(0), {}, {"kernel": jnp.ones((4, 2), bool)}))
      {'kernel': (0,)}
    """
    axes = units_of(s).contraction_axes(s.mask)
    unknown = {path: s.mask[path].shape for path, a in axes.items() if a is None}
    if unknown:
        hint = 'say which axes count the outputs, as output_axis={"query/kernel": (1, 2)}'
        expected = "be given where a name does not tell the axes that count a leaf's outputs"
        raise ValueError(wrong("output_axis", expected, unknown, hint))
    return {path: a for path, a in axes.items() if a is not None}


def in_blocks(keep: Keep, shape: Sequence[int] | None) -> Keep:
    """What another word keeps, decided about whole blocks by the mean of their scores.

    A budget then counts blocks, of which those at the far ends of a leaf may be ragged.

    Args:
      keep: the other word.
      shape: of a block; a shorter one than a leaf's means its last axes. None leaves the other word
        as it is.

    Returns:
      The word.

    Raises:
      TypeError: if ``shape`` is not made of integers.
      ValueError: if one of them is below 1; at a call if a leaf has fewer axes than ``shape``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import keep
      >>> from jaxprune.types import Ranked, Signals
      >>> scores = {"a": Ranked(jnp.array([[1.0, 2.0, 9.0], [3.0, 4.0, 0.0]]))}
      >>> s = Signals(jnp.int32(1), {}, {"a": jnp.ones((2, 3), bool)})
      >>> keep.in_blocks(keep.largest(2), (1, 2))(scores, s, {}).masks["a"].tolist()
      [[False, False, True], [True, True, False]]
    """
    if shape is None:
        return keep
    if not isinstance(shape, Sequence):
        raise TypeError(wrong("block", "be a tuple of integers", shape))
    return _InBlocks(keep, block_shape("", (0,) * len(shape), shape, "block"))


@dataclasses.dataclass(frozen=True)
class _InBlocks:
    """What `in_blocks` gives for blocks of a shape."""

    keep: Keep
    shape: tuple[int, ...]

    @property
    def budget(self) -> Any:
        """The budget of the other word, if it has one."""
        return getattr(self.keep, "budget", None)

    def __call__(self, scores: Scores, s: Signals, kept: Leaves) -> Chosen:
        """The masks after a change."""
        extents = self._extents(units_of(s).layers(s.mask))

        def one_each(masks: Leaves) -> dict[str, jax.Array]:  # all entries of a block are alike
            return {path: _firsts(masks[path], extents[path]) for path in masks}

        chosen = one_each({path: x.mask for path, x in scores.items() if x.mask is not None})
        means = {
            path: Ranked(
                block_means(x.scores, extents[path]), mask=chosen.get(path), pruned=x.pruned
            )
            for path, x in scores.items()
        }
        found = self.keep(means, s._replace(mask=one_each(s.mask)), one_each(kept))
        spread = {p: spread_blocks(m, extents[p], s.mask[p]) for p, m in found.masks.items()}
        return Chosen(spread, found.nan)

    def at_end(self, layers: Layers) -> dict[tuple[str, ...], int] | None:
        """What `at_end` gives; None where blocks are ragged."""
        grids, sizes = {}, set()
        for path, extents in self._extents(layers).items():
            shape = layers.whole[path]
            if any(n % extent for n, extent in zip(shape, extents, strict=True)):
                return None
            grids[path] = tuple(n // extent for n, extent in zip(shape, extents, strict=True))
            sizes.add(math.prod(extents))
        counts = at_end(self.keep, layers._replace(whole=grids))
        return counts and {sites: n * max(sizes) for sites, n in counts.items()}

    def _extents(self, layers: Layers) -> dict[str, tuple[int, ...]]:
        """A block's extent along every axis of each site; of a stack it lies in one layer."""
        found = {}
        for path in layers.whole:
            stack = layers.axes.get(path)
            extents = block_shape(path, layers.shape(path), self.shape, "block")
            found[path] = extents if stack is None else (*extents[:stack], 1, *extents[stack:])
        return found


def _firsts(x: jax.Array, extents: tuple[int, ...]) -> jax.Array:
    """The first entry of each block."""
    return x[tuple(slice(None, None, extent) for extent in extents)]


@dataclasses.dataclass(frozen=True)
class above:
    """What scores above a threshold.

    Attributes:
      threshold: the highest score that does not stay.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import keep
      >>> from jaxprune.types import Ranked, Signals
      >>> s = Signals(jnp.int32(1), {}, {"kernel": jnp.ones(3, bool)})
      >>> scores = {"kernel": Ranked(jnp.array([0.5, 2.0, 1.0]))}
      >>> keep.above(1.0)(scores, s, {}).masks["kernel"].tolist()
      [False, True, False]
    """

    threshold: float

    def __call__(self, scores: Scores, s: Signals, kept: Leaves) -> Chosen:
        """The masks after a change."""
        del s
        found = {x: is_above(w, self.threshold) | kept.get(x, False) for x, w in scores.items()}
        return Chosen(found, any_nan([*scores.values()]))


@dataclasses.dataclass(frozen=True)
class _Everything:
    """All units."""

    def __call__(self, scores: Scores, s: Signals, kept: Leaves) -> Chosen:
        """The masks after a change."""
        del scores, kept
        return Chosen({x: jnp.ones_like(m) for x, m in s.mask.items()}, jnp.zeros((), bool))

    def at_end(self, layers: Layers) -> dict[tuple[str, ...], int]:
        """What `at_end` gives."""
        return {(x,): layers.size(x) for x in layers.whole}


everything = _Everything()
"""All units stay: what was pruned comes back."""


def at_end(keep: Any, layers: Layers) -> dict[tuple[str, ...], int] | None:
    """How many units a word keeps in the end, by the sites that share a number.

    Args:
      keep: one of this room, or any function like them.
      layers: the layers of the units.

    Returns:
      ``{(site, ...): number}``; None where nothing tells.

    Examples:
      >>> from jaxprune import keep
      >>> from jaxprune.units import Layers
      >>> keep.at_end(keep.n_of_m(2, 4), Layers({"kernel": (8, 3)}, {}))
      {('kernel',): 12}
    """
    return keep.at_end(layers) if hasattr(keep, "at_end") else None
