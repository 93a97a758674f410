"""Where the next four thresholds of each group go: three around the goal, one halves the bracket.

Three surround the k-th largest as far as it is known: from a strided sample, where the bracket
still holds a good part of it, later by the secant, linear in the value; or, first of all, from
where the last search ended. They lie as far apart as the goal is uncertain, so that a bracket
of M scores becomes one of about 2 sqrt(M). Where many scores are equal and a pass moves no count,
the sample names values to try. The other one, the first, halves the bracket: 33 passes over scores
of 32 bits are always enough, and 14 over the matrix, which cuts brackets in five.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.selection.blocks import TRIED
from jaxprune.selection.keys import NAN, Order, Ranked, codes_of
from jaxprune.selection.limits import Points

_ROWS = 32
_SAMPLED = 32768
_SAMPLED_IN_GROUP = 1024
_WIDE = 16
"""The sample places thresholds while the bracket holds a part of it larger than one in so many."""

_BEND = 4
"""A secant is off by about one part in so many of the bracket's relative width."""

_LEAST_MOVE = 17
"""A warm start looks at least 2^-17 of the value, or one code, to both sides of where it aims."""

_CURVED = 32
"""An aim is off by about one part in so many of what the cut moves."""

_FILLED = 0.4
"""How full the room shall be when a warm start needs one pass."""

_WARM_PASSES = 3
"""Passes of a warm start before the sample is asked."""


class Sample(NamedTuple):
    """A part of the scores of each group.

    Attributes:
      codes: `[32, G, n]`, padded with 0; the first axis only makes counting fast.
      grain: the power of two that divides all the sampled bit patterns of a group: scores that
        were rounded to 16 bits lie only at multiples of 65536; `[G]`.
    """

    codes: jax.Array
    grain: jax.Array


