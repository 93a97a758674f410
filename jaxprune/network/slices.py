"""Parts of arrays: slices, concatenations, padding, lookups, sorting."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from jaxprune.network.ids import FIXED
from jaxprune.network.shapes import moved
from jaxprune.network.small import Keeps, Small, bound, cut, sizes, small, taken
from jaxprune.network.values import (
    NUMBER,
    ZERO,
    Axis,
    Value,
    common,
    fixed_axis,
    fixed_value,
    leaves_of,
    made_of,
    sums_of,
)
from jaxprune.network.walk import Equation, Walk, rule, unknown


def _part(walk: Walk, axis: Axis, index: slice, equation: Equation) -> Axis:
    """Some indices of an axis; one alone is pinned: it is meant, whatever else is cut."""
    part = axis.taken(index)
    return walk.pin(part, equation) if part.size == 1 < axis.size else part


@rule("slice")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    (value,), params = inputs, equation.params
    steps = params["strides"] or (1,) * len(value.axes)
    index = map(slice, params["start_indices"], params["limit_indices"], steps)
    axes = [_part(walk, a, i, equation) for a, i in zip(value.axes, index, strict=True)]
    whole = {k: k for k, axis in enumerate(axes) if axis.size == value.axes[k].size}
    return [moved(value, axes, whole)]


@small("slice")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    (x,), params = args, equation.params
    steps = params["strides"] or (1,) * len(ins[0])
    index = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    for axis, (keep, (begin, end, step)) in enumerate(zip(ins[0], index, strict=True)):
        if keep.all():
            x = lax.slice_in_dim(x, begin, end, step, axis)
        else:
            place, whole = np.cumsum(keep) - 1, np.arange(begin, end, step)
            x = taken(x, place[whole[keep[whole]]], axis)
    return [x]


@rule("split")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    (value,), along = inputs, equation.params["axis"]
    ends = np.cumsum(equation.params["sizes"]).tolist()
    found = []
    for begin, end in zip([0, *ends], ends, strict=False):
        axes = [*value.axes]
        axes[along] = _part(walk, axes[along], slice(begin, end), equation)
        found.append(moved(value, axes))
    return found


@small("split")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    along = equation.params["axis"]
    return bound(equation, args, sizes=tuple(int(keeps[along].sum()) for keeps in outs))


def _side_by_side(walk: Walk, values: Sequence[Value], k: int, equation: Equation) -> Axis:
    """An axis that several values have, which do not meet entry by entry."""
    first = min(values, key=lambda v: (v.made is not None, not v.made)).axes[k]
    for value in values:
        walk.tie(first, value.axes[k], equation)
    states = np.stack([value.masked(k) for value in values])
    return Axis(first.ids, common(states), leaves_of([value.axes[k] for value in values]))


def _together(walk: Walk, values: list[Value], axes: list[Axis], one_origin: bool) -> Value:
    """What several values make that are put beside each other."""
    made = made_of(values)
    if made is None:
        axes = [axis._replace(of=()) for axis in axes]
        for value in values:
            walk.used(value, "placed")
    origins = {value.origin for value in values if value.origin is not None}
    products = {origin.product for origin in origins}
    whole = all(value.origin is not None or value.made is not None for value in values)
    origin = next(iter(origins)) if one_origin and len(products) == 1 and whole else None
    if origin is None:
        walk.ended(*values)
    null = all(value.number == 0 for value in values)
    return Value(tuple(axes), made, ZERO if null else None, origin)


def _ids_of_piece(walk: Walk, value: Value, k: int) -> np.ndarray:
    """The ids of a piece; one number of a constant is free: it is cut where it is put."""
    alone = value.shape[k] == 1 and value.made == frozenset()
    return walk.ids.fresh(1) if alone else value.axes[k].ids


@rule("concatenate")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    along, axes = equation.params["dimension"], []
    for k in range(len(inputs[0].axes)):
        if k != along:
            axes.append(_side_by_side(walk, inputs, k, equation))
            continue
        ids = np.concatenate([_ids_of_piece(walk, value, k) for value in inputs])
        masked = np.concatenate([value.masked(k) for value in inputs])
        axes.append(Axis(ids, masked, leaves_of([value.axes[k] for value in inputs])))
    return [_together(walk, inputs, axes, one_origin=True)]


@small("concatenate")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    along, begin, pieces = equation.params["dimension"], 0, []
    for x, keeps in zip(args, ins, strict=True):
        left = outs[0][along][begin : begin + len(keeps[along])]
        begin += len(left)
        pieces.append(x if (left == keeps[along]).all() else taken(x, np.flatnonzero(left), along))
    return bound(equation, pieces)


@rule("stack")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    axes = [_side_by_side(walk, inputs, k, equation) for k in range(len(inputs[0].axes))]
    axes.insert(equation.params["axis"], fixed_axis(len(inputs)))
    return [_together(walk, inputs, axes, one_origin=False)]


@rule("unstack")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    (value,), along = inputs, equation.params["axis"]
    walk.pin(value.axes[along], equation)
    axes = [axis for k, axis in enumerate(value.axes) if k != along]
    return [moved(value, axes)] * len(equation.of.outvars)


@rule("pad")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    value, fill = inputs
    null = fill.number == 0
    outside, axes = ZERO if null else NUMBER, []
    for axis, (low, high, between) in zip(
        value.axes, equation.params["padding_config"], strict=True
    ):
        if between:
            walk.pin(axis, equation)
        size = axis.size + max(axis.size - 1, 0) * between
        ids, masked = np.full(size, FIXED), np.full(size, outside)
        ids[:: between + 1], masked[:: between + 1] = axis.ids, axis.masked
        inside = slice(max(-low, 0), size - max(-high, 0))
        before, after = max(low, 0), max(high, 0)
        new = [walk.ids.fresh(before), ids[inside], walk.ids.fresh(after)]
        states = [np.full(before, outside), masked[inside], np.full(after, outside)]
        axes.append(Axis(np.concatenate(new), np.concatenate(states), axis.of))
    config = equation.params["padding_config"]
    if not null and any(max(each) > 0 for each in config):  # new rows are not 0 anywhere
        axes = [axis.unsure() for axis in axes]
    return [moved(value, axes)._replace(number=ZERO if null and value.number == 0 else None)]


@small("pad")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    config = []
    for keep, left, given in zip(ins[0], outs[0], equation.params["padding_config"], strict=True):
        low, high, between = given
        if not (keep.all() and left.all()):
            low = int(left[:low].sum()) if low >= 0 else -int(keep[:-low].sum())
            end = len(left) - high if high >= 0 else len(keep) + high
            high = int(left[end:].sum()) if high >= 0 else -int(keep[end:].sum())
        config.append((low, high, between))
    return bound(equation, args, padding_config=tuple(config))


@rule("gather")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    value, index = inputs
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = equation.shape
    axes = [*map(fixed_axis, shape)]
    places = [k for k in range(len(shape)) if k not in numbers.offset_dims]
    for place, axis in zip(places, index.axes[:-1], strict=True):
        axes[place] = walk.pin(axis, equation)._replace(of=())
    walk.pin(index.axes[-1], equation)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    for k in gone:
        walk.pin(value.axes[k], equation)
    left = [k for k in range(len(value.axes)) if k not in gone]
    for place, k in zip(numbers.offset_dims, left, strict=True):
        whole = sizes[k] == value.axes[k].size
        of = value.axes[k].of
        axes[place] = value.axes[k] if whole else fixed_axis(shape[place], of)
        if not whole:
            walk.pin(value.axes[k], equation)
    fill = equation.params.get("fill_value")
    if fill and fill == fill:  # a number in place of what is not there; NaN says that it is a fault
        axes = [axis.unsure() for axis in axes]
    if np.prod(index.shape[:-1]) == 1:  # one slice of a stack
        return [value._replace(axes=tuple(axes), number=None, hot=(), counts=())]
    walk.used(value, "looked up")
    walk.ended(value)
    made = frozenset[str]() if value.made == index.made == frozenset() else None
    return [Value(tuple(axis._replace(of=()) for axis in axes), made)]


@small("gather")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    whole = equation.params["slice_sizes"]
    left = [int(k.sum()) if n == len(k) else n for n, k in zip(whole, ins[0], strict=True)]
    return bound(equation, args, slice_sizes=tuple(left))


@rule("dynamic_slice")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    value, axes = inputs[0], []
    for axis, size in zip(value.axes, equation.params["slice_sizes"], strict=True):
        whole = axis.size == size
        axes.append(axis if whole else fixed_axis(size, walk.pin(axis, equation).of))
    return [value._replace(axes=tuple(axes), number=None, hot=(), counts=())]


@small("dynamic_slice")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    return bound(equation, args, slice_sizes=sizes(equation.params["slice_sizes"], outs[0]))


@rule("dynamic_update_slice")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    value, update = both = inputs[:2]
    axes = []
    for k, (axis, other) in enumerate(zip(value.axes, update.axes, strict=True)):
        if axis.size == other.size:
            axes.append(_side_by_side(walk, both, k, equation)._replace(of=()))
        else:
            walk.pin(axis, equation)
            walk.pin(other, equation)
            axes.append(fixed_axis(axis.size))
    for each in both:
        walk.used(each, "placed")
    walk.ended(*both)
    return [Value(tuple(axes))]


_SCATTERS = ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")


@rule(*_SCATTERS)
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    """What is put, or added, at places along some axes; others are those of both."""
    if made_of(inputs) == frozenset():  # numbers alone are run whole, and then cut
        return unknown(walk, equation, inputs)
    value, index, update = inputs
    numbers = equation.params["dimension_numbers"]
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    left = [k for k in range(len(value.axes)) if k not in gone]
    axes = [fixed_axis(axis.size) for axis in value.axes]
    whole: set[int] = set()
    for place, k in zip(numbers.update_window_dims, left, strict=True):
        ours, theirs = value.axes[k], update.axes[place]
        if ours.size == theirs.size:
            whole.add(place)
            walk.tie(ours, theirs, equation)
            states = common(np.stack([value.masked(k), update.masked(place)]))
            axes[k] = Axis(ours.ids, states if equation.name == "scatter" else sums_of(states))
        else:
            walk.pin(ours, equation)
    for k in gone:
        walk.pin(value.axes[k], equation)
    for axis in [*index.axes, *(a for k, a in enumerate(update.axes) if k not in whole)]:
        walk.pin(axis, equation)
    for each in (value, update):
        walk.used(each, "placed")
    walk.ended(*inputs)
    return [Value(tuple(axes))]


@small(*_SCATTERS)
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    still = [out if own.all() else out[out] for own, out in zip(ins[0], outs[0], strict=True)]
    return [cut(x, still) for x in bound(equation, args)]


@rule("sort")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    along, found = equation.params["dimension"], []
    walk.ended(*inputs)
    for value in inputs:
        walk.used(value, "other")
        walk.pin(value.axes[along], equation)
        axes = [a._replace(of=()) for a in value.axes]
        for k, axis in enumerate(axes):
            walk.tie(inputs[0].axes[k], axis, equation)
        axes[along] = fixed_axis(axes[along].size)
        found.append(Value(tuple(axes)))
    return found


@rule("top_k")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    value = inputs[0]
    along = equation.params.get("axis", len(value.axes) - 1) % len(value.axes)
    walk.pin(value.axes[along], equation)
    walk.used(value, "other")
    walk.ended(value)
    axes = [axis._replace(of=()) for axis in value.axes]
    axes[along] = fixed_axis(equation.shape[along])
    places = [axis._replace(masked=np.full(axis.size, NUMBER)) for axis in axes]
    return [Value(tuple(axes)), Value(tuple(places))][: len(equation.of.outvars)]


@rule(
    *("random_wrap", "random_unwrap", "random_seed", "random_fold_in", "random_split"),
    *("random_clone", "threefry2x32"),
)
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    for value in inputs:
        for axis in value.axes:
            walk.pin(axis, equation)
    made = None if made_of(inputs) is None else frozenset[str]()
    return [fixed_value(tuple(v.aval.shape))._replace(made=made) for v in equation.of.outvars]
