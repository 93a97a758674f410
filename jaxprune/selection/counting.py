"""Counts, sums and maxima of what is computed from arrays, without writing that to memory.

They are reductions of several operands at once. XLA runs such a reduction as one loop over the
operands as they lie, sharded or not; a reduction of one operand XLA:CPU cuts in two, and writes
what it reads to memory for it (4 bytes an entry and operand; ten times slower, measured). For a TPU
it is the other way round: operands of a reduction of several are written to memory before it (4
bytes an entry and operand), and reductions of one operand each become one loop.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_PARTS = 64
"""Parts of a leaf whose type does not say how it is sharded: as many as devices, or these."""


@functools.partial(jax.jit, inline=True)
def counts_of(hits: Sequence[jax.Array]) -> jax.Array:
    """How many entries of each of several bool arrays of one shape are True: ``uint32[T]``.

    Of several uint32 arrays the sums, modulo ``2**32``.
    """
    if len(hits) == 1:
        return count_true(hits[0]).astype(jnp.uint32)[None]
    return lax.platform_dependent(list(hits), tpu=_counts_apart, default=_counts_together)


def _counts_apart(hits: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.sum(hit, dtype=jnp.uint32) for hit in hits])


def _counts_together(hits: Sequence[jax.Array]) -> jax.Array:
    if jax.device_count() == 1:
        return jnp.stack(_counts_along(range(hits[0].ndim), hits))
    # Of an axis on several devices XLA reduces one operand by an all-reduce, and gathers several.
    parts = _parts(hits[0])
    of_parts = _counts_along(range(1, 2 * len(parts), 2), [_split(hit, parts) for hit in hits])
    return jnp.sum(jnp.stack(of_parts), axis=range(1, 1 + len(parts)), dtype=jnp.uint32)


def _counts_along(axes: Sequence[int], hits: Sequence[jax.Array]) -> Sequence[jax.Array]:
    return lax.reduce(
        [hit.astype(jnp.uint32) for hit in hits],
        [np.uint32(0)] * len(hits),
        lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
        axes,
    )


def _parts(x: jax.Array) -> list[int]:
    """Into how many parts each axis is sharded; where types do not tell, a multiple of it.

    Of equal shards there are as many as divide both the axis and the mesh. Where it is not known
    either, it is taken to divide all devices.
    """
    sharding = jax.typeof(x).sharding
    if any(sharding.spec):
        shard = sharding.shard_shape(x.shape)
        return [n // max(own, 1) for n, own in zip(x.shape, shard, strict=True)]
    devices = jax.device_count() if sharding.mesh.empty else sharding.mesh.size
    parts, most = [1] * x.ndim, max(_PARTS, devices)
    for axis in sorted(range(x.ndim), key=lambda axis: -x.shape[axis]):
        number = math.gcd(x.shape[axis], devices)
        if number * math.prod(parts) <= most:
            parts[axis] = number
    return parts


def _split(x: jax.Array, parts: Sequence[int]) -> jax.Array:
    """Each axis as two: its parts, and the entries of one."""
    shape = [k for n, number in zip(x.shape, parts, strict=True) for k in (number, n // number)]
    sharding = jax.typeof(x).sharding
    spec = [name for axis in sharding.spec for name in (axis, None)]
    return lax.reshape(x, shape, out_sharding=sharding.update(spec=spec) if any(spec) else None)


def count_true(hits: jax.Array) -> jax.Array:
    """How many entries of a bool array are True, int32."""
    # Both are the number; an operand whose result nobody reads XLA leaves out.
    true, false = counts_of([hits, ~hits])
    return jnp.minimum(true, np.uint32(hits.size) - false).astype(jnp.int32)


@functools.partial(jax.jit, inline=True)
def sum_of(values: jax.Array) -> jax.Array:
    """The sum of numbers."""

    def together(values: jax.Array) -> jax.Array:
        total, nan = lax.reduce(
            (values, jnp.isnan(values)),
            (np.zeros((), values.dtype), np.bool_(False)),
            lambda a, b: (a[0] + b[0], a[1] | b[1]),
            range(values.ndim),
        )
        return jnp.where(nan, jnp.asarray(jnp.nan, values.dtype), total)

    return lax.platform_dependent(values, tpu=jnp.sum, default=together)


def sum_to(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The sums that a broadcast from a shape has for its derivative: of all, or along axes of 1."""
    if not shape:
        return sum_of(values)
    return jnp.sum(values, axis=[a for a, n in enumerate(shape) if n == 1], keepdims=True)


@functools.partial(jax.jit, inline=True)
def largest_of(values: jax.Array) -> jax.Array:
    """The largest of numbers that are 0 or above."""
    zero = np.zeros((), values.dtype)

    def together(values: jax.Array) -> jax.Array:
        largest, positive = lax.reduce(
            (values, values > 0),
            (zero, np.bool_(False)),
            lambda a, b: (lax.max(a[0], b[0]), a[1] | b[1]),
            range(values.ndim),
        )
        return jnp.where(positive, largest, zero)

    apart = functools.partial(jnp.max, initial=zero)
    return lax.platform_dependent(values, tpu=apart, default=together)
