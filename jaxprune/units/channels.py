"""Channels: indices of several leaves that live and die together."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.fences import once
from jaxprune.network import ChannelChoice, Cost, Member, rounded
from jaxprune.network import Group as TracedGroup
from jaxprune.network.groups import NOBODY
from jaxprune.network.program import ALSO
from jaxprune.selection import as_array
from jaxprune.types import Leaves, Ranked, hashable, wrong
from jaxprune.units.layers import Layers


class Group(NamedTuple):
    """Channels of equal meaning, such as the filters of a convolution and all that belongs to them.

    Attributes:
      size: how many.
      members: ``{path: axis}`` of the leaves that lose an index with each of them.
    """

    size: int
    members: Mapping[str, int]


Groups = Mapping[str, Group] | ChannelChoice
"""Groups by name, made by hand; or what ``channels`` of a traced network returned."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Channels:
    """Every channel of every group is a unit: sites are the names of groups.

    Attributes:
      groups: ``{name: Group}``, of either kind; ``{name: group of a traced network}`` once made.
      steps: ``{name: the multiple of its width}``; 1 for others.
      min_keep: channels that each group keeps.
      score: what a channel is worth by magnitude, as `Network.channels` says it.
      cost: what budgets are a share of; None counts channels.
    """

    groups: Any
    steps: Any = ()
    min_keep: int = 0
    score: Any = "l1"
    cost: Cost | None = None

    def __post_init__(self) -> None:
        """Brings groups into a form that can be hashed."""
        groups = dict(self.groups)
        if not groups:
            raise ValueError(wrong("channels", "have at least one group", "none"))
        found = {name: _traced(name, group) for name, group in groups.items()}
        object.__setattr__(self, "groups", hashable(found))
        object.__setattr__(self, "steps", hashable(dict(self.steps)))

    def whole(self, leaves: Leaves) -> dict[str, jax.Array]:
        """All-kept masks of the groups; every member must have its axis."""
        for name, group in self.groups.items():
            if name in leaves:
                raise ValueError(wrong("channels", "not name groups like leaves", name))
            for member in group.members:
                path, axis = member.path, member.axis
                expected = f"have only members among the params in '{name}'"
                trees.known(path, leaves, "channels", expected)
                size = sum(number for _, _, number in member.runs)
                if leaves[path].shape[axis : axis + 1] != (size,):
                    what = "channels" if size == group.size else "indices"
                    expected = f"have {size} {what} along axis {axis} of '{path}'"
                    raise ValueError(wrong(f"channels['{name}']", expected, leaves[path].shape))
        return {name: jnp.ones(group.size, bool) for name, group in self.groups.items()}

    def sites(self, leaves: Leaves) -> Leaves:
        """What masks may be given for: the groups."""
        return self.whole(leaves)

    def own(self, masks: Leaves) -> list[str]:
        """Which of some masks are of units that are pruned."""
        return [name for name in self.groups if name in masks]

    def reasons(self, leaves: Leaves) -> dict[str, str]:
        """In which groups each leaf loses indices: no leaf is pruned by entries."""
        groups: dict[str, list[str]] = {path: [] for path in leaves}
        for name, group in self.groups.items():
            for path in dict.fromkeys(member.path for member in group.members):
                groups[path].append(name)
        return {p: f"channels of {', '.join(n)}" if n else "left out" for p, n in groups.items()}

    def members(self, masks: Leaves) -> list[str]:
        """The paths of the leaves that are pruned."""
        return [*self.shapes(masks)]

    def shapes(self, masks: Leaves) -> dict[str, tuple[int, ...]]:
        """The shapes of the leaves that are pruned, 1 along axes that no group names."""
        found: dict[str, list[int]] = {}
        for member in self._members(masks):
            shape = found.setdefault(member.path, [])
            shape.extend([1] * (max(member.axis + 1, member.ndim) - len(shape)))
            shape[member.axis] = len(member.units())
        return {path: tuple(shape) for path, shape in found.items()}

    def support(self, masks: Leaves, leaves: Leaves) -> Leaves:
        """An entry stays if all its channels do."""
        found: dict[str, Any] = {}
        for name in self.own(masks):
            for member in self.groups[name].members:
                ndim = len(leaves[member.path].shape)
                part = _spread(masks[name], member.units(), member.axis, ndim)
                before = found.get(member.path)
                found[member.path] = part if before is None else before & part
        return {p: trees.placed_like(leaves[p], found[p]) for p in leaves if p in found}

    def pooled(self, scores: Leaves) -> dict[str, Any]:
        """The sum over a channel's entries in members with a score; by name it stays as it is."""
        found = {}
        for name, group in self.groups.items():
            score = scores[name] if name in scores else _scored(group, scores)
            found[name] = score.of_arrays(once) if isinstance(score, Ranked) else once(score)
        return found

    def worth(self, s: Any, product: Callable[[str], jax.Array]) -> dict[str, jax.Array]:
        """What each channel is worth: its size, in means of its group; "taylor" as it is.

        Args:
          s: the `Signals`.
          product: path -> w g of the leaf's entries.
        """
        if not isinstance(self.score, str):
            return self.score(s)
        kinds: dict[str, tuple[Any, Any]] = {
            "taylor": (product, jnp.abs),
            "l2": (lambda path: jnp.square(jnp.abs(s.dense[path])), jnp.sqrt),
        }
        entries, after = kinds.get(self.score, (lambda path: jnp.abs(s.dense[path]), jnp.asarray))
        found = {}
        for name, group in self.groups.items():
            members = group.members
            if self.score == "scale":
                named = group.scales or group.gates
                members = [each for each in members if (each.path, each.axis) in named]
            each = after(pool(members, group.size, entries))
            if self.score != "taylor":  # a change of the loss is comparable as it is
                kept = s.mask[name]
                number = jnp.maximum(jnp.sum(kept, dtype=jnp.float32), 1)
                mean = jnp.sum(jnp.where(kept, each, 0)) / number
                each /= jnp.where(mean > 0, mean, 1)
            found[name] = each
        return found

    def at_gates(self, entries: Callable[[str], jax.Array]) -> dict[str, jax.Array]:
        """The sum over a channel's entries in its gates; in all members where none are known.

        Args:
          entries: path -> what is summed.
        """
        found = {}
        for name, group in self.groups.items():
            gates = [each for each in group.members if (each.path, each.axis) in group.gates]
            found[name] = pool(gates or group.members, group.size, entries)
        return found

    def gated(self, leaves: Leaves, factors: Leaves) -> dict[str, jax.Array]:
        """The leaves that are gates, times the factor of each channel, which is ``[size]``."""
        found: dict[str, Any] = {}
        for name, group in self.groups.items():
            for each in group.members:
                if (each.path, each.axis) in group.gates:
                    leaf: Any = found.get(each.path, leaves[each.path])
                    factor = factors[name].astype(leaf.dtype)
                    found[each.path] = leaf * _spread(factor, each.units(), each.axis, leaf.ndim)
        return found

    def rounded(self, site: str, count: Any) -> Any:
        """How many channels of a group stay, if so many were to."""
        group = self.groups[site]
        return rounded(count, self.steps.get(site, 1), self.min_keep, group.size)

    @property
    def rounds(self) -> bool:
        """Whether counts are not as a budget says."""
        return self.min_keep > 1 or any(step > 1 for step in self.steps.values())

    def packed(self, masks: Leaves, like: Any) -> Any:
        """By name; a scalar in place of none, as `optax.tree.map_params` wants it."""
        del like
        return dict(masks) or jnp.zeros(())

    def check(self, masks: Any, params: Any) -> None:
        """Raises unless params have the leaves and the shapes that packed masks were made for."""
        del masks
        self.whole(trees.by_path(params))

    def layers(self, masks: Leaves) -> Layers:
        """Each group is a layer of as many units as it has channels."""
        shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
        return Layers(shapes, {}, self.rounded if self.rounds else None)

    def stacks(self, leaves: Leaves) -> dict[str, int]:
        """None: the channels of stacked layers would be a site of two axes."""
        del leaves
        return {}

    def output_axes(self, leaves: Leaves) -> dict[str, tuple[int, ...] | None]:
        """A channel has no axes of its own."""
        return dict.fromkeys(leaves)

    def contraction_axes(self, leaves: Leaves) -> dict[str, tuple[int, ...] | None]:
        """A channel has no axes of its own."""
        return dict.fromkeys(leaves)

    def inputs(self, leaves: Leaves) -> dict[str, int | None]:
        """A channel sums nothing."""
        return dict.fromkeys(leaves)

    def living(self, masks: Leaves) -> dict[str, jax.Array]:
        """A channel lives or not: there is nothing inside it to guard."""
        del masks
        return {}

    def _members(self, masks: Leaves) -> list[Member]:
        return [member for name in self.own(masks) for member in self.groups[name].members]


