"""Where: the phases of a course, one after another."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxprune.numbers import step_number
from jaxprune.types import Phase, wrong


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The phases of a course, one after another; those of one name share an index.

    Attributes:
      parts: name and length in steps of each phase; None, for the last one only, means for ever.
        After a last phase of finite length that phase goes on.

    Raises:
      ValueError: if there is no phase, a length is negative, or None stands before the last.

    Examples:
      >>> from jaxprune.schedules import Timeline
      >>> course = Timeline((("explore", 250), ("exploit", None)))
      >>> course(0).name, course(249).name, course(250).name
      ('explore', 'explore', 'exploit')

    References:
      Original.
    """

    parts: tuple[tuple[str, int | None], ...]

    def __post_init__(self) -> None:
        """Checks the lengths."""
        if not self.parts:
            raise ValueError(wrong("parts", "name at least one phase", self.parts))
        for place, (name, length) in enumerate(self.parts):
            if length is not None:
                step_number(f"length of phase '{name}'", length, 0)
            elif place + 1 < len(self.parts):
                raise ValueError(
                    wrong(f"length of phase '{name}'", "be a number before the last", length)
                )

    def __call__(self, step: ArrayLike) -> Phase:
        """The phase of the forward pass at an age.

        Args:
          step: updates completed before that pass, an integer scalar.

        Returns:
          The phase; its numbers are int32 scalars.
        """
        step = jnp.asarray(step, jnp.int32)
        names = tuple(dict.fromkeys(name for name, _ in self.parts))
        kinds = np.array([names.index(name) for name, _ in self.parts], np.int32)
        lengths = np.array([-1 if n is None else n for _, n in self.parts], np.int32)
        begins = np.cumsum([0, *lengths[:-1]], dtype=np.int32)
        part = jnp.sum(step >= begins, dtype=jnp.int32) - 1
        return Phase(
            index=jnp.asarray(kinds)[part],
            step=step - jnp.asarray(begins)[part],
            length=jnp.asarray(lengths)[part],
            names=names,
        )


def timeline(*parts: tuple[str, int | None]) -> Timeline:
    """The phases of a course, one after another; those of one name share an index.

    Args:
      *parts: name and length in steps of each phase; None, for the last one only, means for ever.

    Returns:
      A function step -> phase.

    Raises:
      ValueError: if there is no phase, a length is negative, or None stands before the last.

    Examples:
      >>> from jaxprune.schedules import timeline
      >>> phase = timeline(("explore", 250), ("exploit", None))(260)
      >>> phase.name, int(phase.step), int(phase.length)
      ('exploit', 10, -1)
      >>> cycles = timeline(*[("prune", 20), ("grow", 5)] * 3, ("train", None))
      >>> [cycles(step).name for step in (19, 20, 25, 74, 75)]
      ['prune', 'grow', 'prune', 'grow', 'train']

    References:
      Original.
    """
    return Timeline(parts)
