"""Plain NumPy references that the tests compare with."""

from fractions import Fraction

import numpy as np


def keep_largest(scores, counts, groups, magnitude=False, candidates=None):
    """The masks of the first k of a stable descending sort of each group, by a real sort.

    Args:
      scores: one array a leaf.
      counts: how many each group keeps.
      groups: the group of each leaf.
      magnitude: whether the scores are their absolute values; one bool, or one a leaf.
      candidates: one bool array a leaf, or None for all; one None, or one a leaf.

    Returns:
      One bool mask a leaf.
    """
    number = len(scores)
    magnitudes = [magnitude] * number if isinstance(magnitude, bool) else magnitude
    chosen = [None] * number if candidates is None else candidates
    masks = [np.zeros(np.shape(leaf), bool) for leaf in scores]
    for group, count in enumerate(counts):
        mine = [i for i in range(number) if groups[i] == group]
        if not mine:
            continue
        with np.errstate(invalid="ignore"):  # signalling NaNs
            values = [np.asarray(scores[i]).astype(np.float64).reshape(-1) for i in mine]
        values = [np.abs(v) if magnitudes[i] else v for i, v in zip(mine, values, strict=True)]
        inside = [np.ones(v.size, bool) for v in values]
        for place, i in enumerate(mine):
            if chosen[i] is not None:
                inside[place] = np.asarray(chosen[i]).reshape(-1)
        flat, eligible = np.concatenate(values), np.concatenate(inside)
        nan = np.isnan(flat)
        order = np.lexsort((np.arange(flat.size), -np.where(nan, 0.0, flat), nan, ~eligible))
        kept = np.zeros(flat.size, bool)
        kept[order[: min(max(int(count), 0), int(eligible.sum()))]] = True
        starts = np.cumsum([0] + [v.size for v in values])
        for start, stop, i in zip(starts, starts[1:], mine, strict=False):
            masks[i] = kept[start:stop].reshape(np.shape(scores[i]))
    return masks


def ramp(n, begin, end, sparsity, initial, shape):
    """The sparsity at age n, in float64."""
    if n >= end or shape == "constant":
        return sparsity
    if n <= begin:
        return initial
    t = (n - begin) / (end - begin)
    if shape == "geometric":
        return 1 - (1 - initial) ** (1 - t) * (1 - sparsity) ** t
    return initial + (sparsity - initial) * (t if shape == "linear" else 1 - (1 - t) ** 3)


def due(n, interval, begin, end):
    """Whether `every` is due at age n, from its three cases."""
    grid = {begin + j * interval for j in range(1, n + 1)} | ({begin} if begin else set())
    return (n in grid and (end is None or n <= end)) or n == end


def phase(parts, step):
    """Index, step within and length of the phase, by walking through them."""
    for index, (_, length) in enumerate(parts):
        if length is None or step < length or index + 1 == len(parts):
            return index, step, -1 if length is None else length
        step -= length
    raise AssertionError(parts)


def exact(value):
    """The decimal that a number is written as."""
    return Fraction(str(value))


def kept(size, density):
    """round(density * size), half to even, in exact arithmetic."""
    return round(size * exact(density))


def erk(shapes, sparsity):
    """ERK densities by the loop of the paper: what exceeds 1 becomes dense, the rest is solved."""
    sizes = {path: int(np.prod(shape)) for path, shape in shapes.items()}
    raw = {path: Fraction(sum(shape), sizes[path]) for path, shape in shapes.items()}
    dense = set()
    while True:
        left = sum(sizes.values()) * (1 - exact(sparsity)) - sum(sizes[path] for path in dense)
        rest = [path for path in shapes if path not in dense]
        scale = left / sum(raw[path] * sizes[path] for path in rest) if rest else 0
        above = {path for path in rest if scale * raw[path] > 1}
        if not above:
            return {path: 1 if path in dense else scale * raw[path] for path in shapes}
        dense |= above


def global_topk(scores, count, floors):
    """Each leaf's own highest first, then the highest of all others, by real sorts."""
    number = range(len(scores))
    first = keep_largest(scores, floors, list(number))
    others = [~mask for mask in first]
    left = count - sum(int(mask.sum()) for mask in first)
    rest = keep_largest(scores, [left], [0 for _ in number], candidates=others)
    return [a | b for a, b in zip(first, rest, strict=True)]


def n_of_m(scores, n, m, axis):
    """The n highest of every m neighbours, one group at a time."""
    rows = np.moveaxis(np.asarray(scores), axis, -1)
    groups = rows.reshape(-1, m)
    masks = np.stack(keep_largest(list(groups), [n] * len(groups), range(len(groups))))
    return np.moveaxis(masks.reshape(rows.shape), -1, axis)


def block(scores, density, shape):
    """Whole blocks of the highest mean, one block at a time; the shape means the last axes."""
    scores = np.asarray(scores)
    extents = (1,) * (scores.ndim - len(shape)) + tuple(shape)
    grid = [-(-size // extent) for size, extent in zip(scores.shape, extents, strict=True)]
    places = [
        tuple(slice(i * e, (i + 1) * e) for i, e in zip(place, extents, strict=True))
        for place in np.ndindex(*grid)
    ]
    means = np.array([scores[place].astype(np.float64).mean() for place in places])
    (chosen,) = keep_largest([means], [kept(means.size, density)], [0])
    mask = np.zeros(scores.shape, bool)
    for place, keep in zip(places, chosen, strict=True):
        mask[place] = keep
    return mask


def rounded(numerator, denominator):
    """The quotient to the nearest integer, half to even, by integers alone."""
    quotient, remainder = divmod(numerator, denominator)
    up = 2 * remainder > denominator or (2 * remainder == denominator and quotient % 2 == 1)
    return quotient + up
