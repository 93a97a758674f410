"""Operations entry by entry: axes are tied; zeros, leaves and layers go through."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.network.ids import FIXED
from jaxprune.network.values import (
    NUMBER,
    PERHAPS,
    SINGULAR,
    ZERO,
    Axis,
    Origin,
    Value,
    common,
    is_known,
    leaves_of,
    made_of,
)
from jaxprune.network.walk import Equation, Walk, rule, unknown


def _named(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MOVES = _named("stop_gradient copy copy_p name pvary sharding_constraint reshard")
"""The same numbers."""

_SAME = _MOVES | _named("neg convert_element_type reduce_precision")
"""The same numbers, or their negatives: a one-hot axis stays one."""

_OF_ONE = _named(
    "sign abs tanh sin tan asin atan sinh asinh erf erf_inv sqrt cbrt square expm1 log1p floor "
    "ceil round real imag conj bitcast_convert_type log rsqrt digamma lgamma exp exp2 logistic cos "
    "acos acosh atanh cosh is_finite not population_count clz erfc bessel_i0e bessel_i1e "
    "integer_pow"
)
_OF_SEVERAL = _named(
    "add sub mul div rem max min pow atan2 nextafter and or xor eq ne lt le gt ge "
    "select_n clamp shift_left shift_right_logical shift_right_arithmetic complex add_any eq_to "
    "lt_to le_to mulhi igamma igammac regularized_incomplete_beta polygamma"
)
_KNOWN = _SAME | _OF_ONE | _OF_SEVERAL
"""What can be computed of numbers; a primitive of the user's own need not have a value."""

_ADDS = frozenset(("add", "sub", "add_any"))
_MULTIPLIES = frozenset(("mul", "div"))


def outcome(equation: Equation, states: Sequence[float], numbers: Sequence[float | None]) -> float:
    """What an operation gives of numbers that are known, or any, or not finite.

    Args:
      equation: the operation; of known numbers alone it is computed.
      states: of each operand: a number, or NUMBER, PERHAPS or SINGULAR.
      numbers: what an operand is everywhere, if that is known.

    Returns:
      A number, or NUMBER, PERHAPS or SINGULAR.
    """
    name = equation.name
    if name in _MOVES:
        return states[0]
    if name in _KNOWN and all(map(is_known, states)):
        return _computed(equation, states)
    if name == "select_n":
        if is_known(states[0]):
            which = 1 + int(states[0])
            return SINGULAR if _is_infinite(numbers[which]) else states[which]
        # A NaN that is written out stands for what does not happen.
        cases = zip(states[1:], numbers[1:], strict=True)
        happen = [state for state, number in cases if number is None or number == number]
        return float(common(np.array(happen or states[1:])))
    if SINGULAR in states:
        return NUMBER if name == "is_finite" else SINGULAR
    if PERHAPS in states:
        either = [
            outcome(equation, [instead if s == PERHAPS else s for s in states], numbers)
            for instead in (ZERO, NUMBER)
        ]
        return float(common(np.array(either)))
    zero = [state == ZERO for state in states]
    if name in ("mul", "div", "rem") and any(map(_is_infinite, numbers)):
        return SINGULAR
    if name in ("add", "sub", "add_any") and not any(zero):
        less = name == "sub" or any(is_known(state) and state < 0 for state in states)
        return PERHAPS if less else NUMBER  # a difference may be 0 though its parts are not
    if name in ("div", "rem"):
        return SINGULAR if zero[1] else ZERO if zero[0] else NUMBER
    if name == "pow":
        return SINGULAR if zero[0] else NUMBER
    return ZERO if name in ("mul", "and") and any(zero) else NUMBER


def _is_infinite(number: float | None) -> bool:
    """Whether it is a constant, and inf or NaN."""
    return number is not None and not np.isfinite(number)


def _computed(equation: Equation, states: Sequence[float]) -> float:
    params = {name: x for name, x in equation.params.items() if name != "sharding"}
    types = tuple(variable.aval.dtype for variable in equation.of.invars)
    if "sharding" in equation.params:
        params["sharding"] = None
    return _of_numbers(equation.of.primitive, tuple(params.items()), types, tuple(states))


@functools.lru_cache(1 << 12)
def _of_numbers(
    primitive: Any, params: tuple[tuple[str, Any], ...], types: tuple[Any, ...], states: Any
) -> float:
    """What a primitive gives of numbers: a number, or SINGULAR."""
    with jax.ensure_compile_time_eval():
        given = [jnp.asarray(x, dtype) for x, dtype in zip(states, types, strict=True)]
        number = complex(primitive.bind(*given, **dict(params)))
    if not np.isfinite(number):
        return SINGULAR
    return NUMBER if number.imag else number.real


@rule(*_KNOWN)
def elementwise(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    """Any operation entry by entry, of operands of one shape and scalars."""
    if any(value.axes and len(value.axes) != len(equation.shape) for value in inputs):
        return unknown(walk, equation, inputs)  # bits that become an axis, or were one
    made = made_of(_whole(equation, inputs))
    if made is None:
        how = "placed" if equation.name == "select_n" else _kind(equation.name) or "other"
        for value in inputs:
            walk.used(value, how)
    if equation.name in _ADDS:
        _streams(walk, equation, inputs)
    axes = tuple(
        _axis(walk, equation, inputs, k, leaf=made is not None) for k in range(len(equation.shape))
    )
    hot, counts = _marks(equation.name, inputs)
    value = Value(
        axes,
        made,
        number=_number(equation, inputs),
        origin=_origin(walk, equation.name, inputs),
        hot=hot,
        counts=counts,
    )
    return [value] * len(equation.of.outvars)


def _streams(walk: Walk, equation: Equation, inputs: list[Value]) -> None:
    """Notes where outputs of several layers are added: not those of one and its statistics."""
    data = [value for value in inputs if value.made is None and value.axes]
    products = {value.origin and value.origin.product for value in data}
    if len(data) > 1 and (len(products) > 1 or None in products):
        for k, axis in enumerate(data[0].axes):
            walk.notes.added[*equation.site, k] = axis.ids


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
    found = [outcome(equation, kind, numbers) for kind in kinds.T.tolist()]
    return Axis(first.ids, np.asarray(found)[which.ravel()], of)


def _states(value: Value, k: int, size: int) -> np.ndarray:
    """What the masked network has in an operand along an axis of the result."""
    along = bool(value.axes) and value.axes[k].size == size
    return value.masked(k) if along else np.full(size, value.state)


def _number(equation: Equation, inputs: list[Value]) -> float | None:
    """What the result is everywhere, if that is known; constants that are not finite stay."""
    numbers = [value.number for value in inputs]
    if equation.name in _SAME and numbers[0] is not None:
        return -numbers[0] if equation.name == "neg" else numbers[0]
    found = outcome(equation, [value.state for value in inputs], numbers)
    return found if is_known(found) else None


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
