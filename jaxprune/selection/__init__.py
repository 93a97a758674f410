"""Exact selection without sorting: the masks that keep exactly the k largest scores.

What is kept is the first k of a stable descending sort: ties go to the lower flat index, leaves in
their order; NaN ranks last, and -0.0 equals +0.0. Nothing is sorted, flattened across leaves or
gathered: the k-th largest score is found by counting how many scores exceed a threshold.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.selection import blocks, chunked, natural
from jaxprune.selection.keys import Ranked, order_of
from jaxprune.selection.limits import Found, Points
from jaxprune.types import Count, wrong

__all__ = [
    "Found",
    "Points",
    "Ranked",
    "any_nan",
    "count_true",
    "cut",
    "keep_largest",
    "largest_of",
    "read_before",
    "search",
    "sum_of",
]


def keep_largest(
    scores: Sequence[jax.Array | Ranked], counts: Sequence[Count], groups: Sequence[int]
) -> list[jax.Array]:
    """The masks of `search`.

    Args:
      scores: one array of any shape and floating dtype a leaf, or a `Ranked`.
      counts: how many entries each group keeps: integers, or traced integer scalars. Below zero
        means none; more than there are candidates means all of them.
      groups: for each leaf the index of its group in `counts`.

    Returns:
      One bool mask a leaf, of its shape; True = kept.

    Raises:
      TypeError: if scores are not floating, or counts not integers.
      ValueError: if the lengths or shapes do not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.selection import keep_largest
      >>> masks = keep_largest([jnp.array([3.0, 1.0]), jnp.array([2.0, 2.0])], [2], [0, 0])
      >>> [mask.tolist() for mask in masks]
      [[True, False], [True, False]]

    References:
      Original.
    """
    return search(scores, counts, groups).masks


def search(
    scores: Sequence[jax.Array | Ranked],
    counts: Sequence[Count],
    groups: Sequence[int],
    near: Points | None = None,
) -> Found:
    """Finds exactly the largest scores of each group of leaves.

    With ``S`` the scores of the candidates of a group, the kept ones are the first
    ``min(k, |S|)`` of a stable descending sort of ``S``. Where the search begins changes no
    mask.

    Args:
      scores: one array of any shape and floating dtype a leaf, or a `Ranked`.
      counts: how many entries each group keeps: integers, or traced integer scalars. Below zero
        means none; more than there are candidates means all of them.
      groups: for each leaf the index of its group in `counts`.
      near: the points that the last search among these scores has found; zeros where there was
        none. Worth it for scores that have changed little since.

    Returns:
      The masks; the `points` where it ended; and `nan`, whether the score of a candidate is NaN.

    Raises:
      TypeError: if scores are not floating, or counts not integers.
      ValueError: if the lengths or shapes do not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.selection import search
      >>> found = search([jnp.array([3.0, 1.0]), jnp.array([2.0, jnp.nan])], [2], [0, 0])
      >>> [mask.tolist() for mask in found.masks], bool(found.nan)
      ([[True, False], [True, False]], True)

    References:
      Original.
    """
    leaves = [x if isinstance(x, Ranked) else Ranked(x) for x in scores]
    leaves = [Ranked(jnp.asarray(x.values), x.magnitude, x.candidates) for x in leaves]
    _check(leaves, counts, groups, near)
    masks = [jnp.zeros(leaf.values.shape, bool) for leaf in leaves]
    full = [i for i, leaf in enumerate(leaves) if leaf.values.size]
    read = [_still(leaves[i]) for i in full]
    order = order_of(read)
    none = (2, len(counts))
    points = Points(jnp.zeros(none, order.unsigned), jnp.zeros(none, jnp.uint32))
    if not full:
        return Found(masks, points, jnp.zeros((), bool))
    used = sorted({groups[i] for i in full})
    numbers = [used.index(groups[i]) for i in full]
    wanted = jnp.stack([_wanted(counts[group]) for group in used])
    lowering = chunked if _on_one_cpu() else natural
    here = None if near is None else Points(*[x[:, np.asarray(used)] for x in near])
    found = lowering.keep_largest(read, wanted, numbers, order, here)
    for i, mask in zip(full, found.masks, strict=True):
        masks[i] = mask
    ends = [x.at[:, np.asarray(used)].set(y) for x, y in zip(points, found.points, strict=True)]
    return Found(masks, Points(*ends), found.nan)


def _check(
    leaves: Sequence[Ranked],
    counts: Sequence[Count],
    groups: Sequence[int],
    near: Points | None,
) -> None:
    if len(groups) != len(leaves):
        raise ValueError(
            wrong("groups", f"name one group for each of {len(leaves)} leaves", groups)
        )
    if not all(0 <= group < len(counts) for group in groups):
        raise ValueError(wrong("groups", f"lie in [0, {len(counts)})", groups))
    for part in near or ():
        if part.shape != (2, len(counts)):
            raise ValueError(wrong("near", f"have the shape {(2, len(counts))}", part.shape))
    for leaf in leaves:
        if not jnp.issubdtype(leaf.values.dtype, jnp.floating):
            raise TypeError(wrong("scores", "be floating", str(leaf.values.dtype)))
        if leaf.candidates is not None and leaf.candidates.shape != leaf.values.shape:
            shape = leaf.values.shape
            raise ValueError(wrong("candidates", f"have the shape {shape}", leaf.candidates.shape))
    for count in counts:
        if not jnp.issubdtype(jnp.result_type(count), jnp.integer) or jnp.ndim(count):
            raise TypeError(wrong("counts", "be integers, one a group", count))
    if sum(leaf.values.size for leaf in leaves) >= 2**32:
        sizes = sum(leaf.values.size for leaf in leaves)
        raise ValueError(wrong("scores", "have fewer than 2**32 entries together", sizes))


def _on_one_cpu() -> bool:
    """Whether no leaf can be sharded, and chunks are fast; under an Auto mesh no type tells."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _still(leaf: Ranked) -> Ranked:
    """The leaf without its tangents: a mask has none."""
    return leaf._replace(values=lax.stop_gradient(leaf.values))


