"""Layers: what budgets count by. A site is one, or a stack of several."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.types import Leaves, wrong

Shapes = Mapping[str, tuple[int, ...]]


def stack_axes(leaves: Leaves, stacked: Any) -> dict[str, int]:
    """Along which axis leaves stack layers.

    Args:
      leaves: ``{path: leaf}``.
      stacked: ``{pattern: axis}``.

    Returns:
      ``{path: axis}`` of those that do, each in ``[0, ndim)``.

    Raises:
      TypeError: if an axis is not an integer.
      ValueError: if it is out of range, or a pattern matches no path.
    """
    axes = trees.by_pattern(dict(stacked), leaves, "stacked")
    for path, axis in axes.items():
        ndim = len(leaves[path].shape)
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(wrong("stacked", f"give an integer, the axis of '{path}'", axis))
        if not -ndim <= axis < ndim:
            raise ValueError(wrong("stacked", f"lie in [-{ndim}, {ndim}) for '{path}'", axis))
    return {path: axis % len(leaves[path].shape) for path, axis in axes.items()}


class Layers(NamedTuple):
    """The layers that sites hold: a site is one, named as it is, or a stack of several.

    Attributes:
      whole: shapes by site.
      axes: the stack axis of those that are stacked; layer i of one is named ``site[i]``.
      rounded: ``(site, count) -> count`` where counts are not as a budget says.
    """

    whole: Shapes
    axes: Mapping[str, int]
    rounded: Callable[[str, Any], Any] | None = None

    @property
    def paths(self) -> dict[str, str]:
        """The site that holds each layer, by the layer's name."""
        found = {}
        for path, shape in self.whole.items():
            if path in self.axes:
                found |= {f"{path}[{i}]": path for i in range(shape[self.axes[path]])}
            else:
                found[path] = path
        return found

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each layer, by its name."""
        return {name: self.shape(path) for name, path in self.paths.items()}

    def shape(self, path: str) -> tuple[int, ...]:
        """The shape of each layer of a site."""
        shape, axis = self.whole[path], self.axes.get(path)
        return shape if axis is None else shape[:axis] + shape[axis + 1 :]

    def size(self, site: str) -> int:
        """How many units a site has."""
        return math.prod(self.whole[site])

    def only(self, sites: Iterable[str]) -> "Layers":
        """The same sites, stacked only where they are among some."""
        return self._replace(axes={s: a for s, a in self.axes.items() if s in [*sites]})

    def split(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by site, for each layer of it."""
        return {name: values[path] for name, path in self.paths.items() if path in values}

    def each(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Each layer's own part of the leaves, by its name."""
        found = {}
        for path, leaf in leaves.items():
            if path in self.axes:
                slices = np.moveaxis(leaf, self.axes[path], 0)
                found |= {f"{path}[{i}]": part for i, part in enumerate(slices)}
            else:
                found[path] = leaf
        return found

    def gathered(self, values: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Values by layer, in lists by site; names that are no layer's stay."""
        paths, found = self.paths, {}
        for name, value in values.items():
            found.setdefault(paths.get(name, name), []).append(value)
        return found

    def count_shape(self, path: str) -> tuple[int, ...]:
        """The shape of a site's counts: () of a layer, 1 on all axes but the stack's of several."""
        axis = self.axes.get(path)
        if axis is None:
            return ()
        return tuple(n if a == axis else 1 for a, n in enumerate(self.whole[path]))

    def full(self, value: Any) -> dict[str, jax.Array]:
        """A float32 number for each layer, in the shape of its site's counts."""
        return {p: jnp.full(self.count_shape(p), value, jnp.float32) for p in self.whole}
