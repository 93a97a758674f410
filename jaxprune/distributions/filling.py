"""One budget spread over leaves: a level of water over shapes that hold more or less of it.

A leaf l of n_l entries has a weight r_l, and its density is ``d_l = clip(level * r_l, low_l, 1)``,
where the one level is such that ``sum_l d_l n_l`` is the budget. Uniform is r = 1; ERK is
``r_l = sum(shape_l) / prod(shape_l)``, and the clip at 1 is what makes a leaf dense and spreads the
rest again. A leaf with an override stands outside.

On the host the level is solved in fractions, so that counts are exact; where the sparsity is
traced, on the same piecewise linear function in float32.
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.numbers import decimal
from jaxprune.types import REST, wrong

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

    References:
      Original.
    """
    return round(size * (1 - decimal(sparsity)))


def number(value: Any, *others: Any) -> Any:
    """A number for the arithmetic at hand: float32 where something is traced, else a fraction."""
    if any(isinstance(x, jax.Array) for x in (value, *others)):
        return jnp.asarray(value if isinstance(value, jax.Array) else float(value), jnp.float32)
    return value if isinstance(value, Fraction) else decimal(value)


def rounded(value: Any) -> Any:
    """To the nearest integer, half to even; int32 where traced."""
    return jnp.round(value).astype(jnp.int32) if isinstance(value, jax.Array) else round(value)


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
    fixed: Mapping[str, Any]

    @property
    def sizes(self) -> dict[str, int]:
        """Entries by path of the leaves that are filled."""
        return {p: math.prod(s) for p, s in self.shapes.items() if p not in self.fixed}

    @property
    def total(self) -> int:
        """Entries of all prunable leaves."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def rest(self, sparsity: Any) -> Any:
        """What the fixed leaves leave to the others, unrounded; an error where that is impossible.

        Where it is traced it is clipped.
        """
        kept = sum(d * math.prod(self.shapes[path]) for path, d in self.fixed.items())
        share = number(sparsity, kept)
        rest = number(self.total, share) * (1 - share) - number(kept, share)
        least, most = sum(self.floors[path] for path in self.sizes), sum(self.sizes.values())
        if isinstance(rest, jax.Array):
            return jnp.clip(rest, float(least), float(most))
        if rest < least and rest >= 0:
            expected = f"keep no more than the {float(rest):g} entries that are kept"
            raise ValueError(wrong("min_density", expected, least))
        if not least <= rest <= most:
            hint = f"at sparsity {float(share):g} all leaves keep {float(rest + kept):g} entries"
            hint += f" of {self.total}, those with an override {float(kept):g}"
            expected = f"leave 0 to {most} entries to the other leaves"
            raise ValueError(wrong("overrides", expected, float(rest), hint))
        return rest

    def solve(self, budget: Any) -> dict[str, Any]:
        """The densities of the leaves that are filled, whose entries add up to the budget."""
        sizes = self.sizes
        weights = [self._weight(self.shapes[path]) for path in sizes]
        lows = [Fraction(self.floors[path], size) for path, size in sizes.items()]
        numbers = list(sizes.values())
        if isinstance(budget, jax.Array):
            return dict(zip(sizes, _traced_fill(numbers, weights, lows, budget), strict=True))
        return dict(zip(sizes, _exact_fill(numbers, weights, lows, budget), strict=True))

    def counts(self, sparsity: Any) -> dict[str, Any]:
        """How many entries each leaf keeps, python ints where the sparsity is known.

        Under "global" the leaves that are filled have one number together, under the path "*".
        """
        fixed = {p: rounded(d * math.prod(self.shapes[p])) for p, d in self.fixed.items()}
        rest, sizes = self.rest(sparsity), self.sizes
        if not sizes:
            return fixed
        if isinstance(rest, Fraction) and self.kind != "uniform":
            left = exact_count(self.total, sparsity) - sum(fixed.values())
            least = sum(self.floors[path] for path in sizes)
            rest = Fraction(min(max(left, least), sum(sizes.values())))
        if self.kind == "global":
            return {**fixed, REST: rounded(rest)}
        values = {path: d * sizes[path] for path, d in self.solve(rest).items()}
        if self.kind == "erk":
            exact = isinstance(rest, Fraction)
            spread = _largest_remainder(values, int(rest)) if exact else _traced_remainder(values)
        else:
            spread = {path: rounded(value) for path, value in values.items()}
        return {path: fixed.get(path, spread.get(path)) for path in self.shapes}

    def _weight(self, shape: tuple[int, ...]) -> Fraction:
        if self.kind == "uniform":
            return Fraction(1)
        return Fraction(max(sum(shape), 1), max(math.prod(shape), 1))


def _breaks(weights: Sequence[Fraction], lows: Sequence[Fraction]) -> list[Fraction]:
    """The levels at which a leaf leaves its floor or becomes dense, ascending."""
    pairs = list(zip(weights, lows, strict=True))
    return sorted({low / weight for weight, low in pairs} | {1 / weight for weight, _ in pairs})


def _exact_fill(
    sizes: Sequence[int], weights: Sequence[Fraction], lows: Sequence[Fraction], budget: Fraction
) -> list[Fraction]:
    """Densities clip(level * weight, low, 1) with sum(size * density) == budget."""

    def densities(level: Fraction) -> list[Fraction]:
        return [min(max(level * w, low), Fraction(1)) for w, low in zip(weights, lows, strict=True)]

    def filled(level: Fraction) -> Fraction:
        return sum((n * d for n, d in zip(sizes, densities(level), strict=True)), Fraction(0))

    breaks = _breaks(weights, lows)
    place = bisect.bisect_left(breaks, budget, key=filled)
    if place == 0 or not sizes:
        return densities(breaks[0]) if sizes else []
    low, high = breaks[place - 1], breaks[place]
    share = (budget - filled(low)) / (filled(high) - filled(low))
    return densities(low + share * (high - low))


def _traced_fill(
    sizes: Sequence[int], weights: Sequence[Fraction], lows: Sequence[Fraction], budget: jax.Array
) -> list[jax.Array]:
    """`_exact_fill` in float32: the level by interpolation, for its total is piecewise linear."""
    if not sizes:
        return []
    levels = np.array([float(level) for level in _breaks(weights, lows)])
    low, weight = np.array(lows, float)[:, None], np.array(weights, float)[:, None]
    totals = np.array(sizes, float) @ np.clip(levels * weight, low, 1)
    level = jnp.interp(budget, jnp.asarray(totals, jnp.float32), jnp.asarray(levels, jnp.float32))
    pairs = zip(weights, lows, strict=True)
    return [jnp.clip(level * float(weight), float(low), 1.0) for weight, low in pairs]


def _largest_remainder(values: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Integers near the values that add up to their total; the largest remainders round up."""
    counts = {path: math.floor(value) for path, value in values.items()}
    by_remainder = sorted(values, key=lambda path: counts[path] - values[path])
    for path in by_remainder[: total - sum(counts.values())]:
        counts[path] += 1
    return counts


def _traced_remainder(values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """`_largest_remainder` of numbers that are not known yet; their total is their sum, rounded."""
    exact = jnp.stack(list(values.values()))
    floors = jnp.floor(exact)
    counts = floors.astype(jnp.int32)
    missing = jnp.round(jnp.sum(exact)).astype(jnp.int32) - jnp.sum(counts, dtype=jnp.int32)
    place = jnp.argsort(jnp.argsort(floors - exact))  # one number a leaf, not one an entry
    return dict(zip(values, counts + (place < missing).astype(jnp.int32), strict=True))
