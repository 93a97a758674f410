"""Masks with a pattern: n of every m neighbours, and whole blocks."""

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.masks.counting import (
    Density,
    arrays,
    counts_of,
    sizes_of,
)
from jaxprune.masks.ranking import largest
from jaxprune.numbers import is_traced
from jaxprune.selection.keys import codes_of, order_of
from jaxprune.trees import Tree, from_paths, gathered, placed_like
from jaxprune.types import Count, Ranked, wrong

_UNROLLED = 32
"""Up to this m a group is compared in one fused pass; above it, one pass an entry."""


Axis = int | tuple[int, ...]
"""One axis, or several that count as one, the fastest last."""


def n_of_m(scores: Tree, n: Count, m: int, axis: Axis | Mapping[str, Axis] = -1) -> Tree:
    """Keeps the n highest scores of every m neighbours along an axis.

    An entry is kept if fewer than n of its group rank above it.

    Args:
      scores: tree of arrays.
      n: how many are kept, in [0, m]; may be traced.
      m: how many stand in a group, at least 1.
      axis: the axis along which groups lie; several count as one, the fastest last; or either
        by path.

    Returns:
      A tree of masks like ``scores``.

    Raises:
      TypeError: if ``n`` or ``m`` is not an integer.
      ValueError: if ``n`` lies outside [0, m], ``m`` is below 1, or a leaf lacks the axis or has
        one whose size is no multiple of m.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.masks import n_of_m
      >>> n_of_m(jnp.array([1.0, 4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0]), 2, 4).tolist()
      [False, True, True, False, True, True, False, False]

    References:
      Mishra et al., "Accelerating sparse deep neural networks", 2021,
      https://arxiv.org/abs/2104.08378; Zhou et al., "Learning N:M fine-grained structured sparse
      neural networks from scratch", 2021, https://arxiv.org/abs/2102.04010.
    """
    check_groups(n, m)
    leaves = arrays(scores)
    axes = axis if isinstance(axis, Mapping) else dict.fromkeys(leaves, axis)
    masks = {p: _first_of_groups(p, x, n, int(m), axes[p]) for p, x in leaves.items()}
    return from_paths(scores, masks)


def check_groups(n: Count, m: int) -> None:
    """Raises unless n of every m can be kept."""
    for name, number in (("n", n), ("m", m)):
        if not isinstance(number, int | np.integer) and not (name == "n" and is_traced(number)):
            raise TypeError(wrong(name, "be an integer", number))
    if m < 1:
        raise ValueError(wrong("m", "be at least 1", m))
    if not is_traced(n) and not 0 <= int(np.asarray(n)) <= m:
        raise ValueError(wrong("n", f"lie in [0, m] with m = {m}", n))


def block(scores: Tree, density: Density, shape: Sequence[int]) -> Tree:
    """Keeps whole blocks, those of the highest mean score in each leaf.

    round(density B) of a leaf's B blocks. Where the shape of a block does not divide that of the
    leaf the last ones are ragged: such a block counts as one, and its score is the mean of the
    entries it has. Ties go to the block that comes first in row-major order.

    Args:
      scores: tree of arrays.
      density: share of blocks that is kept, in [0, 1]; a number, or a tree of numbers.
      shape: the shape of a block, of at most the leaves' rank; a shorter one means the last axes.

    Returns:
      A tree of masks like ``scores``, each in the shape of its leaf.

    Raises:
      TypeError: if ``shape`` is not made of integers.
      ValueError: if a density is outside [0, 1] or missing, an extent is below 1, or ``shape`` has
        more axes than a leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.masks import block
      >>> block(jnp.array([[1.0, 2.0, 9.0], [3.0, 4.0, 0.0]]), 0.5, (1, 2)).tolist()
      [[False, False, True], [True, True, False]]

    References:
      Narang, Undersander & Diamos, "Block-sparse recurrent neural networks", 2017,
      https://arxiv.org/abs/1711.02782 (there a block is ranked by its maximum).
    """
    leaves = arrays(scores)
    shapes = {path: block_shape(path, leaf.shape, shape) for path, leaf in leaves.items()}
    means = {path: block_means(leaf, shapes[path]) for path, leaf in leaves.items()}
    counts = counts_of(sizes_of(means), density)
    kept = largest(means, {(path,): n for path, n in counts.items()}).masks
    masks = {path: spread_blocks(kept[path], shapes[path], x) for path, x in leaves.items()}
    return from_paths(scores, masks)


