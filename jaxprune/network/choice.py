"""Which channels of a network a method prunes, how they are ranked, and how many may go."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.network.costs import Cost
from jaxprune.network.groups import Group
from jaxprune.types import hashable, wrong


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ChannelChoice:
    """Groups of channels, and the choices that `Network.channels` was given.

    Attributes:
      groups: what is pruned.
      steps: ``{name of a group: the multiple of its width}``.
      min_keep: channels that each group keeps.
      score: how channels are ranked by magnitude.
      cost: what sparsities are a share of; None counts channels.
    """

    groups: tuple[Group, ...]
    steps: Any
    min_keep: int
    score: Any
    cost: Cost | None = None

    def __post_init__(self) -> None:
        """Brings what was given into a form that can be hashed."""
        object.__setattr__(self, "steps", hashable(self.steps))


def choice_of(
    groups: tuple[Group, ...],
    round_to: int | Mapping[str, int],
    min_keep: int,
    where: trees.Where | None,
    score: Any,
) -> ChannelChoice:
    """The choice that the arguments of `Network.channels` mean."""
    chosen = groups if where is None else _meant(groups, where)
    if not chosen:
        hint = "print the network: it says what is pinned, and why"
        raise ValueError(wrong("network", "have a channel that can be removed", "none", hint))
    sizes = {group.name: group.size for group in chosen}
    steps = steps_of(round_to, sizes, min_keep)
    return ChannelChoice(tuple(chosen), steps, min_keep, score)


def steps_of(
    round_to: int | Mapping[str, int], sizes: Mapping[str, int], min_keep: int
) -> dict[str, int]:
    """The multiple of each group's width; one that a group has no room for is an error."""
    given = round_to if isinstance(round_to, Mapping) else {"": round_to}
    steps = dict.fromkeys(sizes, 1) | trees.by_pattern(given, sizes, "round_to")
    for name, size in sizes.items():
        for argument, least in (("round_to", steps[name]), ("min_keep", min_keep)):
            if not 1 <= least <= size:
                expected = f"lie between 1 and the {size} channels of '{name}'"
                hint = "leave such groups out by `where`" if size else ""
                if size and argument == "round_to":
                    hint += ", or say `round_to={pattern: multiple}`"
                raise ValueError(wrong(argument, expected, least, hint))
    return steps


def at_least(least: int, step: int, size: int) -> int:
    """The smallest multiple of a step, or all, that is no less than a least number."""
    return min(-(-least // step) * step, size)


def rounded(count: Any, step: int, least: int, size: int) -> Any:
    """The nearest multiple of a step, or all, but no less than a least number; half up.

    Args:
      count: an integer, or int32.
      step: the step.
      least: the least number.
      size: all.
    """
    known = isinstance(count, int)
    numbers: Any = np if known else jnp
    low = count // step * step
    high = numbers.minimum(low + step, size)
    near = numbers.where(high - count <= count - low, high, low)
    enough = max(at_least(least, step, size), min(step, size))
    near = numbers.minimum(numbers.maximum(near, enough), size)
    return int(near) if known else near


def _meant(groups: Sequence[Group], where: trees.Where) -> list[Group]:
    """The groups that are meant: by their names, or by a leaf that loses indices."""
    if callable(where):
        return [group for group in groups if where(group.name, group)]
    patterns = [where] if isinstance(where, str) else where
    names = {g.name: [g.name, *(member.path for member in g.members)] for g in groups}
    every = [name for each in names.values() for name in each]
    found = {name for p in patterns for name in trees.matching(p, every, "where")}
    return [group for group in groups if found.intersection(names[group.name])]
