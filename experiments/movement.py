"""How masks move: which changes grow something, how long it stays, how alike two masks are."""

import itertools
from collections.abc import Sequence

import numpy as np


def after_growth(changes: Sequence[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """The first masks, and those after each change in which something grew.

    Args:
      changes: ``(step, mask)`` of every change, bool vectors.

    Returns:
      Some of them: what only prunes is passed over, so that a cycle counts once.

    Examples:
      >>> import numpy as np
      >>> from experiments import movement
      >>> masks = [[1, 1, 0], [1, 0, 0], [1, 0, 1]]
      >>> changes = [(step, np.array(mask, bool)) for step, mask in enumerate(masks)]
      >>> [step for step, _ in movement.after_growth(changes)]
      [0, 2]
    """
    grown = [now for before, now in itertools.pairwise(changes) if (now[1] & ~before[1]).any()]
    return [*changes[:1], *grown]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard's index of two masks, ``|a and b| / |a or b|``.

    Args:
      a: bool, any shape.
      b: the same.

    Returns:
      A share in [0, 1].

    Examples:
      >>> import numpy as np
      >>> from experiments import movement
      >>> movement.overlap(np.array([True, True, False]), np.array([True, False, False]))
      0.5

    References:
      Jaccard, The distribution of the flora in the alpine zone, 1912.
    """
    return float(np.sum(a & b) / np.sum(a | b))


def survival(moved: Sequence[tuple[int, np.ndarray]]) -> list[tuple[int, float]]:
    """How much of what grew is still kept, by the updates since.

    Args:
      moved: what `after_growth` returns.

    Returns:
      ``(updates, share)``: the mean over all growths so many updates before another change. It
      begins with (0, 1.0).

    Examples:
      >>> import numpy as np
      >>> from experiments import movement
      >>> masks = [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]]
      >>> moved = [(10 * i, np.array(mask, bool)) for i, mask in enumerate(masks)]
      >>> movement.survival(moved)
      [(0, 1.0), (10, 0.5)]
    """
    shares: dict[int, list[float]] = {}
    for index, ((_, before), (born, mask)) in enumerate(itertools.pairwise(moved), start=1):
        grown = mask & ~before
        for step, later in moved[index:]:
            shares.setdefault(step - born, []).append(float(np.mean(later[grown])))
    return [(updates, float(np.mean(found))) for updates, found in sorted(shares.items())]
