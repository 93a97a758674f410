"""The order of scores as integers: NaN below -inf below ... below inf, and -0.0 equal to +0.0.

The *code* of a score is an unsigned integer as wide as its dtype: 0 for what is no candidate, 1 for
every NaN, and from 2 on one integer for each number, in their order. Comparing integers is exact
where comparing floats is not: XLA flushes denormal numbers to zero.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.types import Ranked

OUTSIDE = 0
"""The code of what is no candidate."""

NAN = 1
"""The code of every NaN."""


def as_array(scores: Any) -> jax.Array:
    """Scores as an array: NaN where there is no candidate."""
    if not isinstance(scores, Ranked):
        return scores
    values = scores.scores
    if scores.mask is None:
        return values
    return jnp.where(scores.candidates, values, jnp.asarray(jnp.nan, values.dtype))


class Order(NamedTuple):
    """How the numbers of one floating dtype lie among the codes.

    Attributes:
      dtype: the floating dtype; leaves of narrower ones are widened to it.
      unsigned: the integers of the same width.
      infinity: the bit pattern of infinity.
      width: bits of the dtype.
    """

    dtype: np.dtype
    unsigned: np.dtype
    infinity: int
    width: int

    @property
    def real(self) -> np.dtype:
        """The dtype to interpolate in."""
        return max(self.dtype, np.dtype("f4"), key=lambda dtype: dtype.itemsize)

    @property
    def highest(self) -> int:
        """The code of infinity."""
        return 2 * self.infinity + 2


def order_of(leaves: Sequence[Ranked]) -> Order:
    """The order in which all the leaves can be compared exactly."""
    dtypes = {np.dtype(leaf.values.dtype) for leaf in leaves}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(max(map(_widest, dtypes), default="f4"))
    if dtype.itemsize < 4:  # exact, and there is room for the places of ties
        dtype = np.dtype("f4")
    width = 8 * dtype.itemsize
    unsigned = np.dtype(f"uint{width}")
    infinity = int(np.asarray(np.inf).astype(dtype).view(unsigned))
    return Order(dtype, unsigned, infinity, width)


def _widest(dtype: np.dtype) -> str:
    return "f8" if dtype.itemsize == 8 else "f4"


def bits_of(leaf: Ranked, order: Order) -> jax.Array:
    """The bit patterns of the values, in the order's dtype."""
    values = leaf.values if leaf.factor is None else leaf.values * leaf.factor
    return lax.bitcast_convert_type(values.astype(order.dtype), order.unsigned)


def codes_of(leaf: Ranked, order: Order) -> jax.Array:
    """The code of every score, of the leaf's shape."""
    bits, unsigned = bits_of(leaf, order), order.unsigned.type
    size = bits & unsigned((1 << (order.width - 1)) - 1)
    value = size if leaf.magnitude else jnp.where(bits == size, size, unsigned(0) - size)
    codes = jnp.where(
        size > unsigned(order.infinity), unsigned(NAN), value + unsigned(order.infinity + 2)
    )
    return codes if leaf.mask is None else jnp.where(leaf.candidates, codes, unsigned(0))
