"""Operations entry by entry: axes are tied; zeros, leaves and layers go through."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.network.ids import FIXED
from jaxprune.network.values import (
    NUMBER,
    SINGULAR,
    ZERO,
    Axis,
    Origin,
    Value,
    leaves_of,
    made_of,
)
from jaxprune.network.walk import Equation, Walk, rule, unknown


def _named(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SAME = _named(
    "neg convert_element_type reduce_precision stop_gradient copy copy_p name pvary "
    "sharding_constraint reshard"
)
"""The same numbers, or their negatives: a one-hot axis stays one."""

_KEEPS_ZERO = _SAME | _named(
    "sign abs tanh sin tan asin atan sinh asinh erf erf_inv sqrt cbrt square expm1 log1p floor "
    "ceil round real imag conj bitcast_convert_type"
)
_SINGULAR_AT_ZERO = _named("log rsqrt digamma lgamma")
_OTHERS = _named(
    "exp exp2 logistic cos acos acosh atanh cosh is_finite not population_count clz erfc "
    "bessel_i0e bessel_i1e igamma igammac regularized_incomplete_beta polygamma"
)
_OF_SEVERAL = _named(
    "add sub mul div rem max min pow integer_pow atan2 nextafter and or xor eq ne lt le gt ge "
    "select_n clamp shift_left shift_right_logical shift_right_arithmetic complex add_any eq_to "
    "lt_to le_to mulhi"
)
_ADDS = frozenset(("add", "sub", "add_any"))
_MULTIPLIES = frozenset(("mul", "div"))
_ALL_ZERO = _ADDS | {
    *("or", "xor", "complex", "shift_left", "shift_right_logical", "shift_right_arithmetic"),
    "atan2",
}


def outcome(
    name: str,
    states: Sequence[Any],
    numbers: Sequence[float | None],
    params: Mapping[str, Any],
) -> Any:
    """What an operation gives of operands that are 0, or any number, or not finite.

    Args:
      name: of the primitive.
      states: of each operand NUMBER, ZERO or SINGULAR.
      numbers: what an operand is, where that is known.
      params: of the primitive.

    Returns:
      NUMBER, ZERO or SINGULAR.
    """
    if name == "select_n":
        states, numbers = states[1:], numbers[1:]
        # A NaN that is written out stands for what does not happen.
        happen = [s for s, n in zip(states, numbers, strict=True) if n is None or n == n]
        states = happen or states
    if SINGULAR in states:
        return NUMBER if name == "is_finite" else SINGULAR
    zero = [state == ZERO for state in states]
    power = numbers[1] if name == "pow" else params.get("y") if name == "integer_pow" else None
    if name in _SINGULAR_AT_ZERO or name in ("div", "rem"):
        if zero[-1]:
            return SINGULAR
        return ZERO if zero[0] else NUMBER
    if name in ("pow", "integer_pow"):
        if not zero[0]:
            return NUMBER
        return SINGULAR if power is None or power < 0 else ZERO if power else NUMBER
    if name in ("mul", "and"):
        found = any(zero)
    elif name in ("max", "min"):
        side = 1 if name == "max" else -1
        found = any(zero) and all(
            z or (n is not None and n * side <= 0) for z, n in zip(zero, numbers, strict=True)
        )
    elif name == "clamp":
        low, high = numbers[0], numbers[2]
        found = zero[1] and low is not None and high is not None and low <= 0 <= high
    else:
        found = all(zero) and (name in _KEEPS_ZERO or name in _ALL_ZERO or name == "select_n")
    return ZERO if found else NUMBER


@rule(*(_KEEPS_ZERO | _SINGULAR_AT_ZERO | _OTHERS | _OF_SEVERAL))
def elementwise(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    """Any operation entry by entry, of operands of one shape and scalars."""
    if any(value.axes and len(value.axes) != len(equation.shape) for value in inputs):
        return unknown(walk, equation, inputs)  # bits that become an axis, or were one
    made = made_of(_whole(equation, inputs))
    if made is None:
        how = "placed" if equation.name == "select_n" else _kind(equation.name) or "other"
        for value in inputs:
            walk.used(value, how)
    axes = tuple(
        _axis(walk, equation, inputs, k, leaf=made is not None) for k in range(len(equation.shape))
    )
    hot, counts = _marks(equation.name, inputs)
    value = Value(
        axes,
        made,
        null=_of_whole(equation, inputs) == ZERO,
        number=_number(equation.name, inputs),
        origin=_origin(walk, equation.name, inputs),
        hot=hot,
        counts=counts,
    )
    return [value] * len(equation.of.outvars)


def _whole(equation: Equation, inputs: list[Value]) -> list[Value]:
    """The operands of which the entries are made: not what only chooses, nor scales all alike."""
    inputs = inputs[1:] if equation.name == "select_n" else inputs
    return [value for value in inputs if value.axes] or inputs


@rule("optimization_barrier")
def _(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    del walk, equation
    return inputs


def _kind(name: str) -> str:
    return "added" if name in _ADDS else "multiplied" if name in _MULTIPLIES else ""


def _axis(walk: Walk, equation: Equation, inputs: list[Value], k: int, leaf: bool) -> Axis:
    """An axis of the result: that of the operands that have it, data before leaves."""
    size = equation.shape[k]
    whole = [value for value in inputs if value.axes and value.axes[k].size == size]
    whole.sort(key=lambda v: (v.made is not None, not v.made))
    first = whole[0].axes[k]
    for value in whole[1:]:
        walk.tie(first, value.axes[k], equation)
    of = leaves_of([v.axes[k] for v in whole]) if leaf else ()
    if (first.ids == FIXED).all():
        return Axis(first.ids, np.full(size, NUMBER), of)
    states = np.stack([_states(value, k, size) for value in inputs])
    numbers = [value.number for value in inputs]
    kinds, which = np.unique(states, axis=1, return_inverse=True)
    found = [outcome(equation.name, [*kind], numbers, equation.params) for kind in kinds.T]
    return Axis(first.ids, np.asarray(found, np.int8)[which.ravel()], of)


def _states(value: Value, k: int, size: int) -> np.ndarray:
    """What the masked network has in an operand along an axis of the result."""
    if value.axes and value.axes[k].size == size:
        return value.masked(k)
    return np.full(size, ZERO if value.null else NUMBER)


def _of_whole(equation: Equation, inputs: list[Value]) -> Any:
    states = [ZERO if value.null else NUMBER for value in inputs]
    return outcome(equation.name, states, [v.number for v in inputs], equation.params)


def _number(name: str, inputs: list[Value]) -> float | None:
    number = inputs[0].number
    if name == "neg" and number is not None:
        return -number
    return number if name in _SAME else None


def _marks(name: str, inputs: list[Value]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes along which the result is one-hot, or counts."""
    if name in _SAME:
        return inputs[0].hot, inputs[0].counts
    if name == "eq":  # something that counts, compared with what does not
        a, b = inputs
        return tuple(sorted({*a.counts} ^ {*b.counts})), ()
    if name in ("add", "sub", "mul"):
        for value in inputs:
            if value.counts and all(v is value or v.made == frozenset() for v in inputs):
                return (), value.counts
    return (), ()


def _origin(walk: Walk, name: str, inputs: list[Value]) -> Origin | None:
    """The layer whose output the result is a function of; where there is none, layers end."""
    data = [value for value in inputs if value.made is None]
    known = [value.origin for value in data if value.origin is not None]
    read = [v for v in data if v.axes and not (name == "select_n" and v is inputs[0])]
    one = len({origin.product for origin in known}) == 1
    if not one or not (name in ("mul", "div", "select_n") or all(v.origin for v in read)):
        walk.ended(*data)
        return None
    met = [step for origin in known for step in origin.met]
    statistics = [origin.statistic for origin in known]
    if name in _MULTIPLIES and any(statistics) and not all(statistics):
        met.insert(0, ("normed", ""))
    kind = _kind(name)
    met += [(kind, path) for value in inputs if kind for path in sorted(value.made or ())]
    return Origin(known[0].product, tuple(dict.fromkeys(met)), all(statistics))