def sample(flat: Sequence[Ranked], groups: Sequence[int], number: int, order: Order) -> Sample:
    """Scores of each group, evenly spaced in its leaves.

    Args:
      flat: the scores as flat arrays.
      groups: the group of each of them.
      number: how many groups there are.
      order: the order of the scores.
    """
    rows: list[list[jax.Array]] = [[] for _ in range(number)]
    most = max(_SAMPLED_IN_GROUP, _SAMPLED // number)
    sizes = np.zeros(number, int)
    np.add.at(sizes, np.asarray(groups), [leaf.values.size for leaf in flat])
    for leaf, group in zip(flat, groups, strict=True):
        stride = -(-int(sizes[group]) // most)
        start = min(stride // 2, leaf.values.size - 1)
        candidates = None if leaf.candidates is None else leaf.candidates[start::stride]
        part = Ranked(leaf.values[start::stride], leaf.magnitude, candidates)
        rows[group].append(codes_of(part, order))
    length = -(-max(sum(part.size for part in row) for row in rows) // _ROWS) * _ROWS
    padded = [jnp.concatenate(lax.optimization_barrier(row)) for row in rows]
    padded = [jnp.pad(row, (0, length - row.size)) for row in padded]
    codes = jnp.stack(padded).reshape(number, _ROWS, -1).swapaxes(0, 1)
    return Sample(lax.optimization_barrier(codes), _grain(codes, order))


def _grain(codes: jax.Array, order: Order) -> jax.Array:
    unsigned = order.unsigned.type
    sizes = jnp.where(codes > unsigned(1), codes - unsigned(order.infinity + 2), unsigned(0))
    union = lax.reduce(sizes, unsigned(0), lax.bitwise_or, (0, 2))
    return jnp.where(union == unsigned(0), unsigned(1), union & (unsigned(0) - union))


def _above(codes: jax.Array, code: jax.Array) -> jax.Array:
    """How many sampled codes of each group lie above a code."""
    hits = (codes > code[None, :, None]).astype(jnp.int8)
    rows = lax.reduce(hits, np.int8(0), lax.add, (0,))
    return jnp.sum(rows.astype(jnp.int32), axis=1, dtype=jnp.int32)


def choose(
    state: Any,
    counts: jax.Array,
    at_low: jax.Array,
    at_high: jax.Array,
    drawn: Sample,
    near: Points | None,
    room: np.ndarray,
    order: Order,
) -> jax.Array:
    """The next thresholds of each group, inside its bracket where there is room.

    Args:
      state: the brackets (`jaxprune.selection.chunked.Bracket`).
      counts: how many scores each group keeps, `[G]`.
      at_low: how many lie above the low code.
      at_high: how many lie above the high code.
      drawn: the sample.
      near: the points of the last search, or None.
      room: how many entries may lie in a bracket when the passes end, about, `[G]`.
      order: the order of the scores.

    Returns:
      Codes, `[TRIED, G]`; the first of the first pass is that of NaN.
    """
    one, nan, first = order.unsigned.type(1), order.unsigned.type(NAN), state.passes == 0
    wanted, inside = (counts - at_high).astype(jnp.float32), (at_low - at_high).astype(jnp.float32)
    ends = jnp.stack([jnp.zeros_like(state.low), state.low, state.high])
    everything, sampled_low, sampled_high = jax.vmap(functools.partial(_above, drawn.codes))(ends)
    sampled = sampled_low - sampled_high
    middle = state.low + (state.high - state.low) // order.unsigned.type(2)
    usable = ~state.stuck & _is_finite(state, order)
    wide = sampled * _WIDE >= everything
    warm = jnp.zeros_like(state.stuck) if near is None else is_warm(near, order)
    missed = warm & wide & ~first & (state.passes < _WARM_PASSES)
    by_sample = state.going & (sampled > 0) & ~(warm & first) & ~missed & (~usable | wide)

    def secant(aim: jax.Array) -> jax.Array:
        code = jnp.where(usable, _secant(state, aim, inside, order), middle)
        return _on_grain(code, state, drawn.grain, order)

    def from_sample() -> jax.Array:
        part = sampled.astype(jnp.float32)
        ranks = _aims(part * wanted / jnp.maximum(inside, 1), part, jnp.zeros_like(part))

        def sampled_code(rank: jax.Array) -> jax.Array:
            rank = jnp.clip(jnp.floor(rank + 0.5).astype(jnp.int32), 1, jnp.maximum(sampled, 1))
            code = _ranked(drawn.codes, sampled_high + rank, state)
            # The high code itself is tried from below: its equals may be the last to keep.
            return jnp.where(code == state.high, state.high - one, code)

        return _where(by_sample, jax.vmap(sampled_code)(ranks), placed)

    placed = jax.vmap(secant)(_aims(wanted, inside, _bend(state, order)))
    placed = _where(missed, _from_end(state, wanted, inside), placed)
    if near is not None:
        placed = _where(warm & first, _around(near, counts, room, order), placed)
    chosen = lax.cond(jnp.any(by_sample), from_sample, lambda: placed)
    chosen = jax.vmap(lambda code: jnp.clip(code, one, state.high))(chosen)
    halving = jnp.where(first, nan, middle)
    return jnp.concatenate([halving[None], chosen])


def _where(groups: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """The one in some groups, the other elsewhere; `[3, G]`."""
    return jax.vmap(functools.partial(jnp.where, groups))(a, b)


def sections(low: jax.Array, high: jax.Array) -> jax.Array:
    """Thresholds that cut each bracket into equal parts, `[TRIED, G]`."""
    parts = high.dtype.type(TRIED + 1)
    whole, rest = (high - low) // parts, (high - low) % parts
    places = [high.dtype.type(place) for place in range(1, TRIED + 1)]
    return jnp.stack([low + whole * place + rest * place // parts for place in places])


def is_warm(near: Points, order: Order) -> jax.Array:
    """Which groups the last search has cut among numbers, `[G]`."""
    unsigned = order.unsigned.type
    return (near.codes[0] > unsigned(NAN)) & (near.codes[0] < unsigned(order.highest))


def points(cuts: jax.Array, above: jax.Array, found: Any) -> Points:
    """The cuts, and of what the first pass has tried the farther: the nearer may be too near."""
    upper, lower = _apart(found.tried, cuts[None])
    codes, counts = [jnp.where(upper > lower, *two) for two in (found.tried, found.reached)]
    return Points(jnp.stack([cuts, codes]), jnp.stack([above, counts]))


def _apart(a: jax.Array, b: jax.Array) -> jax.Array:
    """How far apart two codes are."""
    return jnp.maximum(a, b) - jnp.minimum(a, b)


def _around(near: Points, counts: jax.Array, room: np.ndarray, order: Order) -> jax.Array:
    """Where the cut of so many scores lies on the line through two points, and aside of it.

    So far aside that there is room for what lies between, if that may do. Else two thirds of how
    far the last search had to look: this settles where an aim misses by half of it. More if the cut
    moves far, as no line is straight.
    """
    unsigned, real = order.unsigned.type, jnp.float32
    (cut, other), (above, more) = near
    far = jnp.where(other > unsigned(NAN), _apart(cut, other), unsigned(0))
    scores = jnp.maximum(_apart(above, more).astype(real), 1)
    codes = _apart(above, counts).astype(real) * far.astype(real) / scores
    # What a value changes by a share of 2^-17 is that share of a power of two in codes.
    digits = jnp.finfo(order.dtype).nmant
    most, least = unsigned(1 << (digits - 2)), unsigned(1 << max(digits - _LEAST_MOVE, 0))
    move = jnp.minimum(codes, real(most)).astype(order.unsigned)
    goal = jnp.where(above > counts, cut + move, cut - move)
    aside = jnp.maximum(jnp.minimum(far - far // unsigned(3), most), move // unsigned(_CURVED))
    fits = far.astype(real) / scores * np.minimum(room * _FILLED, 2.0**digits).astype(real)
    fits = jnp.clip(fits, real(least), real(most)).astype(order.unsigned)
    aside = jnp.where(aside // unsigned(2) > fits, aside, fits)
    return jnp.stack([goal + aside, goal, goal - aside])


def _rate(state: Any) -> jax.Array:
    """Scores a code, between the thresholds of the first pass."""
    width, inside = [_apart(*x).astype(jnp.float32) for x in (state.tried, state.reached)]
    return jnp.maximum(inside, 0.5) / (width + 1)


def _from_end(state: Any, wanted: jax.Array, inside: jax.Array) -> jax.Array:
    """As many codes from the nearer end as its scores take at the rate of the first pass."""
    scores = jnp.minimum(wanted, inside - wanted)
    width = state.high - state.low
    most, rate = width.astype(jnp.float32) * 0.99, _rate(state)

    def code(scores: jax.Array) -> jax.Array:
        codes = jnp.clip(scores / rate, 1, jnp.maximum(most, 1)).astype(width.dtype)
        return jnp.where(wanted * 2 < inside, state.high - codes, state.low + codes)

    margin = scores / 4 + 2 * jnp.sqrt(scores)
    return jax.vmap(code)(jnp.stack([scores - margin, scores, scores + margin]))


def _aims(share: jax.Array, whole: jax.Array, bend: jax.Array) -> jax.Array:
    """Ranks to aim at, the goal in the middle: two standard errors aside, and the bend's error."""
    error = jnp.sqrt(jnp.maximum(share * (1 - share / jnp.maximum(whole, 1)), 1)) * 2 + bend * whole
    return jnp.stack([share - error, share, share + error])


def _ranked(codes: jax.Array, rank: jax.Array, state: Any) -> jax.Array:
    """The sampled code of a rank (1 is the largest) in each group, known to be in (low, high]."""

    def halve(ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = low + (high - low) // high.dtype.type(2)
        fewer = _above(codes, middle) < rank
        return jnp.where(fewer, low, middle), jnp.where(fewer, middle, high)

    def wide(ends: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(ends[1] - ends[0] > ends[0].dtype.type(1))

    return lax.while_loop(wide, halve, (state.low, state.high))[1]


def _is_finite(state: Any, order: Order) -> jax.Array:
    """Whether both ends of a bracket are numbers to interpolate between."""
    return jnp.isfinite(_value(state.high, order)) & jnp.isfinite(_value(state.low, order))


def _bend(state: Any, order: Order) -> jax.Array:
    """The share of a bracket by which a secant may be off: counts are not linear in the value."""
    high, low = _value(state.high, order), _value(state.low, order)
    largest = jnp.maximum(jnp.abs(high), jnp.abs(low))
    width = jnp.abs(high / 2 - low / 2) / jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return width.astype(jnp.float32) * 2 / _BEND


def _secant(state: Any, aim: jax.Array, inside: jax.Array, order: Order) -> jax.Array:
    """The code of a rank, linear in the value between the ends."""
    part = jnp.clip((aim + 0.5) / (inside + 1), 0, 1).astype(order.real)
    high, low = _value(state.high, order), _value(state.low, order)
    value = high * (1 - part) + low * part
    code = codes_of(Ranked(value.astype(order.dtype)), order)
    one = order.unsigned.type(1)
    return jnp.maximum(jnp.minimum(code, state.high - one), state.low + one)


def _value(code: jax.Array, order: Order) -> jax.Array:
    """The number of a code, NaN for those that have none."""
    unsigned, zero = order.unsigned.type, order.unsigned.type(order.infinity + 2)
    size = jnp.where(code >= zero, code - zero, zero - code)
    sign = jnp.where(code >= zero, unsigned(0), unsigned(1 << (order.width - 1)))
    return lax.bitcast_convert_type(size | sign, order.dtype).astype(order.real)


def _on_grain(code: jax.Array, state: Any, grain: jax.Array, order: Order) -> jax.Array:
    """The code rounded to where scores can lie; the last one below high if none is inside."""
    one, zero = order.unsigned.type(1), order.unsigned.type(order.infinity + 2)
    rounded = code - ((code - zero) & (grain - one))
    rounded = jnp.where((rounded <= state.low) | (rounded > code), rounded + grain, rounded)
    outside = (rounded <= state.low) | (rounded >= state.high)
    rounded = jnp.where(outside, state.high - one, rounded)
    return jnp.where(grain == one, code, rounded)
