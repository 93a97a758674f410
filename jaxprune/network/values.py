"""What a walk knows of a value: of each axis, of which leaves it is made, which layer gave it."""

from typing import Any, NamedTuple

import numpy as np

ZERO, NUMBER, PERHAPS, SINGULAR = 0.0, np.inf, np.finfo(np.float64).max, -np.inf
"""What the masked network has where a unit is removed, if it is not a number that is known, which
stands for itself: 0; any number; 0 or any number; inf or NaN."""

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
        """The axis of a value that has other numbers beside those that are known."""
        return self._replace(masked=common(np.stack([self.masked, np.full(self.size, NUMBER)])))

    def summed(self) -> "Axis":
        """The axis of sums or products of several such numbers."""
        return self._replace(masked=sums_of(self.masked))

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
      number: what it is everywhere, if that is known.
      origin: of which layer's output it is a function entry by entry.
      hot: axes along which it is 1 at one index and 0 elsewhere.
      counts: axes along which it counts 0, 1, 2, ...
    """

    axes: tuple[Axis, ...]
    made: frozenset[str] | None = None
    number: float | None = None
    origin: Origin | None = None
    hot: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(axis.size for axis in self.axes)

    @property
    def state(self) -> float:
        """What the masked network has everywhere: a number that is known, or NUMBER."""
        number = self.number
        return number if number is not None and np.isfinite(number) else NUMBER

    def masked(self, axis: int) -> np.ndarray:
        """What the masked network has along an axis, `[N]`."""
        state = self.state
        return np.full(self.axes[axis].size, state) if is_known(state) else self.axes[axis].masked


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


def is_known(state: Any) -> Any:
    """Whether a state, or each of several, is a number."""
    return np.isfinite(state) & (state != PERHAPS)


def common(states: np.ndarray, axis: int | tuple[int, ...] = 0) -> np.ndarray:
    """What several states have in common along axes; not finite where one is not."""
    one = states.max(axis)
    same = states.min(axis) == one
    zero = ((states == ZERO) | (states == PERHAPS)).any(axis)
    mixed = np.where((states == SINGULAR).any(axis), SINGULAR, np.where(zero, PERHAPS, NUMBER))
    return np.where(same, one, mixed)


def sums_of(states: np.ndarray) -> np.ndarray:
    """What sums or products of several numbers are of which the states are known."""
    stays = (states == ZERO) | (states == PERHAPS) | (states == SINGULAR)
    return np.where(stays, states, NUMBER)


def products_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What sums of products of two numbers are: 0 where one is, not finite where one is not."""
    found = np.full(np.broadcast_shapes(a.shape, b.shape), NUMBER)
    for state in (PERHAPS, ZERO, SINGULAR):
        found = np.where((a == state) | (b == state), state, found)
    return found