def _wanted(count: Count) -> jax.Array:
    """A count as uint32, not below zero and not above what 32 bits hold."""
    if isinstance(count, int | np.integer):
        return jnp.uint32(min(max(int(count), 0), 2**32 - 1))
    return jnp.maximum(count, jnp.zeros_like(count)).astype(jnp.uint32)


def any_nan(scores: Sequence[jax.Array | Ranked]) -> jax.Array:
    """Whether the score of a candidate is NaN.

    Args:
      scores: as in `keep_largest`.

    Returns:
      A bool scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.selection import Ranked, any_nan
      >>> scores = jnp.array([1.0, jnp.nan])
      >>> bool(any_nan([scores])), bool(any_nan([Ranked(scores, candidates=scores > 0)]))
      (True, False)

    References:
      Original.
    """
    found = jnp.zeros((), bool)
    for score in scores:
        leaf = score if isinstance(score, Ranked) else Ranked(score)
        nan = jnp.isnan(leaf.values)
        nan = nan if leaf.candidates is None else nan & leaf.candidates
        found |= count_true(nan) > 0
    return found


def count_true(hits: jax.Array) -> jax.Array:
    """How many entries of a bool array are True; the array itself is not written to memory.

    Args:
      hits: bool, of any shape.

    Returns:
      int32.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.selection import count_true
      >>> int(count_true(jnp.array([[True, False], [True, True]])))
      3

    References:
      Original.
    """
    return blocks.count_true(hits) if _on_one_cpu() else jnp.sum(hits, dtype=jnp.int32)


def largest_of(values: jax.Array) -> jax.Array:
    """The largest of numbers that are 0 or above; they themselves are not written to memory.

    Args:
      values: floating, of any shape.

    Returns:
      A scalar of their type.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.selection import largest_of
      >>> float(largest_of(jnp.array([[1.0, 3.0], [0.0, 2.0]])))
      3.0

    References:
      Original.
    """
    return blocks.largest_of(values) if _on_one_cpu() else jnp.max(values)


def sum_of(values: jax.Array) -> jax.Array:
    """The sum of numbers; they themselves are not written to memory.

    Args:
      values: floating, of any shape.

    Returns:
      A scalar of their type.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.selection import sum_of
      >>> float(sum_of(jnp.array([[1.0, 3.0], [0.0, 2.0]])))
      6.0

    References:
      Original.
    """
    return blocks.sum_of(values) if _on_one_cpu() else jnp.sum(values)


def read_before(written: Any, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Arrays as they are, but not to be overwritten until others have been computed from them.

    On one CPU XLA sees no order between a reader of an array and what replaces it, and copies the
    array in every step; here what replaces it depends on one number of what was read.

    Args:
      written: a tree of arrays, computed from `arrays`.
      arrays: ``{path: array}``.

    Returns:
      The arrays, bit for bit.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.selection import read_before
      >>> x = jnp.ones(2)
      >>> read_before({"y": 2 * x}, {"x": x})["x"].tolist()
      [1.0, 1.0]

    References:
      Original.
    """
    leaves = [leaf for leaf in jax.tree.leaves(written) if leaf.size and leaf.dtype.itemsize == 4]
    if not leaves or not _on_one_cpu():
        return dict(arrays)
    first = [lax.slice(leaf.reshape(-1), (0,), (1,))[0] for leaf in leaves]
    bits = jnp.stack([lax.bitcast_convert_type(x, jnp.uint32) for x in first])
    done = jnp.sum(bits >> np.uint32(16), dtype=jnp.int32) >= 0  # always, which XLA does not know
    return {path: jnp.where(done, x, jnp.zeros_like(x)) for path, x in arrays.items()}


def cut(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The array where the mask is True, and exactly +0.0 elsewhere, whatever stood there.

    ``bits(x) & -mask``: one integer operation, which NaN and infinities pass as well; not
    differentiable.

    Args:
      x: floating or complex array.
      mask: bool, of the same shape.

    Returns:
      An array of the shape and dtype of `x`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.selection import cut
      >>> cut(jnp.array([1.0, jnp.nan, -2.0]), jnp.array([True, False, False])).tolist()
      [1.0, 0.0, 0.0]

    References:
      Original.
    """
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return lax.complex(cut(x.real, mask), cut(x.imag, mask))
    unsigned = np.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = lax.bitcast_convert_type(x, unsigned)
    return lax.bitcast_convert_type(bits & -mask.astype(unsigned), x.dtype)
