"""Matrix products and convolutions: the one place where leaves are contracted."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.network.small import Keeps, Small, bound, sizes, small
from jaxprune.network.values import (
    Axis,
    Origin,
    Value,
    common,
    fixed_axis,
    fixed_value,
    products_of,
    sums_of,
)
from jaxprune.network.walk import Equation, Product, Walk, rule


def _note(
    walk: Walk,
    equation: Equation,
    operands: tuple[Value, Value],
    which: int,
    roles: tuple[Sequence[int], Sequence[int], Sequence[int]],
    flops: float,
) -> None:
    """Notes a product of a leaf: which of its axes are contracted, count outputs, are batch."""
    value, other = operands[which], operands[1 - which]
    hot = any(k in operands[1 - which].hot for k in _contracted(equation, 1 - which))
    walk.used(value, "looked up" if hot else "contracted")
    made = sorted(value.made or ())
    largest = max(made, key=lambda path: walk.sizes.get(path, 0), default=None)
    for path in made:
        contracted, outputs, batch = (
            tuple(dict.fromkeys(k for axis in axes for p, k in value.axes[axis].of if p == path))
            for axes in roles
        )
        walk.notes.products[(*equation.site, which, path)] = Product(
            path=path,
            contracted=contracted,
            outputs=tuple(sorted(outputs)),
            batch=tuple(sorted(batch)),
            flops=flops if path == largest else 0.0,
            line=equation.line,
            others=tuple(sorted(other.made or ())),
            looked_up=hot,
        )


def _contracted(equation: Equation, which: int) -> Sequence[int]:
    if equation.name != "dot_general":
        return ()
    return equation.params["dimension_numbers"][0][which]


@rule("dot_general")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    left, right = inputs
    (left_sums, right_sums), (left_batch, right_batch) = equation.params["dimension_numbers"]
    for i, j in zip((*left_sums, *left_batch), (*right_sums, *right_batch), strict=True):
        walk.tie(left.axes[i], right.axes[j], equation)
    for i, j in zip(left_sums, right_sums, strict=True):
        walk.summed(
            left.axes[i], products_of(left.masked(i), right.masked(j)), equation, f"axis {i}"
        )
    axes = [
        Axis(a.ids, products_of(left.masked(i), right.masked(j)), (*a.of, *b.of))
        for i, j in zip(left_batch, right_batch, strict=True)
        for a, b in ((left.axes[i], right.axes[j]),)
    ]
    free: list[Sequence[int]] = []
    for value, sums, batch in ((left, left_sums, left_batch), (right, right_sums, right_batch)):
        free.append([k for k in range(len(value.axes)) if k not in sums and k not in batch])
        axes += [value.axes[k].summed() for k in free[-1]]
    summed = math.prod(left.axes[k].size for k in left_sums)
    flops = 2.0 * equation.times * summed * math.prod(axis.size for axis in axes)
    sums, batches = (left_sums, right_sums), (left_batch, right_batch)
    for which, value in enumerate(inputs):
        if value.made and sums[which]:
            # In the order of memory: einsum names them in an order of its own.
            roles = sorted(sums[which]), free[which], batches[which]
            _note(walk, equation, (left, right), which, roles, flops)
        else:
            walk.used(value, "multiplied")
    data = left.made is None or right.made is None
    made = None if left.made is None or right.made is None else left.made | right.made
    if data:
        axes = [axis._replace(of=()) for axis in axes]
    return [Value(tuple(axes), made, origin=_origin(walk, equation, left, right, bool(left_sums)))]


def _origin(walk: Walk, equation: Equation, left: Value, right: Value, sums: bool) -> Origin | None:
    """A layer of its own where data meet leaves; without a sum a leaf is a factor of one."""
    leaf, data = (left, right) if left.made else (right, left)
    if not sums and leaf.made and data.origin is not None:
        met = tuple(("multiplied", path) for path in sorted(leaf.made))
        return data.origin._replace(met=(*data.origin.met, *met))
    walk.ended(left, right)
    return Origin(equation.site) if leaf.made and data.made is None and sums else None


@rule("ragged_dot_general")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    """Each row meets one matrix of a stack."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (_, sums), (_, batch) = numbers.dot_dimension_numbers
    rows, stack, *_ = inputs
    for value in inputs:
        walk.ended(value)
        for axis in value.axes:
            walk.pin(axis, equation)
    groups = [*numbers.rhs_group_dimensions]
    free = [k for k in range(len(stack.axes)) if k not in (*sums, *batch, *groups)]
    each = math.prod(stack.axes[k].size for k in free)
    flops = 2.0 * equation.times * math.prod(rows.shape) * each
    if stack.made:
        _note(walk, equation, (rows, stack), 1, (sorted(sums), free, [*batch, *groups]), flops)
    walk.used(rows, "contracted")
    return [fixed_value(equation.shape)]


