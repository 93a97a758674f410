"""What the methods with a target sparsity share: reading it, and the steps that follow from it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.schedules import Either, Ramp, When, cubic, every, once
from jaxprune.schedules.numbers import is_traced, step_number
from jaxprune.trees import Where, by_path, prunable
from jaxprune.types import wrong

Schedule = Ramp | Callable[[Any], Any]


def schedule_of(
    sparsity: Any, ramp: tuple[int, int] | None, start: Any = None, where: Where | None = None
) -> Schedule:
    """The schedule that ``sparsity`` and ``ramp`` mean: a cubic ramp to a number, or itself.

    Args:
      sparsity: a number, with ``ramp``; or a schedule n -> sparsity, without.
      ramp: the first and the last update of the cubic ramp.
      start: the first masks; the ramp begins at their sparsity. Of a function's masks nothing is
        known beforehand, and the ramp begins at 0.
      where: which leaves are pruned; masks of others do not count.

    Returns:
      A function of the updates completed.

    Raises:
      ValueError: if a number comes without ``ramp``, or a schedule with one; if the ramp ends
        before it begins, or at 0; if ``start`` keeps nothing.
    """
    if callable(sparsity):
        if ramp is not None:
            raise ValueError(wrong("ramp", "be None where `sparsity` is a schedule", ramp))
        return sparsity
    if ramp is None:
        hint = f"a number needs ramp=(begin, end) in updates, here with sparsity={sparsity!r}"
        raise ValueError(wrong("ramp", "be given with a number as `sparsity`", None, hint))
    if not isinstance(ramp, tuple | list) or len(ramp) != 2:
        raise ValueError(wrong("ramp", "be (begin, end)", ramp))
    if not all(isinstance(step, int | np.integer) for step in ramp):
        raise TypeError(wrong("ramp", "be two integers, in updates", ramp))
    if not 0 <= ramp[0] <= ramp[1] or not ramp[1]:
        raise ValueError(
            wrong("ramp", "begin at 0 or later, and end at 1 or later, in order", ramp)
        )
    return cubic(*ramp, sparsity, initial=_sparsity_of(start, where))


def _sparsity_of(start: Any, where: Where | None) -> Any:
    if start is None or callable(start):
        return 0.0
    masks = by_path(start)
    leaves = {path: jax.ShapeDtypeStruct(m.shape, jnp.float32) for path, m in masks.items()}
    pruned = [masks[path] for path in prunable(leaves, where)]
    total = sum(mask.size for mask in pruned)
    kept = sum(jnp.sum(mask.astype(bool), dtype=jnp.int32) for mask in pruned)
    if not total or is_traced(kept):
        return (total - kept) / total if total else 0.0
    if not int(kept):
        raise ValueError(wrong("start", "keep at least one entry", "none"))
    return (total - int(kept)) / total


def end_of(schedule: Schedule) -> int | None:
    """The step at which a schedule reaches its target, where that is known."""
    return schedule.end if isinstance(schedule, Ramp) else None


def refreshes(interval: int, schedule: Schedule, end: int | None) -> When:
    """Every ``interval`` updates from the ramp's begin to ``end``, and at the ramp's own end.

    Args:
      interval: updates between two refreshes.
      schedule: the schedule of sparsity.
      end: the last refresh; None means for ever.

    Returns:
      n -> bool.

    Raises:
      ValueError: if ``end`` comes before the ramp's end, or ``interval`` is below 1.
      TypeError: if one of them is not an integer.
    """
    interval = step_number("every", interval, 1)
    end = None if end is None else step_number("exploit_at", end, 1)
    if not isinstance(schedule, Ramp):
        return every(interval, 0, end)
    if end is not None and end < schedule.end:
        expected = f"not come before the ramp's end, {schedule.end}"
        raise ValueError(wrong("exploit_at", expected, end))
    times = every(interval, schedule.begin, end)
    return Either((times, once(max(schedule.end, 1)))) if end != schedule.end else times
