"""Counts at a step: a schedule over a distribution."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.distributions.densities import checked_overrides, erk, uniform
from jaxprune.distributions.filling import Filling, Kind
from jaxprune.numbers import checked_share, decimal, is_traced
from jaxprune.schedules.ramps import Ramp
from jaxprune.trees import Tree, by_path, by_pattern
from jaxprune.types import Count, Signals, wrong
from jaxprune.units import Layers, units_of

Distribution = Kind | Callable[[Any, Any], Tree] | Tree


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many entries each leaf, or the tree, keeps at a step: a schedule over a distribution.

    A ramp has counts at its two ends, integers taken on the host, and goes between them:
    N_0 - round((N_0 - K) progress). So its end is exact at any size. Any other schedule, and a
    traced sparsity, gives counts in float32, and is for "global" and "uniform" alone.

    The denominator is all prunable entries, those of leaves with an override included. Global and
    ERK counts add up to round(N (1 - s)), ERK by largest remainder; uniform rounds each leaf.

    Each slice of a stacked leaf is a layer of its own, of the slice's shape, named ``path[i]``; its
    count is one of an array of counts. Under a global ranking, where layers have no counts of their
    own, a stacked leaf is ranked, and floored, as a whole.

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
        A function of shapes sees slices of stacks as ``path[i]``; densities may be given for those,
        or for the path and so for all its slices. Overrides match paths and hold for all slices.
      share: step -> a share of the counts that they fall short of, ``k - floor(share k)``.
      joint: whether all leaves without an override are ranked together, whatever their counts.

    Raises:
      ValueError: if a sparsity or density is out of range, the distribution is not known, a tree
        of densities has no ramp; or, at a call, a pattern matches no path or an axis is none.

    Examples:
      >>> from jaxprune.distributions import Budget
      >>> from jaxprune.schedules import cubic
      >>> from jaxprune.units import Layers
      >>> budget = Budget(cubic(0, 100, 0.9), "erk")
      >>> budget.at_end(Layers({"a": (2, 3), "b": (20, 30)}, {}))
      {('a',): 6, ('b',): 55}
    """

    schedule: Callable[[Any], Any]
    distribution: Distribution = dataclasses.field(default="global", hash=False)
    overrides: Any = None
    min_density: float = 0.0
    share: Callable[[Any], Any] | None = None
    joint: bool = False

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
            expected = "be no tree of densities where sparsity follows a schedule that is no ramp"
            raise ValueError(wrong("distribution", expected, given))
        return _checked_densities(by_path(given))

    def less(self, share: Callable[[Any], Any]) -> "Budget":
        """This budget less a share of it that depends on the step."""
        return dataclasses.replace(self, share=share)

    def together(self) -> "Budget":
        """The same number for all leaves ranked together; those with an override stay apart."""
        return dataclasses.replace(self, joint=True)

    def __call__(self, signals: Signals) -> dict[tuple[str, ...], jax.Array]:
        """The counts at a step.

        Args:
          signals: of which the masks' shapes and the step are read.

        Returns:
          ``{(site, ...): int32}``, the sites that are ranked together and their number. Those of a
          stacked site have its rank: L along the stack, 1 elsewhere.
        """
        layers = units_of(signals).layers(signals.mask)
        counts = self._at(self._split(layers), signals.step)
        if self.joint:
            counts = self._joined(layers, counts)
        if self.share is None:
            return counts
        share = jnp.asarray(self.share(signals.step), jnp.float32)

        def less(count: jax.Array) -> jax.Array:
            return count - jnp.floor(share * count.astype(jnp.float32)).astype(jnp.int32)

        return {sites: less(count) for sites, count in counts.items()}

    def least(self, signals: Signals) -> dict[str, Any]:
        """What each site keeps of its own highest first, where sites are ranked together."""
        if not self.joint and self.distribution != "global":
            return {}
        return self.floors(units_of(signals).layers(signals.mask))

    def at_end(self, layers: Layers) -> dict[tuple[str, ...], int] | None:
        """The counts at the ramp's end, on the host, as a call groups them; None if unknown."""
        ramp = self.schedule
        if self.share is not None or not isinstance(ramp, Ramp) or is_traced(ramp.sparsity):
            return None
        split = self._split(layers)
        found = _by_sites(split, self._counts(split, ramp.sparsity))
        counts = {sites: sum(each) for sites, each in found.items()}
        return self._joined(layers, counts) if self.joint else counts

    def floors(self, layers: Layers) -> dict[str, Any]:
        """What each site keeps at least: round(n min_density), and 0 of those with an override."""
        split = self._split(layers)
        return {path: sum(each) for path, each in split.gathered(self._floors(split)).items()}

    def _at(self, layers: Layers, step: Any) -> dict[tuple[str, ...], jax.Array]:
        ramp = self.schedule
        if not isinstance(ramp, Ramp):
            return _arrays(layers, self._traced(layers, ramp(step), 1.0))
        if is_traced(ramp.sparsity):
            target, begin = jnp.asarray(ramp.sparsity, jnp.float32), jnp.float32(ramp.initial)
            way = jnp.where(target > 0, begin / jnp.where(target > 0, target, 1.0), 1.0)
            last = _arrays(layers, self._traced(layers, target, 1.0))
            first = _arrays(layers, self._traced(layers, begin, way))
            return {
                sites: _between(first[sites], n, ramp.progress(step)) for sites, n in last.items()
            }
        end = self._counts(layers, ramp.sparsity)
        last = _arrays(layers, end)
        if is_traced(ramp.initial):  # every site is as far on its way as the whole tree
            way = ramp(step) / max(ramp.sparsity, 1e-9)
            whole = _arrays(layers, {names: _sizes(layers, names) for names in end})
            return {sites: _between(whole[sites], n, way) for sites, n in last.items()}
        way = _way(ramp.initial, ramp.sparsity)
        first = _arrays(layers, self._counts(layers, ramp.initial, way))
        progress = ramp.progress(step)
        return {sites: _between(first[sites], n, progress) for sites, n in last.items()}

    def _joined(self, layers: Layers, counts: Mapping[Any, Any]) -> dict[Any, Any]:
        own = by_pattern(dict(self.overrides), layers.whole, "overrides")
        apart = {sites: n for sites, n in counts.items() if len(sites) == 1 and sites[0] in own}
        others = [sites for sites in counts if sites not in apart]
        if not others:
            return apart
        numbers = [counts[sites] for sites in others]
        known = all(isinstance(n, int) for n in numbers)
        total = sum(numbers) if known else sum(map(jnp.sum, numbers), jnp.zeros((), jnp.int32))
        return apart | {tuple(site for sites in others for site in sites): total}

    def _split(self, layers: Layers) -> Layers:
        """The layers with a count of their own, and the sites that share one."""
        if self.distribution != "global" or not layers.axes:
            return layers
        return layers.only(by_pattern(dict(self.overrides), layers.whole, "overrides"))

    def _overridden(self, layers: Layers) -> dict[str, float]:
        """The sparsity of each layer that has one of its own."""
        return layers.split(by_pattern(dict(self.overrides), layers.whole, "overrides"))

    def _floors(self, layers: Layers) -> dict[str, Any]:
        overridden = self._overridden(layers)
        return {
            name: 0 if name in overridden else _share_of(self.min_density, math.prod(shape))
            for name, shape in layers.shapes.items()
        }

    def _counts(
        self, layers: Layers, sparsity: float, way: Fraction = Fraction(1)
    ) -> dict[tuple[str, ...], Any]:
        """Counts of layers at a sparsity that lies some way from all kept to the target."""
        shapes = layers.shapes
        if not shapes:
            return {}
        floors, overrides = self._floors(layers), self._overridden(layers)
        fixed = {name: _on_the_way(1 - decimal(o), way) for name, o in overrides.items()}
        if isinstance(self.distribution, str):
            known = dict.fromkeys(shapes, 0) if is_traced(self.min_density) else floors
            kind: Any = self.distribution
            counts = Filling(shapes, kind, known, fixed).counts(sparsity)
        else:
            given = {**self._by_hand(layers, sparsity, way, overrides), **fixed}
            counts = {(name,): round(given[name] * math.prod(shapes[name])) for name in shapes}
        least: dict[tuple[str, ...], Any] = {(name,): floor for name, floor in floors.items()}
        return {names: _at_least(count, least.get(names, 0)) for names, count in counts.items()}

    def _traced(self, layers: Layers, sparsity: Any, way: Any) -> dict[tuple[str, ...], Any]:
        """Counts in float32, where the sparsity is known only when the program runs."""
        if self.distribution not in ("global", "uniform"):
            expected = "be global or uniform where the sparsity is traced, or no ramp"
            raise ValueError(wrong("distribution", expected, self.distribution))
        sizes = {name: math.prod(shape) for name, shape in layers.shapes.items()}
        if not sizes:
            return {}
        floors, overrides = self._floors(layers), self._overridden(layers)
        fixed = {
            name: jnp.round((1 - jnp.float32(o) * way) * sizes[name]).astype(jnp.int32)
            for name, o in overrides.items()
        }
        filled = {name: n for name, n in sizes.items() if name not in fixed}
        rest = sum(sizes.values()) * (1 - jnp.asarray(sparsity, jnp.float32))
        rest -= sum(fixed.values(), jnp.int32(0)).astype(jnp.float32)
        total = sum(filled.values())
        if self.distribution == "global":
            kept = jnp.round(jnp.clip(rest, 0, total)).astype(jnp.int32)
            least = sum((floors[name] for name in filled), 0)
            shared = {tuple(filled): jnp.maximum(kept, least)} if filled else {}
        else:
            level = jnp.clip(rest / max(total, 1), 0, 1)
            shared = {
                (name,): jnp.maximum(jnp.round(level * n).astype(jnp.int32), floors[name])
                for name, n in filled.items()
            }
        return {(name,): count for name, count in fixed.items()} | shared

    def _by_hand(
        self, layers: Layers, sparsity: float, way: Fraction, overrides: Mapping[str, float]
    ) -> dict[str, Fraction]:
        """Densities from a function or a tree, matched by the layer's name or its leaf's path."""
        given: Any = self.distribution
        shapes = layers.shapes
        if callable(given):
            if sparsity == 0:
                return dict.fromkeys(shapes, Fraction(1))
            leaves = {p: jax.ShapeDtypeStruct(shape, jnp.float32) for p, shape in shapes.items()}
            given, way = _checked_densities(by_path(given(leaves, sparsity))), Fraction(1)
        given = {**layers.split(given), **given}
        names = [name for name in shapes if name not in overrides]
        for name in names:
            if name not in given:
                raise ValueError(wrong("distribution", f"have a density for '{name}'", list(given)))
        return {name: _on_the_way(decimal(given[name]), way) for name in names}