def pool(members: Iterable[Member], size: int, entries: Callable[[str], Any]) -> jax.Array:
    """The sum over all entries of each channel, float32 ``[size]``; entries by path."""
    total = jnp.zeros(size, jnp.float32)
    for member in members:
        x, units = as_array(entries(member.path)), member.units()
        each = jnp.sum(x.astype(jnp.float32), axis=[k for k in range(x.ndim) if k != member.axis])
        each = trees.gathered(each)
        if not _is_plain(units, size):  # what is of no unit goes behind the last, and is dropped
            each = jax.ops.segment_sum(each, np.where(units == NOBODY, size, units), size)
        total += each
    return total


def _scored(group: TracedGroup, scores: Leaves) -> jax.Array:
    members = [member for member in group.members if member.path in scores]
    if not members:
        raise ValueError(wrong("score", f"score a member of '{group.name}'", [*scores]))
    return pool(members, group.size, scores.__getitem__)


def _spread(each: jax.Array, units: np.ndarray, along: int, ndim: int) -> jax.Array:
    """What each channel has at a member's indices, along its axis; 1 where it is of no channel."""
    if not _is_plain(units, each.shape[0]):
        each = jnp.where(units == NOBODY, jnp.ones((), each.dtype), each[np.maximum(units, 0)])
    return each.reshape([-1 if axis == along else 1 for axis in range(ndim)])


def _is_plain(units: np.ndarray, size: int) -> bool:
    return len(units) == size and bool((units == np.arange(size)).all())


def _traced(name: str, group: Any) -> TracedGroup:
    """A group made by hand in the form of a traced one; of that, the members that are params."""
    if isinstance(group, TracedGroup):
        params = tuple(member for member in group.members if not member.path.startswith(ALSO))
        return group._replace(members=params)
    for path, axis in dict(group.members).items():
        if not isinstance(axis, int) or axis < 0:
            expected = f"give the axis of '{path}', 0 or more"
            raise ValueError(wrong(f"channels['{name}']", expected, axis))
    one_each = ((0, 1, group.size),)
    members = [Member(path, axis, one_each) for path, axis in dict(group.members).items()]
    return TracedGroup(name, group.size, tuple(members))
