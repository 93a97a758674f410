"""Plain NumPy references that the tests compare with."""

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
