"""Groups of channels: the units of a network that live and die together, and all that is theirs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.network.ids import Closed
from jaxprune.network.leaves import Leaf
from jaxprune.network.values import Axis
from jaxprune.network.walk import Inexact

Runs = tuple[tuple[int, int, int], ...]
"""Integers as runs: ``((first, step, how many), ...)``."""

NOBODY = -1
"""The unit of an index that belongs to none of a group."""


class Member(NamedTuple):
    """An axis of a leaf along which each unit of a group has its own indices.

    Attributes:
      path: of the leaf.
      axis: of the leaf.
      runs: the unit of each index, as `Runs`; -1 where it belongs to none of the group.
      ndim: how many axes the leaf has; 0 if that is not known.
    """

    path: str
    axis: int
    runs: Runs
    ndim: int = 0

    def units(self) -> np.ndarray:
        """The unit of each index, `[N]`."""
        return expanded(self.runs)


class Group(NamedTuple):
    """Channels of equal meaning, such as the filters of a convolution and all that belongs to them.

    Attributes:
      name: of the first layer that makes them, and its axis.
      size: how many.
      members: the axes that lose indices with each of them.
      gates: the paths and axes by which a channel can be shut: the scale and the bias of the norm
        that follows a layer, or the kernel and the bias where none does.
      inexact: sums over these channels that see more than 0 of one that is removed, with lines.
      scales: those of the gates that multiply: the scales of norms.
      makers: the paths and axes of the layers, or tables, whose outputs they are.
      added: whether outputs of several layers are added in them, as in a residual stream.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    gates: tuple[tuple[str, int], ...] = ()
    inexact: tuple[str, ...] = ()
    scales: tuple[tuple[str, int], ...] = ()
    makers: tuple[tuple[str, int], ...] = ()
    added: bool = False


def runs_of(numbers: np.ndarray) -> Runs:
    """Integers as runs, each as long as it can be."""
    steps, found, at = np.diff(numbers), [], 0
    changes = np.append(np.flatnonzero(steps[1:] != steps[:-1]) + 1, len(steps))
    while at < len(numbers):
        end = int(changes[np.searchsorted(changes, at, side="right")]) if at < len(steps) else at
        step = int(steps[at]) if end > at else 0
        found.append((int(numbers[at]), step, end - at + 1))
        at = end + 1
    return tuple(found)


def expanded(runs: Runs) -> np.ndarray:
    """The integers of runs."""
    none = np.zeros(0, int)
    return np.concatenate([none, *(first + step * np.arange(n) for first, step, n in runs)])


def groups_of(
    closed: Closed,
    axes: Mapping[str, list[Axis]],
    leaves: Sequence[Leaf],
    inexact: Iterable[Inexact],
    added: Iterable[np.ndarray] = (),
) -> list[tuple[Group, list[int]]]:
    """The groups of a network of which layers are members, and the roots of their units.

    Units are in one group if they begin along one axis and have as many indices in the same axes
    of leaves.

    Args:
      closed: the ids of a walk.
      axes: of the leaves by path.
      leaves: what the leaves of the params are.
      inexact: sums that are not exact.
      added: ids of axes along which outputs of several layers are added.
    """
    names = [(path, k) for path, own in axes.items() for k in range(len(own))]
    ids = [axes[path][k].ids for path, k in names]
    begins = np.cumsum([0, *map(len, ids)])
    places, roots = closed.units(np.concatenate([np.zeros(0, int), *ids]))
    member = np.searchsorted(begins, places, side="right") - 1
    group, unit = _grouped(closed, roots, member)
    wrong = by_root(closed, inexact)
    streams = {root for each in added for root in np.unique(closed.units(each)[1]).tolist()}
    made = {(leaf.path, k) for leaf in leaves for k in leaf.outputs}
    summed = {(leaf.path, k) for leaf in leaves for k in leaf.contracted}
    found: list[tuple[Group, list[int]]] = []
    for number in dict.fromkeys(group[np.argsort(places, kind="stable")].tolist()):
        mine = group == number
        members: list[Member] = []
        for k in dict.fromkeys(np.sort(member[mine]).tolist()):
            here = mine & (member == k)
            units = np.full(len(ids[k]), NOBODY)
            units[places[here] - begins[k]] = unit[here]
            shared = (units != NOBODY).sum() < here.sum()  # an index with two units of the group
            path, axis = names[k]
            members.append(Member(path, axis, () if shared else runs_of(units), len(axes[path])))
        own = np.unique(roots[mine]).tolist()
        along = [(each.path, each.axis) for each in members]
        if len(own) < 2 or not (made | summed).intersection(along):
            continue
        if not all(each.runs for each in members):
            continue
        path, axis = next((each for each in along if each in made), along[0])
        name = f"{path}[{axis}]"
        again = sum(group.name.split("#")[0] == name for group, _ in found)
        name += f"#{again + 1}" if again else ""
        why = tuple(dict.fromkeys(each for root in own for each in wrong.get(root, ())))
        gated = _gates(leaves, members)
        together = any(root in streams for root in own)
        group_of = Group(name, len(own), tuple(members), inexact=why, added=together, **gated)
        found.append((group_of, own))
    return found


def _grouped(
    closed: Closed, roots: np.ndarray, member: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each index the number of its group, and that of its unit within the group."""
    units, which = np.unique(roots, return_inverse=True)
    # What a unit has is told by a sum of random words, one for each axis of a leaf.
    words = np.random.default_rng(0).integers(1 << 62, size=int(member.max(initial=0)) + 1)
    has = np.zeros(len(units), np.int64)
    np.add.at(has, which, words[member])
    begun = np.searchsorted(closed.begins, units, side="right")
    group = np.unique(np.stack([begun, has]), axis=1, return_inverse=True)[1].ravel()
    place = np.zeros(len(units), int)
    for number in range(int(group.max(initial=-1)) + 1):
        mine = group == number
        place[mine] = np.arange(mine.sum())
    return group[which], place[which]


def by_root(closed: Closed, inexact: Iterable[Inexact]) -> dict[int, list[str]]:
    """Sums that are not exact, by the units they sum over."""
    found: dict[int, list[str]] = defaultdict(list)
    for each in inexact:
        for root in np.unique(closed.units(each.ids)[1]).tolist():
            found[root].append(f"{each.what} at {each.line}")
    return found


Along = tuple[tuple[str, int], ...]


def _gates(leaves: Iterable[Leaf], members: Iterable[Member]) -> dict[str, Along]:
    """Which layers make the channels of a group; by what they are shut; which of it multiplies."""
    axes: dict[str, list[int]] = defaultdict(list)
    for each in members:
        axes[each.path].append(each.axis)
    gates: list[tuple[str, int]] = []
    scales: list[tuple[str, int]] = []
    makers: list[tuple[str, int]] = []
    for leaf in leaves:
        table = leaf.use == "table" and not leaf.outputs
        makes = [k for k in axes[leaf.path] if table or k in leaf.outputs]
        makers += [(leaf.path, k) for k in makes]
        if makes and not leaf.norm:
            gates += [(leaf.path, k) for k in makes]
        if makes:
            gates += [(p, k) for p in leaf.norm or leaf.biases for k in axes[p]]
            scales += [(p, k) for p in leaf.norm[:1] for k in axes[p]]
    found = {"gates": gates, "scales": scales, "makers": makers}
    return {name: tuple(dict.fromkeys(each)) for name, each in found.items()}
