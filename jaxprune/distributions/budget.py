"""Counts at a step: a schedule over a distribution."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.distributions.densities import checked_overrides, erk, uniform
from jaxprune.distributions.filling import Filling, Kind, Shapes, number, rounded
from jaxprune.schedules.numbers import checked_share, decimal
from jaxprune.schedules.ramps import Ramp
from jaxprune.trees import Tree, by_path, by_pattern
from jaxprune.types import Count, Signals, wrong

Distribution = Kind | Callable[[Any, Any], Tree] | Tree


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many entries each leaf, or the tree, keeps at a step: a schedule over a distribution.

    A ramp has counts at its two ends, integers taken on the host, and goes between them:
    N_0 - round((N_0 - K) progress). So its end is exact at any size. Any other schedule, and a
    traced sparsity, gives counts in float32.

    The denominator is all prunable entries, those of leaves with an override included. Global and
    ERK counts add up to round(N (1 - s)), ERK by largest remainder; uniform rounds each leaf.

    At the ramp's initial sparsity s_0 an override o is scaled down to o s_0 / s: it comes as the
    whole tree does. Under any other schedule it holds from the first step.

    Attributes:
      schedule: n -> sparsity; with a tree of densities it must be a `Ramp`.
      distribution: "global" (all leaves ranked together), "uniform", "erk", a function (shapes by
        path, sparsity) -> tree of densities, or such a tree, whose densities are those at the end
        of the ramp (a number is rounded in each leaf; the ramp's sparsity is then only its pace).
      overrides: sparsity by regex; the first that matches wins. Beside densities given by hand it
        replaces that of its leaf, and nothing is spread again.
      min_density: what every leaf without an override keeps at least. The others keep less for it,
        so that the total stands; but not beside densities given by hand, nor where it is traced.

    Raises:
      ValueError: if a sparsity or density is out of range, the distribution is not known, or a tree
        of densities has no ramp.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.distributions import Budget
      >>> from jaxprune.schedules import cubic
      >>> budget = Budget(cubic(0, 100, 0.9), "erk")
      >>> budget.at_end({"a": jnp.ones((2, 3)), "b": jnp.ones((20, 30))})
      {'a': 6, 'b': 55}

    References:
      Original.
    """

    schedule: Callable[[Any], Any]
    distribution: Distribution = dataclasses.field(default="global", hash=False)
    overrides: Any = None
    min_density: float = 0.0

    def __post_init__(self) -> None:
        """Checks the values and brings them into a form that can be hashed."""
        overrides = checked_overrides(dict(self.overrides or {}))
        floor = checked_share("min_density", self.min_density, whole=True)
        object.__setattr__(self, "overrides", tuple(overrides.items()))
        object.__setattr__(self, "min_density", floor)
        object.__setattr__(self, "distribution", self._checked_distribution())

    def _checked_distribution(self) -> Distribution:
        """The distribution, by its name where it has one."""
        given = self.distribution
        if given is uniform or given is erk:
            return "uniform" if given is uniform else "erk"
        if isinstance(given, str) and given not in ("global", "uniform", "erk"):
            expected = "be global, uniform, erk, a function or a tree of densities"
            raise ValueError(wrong("distribution", expected, given))
        if isinstance(given, str) or callable(given):
            return given
        if not isinstance(self.schedule, Ramp):
            expected = "be a ramp where `distribution` is a tree of densities"
            raise ValueError(wrong("schedule", expected, self.schedule))
        return _checked_densities(by_path(given))

    def __call__(self, signals: Signals) -> dict[str, jax.Array]:
        """The counts at a step.

        Args:
          signals: of which the masks' shapes and the step are read.

        Returns:
          ``{path: int32}``; if the distribution is global the leaves without an override share the
          path "*".
        """
        shapes, ramp = _shapes(signals.mask), self.schedule
        if not isinstance(ramp, Ramp):
            now = jnp.asarray(ramp(signals.step), jnp.float32)
            return {path: _int32(count) for path, count in self._counts(shapes, now).items()}
        start = self._counts(shapes, ramp.initial, _way_at_start(ramp))
        end, progress = self._counts(shapes, ramp.sparsity), ramp.progress(signals.step)
        return {path: _between(start[path], end[path], progress) for path in end}

    def at_end(self, leaves: Mapping[str, Any]) -> dict[str, int]:
        """The counts at the ramp's end, on the host.

        Args:
          leaves: the prunable ones, ``{path: array}``, or their shapes; sizes will do where the
            distribution does not look at shapes.

        Returns:
          ``{path: int}``, with the paths that a call gives.

        Raises:
          ValueError: if the schedule is no ramp, or its sparsity is traced.
        """
        if not isinstance(self.schedule, Ramp) or isinstance(self.schedule.sparsity, jax.Array):
            raise ValueError(wrong("schedule", "be a ramp to a known sparsity", self.schedule))
        return self._counts(_shapes(leaves), self.schedule.sparsity)

    def floors(self, leaves: Mapping[str, Any]) -> dict[str, int]:
        """What each leaf keeps at least.

        Args:
          leaves: the prunable ones, ``{path: array}``, or their shapes; sizes will do where the
            distribution does not look at shapes.

        Returns:
          ``{path: int}``, round(n min_density), and 0 for leaves with an override.
        """
        shapes = _shapes(leaves)
        overridden = by_pattern(dict(self.overrides), shapes, "overrides")
        share = number(self.min_density)
        return {
            path: 0 if path in overridden else rounded(share * math.prod(shape))
            for path, shape in shapes.items()
        }

    def _counts(self, shapes: Shapes, sparsity: Any, way: Any = Fraction(1)) -> dict[str, Any]:
        """Counts at a sparsity that lies some way from all kept to the target.

        Python integers where nothing is traced.
        """
        if not shapes:
            return {}
        floors = self.floors(shapes)
        overrides = by_pattern(dict(self.overrides), shapes, "overrides")
        fixed = {path: _on_the_way(1 - decimal(o), way) for path, o in overrides.items()}
        if isinstance(self.distribution, str):
            traced = isinstance(self.min_density, jax.Array)
            known = dict.fromkeys(shapes, 0) if traced else floors
            kind: Any = self.distribution
            counts = Filling(shapes, kind, known, fixed).counts(sparsity)
        else:
            given = {**self._by_hand(shapes, sparsity, way, overrides), **fixed}
            counts = {path: rounded(given[path] * math.prod(shapes[path])) for path in shapes}
        return {path: _at_least(count, floors.get(path, 0)) for path, count in counts.items()}

    def _by_hand(
        self, shapes: Shapes, sparsity: Any, way: Any, overrides: Mapping[str, float]
    ) -> dict[str, Any]:
        """Densities from a function or a tree, matched by path."""
        given: Any = self.distribution
        if callable(given):
            if isinstance(sparsity, float) and sparsity == 0.0:
                return dict.fromkeys(shapes, Fraction(1))
            leaves = {p: jax.ShapeDtypeStruct(shape, jnp.float32) for p, shape in shapes.items()}
            given, way = _checked_densities(by_path(given(leaves, sparsity))), Fraction(1)
        paths = [path for path in shapes if path not in overrides]
        for path in paths:
            if path not in given:
                raise ValueError(wrong("distribution", f"have a density for '{path}'", list(given)))
        return {path: _on_the_way(number(given[path]), way) for path in paths}


