"""Where: phases that come back in turn."""

import dataclasses
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxprune.numbers import step_number
from jaxprune.schedules.moments import Either, Every, either
from jaxprune.types import Phase, one_of, wrong

Part = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Cycles:
    """A course of phases, as `cycles` makes it: a function step -> phase.

    Attributes:
      parts: name and length of each phase of a cycle.
      number: how many cycles run.
      then: name of the phase after them, which has no end.
      first: name and length of a phase before them; None without one.

    Examples:
      >>> from jaxprune.schedules import Cycles
      >>> phase = Cycles((("look", 10), ("train", 20)), 3, "train")(75)
      >>> phase.name, int(phase.step), int(phase.length)
      ('train', 5, 20)
    """

    parts: tuple[Part, ...]
    number: int
    then: str
    first: Part | None = None

    def __call__(self, step: ArrayLike) -> Phase:
        """The phase of the forward pass at an age, an integer scalar; its numbers are int32."""
        # A step of any cycle stands where it would if that cycle were the only one.
        step = jnp.asarray(step, jnp.int32) - self.cycle(step) * self.length
        phases = self._one_cycle
        names = tuple(dict.fromkeys(name for name, _, _ in phases))
        rows = [(names.index(name), begin, length) for name, length, begin in phases]
        table = np.array(rows, np.int32)  # raises where a number is too large
        place = jnp.sum(step >= table[:, 1], dtype=jnp.int32) - 1
        index, begin, length = jnp.asarray(table)[place]
        return Phase(index, step - begin, length, names)

    def cycle(self, step: ArrayLike) -> jax.Array:
        """The cycle that an age belongs to, from 0; before them the first, after them the last."""
        turn = (jnp.asarray(step, jnp.int32) - self.before) // max(self.length, 1)
        return jnp.clip(turn, 0, self.number - 1)

    def at_end_of(self, name: str) -> Every | Either:
        """The steps at which a phase of this name has ended: a function n -> bool.

        A phase of no length ends where it would begin; the one after all cycles never does.
        """
        *phases, _ = self._one_cycle
        one_of("name", name, tuple(dict.fromkeys(phase for phase, _, _ in phases)))
        whens = []
        for place, (phase, length, begin) in enumerate(phases):
            comes_back = place or not self.first
            last = begin + length + (self._others if comes_back else 0)
            if phase == name and last:  # what ends at 0 has no update to be seen at
                whens.append(Every(max(self.length, 1), begin + length, last))
        return whens[0] if len(whens) == 1 else either(*whens)

    @property
    def begins(self) -> dict[str, int]:
        """The step at which each phase that lasts begins for the first time, by name."""
        found: dict[str, int] = {}
        for name, length, begin in self._one_cycle:
            if length:
                found.setdefault(name, begin + self._others * (length < 0))
        return found

    @property
    def length(self) -> int:
        """Steps in a cycle."""
        return sum(length for _, length in self.parts)

    @property
    def before(self) -> int:
        """Steps before the first cycle."""
        return self.first[1] if self.first else 0

    @property
    def _others(self) -> int:
        """Steps in all cycles but one."""
        return (self.number - 1) * self.length

    @property
    def _one_cycle(self) -> list[tuple[str, int, int]]:
        """Name, length and begin of each phase, as if there were one cycle; -1 is without end."""
        phases = [*([self.first] if self.first else []), *self.parts, (self.then, -1)]
        begins = accumulate((length for _, length in phases), initial=0)
        return [(*phase, begin) for phase, begin in zip(phases, begins, strict=False)]


def cycles(*parts: Part, then: str, stop: int | None = None, first: Part | None = None) -> Cycles:
    """Phases that come back in turn: ``first``, then ``parts`` again and again, at last ``then``.

    Only whole cycles run, as many as end by ``stop``. Phases of one name share an index.

    Args:
      *parts: name and length in updates of each phase of a cycle; a length may be 0.
      then: name of the phase after the last cycle, without end.
      stop: the update by which the last cycle has ended; without it there is one cycle.
      first: name and length of a phase before the first cycle.

    Returns:
      A function step -> phase, found by division: of one cost at any number of cycles.

    Raises:
      ValueError: if no cycle ends by ``stop``, or a length is negative.
      TypeError: if a phase is not a name and a length, or a number of updates not an integer.

    Examples:
      >>> from jaxprune.schedules import cycles, steps_due
      >>> course = cycles(("look", 10), ("train", 20), stop=70, then="train")
      >>> [course(step).name for step in (9, 10, 30, 59, 60, 99)]
      ['look', 'train', 'look', 'train', 'train', 'train']
      >>> course.number, steps_due(course.at_end_of("look"))
      (2, [10, 40])
      >>> cycles(("explore", 250), then="exploit")(260).name
      'exploit'
    """
    if not isinstance(then, str):
        raise TypeError(wrong("then", "be the name of a phase", then))
    phases = tuple(_checked("parts", part) for part in parts)
    course = Cycles(phases, 1, then, None if first is None else _checked("first", first))
    if stop is None:
        return course
    room = step_number("stop", stop, 1) - course.before
    if not 0 < course.length <= room:
        begin = f" and begins at {course.before}" if course.before else ""
        expected = f"leave room for a cycle, which is {course.length} updates long{begin}"
        raise ValueError(wrong("stop", expected, stop, "none would run"))
    return dataclasses.replace(course, number=room // course.length)


def _checked(argument: str, phase: Any) -> Part:
    """A name and a length, in one form."""
    if not isinstance(phase, tuple | list) or len(phase) != 2 or not isinstance(phase[0], str):
        raise TypeError(wrong(argument, "give a phase as (name, length)", phase))
    return phase[0], step_number(f"length of phase '{phase[0]}'", phase[1], 0)
