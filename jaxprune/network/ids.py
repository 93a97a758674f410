"""Which indices of which axes live and die together: union-find over integers, and tuples of them.

An *id* is one index of one axis; ids that a program ties are one. Id 0 is fixed: it is never cut.
An axis that a reshape merges of others has ids that are *defined* as tuples of theirs: such an
index is gone as soon as one of its parts is. So splitting and merging need no search over which
axis may be cut: whatever equal tuples tie is tied at the end, and a tuple that two reshapes read
differently is fixed.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

FIXED = 0
"""The id of what is never cut."""

Reason = Callable[[], str]
"""A sentence that is only written where somebody reads it."""


class Ids:
    """The ids of a program while it is walked."""

    def __init__(self) -> None:
        """No ids yet but the fixed one."""
        self.parents = np.arange(1 << 12)
        self.number = 1
        self.begins = [0]
        self.pins: list[tuple[np.ndarray, Reason]] = []
        self.tuples: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def fresh(self, number: int) -> np.ndarray:
        """Ids of an axis that nothing is tied to yet."""
        while self.number + number > len(self.parents):
            more = np.arange(len(self.parents), 2 * len(self.parents))
            self.parents = np.concatenate([self.parents, more])
        self.begins.append(self.number)
        self.number += number
        return np.arange(self.number - number, self.number)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The root of each id: equal where they are tied."""
        roots = self.parents[ids]
        while True:
            above = self.parents[roots]
            if np.array_equal(above, roots):
                self.parents[ids] = roots
                return roots
            roots = above

    def pin(self, ids: np.ndarray, why: Reason) -> None:
        """These are never cut."""
        ids = ids[ids != FIXED]
        if ids.size:
            self.pins.append((ids, why))

    def tie(self, a: np.ndarray, b: np.ndarray, why: Reason) -> None:
        """Index by index the two are one; what meets the fixed id is pinned."""
        if a is b:
            return
        self.pin(b[a == FIXED], why)
        self.pin(a[b == FIXED], why)
        both = (a != FIXED) & (b != FIXED)
        a, b = a[both], b[both]
        while a.size:  # of several that want one parent the last is written: then again
            ours, theirs = self.find(a), self.find(b)
            open_still = ours != theirs
            a, b = a[open_still], b[open_still]
            low, high = np.minimum(ours, theirs), np.maximum(ours, theirs)
            self.parents[high[open_still]] = low[open_still]

    def define(self, ids: np.ndarray, parts: np.ndarray, why: Reason) -> None:
        """Each id stands for the tuple of ids in a row of its parts, `[N]` and `[N, K]`."""
        fixed = ids == FIXED
        self.pin(parts[fixed].ravel(), why)
        if not fixed.all():
            self.tuples.setdefault(parts.shape[1], []).append((ids[~fixed], parts[~fixed]))

    def closed(self) -> "Closed":
        """What is one and what is fixed, once everything that follows from the rest is tied."""
        tables = {
            width: (np.concatenate([i for i, _ in defs]), np.concatenate([p for _, p in defs]))
            for width, defs in self.tuples.items()
        }
        everything, before = np.arange(self.number), None
        while True:
            kinds = np.zeros(self.number, int)
            for ids, parts in tables.values():
                self._congruent(ids, parts)
                kinds[np.unique(self.find(ids))] += 1
            fixed = self._fixed()
            for ids, parts in tables.values():
                roots = self.find(ids)
                self.pin(parts[kinds[roots] > 1].ravel(), _two_ways)
                half = fixed[roots] & ~fixed[parts].all(axis=1)
                self.pin(parts[half].ravel(), _part)
            now = (self.find(everything).sum(), self._fixed().sum())
            if now == before:
                break
            before = now
        begins = np.array(self.begins)
        return Closed(self.find(everything), self._fixed(), begins, tables, self.pins)

    def _congruent(self, ids: np.ndarray, parts: np.ndarray) -> None:
        """Ties the parts of ids that are one, and ids of parts that are."""
        roots = self.find(ids)
        order = np.argsort(roots, kind="stable")
        same = roots[order][1:] == roots[order][:-1]
        for column in parts[order].T:
            self.tie(column[1:][same], column[:-1][same], _two_ways)
        first, of_row = np.unique(self.find(parts), axis=0, return_index=True, return_inverse=True)[
            1:
        ]
        self.tie(ids, ids[first[of_row.ravel()]], _two_ways)

    def _fixed(self) -> np.ndarray:
        """Which ids are never cut, by id."""
        fixed = np.zeros(self.number, bool)
        fixed[FIXED] = True
        for ids, _ in self.pins:
            fixed[self.find(ids)] = True
        return fixed[self.find(np.arange(self.number))]


def _two_ways() -> str:
    return "reshaped in two ways"


def _part() -> str:
    return "a part of an axis that is fixed"


class Closed(NamedTuple):
    """The ids of a whole program, by id.

    Attributes:
      roots: equal for ids that are one.
      fixed: which are never cut.
      begins: the first id of each axis that was made.
      tables: tuples by their width: the ids that are defined, and their parts.
      pins: what was pinned, and why.
    """

    roots: np.ndarray
    fixed: np.ndarray
    begins: np.ndarray
    tables: dict[int, tuple[np.ndarray, np.ndarray]]
    pins: list[tuple[np.ndarray, Reason]]

    def units(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The roots without parts that each id stands for, but fixed ones: positions and roots."""
        index = {}
        for width, (defined, parts) in self.tables.items():
            roots, first = np.unique(self.roots[defined], return_index=True)
            index[width] = roots, parts[first]
        positions, roots = np.arange(len(ids)), self.roots[ids]
        found: list[tuple[np.ndarray, np.ndarray]] = []
        while roots.size:
            free = ~self.fixed[roots]
            positions, roots = positions[free], roots[free]
            whole, deeper = np.ones(len(roots), bool), []
            for width, (defined, parts) in index.items():
                row = np.minimum(np.searchsorted(defined, roots), len(defined) - 1)
                merged = defined[row] == roots
                whole &= ~merged
                below = self.roots[parts[row[merged]]].ravel()
                deeper.append((np.repeat(positions[merged], width), below))
            found.append((positions[whole], roots[whole]))
            positions, roots = _joined(deeper)
        return _joined(found)

    def reasons(self, axes: Iterable[np.ndarray]) -> list[Counter[str]]:
        """Of the ids of each of several axes how many are fixed, by what first fixed them."""
        first = np.full(len(self.roots), -1)
        for k, (ids, _) in reversed([*enumerate(self.pins)]):
            first[self.roots[ids]] = k
        first = first[self.roots]
        first[FIXED] = -1
        return [Counter(self.pins[k][1]() for k in first[ids].tolist() if k >= 0) for ids in axes]

    def kept(self, removed: np.ndarray) -> np.ndarray:
        """Which ids stay, by id, if some roots go: a tuple goes with any of its parts."""
        gone = removed[self.roots] & ~self.fixed
        while True:
            before = gone.sum()
            for ids, parts in self.tables.values():
                roots = self.roots[ids]
                mark = np.zeros(len(gone), bool)
                mark[roots[gone[parts].any(axis=1) & ~self.fixed[roots]]] = True
                gone |= mark[self.roots]
            if gone.sum() == before:
                return ~gone


def _joined(pairs: list[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    none = np.zeros(0, int)
    return (
        np.concatenate([none, *(a for a, _ in pairs)]),
        np.concatenate([none, *(b for _, b in pairs)]),
    )
