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
from jaxprune.distributions.filling import Filling, Kind, Shapes, number, rounded
from jaxprune.distributions.stacking import Layers, stack_axes
from jaxprune.numbers import checked_share, decimal
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

    Each slice of a leaf that is declared ``stacked`` is a layer of its own, of the slice's shape,
    named ``path[i]``; its count is one of an array of counts. Under a global ranking, where layers
    have no counts of their own, a stacked leaf is ranked, and floored, as a whole.

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
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own. A
        function of shapes sees them as ``path[i]``; densities may be given for those, or for the
        path and so for all its slices. Overrides match paths and hold for all slices.

    Raises:
      ValueError: if a sparsity or density is out of range, the distribution is not known, a tree
        of densities has no ramp; or, at a call, a pattern matches no path or an axis is none.

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
    stacked: Any = None

    def __post_init__(self) -> None:
        """Checks the values and brings them into a form that can be hashed."""
        overrides = checked_overrides(dict(self.overrides or {}))
        floor = checked_share("min_density", self.min_density, whole=True)
        object.__setattr__(self, "overrides", tuple(overrides.items()))
        object.__setattr__(self, "min_density", floor)
        object.__setattr__(self, "stacked", tuple(dict(self.stacked or {}).items()))
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
          path "*". The counts of a stacked leaf have its rank: L along the stack, 1 elsewhere.
        """
        layers, ramp = self._layers(_shapes(signals.mask)), self.schedule
        if not isinstance(ramp, Ramp):
            now = jnp.asarray(ramp(signals.step), jnp.float32)
            return _gathered(layers, self._counts(layers, now))
        start = _gathered(layers, self._counts(layers, ramp.initial, _way_at_start(ramp)))
        end = _gathered(layers, self._counts(layers, ramp.sparsity))
        progress = ramp.progress(signals.step)
        return {path: _between(start[path], end[path], progress) for path in end}

    def at_end(self, leaves: Mapping[str, Any]) -> dict[str, int]:
        """The counts at the ramp's end, on the host.

        Args:
          leaves: the prunable ones, ``{path: array}``, or their shapes; sizes will do where the
            distribution does not look at shapes.

        Returns:
          ``{path: int}``, with the paths that a call gives; of a stacked leaf the sum.

        Raises:
          ValueError: if the schedule is no ramp, or its sparsity is traced.
        """
        if not isinstance(self.schedule, Ramp) or isinstance(self.schedule.sparsity, jax.Array):
            raise ValueError(wrong("schedule", "be a ramp to a known sparsity", self.schedule))
        layers = self._layers(_shapes(leaves))
        counts = layers.gathered(self._counts(layers, self.schedule.sparsity))
        return {path: sum(each) for path, each in counts.items()}

    def floors(self, leaves: Mapping[str, Any]) -> dict[str, int]:
        """What each leaf keeps at least.

        Args:
          leaves: the prunable ones, ``{path: array}``, or their shapes; sizes will do where the
            distribution does not look at shapes.

        Returns:
          ``{path: int}``, round(n min_density), and 0 for leaves with an override; of a stacked
          leaf the sum over its slices.
        """
        layers = self._layers(_shapes(leaves))
        return {path: sum(each) for path, each in layers.gathered(self._floors(layers)).items()}

    def _layers(self, shapes: Shapes) -> Layers:
        """The layers with a count of their own, and the leaves that share one."""
        arrays = {path: jax.ShapeDtypeStruct(shape, bool) for path, shape in shapes.items()}
        axes = stack_axes(arrays, dict(self.stacked)) if shapes else {}
        if self.distribution == "global":
            overridden = by_pattern(dict(self.overrides), shapes, "overrides") if shapes else {}
            axes = {path: axis for path, axis in axes.items() if path in overridden}
        return Layers(shapes, axes)

    def _floors(self, layers: Layers) -> dict[str, Any]:
        overridden = by_pattern(dict(self.overrides), layers.whole, "overrides")
        share = number(self.min_density)
        return {
            name: 0 if layers.paths[name] in overridden else rounded(share * math.prod(shape))
            for name, shape in layers.shapes.items()
        }

    def _counts(self, layers: Layers, sparsity: Any, way: Any = Fraction(1)) -> dict[str, Any]:
        """Counts of layers at a sparsity that lies some way from all kept to the target.

        Python integers where nothing is traced.
        """
        shapes = layers.shapes
        if not shapes:
            return {}
        floors = self._floors(layers)
        overrides = layers.split(by_pattern(dict(self.overrides), layers.whole, "overrides"))
        fixed = {name: _on_the_way(1 - decimal(o), way) for name, o in overrides.items()}
        if isinstance(self.distribution, str):
            traced = isinstance(self.min_density, jax.Array)
            known = dict.fromkeys(shapes, 0) if traced else floors
            kind: Any = self.distribution
            counts = Filling(shapes, kind, known, fixed).counts(sparsity)
        else:
            given = {**self._by_hand(layers, sparsity, way, overrides), **fixed}
            counts = {name: rounded(given[name] * math.prod(shapes[name])) for name in shapes}
        return {name: _at_least(count, floors.get(name, 0)) for name, count in counts.items()}

    def _by_hand(
        self, layers: Layers, sparsity: Any, way: Any, overrides: Mapping[str, float]
    ) -> dict[str, Any]:
        """Densities from a function or a tree, matched by the layer's name or its leaf's path."""
        given: Any = self.distribution
        shapes = layers.shapes
        if callable(given):
            if isinstance(sparsity, float) and sparsity == 0.0:
                return dict.fromkeys(shapes, Fraction(1))
            leaves = {p: jax.ShapeDtypeStruct(shape, jnp.float32) for p, shape in shapes.items()}
            given, way = _checked_densities(by_path(given(leaves, sparsity))), Fraction(1)
        given = {**layers.split(given), **given}
        names = [name for name in shapes if name not in overrides]
        for name in names:
            if name not in given:
                raise ValueError(wrong("distribution", f"have a density for '{name}'", list(given)))
        return {name: _on_the_way(number(given[name]), way) for name in names}


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


def _gathered(layers: Layers, counts: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Counts by path, those of a stack in one array."""
    found = {}
    for path, each in layers.gathered(counts).items():
        if path not in layers.axes:
            found[path] = _int32(each[0])
        elif all(isinstance(count, int) for count in each):
            _int32(max(each))
            found[path] = jnp.asarray(np.reshape(each, layers.count_shape(path)), jnp.int32)
        else:
            found[path] = jnp.stack([*map(_int32, each)]).reshape(layers.count_shape(path))
    return found


def _between(start: jax.Array, end: jax.Array, progress: jax.Array) -> jax.Array:
    """The count on the way from start to end; exactly the end where progress is 1."""
    dropped = jnp.round((start - end).astype(jnp.float32) * progress).astype(jnp.int32)
    return jnp.where(progress == 1, end, start - dropped)
