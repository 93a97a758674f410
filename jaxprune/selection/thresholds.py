"""Where the next threshold of each group goes: through a sample, then by the secant.

The first two thresholds are entries of a strided sample, at the rank that the counts at the ends of
the bracket imply; the next are linear in the value. They aim a little beyond the goal, seen from
the nearer end, so that both ends close in. Where many scores are equal and a pass moves no count,
the sample names values to try. Every fourth pass from the eighth on, and all from the 24th on,
halve the bracket: 56 passes are enough for any scores of 32 bits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.selection.keys import Order, Ranked, codes_of

_ROWS = 32
_SAMPLED = 32768
_SAMPLED_IN_GROUP = 1024
_SAMPLED_PASSES = 2
"""Passes whose thresholds come from the sample; after them the secant places better."""

_ENOUGH = 8
"""Entries of the sample in a bracket that make its order statistics worth using."""

_HALVING_FROM, _HALVING_ONLY_FROM = 8, 24


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
    order: Order,
) -> jax.Array:
    """The next threshold of each group, strictly inside its bracket where there is room.

    Args:
      state: the brackets (`jaxprune.selection.chunked.Bracket`).
      counts: how many scores each group keeps, `[G]`.
      at_low: how many lie above the low code.
      at_high: how many lie above the high code.
      drawn: the sample.
      order: the order of the scores.

    Returns:
      Codes, `[G]`.
    """
    one = order.unsigned.type(1)
    wanted, inside = (counts - at_high).astype(jnp.float32), (at_low - at_high).astype(jnp.float32)
    sampled_high, sampled_low = _above(drawn.codes, state.high), _above(drawn.codes, state.low)
    sampled = sampled_low - sampled_high
    middle = state.low + (state.high - state.low) // order.unsigned.type(2)
    secant, usable = _secant(state, wanted, inside, order)
    usable &= ~state.stuck
    by_sample = (sampled > 0) & (
        ~usable | ((state.passes < _SAMPLED_PASSES) & (sampled >= _ENOUGH))
    )
    secant = _on_grain(jnp.where(usable, secant, middle), state, drawn.grain, order)

    def from_sample() -> jax.Array:
        part = sampled.astype(jnp.float32)
        missing = jnp.sqrt(jnp.maximum(1 - part / jnp.maximum(inside, 1), 0))
        missing = jnp.where(state.passes > 0, missing, jnp.float32(0))
        share = part * wanted / jnp.maximum(inside, 1)
        rank = share + _beyond(share, part) * missing
        rank = jnp.clip(jnp.floor(rank + 0.5).astype(jnp.int32), 1, jnp.maximum(sampled, 1))
        found = _ranked(drawn.codes, sampled_high + rank, state.low, state.high)
        # The high code itself is tried from below: are the scores equal to it the last to keep?
        mass = _above(drawn.codes, state.high - one) - sampled_high
        near = (mass >= 3) & (share <= 1.3 * mass.astype(jnp.float32) + 1)
        return jnp.where((found == state.high) | near, state.high - one, found)

    chosen = lax.cond(
        jnp.any(by_sample), lambda: jnp.where(by_sample, from_sample(), secant), lambda: secant
    )
    halving = (state.passes >= _HALVING_FROM) & (state.passes % 4 == 0)
    halving |= state.passes >= _HALVING_ONLY_FROM
    return jnp.where(halving, middle, chosen)


def _beyond(share: jax.Array, whole: jax.Array) -> jax.Array:
    """How far to aim beyond the goal: about the error to expect, away from the nearer end."""
    error = 1.5 * jnp.sqrt(jnp.maximum(share * (1 - share / jnp.maximum(whole, 1)), 0))
    return jnp.where(share * 2 < whole, error, -error)


def _ranked(codes: jax.Array, rank: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The sampled code of a rank (1 is the largest) in each group, known to be in (low, high]."""

    def halve(ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = low + (high - low) // high.dtype.type(2)
        fewer = _above(codes, middle) < rank
        return jnp.where(fewer, low, middle), jnp.where(fewer, middle, high)

    def wide(ends: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(ends[1] - ends[0] > ends[0].dtype.type(1))

    return lax.while_loop(wide, halve, (low, high))[1]


def _secant(
    state: Any, wanted: jax.Array, inside: jax.Array, order: Order
) -> tuple[jax.Array, jax.Array]:
    """The code linear in the value between the ends, and whether these are numbers."""
    share = wanted + jnp.where(inside > 32, _beyond(wanted, inside), jnp.float32(0))
    part = ((share + 0.5) / (inside + 1)).astype(order.real)
    high, low = _value(state.high, order), _value(state.low, order)
    value = high + (low - high) * part
    code = codes_of(Ranked(value.astype(order.dtype)), order)
    one = order.unsigned.type(1)
    code = jnp.maximum(jnp.minimum(code, state.high - one), state.low + one)
    return code, jnp.isfinite(value)


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