def _first_of_groups(path: str, leaf: jax.Array, n: Count, m: int, axis: Axis) -> jax.Array:
    """The entries of which fewer than n of their group come before them in the order."""
    shape, axes = leaf.shape, (axis,) if isinstance(axis, int) else tuple(axis)
    if not all(-len(shape) <= a < len(shape) for a in axes):
        raise ValueError(wrong("axis", f"be an axis of '{path}', which has shape {shape}", axis))
    axes = tuple(a % len(shape) for a in axes)
    size = math.prod(shape[a] for a in axes)
    if size % m:
        expected = f"have a multiple of m = {m} entries along axis {axis} of '{path}'"
        raise ValueError(wrong("scores", expected, size, "leave this leaf out by `exclude`"))
    whole = gathered(leaf, axes)
    if len(axes) == 1:
        return placed_like(leaf, _first_by_code(whole, n, m, axes[0]))
    others = [a for a in range(len(shape)) if a not in axes]
    moved = jnp.transpose(whole, [*others, *axes])
    rows = moved.reshape(*(shape[a] for a in others), size)
    mask = _first_by_code(rows, n, m, len(others)).reshape(moved.shape)
    return placed_like(leaf, jnp.transpose(mask, np.argsort([*others, *axes]).tolist()))


@functools.partial(jax.jit, static_argnames=("m", "axis"), inline=True)
def _first_by_code(leaf: jax.Array, n: Count, m: int, axis: int) -> jax.Array:
    """By comparing each entry with each of its group, without a sort."""
    shape = leaf.shape
    codes = codes_of(Ranked(leaf), order_of([Ranked(leaf)]))
    codes = codes.reshape(*shape[:axis], shape[axis] // m, m, *shape[axis + 1 :])
    place = lax.broadcasted_iota(jnp.int32, codes.shape, axis + 1)

    def count_before(j: jax.Array, before: jax.Array) -> jax.Array:
        other = lax.dynamic_slice_in_dim(codes, j, 1, axis + 1)
        ahead = (other > codes) | ((other == codes) & (j < place))
        return before + ahead.astype(before.dtype)

    start = jnp.zeros_like(codes, dtype=jnp.int32)
    before = lax.fori_loop(0, m, count_before, start, unroll=m <= _UNROLLED)
    return (before < jnp.asarray(n, before.dtype)).reshape(shape)


def block_shape(
    path: str, shape: tuple[int, ...], given: Sequence[int], argument: str = "shape"
) -> tuple[int, ...]:
    """A block's extent along every axis of a leaf; the argument is what the user calls it."""
    if not all(isinstance(extent, int | np.integer) for extent in given):
        raise TypeError(wrong(argument, "be made of integers", given))
    if any(extent < 1 for extent in given):
        raise ValueError(wrong(argument, "be made of numbers of at least 1", given))
    if len(given) > len(shape):
        expected = f"have at most the {len(shape)} axes of '{path}'"
        raise ValueError(wrong(argument, expected, given))
    return (1,) * (len(shape) - len(given)) + tuple(int(extent) for extent in given)


def block_means(scores: jax.Array, extents: tuple[int, ...]) -> jax.Array:
    """The mean score of each block over the entries it has, one entry a block."""
    scores = gathered(scores)
    scores = scores if scores.dtype.itemsize == 8 else scores.astype(jnp.float32)
    split, number = [], np.ones((), scores.dtype)
    for size, extent in zip(scores.shape, extents, strict=True):
        blocks = -(-size // extent)
        split += [blocks, extent]
        inside = np.minimum(extent, size - extent * np.arange(blocks)).astype(scores.dtype)
        number = np.multiply.outer(number, inside)
    spare = [(0, -size % extent) for size, extent in zip(scores.shape, extents, strict=True)]
    summed = jnp.pad(scores, spare).reshape(split).sum(tuple(range(1, len(split), 2)))
    return summed / jnp.asarray(number)


def spread_blocks(kept: jax.Array, extents: tuple[int, ...], leaf: jax.Array) -> jax.Array:
    """A decision for each block as a mask of the leaf, where that lies."""
    for axis, extent in enumerate(extents):
        kept = jnp.repeat(kept, extent, axis, total_repeat_length=kept.shape[axis] * extent)
    return placed_like(leaf, kept[tuple(slice(size) for size in leaf.shape)])
