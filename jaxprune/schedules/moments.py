"""When: the steps at which something is due."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxprune.schedules.numbers import check_order, step_number

When = Callable[[Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Every:
    """Due at regular steps: ``begin + j * interval`` for j >= 1, and at the ends of its span.

    It is due at ``begin`` itself if that is above 0, and at ``end`` whether or not that lies on the
    grid; never before ``begin`` or after ``end``.

    Attributes:
      interval: steps between two firings.
      begin: first step of the span.
      end: last step of the span; None means for ever.

    Raises:
      ValueError: if ``interval`` is below 1, ``begin`` negative, ``end`` before ``begin``, or 0.
      TypeError: if one of them is not an integer.

    Examples:
      >>> from jaxprune.schedules import Every
      >>> Every(4, 0, 10).steps(100)
      [4, 8, 10]
      >>> bool(Every(4)(8))
      True

    References:
      Original.
    """

    interval: int
    begin: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        """Checks the values and brings numbers into one form."""
        object.__setattr__(self, "interval", step_number("interval", self.interval, 1))
        object.__setattr__(self, "begin", step_number("begin", self.begin, 0))
        if self.end is not None:
            # The first update is seen at age 1: what ends at 0 could never fire.
            end = step_number("end", self.end, 0 if self.begin else 1)
            check_order(self.begin, end)
            object.__setattr__(self, "end", end)

    def __call__(self, n: ArrayLike) -> jax.Array:
        """Whether it is due at age ``n``.

        Args:
          n: updates completed, an integer of any shape.

        Returns:
          bool of the same shape.
        """
        n = jnp.asarray(n)
        after = n - self.begin
        due = (after % self.interval == 0) & (after >= (0 if self.begin else 1))
        return due if self.end is None else (due & (n <= self.end)) | (n == self.end)

    def steps(self, until: int) -> list[int]:
        """The steps at which it is due, on the host.

        Args:
          until: last step to look at.

        Returns:
          Ages in ascending order, all in [1, ``until``].
        """
        first = self.begin or self.interval
        last = until if self.end is None else min(self.end, until)
        ends = [] if self.end is None or self.end > until else [self.end]
        return sorted({*range(first, last + 1, self.interval), *ends})


def every(interval: int, begin: int = 0, end: int | None = None) -> Every:
    """Due every so many steps, and at the end of its span.

    n = begin + j interval for j >= 1; n = begin if begin > 0; n = end whatever the interval.

    Args:
      interval: steps between two firings, at least 1.
      begin: first step of the span.
      end: last step of the span; None means for ever.

    Returns:
      A function n -> bool.

    Raises:
      ValueError: if ``interval`` is below 1, ``begin`` negative, ``end`` before ``begin``, or 0.

    Examples:
      >>> from jaxprune.schedules import every
      >>> every(16, 0, 40).steps(100)
      [16, 32, 40]

    References:
      Original.
    """
    return Every(interval, begin, end)


def once(at: int) -> Every:
    """Due at one step.

    Args:
      at: the step, at least 1: the first update is seen at age 1.

    Returns:
      A function n -> bool.

    Raises:
      ValueError: if ``at`` is below 1.

    Examples:
      >>> from jaxprune.schedules import once
      >>> once(7).steps(100)
      [7]

    References:
      Original.
    """
    at = step_number("at", at, 1)
    return Every(1, at, at)


@dataclasses.dataclass(frozen=True)
class Either:
    """Due when any of several is.

    Attributes:
      whens: functions n -> bool.

    Examples:
      >>> from jaxprune.schedules import Either, every, once
      >>> Either((once(3), every(4))).steps(10)
      [3, 4, 8]

    References:
      Original.
    """

    whens: tuple[When, ...]

    def __call__(self, n: ArrayLike) -> jax.Array:
        """Whether any is due at age ``n``.

        Args:
          n: updates completed, an integer of any shape.

        Returns:
          bool of the same shape.
        """
        due = jnp.zeros(jnp.shape(n), bool)
        for when in self.whens:
            due = due | when(n)
        return due

    def steps(self, until: int) -> list[int]:
        """The steps at which any is due, on the host.

        Args:
          until: last step to look at.

        Returns:
          Ages in ascending order, all in [1, ``until``].
        """
        return sorted({step for when in self.whens for step in steps_due(when, until)})


def either(*whens: When) -> Either:
    """Due when any of several is.

    Args:
      *whens: functions n -> bool, such as `every` and `once` make.

    Returns:
      A function n -> bool.

    Examples:
      >>> from jaxprune.schedules import either, every, once
      >>> either(every(10), once(5)).steps(20)
      [5, 10, 20]

    References:
      Original.
    """
    return Either(whens)


def steps_due(when: When, until: int) -> list[int]:
    """The steps at which something is due, on the host.

    Args:
      when: a function n -> bool; one without ``steps`` of its own is asked at every step.
      until: last step to look at.

    Returns:
      Ages in ascending order, all in [1, ``until``].

    Examples:
      >>> from jaxprune.schedules import steps_due
      >>> steps_due(lambda n: n % 3 == 0, 10)
      [3, 6, 9]

    References:
      Original.
    """
    if isinstance(when, Every | Either):
        return when.steps(until)
    ages = np.arange(1, until + 1, dtype=np.int32)
    return ages[np.asarray(jax.vmap(when)(ages), bool)].tolist() if until > 0 else []
