"""What a walk knows of a value: of each axis, of which leaves it is made, which layer gave it."""

from typing import NamedTuple

import numpy as np

NUMBER, ZERO, SINGULAR = np.int8(0), np.int8(1), np.int8(2)
"""What the masked network has where a unit is removed: any number, exactly 0, or inf or NaN."""

Site = tuple[object, ...]
"""Where an equation stands: the number of each equation from the outermost program in."""


class Axis(NamedTuple):
    """An axis of a value.

    Attributes:
      ids: who lives and dies with each index, `[N]`; see `Ids`.
      masked: what the masked network has at each index once it is removed, `[N]`.
      of: the axes of leaves that lie along it, in order: ``((path, axis), ...)``.
    """

    ids: np.ndarray
    masked: np.ndarray
    of: tuple[tuple[str, int], ...] = ()

    @property
    def size(self) -> int:
        """How many indices it has."""
        return len(self.ids)

    def unsure(self) -> "Axis":
        """The axis of a value of which nothing is known to be 0."""
        return self._replace(masked=np.where(self.masked == ZERO, NUMBER, self.masked))

    def taken(self, index: object) -> "Axis":
        """Some of its indices."""
        return Axis(self.ids[index], self.masked[index], self.of)  # type: ignore[index]


class Origin(NamedTuple):
    """The layer whose output a value is a function of, entry by entry.

    Attributes:
      product: where the layer's product stands.
      met: what it has met since, in order: ``(("multiplied" | "added" | "normed", path), ...)``.
      statistic: whether it is a reduction of that output.
    """

    product: Site
    met: tuple[tuple[str, str], ...] = ()
    statistic: bool = False


class Value(NamedTuple):
    """A value of a traced program.

    Attributes:
      axes: its axes.
      made: the leaves of which it is made, and of nothing else; empty of numbers alone; None where
        data are in it.
      null: whether all of it is 0, always.
      number: what it is everywhere, if that is known.
      origin: of which layer's output it is a function entry by entry.
      hot: axes along which it is 1 at one index and 0 elsewhere.
      counts: axes along which it counts 0, 1, 2, ...
    """

    axes: tuple[Axis, ...]
    made: frozenset[str] | None = None
    null: bool = False
    number: float | None = None
    origin: Origin | None = None
    hot: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(axis.size for axis in self.axes)

    def masked(self, axis: int) -> np.ndarray:
        """What the masked network has along an axis, `[N]`."""
        return np.full(self.axes[axis].size, ZERO) if self.null else self.axes[axis].masked


def fixed_axis(size: int, of: tuple[tuple[str, int], ...] = ()) -> Axis:
    """An axis of which nothing is ever cut."""
    return Axis(np.zeros(size, np.int64), np.full(size, NUMBER), of)


def fixed_value(shape: tuple[int, ...]) -> Value:
    """Data of which nothing is ever cut."""
    return Value(tuple(map(fixed_axis, shape)))


def leaves_of(axes: list[Axis]) -> tuple[tuple[str, int], ...]:
    """The axes of leaves that lie along several axes, each once."""
    return tuple(dict.fromkeys(found for axis in axes for found in axis.of))


def made_of(values: list[Value]) -> frozenset[str] | None:
    """Of which leaves a value is made that several are put into."""
    found = [value.made for value in values]
    known = [made for made in found if made is not None]
    return frozenset[str]().union(*known) if len(known) == len(found) else None


def common(states: np.ndarray, axis: int | tuple[int, ...] = 0) -> np.ndarray:
    """What several states have in common along axes: 0 only where all are, not finite where one."""
    zero, singular = (states == ZERO).all(axis), (states == SINGULAR).any(axis)
    return np.where(singular, SINGULAR, np.where(zero, ZERO, NUMBER))
