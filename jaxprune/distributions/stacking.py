"""Leaves that stack layers, as scanned networks have them, and the layers they hold."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.distributions.filling import Shapes
from jaxprune.trees import by_pattern
from jaxprune.types import Leaves, wrong

Stacked = Mapping[str, int] | None
"""``{pattern: axis}`` of leaves that stack layers."""


def stack_axes(leaves: Leaves, stacked: Stacked) -> dict[str, int]:
    """Along which axis leaves stack layers.

    Args:
      leaves: ``{path: leaf}``.
      stacked: ``{pattern: axis}``; the first pattern that matches wins.

    Returns:
      ``{path: axis}`` of the stacked leaves, each in ``[0, ndim)``.

    Raises:
      ValueError: if a pattern matches no path, or an axis is out of range.
      TypeError: if an axis is not an integer.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.distributions import stack_axes
      >>> stack_axes({"layers/kernel": jnp.ones((3, 4, 5)), "head": jnp.ones(2)}, {"layers": -3})
      {'layers/kernel': 0}

    References:
      Original.
    """
    axes = by_pattern(dict(stacked or {}), leaves, "stacked")
    for path, axis in axes.items():
        ndim = len(leaves[path].shape)
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(wrong("stacked", f"give an integer, the axis of '{path}'", axis))
        if not -ndim <= axis < ndim:
            raise ValueError(wrong("stacked", f"lie in [-{ndim}, {ndim}) for '{path}'", axis))
    return {path: axis % len(leaves[path].shape) for path, axis in axes.items()}


class Layers(NamedTuple):
    """The layers that leaves hold: a leaf is one, named by its path, or a stack of several.

    Attributes:
      whole: shapes of the leaves by path.
      axes: the stack axis of those that are stacked; layer i of one is named ``path[i]``.
    """

    whole: Shapes
    axes: Mapping[str, int]

    @classmethod
    def of(cls, leaves: Leaves, stacked: Stacked) -> "Layers":
        """The layers of leaves, each of their slices where they are declared stacked."""
        axes = stack_axes(leaves, stacked)
        return cls({path: tuple(leaf.shape) for path, leaf in leaves.items()}, axes)

    @property
    def paths(self) -> dict[str, str]:
        """The path of the leaf that holds each layer, by the layer's name."""
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
        return {name: self._shape(path) for name, path in self.paths.items()}

    def _shape(self, path: str) -> tuple[int, ...]:
        shape, axis = self.whole[path], self.axes.get(path)
        return shape if axis is None else shape[:axis] + shape[axis + 1 :]

    def split(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by path, for each layer of the leaf."""
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
        """Values by layer, in lists by path; names that are no layer's stay."""
        paths, found = self.paths, {}
        for name, value in values.items():
            found.setdefault(paths.get(name, name), []).append(value)
        return found

    def count_shape(self, path: str) -> tuple[int, ...]:
        """The shape of a leaf's counts: () of a layer, 1 on all axes but the stack's of several."""
        axis = self.axes.get(path)
        if axis is None:
            return ()
        return tuple(n if a == axis else 1 for a, n in enumerate(self.whole[path]))

    def full(self, value: Any) -> dict[str, jax.Array]:
        """A float32 number for each layer, in the shape of its leaf's counts."""
        return {p: jnp.full(self.count_shape(p), value, jnp.float32) for p in self.whole}
