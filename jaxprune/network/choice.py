"""Which channels of a network a method prunes, how they are ranked, and how many may go."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import trees
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
    """

    groups: tuple[Group, ...]
    steps: Any
    min_keep: int
    score: Any

    def __post_init__(self) -> None:
        """Brings what was given into a form that can be hashed."""
        object.__setattr__(self, "steps", hashable(self.steps))


def choice_of(
    groups: tuple[Group, ...],
    round_to: int | Mapping[str, int],
    min_keep: int,
    where: trees.Where | None,
    inexact: str,
    score: Any,
) -> ChannelChoice:
    """The choice that the arguments of `Network.channels` mean."""
    exact = [group for group in groups if inexact == "allow" or not group.inexact]
    chosen = exact if where is None else [group for group in exact if _named(group, where, exact)]
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


def rounded(count: Any, step: int, least: int, size: int) -> Any:
    """The nearest multiple of a step, or all, but no less than a least number; half up.

    Args:
      count: an integer, or int32.
      step: the step.
      least: the least number.
      size: all.
    """
    if step == 1 and least <= 1 and not isinstance(count, int):
        return jnp.maximum(count, least)
    high_enough = max(-(-least // step) * step, min(step, size))
    if isinstance(count, int):
        low = count // step * step
        high = min(low + step, size)
        near = high if high - count <= count - low else low
        return min(max(near, high_enough), size)
    low = count // jnp.int32(step) * jnp.int32(step)
    high = jnp.minimum(low + step, size)
    near = jnp.where(high - count <= count - low, high, low)
    return jnp.minimum(jnp.maximum(near, high_enough), size)


def _named(group: Group, where: trees.Where, groups: list[Group]) -> bool:
    """Whether a group is meant: by its name, or by a leaf that loses indices."""
    if callable(where):
        return bool(where(group.name, group))
    patterns = [where] if isinstance(where, str) else where
    names = {g.name: [g.name, *(member.path for member in g.members)] for g in groups}
    every = [name for each in names.values() for name in each]
    return any(
        name in names[group.name]
        for pattern in patterns
        for name in trees.matching(pattern, every, "where")
    )