def _checked_densities(densities: Mapping[str, Any]) -> dict[str, Any]:
    return {
        path: checked_share(f"distribution['{path}']", density, whole=True)
        for path, density in densities.items()
    }


def _way_at_start(ramp: Ramp) -> Any:
    """The part of the way, from all kept to the target, that a ramp has gone when it begins."""
    if isinstance(ramp.initial, float) and ramp.initial == 0.0:
        return Fraction(0)
    initial, target = number(ramp.initial, ramp.sparsity), number(ramp.sparsity, ramp.initial)
    if isinstance(target, jax.Array):
        return jnp.where(target > 0, initial / jnp.where(target > 0, target, 1.0), 1.0)
    return initial / target if target else Fraction(1)


def _on_the_way(density: Any, way: Any) -> Any:
    """The density of a leaf that goes from all kept to its own density; none goes below 0."""
    kept = 1 - number(way, density) * (1 - number(density, way))
    return jnp.maximum(kept, 0.0) if isinstance(kept, jax.Array) else max(kept, Fraction(0))


def _shapes(leaves: Mapping[str, Any]) -> Shapes:
    """Shapes by path, from arrays, shapes or sizes."""
    return {
        path: (leaf,) if isinstance(leaf, int) else tuple(getattr(leaf, "shape", leaf))
        for path, leaf in leaves.items()
    }


def _at_least(count: Any, least: Any) -> Any:
    if isinstance(count, jax.Array) or isinstance(least, jax.Array):
        return jnp.maximum(_int32(count), _int32(least))
    return max(count, least)


def _int32(count: Count) -> jax.Array:
    if isinstance(count, int) and count >= 2**31:
        raise ValueError(wrong("params", "keep fewer than 2^31 entries in a group", count))
    return jnp.asarray(count, jnp.int32)


def _between(start: Count, end: Count, progress: jax.Array) -> jax.Array:
    """The count on the way from start to end; exactly the end where progress is 1."""
    start, end = _int32(start), _int32(end)
    dropped = jnp.round((start - end).astype(jnp.float32) * progress).astype(jnp.int32)
    return jnp.where(progress == 1, end, start - dropped)
