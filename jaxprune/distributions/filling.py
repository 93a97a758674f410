"""One budget spread over leaves: a level of water over shapes that hold more or less of it.

A leaf l of n_l entries has a weight r_l, and its density is ``d_l = clip(level * r_l, low_l, 1)``,
where the one level is such that ``sum_l d_l n_l`` is the budget. Uniform is r = 1; ERK is
``r_l = sum(shape_l) / prod(shape_l)``, and the clip at 1 is what makes a leaf dense and spreads the
rest again. A leaf with an override stands outside. All of it is done on the host, in fractions, so
that counts are exact.
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

from jaxprune.numbers import decimal
from jaxprune.types import wrong

Shapes = Mapping[str, tuple[int, ...]]
Kind = Literal["global", "uniform", "erk"]


def exact_count(size: int, sparsity: float) -> int:
    """How many of some entries are kept at a sparsity, which means its decimal.

    round(size (1 - sparsity)), half to even, in exact arithmetic.

    Args:
      size: number of entries.
      sparsity: in [0, 1].

    Returns:
      The number of kept entries.

    Examples:
      >>> from jaxprune.distributions import exact_count
      >>> exact_count(1000, 0.9), exact_count(25, 0.9), exact_count(2**31, 0.9)
      (100, 2, 214748365)
    """
    return round(size * (1 - decimal(sparsity)))


@dataclasses.dataclass(frozen=True)
class Filling:
    """One budget spread over the leaves that have no density of their own.

    Attributes:
      shapes: of all prunable leaves.
      kind: which weights r_l.
      floors: entries that each leaf keeps at least.
      fixed: densities of the leaves that stand outside.
    """

    shapes: Shapes
    kind: Kind
    floors: Mapping[str, int]
    fixed: Mapping[str, Fraction]

    @property
    def sizes(self) -> dict[str, int]:
        """Entries by path of the leaves that are filled."""
        return {p: math.prod(s) for p, s in self.shapes.items() if p not in self.fixed}

    @property
    def total(self) -> int:
        """Entries of all prunable leaves."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def rest(self, sparsity: float) -> Fraction:
        """What the fixed leaves leave to the others, unrounded; an error where that cannot be."""
        kept = sum((d * math.prod(self.shapes[p]) for p, d in self.fixed.items()), Fraction(0))
        rest = self.total * (1 - decimal(sparsity)) - kept
        least, most = sum(self.floors[path] for path in self.sizes), sum(self.sizes.values())
        if 0 <= rest < least:
            expected = f"keep no more than the {float(rest):g} entries that are kept"
            raise ValueError(wrong("min_density", expected, least))
        if not least <= rest <= most:
            hint = f"at sparsity {sparsity:g} all leaves keep {float(rest + kept):g} entries"
            hint += f" of {self.total}, those with an override {float(kept):g}"
            expected = f"leave 0 to {most} entries to the other leaves"
            raise ValueError(wrong("overrides", expected, float(rest), hint))
        return rest

    def solve(self, budget: Fraction) -> dict[str, Fraction]:
        """The densities of the leaves that are filled, whose entries add up to the budget."""
        sizes = self.sizes
        weights = [self._weight(self.shapes[path]) for path in sizes]
        lows = [Fraction(self.floors[path], max(size, 1)) for path, size in sizes.items()]
        return dict(zip(sizes, _filled([*sizes.values()], weights, lows, budget), strict=True))

    def counts(self, sparsity: float) -> dict[tuple[str, ...], int]:
        """How many entries each leaf keeps; under "global" those that are filled, together."""
        fixed = {path: round(d * math.prod(self.shapes[path])) for path, d in self.fixed.items()}
        rest, sizes = self.rest(sparsity), self.sizes
        if not sizes:
            return {(path,): count for path, count in fixed.items()}
        if self.kind != "uniform":  # the total is exact, whatever rounding did to fixed leaves
            left = exact_count(self.total, sparsity) - sum(fixed.values())
            least = sum(self.floors[path] for path in sizes)
            rest = Fraction(min(max(left, least), sum(sizes.values())))
        if self.kind == "global":
            return {(path,): count for path, count in fixed.items()} | {tuple(sizes): round(rest)}
        values = {path: d * sizes[path] for path, d in self.solve(rest).items()}
        if self.kind == "erk":
            spread = _largest_remainder(values, int(rest))
        else:
            spread = {path: round(value) for path, value in values.items()}
        return {(path,): fixed.get(path, spread.get(path, 0)) for path in self.shapes}

    def _weight(self, shape: tuple[int, ...]) -> Fraction:
        if self.kind == "uniform":
            return Fraction(1)
        return Fraction(max(sum(shape), 1), max(math.prod(shape), 1))


def _filled(
    sizes: Sequence[int], weights: Sequence[Fraction], lows: Sequence[Fraction], budget: Fraction
) -> list[Fraction]:
    """Densities clip(level * weight, low, 1) with sum(size * density) == budget."""

    def densities(level: Fraction) -> list[Fraction]:
        return [min(max(level * w, low), Fraction(1)) for w, low in zip(weights, lows, strict=True)]

    def filled(level: Fraction) -> Fraction:
        return sum((n * d for n, d in zip(sizes, densities(level), strict=True)), Fraction(0))

    # The levels at which a leaf leaves its floor or becomes dense: in between all is linear.
    pairs = list(zip(weights, lows, strict=True))
    breaks = sorted({low / weight for weight, low in pairs} | {1 / weight for weight, _ in pairs})
    place = bisect.bisect_left(breaks, budget, key=filled)
    if place == 0 or not sizes:
        return densities(breaks[0]) if sizes else []
    low, high = breaks[place - 1], breaks[place]
    share = (budget - filled(low)) / (filled(high) - filled(low))
    return densities(low + share * (high - low))


def _largest_remainder(values: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Integers near the values that add up to their total; the largest remainders round up."""
    counts = {path: math.floor(value) for path, value in values.items()}
    by_remainder = sorted(values, key=lambda path: counts[path] - values[path])
    for path in by_remainder[: total - sum(counts.values())]:
        counts[path] += 1
    return counts
