"""Exact selection without sorting: the masks that keep exactly the k largest scores.

What is kept is the first k of a stable descending sort: ties go to the lower flat index, leaves in
their order; NaN ranks last, and -0.0 equals +0.0. Nothing is sorted, flattened across leaves or
gathered: the k-th largest score is found by counting how many scores exceed a threshold.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.selection.counting import count_true as count_true
from jaxprune.selection.counting import counts_of as counts_of
from jaxprune.selection.counting import largest_of as largest_of
from jaxprune.selection.counting import sum_of as sum_of
from jaxprune.selection.counting import sum_to as sum_to
from jaxprune.selection.keys import as_array as as_array
from jaxprune.selection.keys import codes_of, order_of
from jaxprune.selection.search import Search
from jaxprune.types import Count, Ranked, wrong


def keep_largest(
    scores: Sequence[jax.Array | Ranked], counts: Sequence[Count], groups: Sequence[int]
) -> tuple[list[jax.Array], jax.Array]:
    """Finds exactly the largest scores of each group of leaves.

    With ``S`` the scores of the candidates of a group, the kept ones are the first ``min(k, |S|)``
    of a stable descending sort of ``S``.

    Args:
      scores: one array of any shape and floating dtype a leaf, or a `Ranked`.
      counts: how many entries each group keeps: integers, or traced integer scalars. Below zero
        means none; more than there are candidates means all of them.
      groups: for each leaf the index of its group in `counts`.

    Returns:
      One bool mask a leaf, of its shape, True = kept; and whether the score of a candidate is NaN.

    Raises:
      TypeError: if scores are not floating, or counts not integers.
      ValueError: if the lengths or shapes do not fit, or a group has 2^32 entries.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.selection import keep_largest
      >>> masks, nan = keep_largest([jnp.array([3.0, 1.0]), jnp.array([2.0, 2.0])], [2], [0, 0])
      >>> [mask.tolist() for mask in masks], bool(nan)
      ([[True, False], [True, False]], False)
    """
    leaves = [x if isinstance(x, Ranked) else Ranked(jnp.asarray(x)) for x in scores]
    leaves = [leaf.of_arrays(lax.stop_gradient) for leaf in leaves]
    _check(leaves, counts, groups)
    masks = [jnp.zeros(leaf.values.shape, bool) for leaf in leaves]
    full = [i for i, leaf in enumerate(leaves) if leaf.values.size]
    if not full:
        return masks, jnp.zeros((), bool)
    used = sorted({groups[i] for i in full})
    read = [leaves[i] for i in full]
    numbers = np.asarray([used.index(groups[i]) for i in full])
    search = Search(read, numbers, len(used), order_of(read))
    found = search.found(jnp.stack([_wanted(counts[group]) for group in used]))
    for i, mask in zip(full, search.masks(found), strict=True):
        masks[i] = mask
    return masks, search.any_nan(found)


def any_nan(scores: Sequence[Ranked]) -> jax.Array:
    """Whether the score of a candidate is NaN."""
    found = jnp.zeros((), bool)
    for leaf in scores:
        nan = jnp.isnan(leaf.scores)
        found |= count_true(nan if leaf.mask is None else nan & leaf.candidates) > 0
    return found


def is_above(score: Ranked, threshold: float) -> jax.Array:
    """Which scores lie above a threshold, in the order of the ranking: denormals above 0."""
    limit = Ranked(jnp.asarray(threshold, score.values.dtype))
    order = order_of([score])
    return codes_of(score, order) > codes_of(limit, order)


def _check(leaves: Sequence[Ranked], counts: Sequence[Count], groups: Sequence[int]) -> None:
    if len(groups) != len(leaves):
        expected = f"name one group for each of {len(leaves)} leaves"
        raise ValueError(wrong("groups", expected, groups))
    if not all(0 <= group < len(counts) for group in groups):
        raise ValueError(wrong("groups", f"lie in [0, {len(counts)})", groups))
    for leaf in leaves:
        if not jnp.issubdtype(leaf.values.dtype, jnp.floating):
            raise TypeError(wrong("scores", "be floating", str(leaf.values.dtype)))
        for array in (leaf.mask, leaf.factor):
            if array is not None and array.shape != leaf.values.shape:
                expected = f"have arrays of one shape, {leaf.values.shape}"
                raise ValueError(wrong("scores", expected, array.shape))
    for count in counts:
        if not jnp.issubdtype(jnp.result_type(count), jnp.integer) or jnp.ndim(count):
            raise TypeError(wrong("counts", "be integers, one a group", count))
    sizes = np.zeros(len(counts), np.int64)
    np.add.at(sizes, list(groups), [leaf.values.size for leaf in leaves])
    if sizes.max(initial=0) >= 2**32:
        hint = "rank layers apart, as distribution='uniform' does"
        raise ValueError(wrong("scores", "be fewer than 2**32 in a group", int(sizes.max()), hint))


def _wanted(count: Count) -> jax.Array:
    """A count as uint32, not below zero and not above what 32 bits hold."""
    if isinstance(count, int | np.integer):
        return jnp.uint32(min(max(int(count), 0), 2**32 - 1))
    return jnp.maximum(count, jnp.zeros_like(count)).astype(jnp.uint32)
