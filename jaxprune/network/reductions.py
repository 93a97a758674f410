"""Sums and other reductions, windows, running sums."""

import math

import numpy as np

from jaxprune.network.shapes import moved
from jaxprune.network.values import NUMBER, ZERO, Value, fixed_axis, is_known, sums_of
from jaxprune.network.walk import Equation, Walk, rule, unknown


@rule(
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"
)
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    (value,), gone = inputs, equation.params["axes"]
    sums = equation.name in ("reduce_sum", "reduce_or", "reduce_xor")
    for k in gone:
        axis = value.axes[k]
        masked = value.masked(k) if sums else np.full(axis.size, NUMBER)
        walk.summed(axis, masked, equation, f"{equation.name} along axis {k}")
    walk.used(value, "reduced")
    number = math.prod(value.axes[k].size for k in gone)
    left = tuple(
        axis._replace(masked=_reduced(equation.name, axis.masked, number))
        for k, axis in enumerate(value.axes)
        if k not in gone
    )
    origin = value.origin and value.origin._replace(statistic=True)
    return [Value(left, value.made, ZERO if sums and value.number == 0 else None, origin)]


def _reduced(name: str, masked: np.ndarray, number: int) -> np.ndarray:
    """What reductions of so many equal numbers are, where those are known."""
    known = is_known(masked)
    if name in ("reduce_max", "reduce_min"):
        return masked
    if name == "reduce_sum":
        return np.where(known, np.where(known, masked, 0) * number, masked)
    return sums_of(masked)


@rule("argmax", "argmin")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    (value,), gone = inputs, equation.params["axes"]
    for k in gone:
        walk.pin(value.axes[k], equation)
    walk.used(value, "other")
    walk.ended(value)
    left = [axis for k, axis in enumerate(value.axes) if k not in gone]
    return [Value(tuple(axis._replace(of=()) for axis in left))]


@rule("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    if len(inputs) > 2:
        return unknown(walk, equation, inputs)
    value, windows = inputs[0], equation.params["window_dimensions"]
    padding = equation.params.get("padding", ())  # where a window is all padding there is no 0
    ones = (1,) * len(windows)
    strides, spread, holes = (
        equation.params.get(name) or ones
        for name in ("window_strides", "base_dilation", "window_dilation")
    )
    inside = all(
        max(pair) < window for pair, window in zip(padding, windows, strict=False) if any(pair)
    )
    inside &= all(n == 1 for n in (*spread, *holes))
    keeps = equation.name == "reduce_window_sum" or (equation.name != "reduce_window" and inside)
    axes = []
    for k, (axis, window, size) in enumerate(zip(value.axes, windows, equation.shape, strict=True)):
        whole = window == strides[k] == spread[k] == 1 and not any(
            (padding or ((0, 0),) * len(ones))[k]
        )
        if whole and axis.size == size:
            axes.append(axis.summed() if keeps else axis._replace(masked=np.full(size, NUMBER)))
        else:
            walk.pin(axis, equation)
            axes.append(fixed_axis(size, axis.of))
    return [Value(tuple(axes), value.made, origin=value.origin)]


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    value = inputs[0]
    walk.pin(value.axes[equation.params["axis"]], equation)
    stays = equation.name != "cumlogsumexp"
    axes = [axis.summed() if stays else axis.unsure() for axis in value.axes]
    return [moved(value, axes)._replace(number=ZERO if stays and value.number == 0 else None)]
