"""How far: sparsity as a function of the age of the network."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxprune.schedules.numbers import check_order, checked_share, is_traced, step_number
from jaxprune.types import wrong

Shape = Literal["cubic", "linear", "geometric", "constant"]


@dataclasses.dataclass(frozen=True, eq=False)
class Ramp:
    """A sparsity that goes from ``initial`` to ``sparsity`` between two steps, then stays.

    With t = clip((n - begin) / (end - begin), 0, 1), the sparsity is
    ``initial + (sparsity - initial) * progress``, where progress is

    - cubic: ``1 - (1 - t)^3``
    - linear: ``t``
    - geometric: such that the density is ``(1 - initial)^(1 - t) * (1 - sparsity)^t``
    - constant: 1

    Where ``begin == end`` it jumps there.

    Attributes:
      begin: last step at ``initial``.
      end: first step at ``sparsity``.
      sparsity: target, in [0, 1); may be traced.
      initial: sparsity up to ``begin``, in [0, 1); may be traced.
      shape: the course between them.

    Raises:
      ValueError: if a sparsity is outside [0, 1), ``begin`` is negative, or ``end`` before it.
      TypeError: if a sparsity is not one number, or a step not an integer.

    Examples:
      >>> ramp = Ramp(0, 100, 0.9, shape="linear")
      >>> float(ramp(50)), float(ramp.progress(50))
      (0.44999998807907104, 0.5)

    References:
      Original; the cubic shape is Zhu & Gupta, "To prune, or not to prune", 2017,
      https://arxiv.org/abs/1710.01878.
    """

    begin: int
    end: int
    sparsity: Any
    initial: Any = 0.0
    shape: Shape = "cubic"

    def __post_init__(self) -> None:
        """Checks the values and brings numbers into one form."""
        if self.shape not in ("cubic", "linear", "geometric", "constant"):
            raise ValueError(wrong("shape", "be cubic, linear, geometric or constant", self.shape))
        values = {
            "begin": step_number("begin", self.begin, 0),
            "end": step_number("end", self.end, 0),
            "sparsity": checked_share("sparsity", self.sparsity),
            "initial": checked_share("initial", self.initial),
        }
        check_order(values["begin"], values["end"])
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _identity(self) -> tuple[Any, ...]:
        """What makes two ramps equal; a tracer, which has no value yet, is equal to itself only."""
        shares = (self.sparsity, self.initial)
        keys = [("traced", id(x)) if is_traced(x) else x for x in shares]
        return (self.begin, self.end, *keys, self.shape)

    def __eq__(self, other: object) -> bool:
        """Equality by value."""
        return isinstance(other, Ramp) and self._identity() == other._identity()

    def __hash__(self) -> int:
        """Hash by value."""
        return hash(self._identity())

    def __call__(self, n: ArrayLike) -> jax.Array:
        """The sparsity at age ``n``.

        Args:
          n: updates completed, an integer of any shape.

        Returns:
          float32 of the same shape; from ``end`` on the target itself.
        """
        initial = jnp.asarray(self.initial, jnp.float32)
        target = jnp.asarray(self.sparsity, jnp.float32)
        progress = self.progress(n)
        return jnp.where(progress == 1, target, initial + (target - initial) * progress)

    def progress(self, n: ArrayLike) -> jax.Array:
        """How far the ramp has come at age ``n``.

        Args:
          n: updates completed, an integer of any shape.

        Returns:
          float32 in [0, 1]: 0 up to ``begin``, 1 from ``end`` on.
        """
        n = jnp.asarray(n)
        time = (n - self.begin).astype(jnp.float32) / max(self.end - self.begin, 1)
        way = self._course(jnp.clip(time, 0.0, 1.0))
        return jnp.where(n >= self.end, 1.0, jnp.where(n <= self.begin, 0.0, way))

    def _course(self, time: jax.Array) -> jax.Array:
        """Progress inside the ramp, from the share of its time that has passed."""
        if self.shape == "constant":
            return jnp.ones_like(time)
        if self.shape == "linear":
            return time
        if self.shape == "cubic":
            return 1.0 - (1.0 - time) ** 3
        first = 1.0 - jnp.asarray(self.initial, jnp.float32)
        ratio = (1.0 - jnp.asarray(self.sparsity, jnp.float32)) / first
        level = ratio == 1  # nothing to do: any course is right, but 0 / 0 is none
        course = (1.0 - ratio**time) / jnp.where(level, 1.0, 1.0 - ratio)
        return jnp.where(level, time, jnp.clip(course, 0.0, 1.0))


def cubic(begin: int, end: int, sparsity: ArrayLike, initial: ArrayLike = 0.0) -> Ramp:
    """A ramp that prunes fast at first and slowly at the end.

    s(n) = s_f + (s_i - s_f) (1 - t)^3, t = clip((n - begin) / (end - begin), 0, 1).

    Args:
      begin: last step at ``initial``.
      end: first step at ``sparsity``.
      sparsity: target s_f in [0, 1).
      initial: sparsity s_i before the ramp.

    Returns:
      The ramp, a function n -> sparsity.

    Raises:
      ValueError: if a sparsity is outside [0, 1), ``begin`` is negative, or ``end`` before it.

    Examples:
      >>> schedule = cubic(0, 100, 0.9)
      >>> [round(float(schedule(n)), 4) for n in (0, 25, 50, 75, 100, 150)]
      [0.0, 0.5203, 0.7875, 0.8859, 0.9, 0.9]

    References:
      Zhu & Gupta, "To prune, or not to prune", 2017, https://arxiv.org/abs/1710.01878, eq. 1.
    """
    return Ramp(begin, end, sparsity, initial, "cubic")


def linear(begin: int, end: int, sparsity: ArrayLike, initial: ArrayLike = 0.0) -> Ramp:
    """A ramp that prunes the same number of entries each step.

    s(n) = s_i + (s_f - s_i) t, t = clip((n - begin) / (end - begin), 0, 1).

    Args:
      begin: last step at ``initial``.
      end: first step at ``sparsity``.
      sparsity: target s_f in [0, 1).
      initial: sparsity s_i before the ramp.

    Returns:
      The ramp, a function n -> sparsity.

    Raises:
      ValueError: if a sparsity is outside [0, 1), ``begin`` is negative, or ``end`` before it.

    Examples:
      >>> float(linear(10, 20, 0.5)(15))
      0.25

    References:
      Original.
    """
    return Ramp(begin, end, sparsity, initial, "linear")


def geometric(begin: int, end: int, sparsity: ArrayLike, initial: ArrayLike = 0.0) -> Ramp:
    """A ramp that prunes the same share of what is left each step.

    1 - s(n) = (1 - s_i)^(1 - t) (1 - s_f)^t, t = clip((n - begin) / (end - begin), 0, 1).

    Args:
      begin: last step at ``initial``.
      end: first step at ``sparsity``.
      sparsity: target s_f in [0, 1).
      initial: sparsity s_i before the ramp.

    Returns:
      The ramp, a function n -> sparsity.

    Raises:
      ValueError: if a sparsity is outside [0, 1), ``begin`` is negative, or ``end`` before it.

    Examples:
      >>> round(float(geometric(0, 2, 0.75)(1)), 6)
      0.5

    References:
      Original.
    """
    return Ramp(begin, end, sparsity, initial, "geometric")


def constant(sparsity: ArrayLike) -> Ramp:
    """The same sparsity at every step.

    Args:
      sparsity: in [0, 1).

    Returns:
      A ramp that is at its end from the first step on.

    Raises:
      ValueError: if the sparsity is outside [0, 1).

    Examples:
      >>> round(float(constant(0.5)(0)), 6)
      0.5

    References:
      Original.
    """
    return Ramp(0, 0, sparsity, sparsity, "constant")
