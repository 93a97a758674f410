"""Axes moved, merged, split and repeated; nothing is computed."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.network.ids import FIXED
from jaxprune.network.small import Keeps, Small, bound, cut, sizes, small
from jaxprune.network.values import SINGULAR, ZERO, Axis, Value, common, fixed_axis, leaves_of
from jaxprune.network.walk import Equation, Walk, rule

Numbered = list[tuple[int, int]]
"""Some axes of a shape, by number and size."""


def moved(value: Value, axes: Sequence[Axis], places: Mapping[int, int] | None = None) -> Value:
    """The value with other axes; marks go along where an axis has a new place."""
    places = places or {}

    def marks(old: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(places[axis] for axis in old if axis in places)

    return value._replace(axes=tuple(axes), hot=marks(value.hot), counts=marks(value.counts))


@rule("transpose")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    (value,), order = inputs, equation.params["permutation"]
    return [moved(value, [value.axes[k] for k in order], {k: n for n, k in enumerate(order)})]


@rule("squeeze")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    (value,), gone = inputs, {k % len(inputs[0].axes) for k in equation.params["dimensions"]}
    for axis in gone:
        walk.pin(value.axes[axis], equation)
    left = [k for k in range(len(value.axes)) if k not in gone]
    return [moved(value, [value.axes[k] for k in left], {k: n for n, k in enumerate(left)})]


@rule("broadcast_in_dim")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    value, places = inputs[0], equation.params["broadcast_dimensions"]
    axes = [walk.free_axis(size) for size in equation.shape]
    for axis, place in zip(value.axes, places, strict=True):
        whole = axis.size == equation.shape[place]
        axes[place] = axis if whole else axes[place]._replace(of=axis.of)
    return [moved(value, axes, dict(enumerate(places)))]


@small("broadcast_in_dim")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    return bound(equation, args, shape=sizes(equation.params["shape"], outs[0]))


@rule("rev")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    (value,), turned = inputs, equation.params["dimensions"]
    back = slice(None, None, -1)
    return [moved(value, [a.taken(back) if k in turned else a for k, a in enumerate(value.axes)])]


@rule("tile")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    times = equation.params["reps"]
    axes = [
        a.taken(np.tile(np.arange(a.size), n)) for a, n in zip(inputs[0].axes, times, strict=True)
    ]
    return [moved(inputs[0], axes)]


@rule("iota")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    axes = tuple(map(walk.free_axis, equation.shape))
    return [Value(axes, frozenset(), counts=(equation.params["dimension"],))]


@rule("random_bits")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    return [Value(tuple(map(walk.free_axis, equation.shape)))]


@small("iota", "random_bits")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    """At full size: what is kept is what it was."""
    return [cut(x, keeps) for x, keeps in zip(bound(equation, args), outs, strict=True)]


@rule("reshape")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    value, shape = inputs[0], equation.shape
    if math.prod(shape) == 0:
        return [moved(value, [fixed_axis(size) for size in shape])]
    axes = [fixed_axis(size) for size in shape]
    for old, new in alike(value.shape, shape):
        sizes = common_factors([n for _, n in old], [n for _, n in new])
        if sizes is None:
            of = leaves_of([walk.pin(value.axes[k], equation) for k, _ in old])
            for place, size in new:
                axes[place] = fixed_axis(size, of)
            continue
        pieces = iter(
            [
                piece
                for (k, _), parts in zip(old, sizes[0], strict=True)
                for piece in split(walk, value.axes[k], parts, equation)
            ]
        )
        for (place, _), parts in zip(new, sizes[1], strict=True):
            axes[place] = merged(walk, [*itertools.islice(pieces, len(parts))], equation)
    return [moved(value, axes)]


@small("reshape")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    return bound(equation, args, new_sizes=sizes(equation.params["new_sizes"], outs[0]))


def alike(old: Sequence[int], new: Sequence[int]) -> list[tuple[Numbered, Numbered]]:
    """Runs of axes of two shapes of one size that hold the same entries; without axes of one."""
    ours = [(k, n) for k, n in enumerate(old) if n != 1]
    theirs = [(k, n) for k, n in enumerate(new) if n != 1]
    found: list[tuple[Numbered, Numbered]] = []
    while ours:
        a, b = [ours.pop(0)], [theirs.pop(0)]
        while (difference := _size(a) - _size(b)) != 0:
            (a if difference < 0 else b).append((ours if difference < 0 else theirs).pop(0))
        found.append((a, b))
    return found


def _size(axes: Numbered) -> int:
    return math.prod(n for _, n in axes)


def common_factors(
    old: Sequence[int], new: Sequence[int]
) -> tuple[list[list[int]], list[list[int]]] | None:
    """Each size of two runs as factors, the same ones one after the other in both, if it can be."""
    strides = sorted({*_strides(old), *_strides(new)})
    if any(b % a for a, b in itertools.pairwise(strides)):
        return None
    factors = [strides[0], *(b // a for a, b in itertools.pairwise(strides))][::-1]

    def of(sizes: Sequence[int]) -> list[list[int]]:
        left, found = iter(factors), []
        for size in sizes:
            parts: list[int] = []
            while math.prod(parts) < size:
                parts.append(next(left))
            found.append(parts)
        return found

    return of(old), of(new)


def _strides(sizes: Sequence[int]) -> list[int]:
    """How many entries lie in the last axis, the last two, ..."""
    return [*itertools.accumulate(reversed(sizes), lambda a, b: a * b)]


def split(walk: Walk, axis: Axis, sizes: Sequence[int], equation: Equation) -> list[Axis]:
    """An axis as several."""
    if len(sizes) == 1:
        return [axis]
    states = axis.masked.reshape(sizes)
    if (axis.ids == FIXED).all():
        ids = [np.zeros(size, np.int64) for size in sizes]
    else:
        ids = [walk.ids.fresh(size) for size in sizes]
        walk.ids.define(axis.ids, _rows(ids), equation.why)
    found = []
    for place, own in enumerate(ids):
        others = tuple(k for k in range(len(sizes)) if k != place)
        found.append(Axis(own, common(states, others), axis.of))
    return found


def merged(walk: Walk, axes: Sequence[Axis], equation: Equation) -> Axis:
    """Several axes as one."""
    if len(axes) == 1:
        return axes[0]
    of, size = leaves_of([*axes]), math.prod(axis.size for axis in axes)
    if all((axis.ids == FIXED).all() for axis in axes):
        return fixed_axis(size, of)
    ids = walk.ids.fresh(size)
    walk.ids.define(ids, _rows([axis.ids for axis in axes]), equation.why)
    # An index is gone with any of its parts: it is what each part is that can go.
    states, fixed = _rows([a.masked for a in axes]), _rows([a.ids == FIXED for a in axes])
    one = np.where(fixed, SINGULAR, states).max(axis=1, keepdims=True)
    states = np.where(fixed, np.where(fixed.all(axis=1, keepdims=True), ZERO, one), states)
    return Axis(ids, common(states, 1), of)


def _rows(columns: Sequence[np.ndarray]) -> np.ndarray:
    """All combinations of entries, the last fastest, `[N, K]`."""
    return np.stack([grid.ravel() for grid in np.meshgrid(*columns, indexing="ij")], axis=1)