@rule("conv_general_dilated")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    data, kernel = inputs
    params, shape = equation.params, equation.shape
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    batch_at, inputs_at, *rest = numbers.lhs_spec
    outputs_at, sums_at, *window = numbers.rhs_spec
    for k in rest:
        walk.pin(data.axes[k], equation)
    for k in window:
        walk.pin(kernel.axes[k], equation)
    batch, features = data.axes[batch_at], data.axes[inputs_at]
    outputs, sums = kernel.axes[outputs_at], kernel.axes[sums_at]
    masked = sums_of(kernel.masked(outputs_at))
    if params["batch_group_count"] != 1:
        for axis in (batch, features, outputs, sums):
            walk.pin(axis, equation)
        batch = fixed_axis(shape[numbers.out_spec[0]])
    elif groups == 1:
        walk.tie(features, sums, equation)
        states = products_of(data.masked(inputs_at), kernel.masked(sums_at))
        walk.summed(features, states, equation, "contraction of channels")
    else:
        walk.pin(sums, equation)
        masked = products_of(
            masked, _whole_groups(walk, equation, data, inputs_at, outputs, groups)
        )
    axes = [*map(fixed_axis, shape)]
    axes[numbers.out_spec[0]] = batch._replace(of=()).summed()
    axes[numbers.out_spec[1]] = Axis(outputs.ids, masked)
    per_output = math.prod(kernel.axes[k].size for k in numbers.rhs_spec[1:])
    holes = math.prod(params["lhs_dilation"])
    flops = 2.0 * equation.times * math.prod(shape) * per_output / holes
    if kernel.made:
        roles = (*sorted(window), sums_at), (outputs_at,), ()
        _note(walk, equation, (data, kernel), 1, roles, flops)
    walk.used(data, "convolved")
    walk.ended(data, kernel)
    return [Value(tuple(axes), origin=Origin(equation.site) if kernel.made else None)]


@small("conv_general_dilated")
def _(
    run: Small, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
) -> list[Any]:
    groups = equation.params["feature_group_count"]
    if groups > 1:
        features = ins[0][equation.params["dimension_numbers"].lhs_spec[1]]
        groups = int(features.reshape(groups, -1).any(axis=1).sum())
    if groups == 0:  # all of it is gone
        return [jnp.zeros(sizes(equation.shape, outs[0]), equation.of.outvars[0].aval.dtype)]
    return bound(equation, args, feature_group_count=groups)


def _whole_groups(
    walk: Walk, equation: Equation, data: Value, at: int, outputs: Axis, groups: int
) -> np.ndarray:
    """Groups of a convolution go as a whole; what comes out of one that reads only zeros, `[O]`."""
    features = data.axes[at]
    for axis in (features, outputs):
        rows = axis.ids.reshape(groups, -1)
        walk.ids.tie(np.repeat(rows[:, :1], rows.shape[1], axis=1).ravel(), axis.ids, equation.why)
    first = features.ids.reshape(groups, -1)[:, 0]
    walk.ids.tie(first, outputs.ids.reshape(groups, -1)[:, 0], equation.why)
    return np.repeat(common(data.masked(at).reshape(groups, -1), 1), outputs.size // groups)