def _checked_densities(densities: Mapping[str, Any]) -> dict[str, Any]:
    return {
        path: checked_share(f"distribution['{path}']", density, whole=True)
        for path, density in densities.items()
    }


def _way(initial: float, target: float) -> Fraction:
    """The part of the way, from all kept to the target, that a ramp has gone when it begins."""
    if not initial:
        return Fraction(0)
    return decimal(initial) / decimal(target) if target else Fraction(1)


def _on_the_way(density: Fraction, way: Fraction) -> Fraction:
    """The density of a leaf that goes from all kept to its own density; none goes below 0."""
    return max(1 - way * (1 - density), Fraction(0))


def _share_of(share: Any, size: int) -> Any:
    if is_traced(share):
        return jnp.round(jnp.asarray(share, jnp.float32) * size).astype(jnp.int32)
    return round(decimal(share) * size)


def _at_least(count: Any, least: Any) -> Any:
    return jnp.maximum(_int32(count), least) if is_traced(least) else max(count, least)


def _sizes(layers: Layers, names: tuple[str, ...]) -> int:
    return sum(math.prod(layers.shapes[name]) for name in names)


def _int32(count: Count) -> jax.Array:
    return jnp.asarray(_checked_count(count), jnp.int32)


def _checked_count(count: Any) -> Any:
    if isinstance(count, int) and count >= 2**31:
        hint = "rank layers apart, as distribution='uniform' does"
        raise ValueError(wrong("params", "keep fewer than 2^31 entries in a group", count, hint))
    return count


