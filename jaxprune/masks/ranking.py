"""Masks by rank: single entries, the highest of each leaf or of the tree, or by chance."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.masks.counting import Density, arrays, count_of, counts_of, sizes_of
from jaxprune.masks.slices import largest_of_slices
from jaxprune.selection import Found, Points, Ranked, any_nan, search
from jaxprune.trees import Tree, by_path, from_paths, uniform_like
from jaxprune.types import REST, Count, Counts, wrong


def topk(scores: Tree, density: Density) -> Tree:
    """Keeps the highest scores of each leaf.

    round(density n) entries of a leaf of n.

    Args:
      scores: tree of arrays.
      density: share kept, in [0, 1]; a number, or a tree of numbers with the scores' paths.

    Returns:
      A tree of masks like ``scores``.

    Raises:
      ValueError: if a density is outside [0, 1], or missing for a leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.masks import topk
      >>> topk({"kernel": jnp.array([[3.0, -5.0], [1.0, 2.0]])}, 0.5)["kernel"].tolist()
      [[True, False], [False, True]]

    References:
      Original.
    """
    leaves = arrays(scores)
    return from_paths(scores, largest(leaves, counts_of(sizes_of(leaves), density)))


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

    References:
      Original.
    """
    leaves = arrays(scores)
    sizes = sizes_of(leaves)
    kept = count_of("density", sum(sizes.values()), density)
    least = sum(count_of("min_density", size, min_density) for size in sizes.values())
    if isinstance(least, int) and isinstance(kept, int) and least > kept:
        expected = f"keep no more than the {kept} entries that `density` keeps"
        raise ValueError(wrong("min_density", expected, least))
    return from_paths(scores, largest(leaves, kept, min_density))


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

    References:
      Original.
    """
    leaves = by_path(tree)
    chance = {path: uniform_like(key, path, leaf) for path, leaf in leaves.items()}
    return from_paths(tree, largest(chance, counts_of(sizes_of(chance), density)))


def nonzero(tree: Tree) -> Tree:
    """Keeps what is not exactly zero; NaN is kept.

    Decided by the bits, so that a number too small for the processor's arithmetic is kept, too.

    Args:
      tree: tree of arrays, such as the params of a pruned network.

    Returns:
      A tree of masks like ``tree``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.masks import nonzero
      >>> nonzero({"kernel": jnp.array([0.0, -0.0, 1e-3, jnp.nan])})["kernel"].tolist()
      [False, False, True, True]

    References:
      Original.
    """
    return from_paths(tree, {path: _nonzero(jnp.asarray(x)) for path, x in by_path(tree).items()})


def largest(
    scores: Mapping[str, jax.Array | Ranked], counts: Counts, min_density: Any = 0.0
) -> dict[str, jax.Array]:
    """Keeps given numbers of the highest scores: `topk` and `global_topk` once they have counted.

    Args:
      scores: ``{path: array}``, or `Ranked` leaves.
      counts: one number for all leaves together; or ``{path: number}``, where the leaves that are
        not named share the number under the path "*". An array in place of a leaf's number, of its
        rank and of length 1 along all axes but one, has a number for each slice along that axis.
      min_density: share of each leaf that shares a number which it keeps of its own highest, even
        where that is more than the number; what is left of it goes to the highest of all others.

    Returns:
      ``{path: mask}``; where there are fewer candidates than the number, all of them are kept.

    Raises:
      ValueError: if a leaf has no number, a number no leaf, an array of numbers another shape, or
        ``min_density`` is outside [0, 1].

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxprune.masks import largest
      >>> scores = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0, 2.0])}
      >>> jax.tree.map(lambda mask: mask.tolist(), largest(scores, {"b": 1, "*": 2}))
      {'a': [True, True], 'b': [False, True]}
      >>> stack = jnp.array([[3.0, 4.0], [1.0, 2.0]])
      >>> largest({"a": stack}, {"a": jnp.array([[2], [1]])})["a"].tolist()
      [[True, True], [False, True]]

    References:
      Original.
    """
    return chosen(scores, counts, min_density).masks


class Chosen(NamedTuple):
    """What `chosen` finds.

    Attributes:
      masks: ``{path: mask}``.
      points: where the search for each number ended, in the order of the numbers; slices have none.
      nan: whether the score of a candidate is NaN.
    """

    masks: dict[str, jax.Array]
    points: Points
    nan: jax.Array


def chosen(
    scores: Mapping[str, jax.Array | Ranked],
    counts: Counts,
    min_density: Any = 0.0,
    near: Points | None = None,
) -> Chosen:
    """The masks of `largest`, and what else the search for them has found.

    Args:
      scores: as there.
      counts: as there.
      min_density: as there.
      near: the `points` of the last search, or zeros.

    Returns:
      Masks, points, and whether a score is NaN.

    Raises:
      ValueError: as `largest` does.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.masks.ranking import chosen
      >>> found = chosen({"a": jnp.array([3.0, jnp.nan]), "b": jnp.array([1.0, 2.0])}, 1)
      >>> found.masks["a"].tolist(), found.points.counts[0].tolist(), bool(found.nan)
      ([True, False], [1], True)

    References:
      Original.
    """
    counts, sliced = _apart(scores, counts)
    if sliced:
        slices = {path: _ranked(scores[path]) for path in sliced}
        others = {path: leaf for path, leaf in scores.items() if path not in sliced}
        found = chosen(others, counts, min_density, near)
        masks = largest_of_slices(slices, sliced) | found.masks
        nan = found.nan | any_nan(list(slices.values()))
        return Chosen({path: masks[path] for path in scores}, found.points, nan)
    names, numbers = _groups(list(scores), counts)
    group_of = {path: names.index(path if path in names else REST) for path in scores}
    shared = {path: leaf for path, leaf in scores.items() if names[group_of[path]] == REST}
    first, nan = _floors(shared, min_density)
    for path, mask in first.items():
        group = group_of[path]
        numbers[group] = numbers[group] - jnp.sum(mask, dtype=jnp.int32)
    others = [_without(leaf, first.get(path)) for path, leaf in scores.items()]
    found = _found(others, numbers, list(group_of.values()), near)
    masks = dict(zip(scores, found.masks, strict=True))
    masks |= {path: masks[path] | mask for path, mask in first.items()}
    return Chosen(masks, found.points, found.nan | nan)


def _apart(scores: Mapping[str, Any], counts: Counts) -> tuple[Counts, dict[str, Any]]:
    """The numbers of whole leaves, and those of slices: arrays of more than one."""
    if not isinstance(counts, Mapping):
        return counts, {}
    sliced = {p: count for p, count in counts.items() if p in scores and jnp.size(count) != 1}
    whole = {p: count for p, count in counts.items() if p not in sliced}
    alone = {p: jnp.reshape(x, ()) for p, x in whole.items() if jnp.ndim(x) and p in scores}
    return whole | alone, sliced


def _ranked(leaf: Any) -> Ranked:
    return leaf if isinstance(leaf, Ranked) else Ranked(jnp.asarray(leaf))


def _found(
    scores: Sequence[jax.Array | Ranked],
    counts: Sequence[Count],
    groups: Iterable[int],
    near: Points | None = None,
) -> Found:
    """`search`, compiled once for its shapes: outside jit its loops would be each time."""
    leaves = [_ranked(x) for x in scores]
    return _compiled(
        [leaf.values for leaf in leaves],
        [leaf.candidates for leaf in leaves],
        [np.uint32(max(x, 0)) if isinstance(x, int) else x for x in counts],
        near,
        magnitudes=tuple(leaf.magnitude for leaf in leaves),
        groups=tuple(groups),
    )


@functools.partial(jax.jit, static_argnames=("magnitudes", "groups"), inline=True)
def _compiled(
    values: list[jax.Array],
    candidates: list[jax.Array | None],
    counts: list[Count],
    near: Points | None,
    magnitudes: tuple[bool, ...],
    groups: tuple[int, ...],
) -> Found:
    leaves = [Ranked(*leaf) for leaf in zip(values, magnitudes, candidates, strict=True)]
    return search(leaves, counts, groups, near)


def _floors(leaves: Mapping[str, Any], min_density: Any) -> tuple[dict[str, jax.Array], jax.Array]:
    """The highest of each leaf, as many as it keeps at least, and whether a score is NaN.

    A leaf that keeps none at least is not searched.
    """
    sizes = {p: x.values.size if isinstance(x, Ranked) else x.size for p, x in leaves.items()}
    least = {path: count_of("min_density", size, min_density) for path, size in sizes.items()}
    paths = [path for path, count in least.items() if not isinstance(count, int) or count]
    found = _found([leaves[p] for p in paths], [least[p] for p in paths], range(len(paths)))
    return dict(zip(paths, found.masks, strict=True)), found.nan


def _groups(paths: list[str], counts: Counts) -> tuple[list[str], list[Any]]:
    """The groups by name, and how many each keeps."""
    if not isinstance(counts, Mapping):
        return [REST], [counts]
    for path in paths:
        if path not in counts and REST not in counts:
            raise ValueError(wrong("counts", f"have a number for '{path}'", list(counts)))
    for name in counts:
        if name != REST and name not in paths:
            raise ValueError(wrong("counts", f"name leaves among {paths}", name))
    return list(counts), list(counts.values())


def _without(leaf: jax.Array | Ranked, taken: jax.Array | None) -> jax.Array | Ranked:
    """The leaf with the entries that are taken already no candidates any more."""
    if taken is None:
        return leaf
    leaf = leaf if isinstance(leaf, Ranked) else Ranked(leaf)
    left = ~taken if leaf.candidates is None else leaf.candidates & ~taken
    return leaf._replace(candidates=left)


def _nonzero(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _nonzero(x.real) | _nonzero(x.imag)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(bool)
    unsigned = np.dtype(f"uint{8 * x.dtype.itemsize}")
    return lax.bitcast_convert_type(x, unsigned) << unsigned.type(1) != 0
