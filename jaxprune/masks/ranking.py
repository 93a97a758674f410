"""Masks by rank: single entries, the highest of each leaf or of the tree, or by chance."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.masks.counting import (
    Density,
    arrays,
    count_of,
    counts_of,
    sizes_of,
)
from jaxprune.masks.slices import largest_of_slices
from jaxprune.selection import any_nan, count_true, keep_largest
from jaxprune.selection.keys import codes_of, order_of
from jaxprune.trees import Tree, by_path, from_paths, gathered, placed_like, uniform_like
from jaxprune.types import Chosen, Count, Counts, Leaves, Ranked, wrong


def topk(scores: Tree, density: Density, axis: int | tuple[int, ...] | None = None) -> Tree:
    """Keeps the highest scores of each leaf, or along some axes of it.

    round(density n) entries of a leaf of n, or of the n along the axes at each place of the others.

    Args:
      scores: tree of arrays.
      density: share kept, in [0, 1]; a number, or a tree of numbers with the scores' paths.
      axis: the axes along which entries are ranked; None ranks all of a leaf. Along axes scores are
        sorted, which is for pruning once, not for every step.

    Returns:
      A tree of masks like ``scores``.

    Raises:
      ValueError: if a density is outside [0, 1], or missing for a leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.masks import topk
      >>> topk({"kernel": jnp.array([[3.0, -5.0], [1.0, 2.0]])}, 0.5)["kernel"].tolist()
      [[True, False], [False, True]]
      >>> topk(jnp.array([[3.0, -5.0], [1.0, 2.0]]), 0.5, axis=0).tolist()
      [[True, False], [False, True]]
    """
    leaves = arrays(scores)
    if axis is not None:
        return from_paths(scores, _along(leaves, density, axis))
    counts = counts_of(sizes_of(leaves), density)
    return from_paths(scores, largest(leaves, {(path,): n for path, n in counts.items()}).masks)


def global_topk(scores: Tree, density: Any, min_density: Any = 0.0) -> Tree:
    """Keeps the highest scores of the tree, all leaves ranked together.

    round(density N) entries of the N in the tree. With a ``min_density`` each leaf first keeps its
    own round(min_density n) highest; the rest of the number goes to the highest of all others.

    Args:
      scores: tree of arrays.
      density: share of the tree that is kept, in [0, 1].
      min_density: share of each leaf that is kept whatever the others are, in [0, 1].

    Returns:
      A tree of masks like ``scores``.

    Raises:
      TypeError: if a density is not one number.
      ValueError: if one is outside [0, 1], or the leaves' least numbers exceed that of the tree.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxprune.masks import global_topk
      >>> scores = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0, 2.0])}
      >>> jax.tree.map(lambda mask: mask.tolist(), global_topk(scores, 0.5))
      {'a': [True, True], 'b': [False, False]}
      >>> jax.tree.map(lambda mask: mask.tolist(), global_topk(scores, 0.5, min_density=0.5))
      {'a': [False, True], 'b': [False, True]}
    """
    leaves = arrays(scores)
    sizes = sizes_of(leaves)
    kept = count_of("density", sum(sizes.values()), density)
    least = {path: count_of("min_density", size, min_density) for path, size in sizes.items()}
    known = all(isinstance(number, int) for number in [kept, *least.values()])
    if known and sum(least.values()) > kept:
        expected = f"keep no more than the {kept} entries that `density` keeps"
        raise ValueError(wrong("min_density", expected, sum(least.values())))
    return from_paths(scores, largest(leaves, {tuple(leaves): kept}, least).masks)


def random(key: jax.Array, tree: Tree, density: Density) -> Tree:
    """Keeps entries by chance, exactly as many of each leaf as `topk`.

    round(density n) entries of a leaf of n, each set of them equally likely (but for equal numbers
    among 2^23 of them).

    Args:
      key: typed or raw; folded with the crc32 of each leaf's path.
      tree: tree of arrays, or of their shapes.
      density: share kept, in [0, 1]; a number, or a tree of numbers with the tree's paths.

    Returns:
      A tree of masks like ``tree``.

    Raises:
      ValueError: if a density is outside [0, 1], or missing for a leaf.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxprune.masks import random
      >>> mask = random(jax.random.key(0), {"kernel": jnp.ones((10, 10))}, 0.1)
      >>> int(mask["kernel"].sum())
      10
    """
    leaves = by_path(tree)
    chance = {path: uniform_like(key, path, leaf) for path, leaf in leaves.items()}
    counts = counts_of(sizes_of(chance), density)
    return from_paths(tree, largest(chance, {(path,): n for path, n in counts.items()}).masks)


def nonzero(tree: Tree) -> Tree:
    """Keeps what is not exactly zero; NaN is kept, and so is a leaf without any other entry.

    Zeros beside others are those of a pruned network; a leaf of zeros alone has not been trained
    yet (a fresh head, LoRA's second factor) and stays whole. Decided by the bits, so that a number
    too small for the processor's arithmetic is kept, too.

    Args:
      tree: tree of arrays, such as the params of a pruned network.

    Returns:
      A tree of masks like ``tree``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.masks import nonzero
      >>> nonzero({"kernel": jnp.array([0.0, -0.0, 1e-3, jnp.nan])})["kernel"].tolist()
      [False, False, True, True]
      >>> nonzero(jnp.zeros(2)).tolist()
      [True, True]
    """
    found = {path: _nonzero(jnp.asarray(x)) for path, x in by_path(tree).items()}
    return from_paths(tree, {path: m | ~jnp.any(m) for path, m in found.items()})


def largest(
    scores: Mapping[str, jax.Array | Ranked],
    counts: Counts,
    least: Mapping[str, Any] | None = None,
) -> Chosen:
    """Keeps given numbers of the highest scores: `topk` and `global_topk` once they have counted.

    Args:
      scores: ``{site: array}``, or `Ranked`.
      counts: ``{(site, ...): number}``: of the sites named together so many. The number of one site
        may be an array of its rank, of length 1 along all axes but one: one for each slice.
      least: how many of its own highest a site keeps first, where it is ranked with others, even
        where that is more than the number; what is left of it goes to the highest of all.

    Returns:
      ``{site: mask}``, and whether a score is NaN; where there are fewer candidates than the
      number, all of them are kept.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxprune.masks.ranking import largest
      >>> scores = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0, 2.0])}
      >>> jax.tree.map(lambda mask: mask.tolist(), largest(scores, {("b",): 1, ("a",): 2}).masks)
      {'a': [True, True], 'b': [False, True]}
    """
    ranked = {site: x if isinstance(x, Ranked) else Ranked(x) for site, x in scores.items()}
    sliced = {s[0]: n for s, n in counts.items() if len(s) == 1 and jnp.size(n) != 1}
    masks: dict[str, jax.Array] = {}
    if sliced:
        masks = largest_of_slices({site: ranked[site] for site in sliced}, sliced)
    nan = any_nan([ranked[site] for site in sliced])
    whole = {
        s: n if isinstance(n, int) else jnp.reshape(n, ())
        for s, n in counts.items()
        if s and s[0] not in sliced
    }
    first = {site: n for site, n in (least or {}).items() if not isinstance(n, int) or n}
    first = {site: first[site] for sites in whole for site in sites if site in first}
    own = _found(ranked, {(site,): number for site, number in first.items()})
    for sites, number in whole.items():
        taken = [own.masks[site] for site in sites if site in own.masks]
        whole[sites] = number - sum(map(count_true, taken)) if taken else number
    others = ranked | {site: _without(ranked[site], mask) for site, mask in own.masks.items()}
    found = _found(others, whole)
    masks |= {s: m | own.masks[s] if s in own.masks else m for s, m in found.masks.items()}
    return Chosen({site: masks[site] for site in scores}, nan | own.nan | found.nan)


def _found(scores: Mapping[str, Ranked], counts: Mapping[tuple[str, ...], Any]) -> Chosen:
    """`keep_largest`, compiled once for its shapes: outside jit its loops would be each time."""
    leaves = {site: scores[site] for sites in counts for site in sites}
    leaves = {site: scores[site] for site in scores if site in leaves}  # ties: in their order
    groups = {site: i for i, sites in enumerate(counts) for site in sites}
    numbers = [np.uint32(max(x, 0)) if isinstance(x, int) else x for x in counts.values()]
    of_leaves = tuple(groups[site] for site in leaves)
    found, nan = _compiled([*leaves.values()], numbers, groups=of_leaves)
    return Chosen(dict(zip(leaves, found, strict=True)), nan)


@functools.partial(jax.jit, static_argnames="groups", inline=True)
def _compiled(
    leaves: list[Ranked], counts: list[Count], groups: tuple[int, ...]
) -> tuple[list[jax.Array], jax.Array]:
    return keep_largest(leaves, counts, groups)


def _without(leaf: Ranked, taken: jax.Array) -> Ranked:
    """The leaf with the entries that are taken already no candidates any more."""
    left = ~taken if leaf.mask is None else leaf.candidates & ~taken
    return leaf.replace(mask=left, pruned=False)


def _along(leaves: Leaves, density: Density, axis: int | tuple[int, ...]) -> Leaves:
    axes = (axis,) if isinstance(axis, int) else axis
    for path, x in leaves.items():
        if not all(-x.ndim <= a < x.ndim for a in axes):
            raise ValueError(
                wrong("axis", f"be an axis of '{path}', which has shape {x.shape}", axis)
            )
        if len({a % x.ndim for a in axes}) < len(axes):
            raise ValueError(wrong("axis", f"name each axis of '{path}' once", axis))
    sizes = {p: math.prod(x.shape[a] for a in axes) for p, x in leaves.items()}
    counts = counts_of(sizes, density)
    return {path: _first_along(x, counts[path], axes) for path, x in leaves.items()}


def _first_along(x: jax.Array, count: Count, axes: tuple[int, ...]) -> jax.Array:
    """The first of a stable descending sort along some axes, taken as one."""
    axes = tuple(axis % x.ndim for axis in axes)
    order = [*(axis for axis in range(x.ndim) if axis not in axes), *axes]
    whole = gathered(x)
    codes = codes_of(Ranked(whole), order_of([Ranked(whole)])).transpose(order)
    rows = codes.reshape(-1, math.prod(x.shape[axis] for axis in axes))
    places = jnp.argsort(jnp.argsort(rows, axis=1, stable=True, descending=True), axis=1)
    mask = (places < count).reshape(codes.shape)
    return placed_like(x, mask.transpose(np.argsort(order).tolist()))


def _nonzero(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _nonzero(x.real) | _nonzero(x.imag)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(bool)
    if jnp.finfo(x.dtype).bits < 8:  # no integer is as narrow
        x = x.astype(jnp.float32)
    unsigned = np.dtype(f"uint{8 * x.dtype.itemsize}")
    return lax.bitcast_convert_type(x, unsigned) << unsigned.type(1) != 0