def _by_sites(layers: Layers, counts: Mapping[tuple[str, ...], Any]) -> dict[Any, list[Any]]:
    """Counts by the sites that share one, those of the slices of a stack in one list."""
    paths, found = layers.paths, {}
    for names, count in counts.items():
        sites = tuple(dict.fromkeys(paths[name] for name in names))
        found.setdefault(sites, []).append(count)
    return found


def _arrays(layers: Layers, counts: Mapping[tuple[str, ...], Any]) -> dict[Any, jax.Array]:
    """The same as int32 arrays: scalars, or for a stack one of its rank."""
    found = {}
    for sites, each in _by_sites(layers, counts).items():
        if sites[0] not in layers.axes or len(sites) > 1:
            found[sites] = _int32(each[0])
            continue
        shape = layers.count_shape(sites[0])
        if any(map(is_traced, each)):
            found[sites] = jnp.stack(each).reshape(shape)
        else:
            found[sites] = jnp.asarray(np.reshape([*map(_checked_count, each)], shape), jnp.int32)
    return found


def _between(start: jax.Array, end: jax.Array, progress: jax.Array) -> jax.Array:
    """The count on the way from start to end; exactly the end where progress is 1."""
    dropped = jnp.round((start - end).astype(jnp.float32) * progress).astype(jnp.int32)
    return jnp.where(progress == 1, end, start - dropped)
