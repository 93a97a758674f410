"""Numbers as they are meant: their decimal, their range, and whether they are known yet."""

import operator
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxprune.types import wrong

_NUMBERS = (int, float, np.number, np.ndarray, jax.Array)


def is_traced(value: Any) -> bool:
    """Whether a value is known only when the program runs.

    Args:
      value: anything.

    Returns:
      True for a tracer.

    Examples:
      >>> is_traced(0.9), bool(jax.jit(lambda x: is_traced(x))(0.9))
      (False, True)

    References:
      Original.
    """
    return isinstance(value, Tracer)


def decimal(value: Any) -> Fraction:
    """The number that a float is written as: 0.9 means nine tenths, in any precision.

    Args:
      value: a number, or a concrete array of one.

    Returns:
      The shortest decimal that gives back the float, as a fraction.

    Examples:
      >>> decimal(0.9), decimal(np.float32(0.9))
      (Fraction(9, 10), Fraction(9, 10))

    References:
      Original.
    """
    return Fraction(str(np.asarray(value).reshape(())[()]))


def checked_share(argument: str, value: Any, *, whole: bool = False) -> Any:
    """A share of entries, with its range checked where it is known.

    Args:
      argument: name of the argument, for the error.
      value: a number, or an array of one; a traced one passes unchecked.
      whole: whether 1 itself is allowed.

    Returns:
      A python float, or the tracer.

    Raises:
      TypeError: if the value is not one number.
      ValueError: if it is outside [0, 1), or [0, 1] where ``whole``, or NaN.

    Examples:
      >>> checked_share("sparsity", np.float32(0.9))
      0.9

    References:
      Original.
    """
    if isinstance(value, bool) or not isinstance(value, _NUMBERS) or np.ndim(value):
        raise TypeError(wrong(argument, "be one number", value))
    if is_traced(value):
        return value
    number = float(str(np.asarray(value)[()]))
    if 0 <= number < 1 or (whole and number == 1):
        return number
    hint = f"give a fraction, did you mean {number / 100:g}?" if 1 < number <= 100 else ""
    came = value if isinstance(value, int | float) else number
    raise ValueError(wrong(argument, f"lie in [0, 1{']' if whole else ')'}", came, hint))


def step_number(argument: str, value: Any, least: int) -> int:
    """A number of steps as a python int.

    Args:
      argument: name of the argument, for the error.
      value: an integer of any kind.
      least: the smallest that is allowed.

    Returns:
      The integer.

    Raises:
      TypeError: if the value is not an integer.
      ValueError: if it is below ``least``.

    Examples:
      >>> step_number("interval", np.int64(16), 1)
      16

    References:
      Original.
    """
    try:
        steps = operator.index(value)
    except TypeError:
        raise TypeError(wrong(argument, "be an integer", value)) from None
    if steps < least:
        raise ValueError(wrong(argument, f"be at least {least}", steps))
    return steps


def check_order(begin: int, end: int) -> None:
    """Refuses a span that ends before it begins.

    Args:
      begin: first step.
      end: last step.

    Raises:
      ValueError: if ``end`` comes before ``begin``.

    Examples:
      >>> check_order(10, 5)
      Traceback (most recent call last):
      ...
      ValueError: `end` must not lie before `begin`, which is 10, got 5

    References:
      Original.
    """
    if end < begin:
        raise ValueError(wrong("end", f"not lie before `begin`, which is {begin}", end))
