"""Channels: indices of several leaves that live and die together."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.selection import as_array
from jaxprune.types import Leaves, hashable, wrong
from jaxprune.units.layers import Layers


class Group(NamedTuple):
    """Channels of equal meaning, such as the filters of a convolution and all that belongs to them.

    Attributes:
      size: how many.
      members: ``{path: axis}`` of the leaves that lose an index with each of them.
    """

    size: int
    members: Mapping[str, int]


Groups = Mapping[str, Group]
"""Groups by name."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Channels:
    """Every channel of every group is a unit: sites are the names of groups.

    Attributes:
      groups: ``{name: Group}``.
    """

    groups: Any

    def __post_init__(self) -> None:
        """Brings groups into a form that can be hashed."""
        groups = dict(self.groups)
        if not groups:
            raise ValueError(wrong("channels", "have at least one group", "none"))
        for name, group in groups.items():
            for path, axis in dict(group.members).items():
                if not isinstance(axis, int) or axis < 0:
                    expected = f"give the axis of '{path}', 0 or more"
                    raise ValueError(wrong(f"channels['{name}']", expected, axis))
        found = {n: Group(g.size, hashable(dict(g.members))) for n, g in groups.items()}
        object.__setattr__(self, "groups", hashable(found))

    def whole(self, leaves: Leaves) -> dict[str, jax.Array]:
        """All-kept masks of the groups; every member must have its axis."""
        for name, group in self.groups.items():
            if name in leaves:
                raise ValueError(wrong("channels", "not name groups like leaves", name))
            for path, axis in group.members.items():
                expected = f"have only members among the params in '{name}'"
                trees.known(path, leaves, "channels", expected)
                if leaves[path].shape[axis : axis + 1] != (group.size,):
                    expected = f"have {group.size} channels along axis {axis} of '{path}'"
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
        groups = {path: [n for n, g in self.groups.items() if path in g.members] for path in leaves}
        return {p: f"channels of {', '.join(n)}" if n else "left out" for p, n in groups.items()}

    def members(self, masks: Leaves) -> list[str]:
        """The paths of the leaves that are pruned."""
        return [*self.shapes(masks)]

    def shapes(self, masks: Leaves) -> dict[str, tuple[int, ...]]:
        """The shapes of the leaves that are pruned, 1 along axes that no group names."""
        found: dict[str, list[int]] = {}
        for name in self.own(masks):
            for path, axis in self.groups[name].members.items():
                shape = found.setdefault(path, [])
                shape.extend([1] * (axis + 1 - len(shape)))
                shape[axis] = self.groups[name].size
        return {path: tuple(shape) for path, shape in found.items()}

    def support(self, masks: Leaves, leaves: Leaves) -> Leaves:
        """An entry stays if all its channels do."""
        found: dict[str, Any] = {}
        for name in self.own(masks):
            for path, axis in self.groups[name].members.items():
                shape = [1] * len(leaves[path].shape)
                shape[axis] = self.groups[name].size
                part = masks[name].reshape(shape)
                found[path] = found[path] & part if path in found else part
        return {path: found[path] for path in leaves if path in found}

    def pooled(self, scores: Leaves) -> dict[str, Any]:
        """The sum over a channel's entries in members with a score; by name it stays as it is."""
        return {
            name: scores[name] if name in scores else _pooled(name, group, scores)
            for name, group in self.groups.items()
        }

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
        return Layers({name: tuple(mask.shape) for name, mask in masks.items()}, {})

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


def _pooled(name: str, group: Group, scores: Leaves) -> jax.Array:
    sums = []
    for path, axis in group.members.items():
        if path in scores:
            score = as_array(scores[path]).astype(jnp.float32)
            sums.append(jnp.sum(score, axis=[a for a in range(score.ndim) if a != axis]))
    if not sums:
        raise ValueError(wrong("score", f"score a member of '{name}'", [*scores]))
    return sum(sums[1:], sums[0])
