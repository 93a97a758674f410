"""What the methods with a target sparsity share: reading it, and the steps that follow from it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import scores
from jaxprune.distributions import Budget, Distribution, Layers, Stacked
from jaxprune.masks import largest
from jaxprune.numbers import is_traced, step_number
from jaxprune.schedules import Either, Ramp, When, constant, cubic, every, once
from jaxprune.trees import Where, by_path, by_pattern, prunable
from jaxprune.types import REST, Candidates, Counts, Leaves, MaskUpdate, Signals, wrong

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
    check_span("ramp", ramp)
    return cubic(*ramp, sparsity, initial=_sparsity_of(start, where))


def check_span(argument: str, span: Any) -> None:
    """Refuses what is not (begin, end) in updates.

    Args:
      argument: the name of the argument, for the error.
      span: what was given.

    Raises:
      ValueError: if it is not two, begins below 0, ends at 0, or before it begins.
      TypeError: if they are not integers.
    """
    if not isinstance(span, tuple | list) or len(span) != 2:
        raise ValueError(wrong(argument, "be (begin, end)", span))
    if not all(isinstance(step, int | np.integer) for step in span):
        raise TypeError(wrong(argument, "be two integers, in updates", span))
    if not 0 <= span[0] <= span[1] or not span[1]:
        expected = "begin at 0 or later, and end at 1 or later, in order"
        raise ValueError(wrong(argument, expected, span))


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


def budget_of(
    sparsity: Any,
    distribution: Distribution,
    overrides: Mapping[str, float] | None,
    min_density: float,
    start: Any,
    stacked: Stacked = None,
    where: Where | None = None,
) -> Budget:
    """How many entries are kept, where that does not change: by a sparsity, or as first masks do.

    Args:
      sparsity: a number, or None beside masks as ``start``.
      distribution: how a sparsity is spread over the leaves.
      overrides: sparsity by pattern.
      min_density: least share kept in each leaf.
      start: the first masks.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      where: which leaves are pruned; masks of others do not count.

    Returns:
      The budget.

    Raises:
      ValueError: if there is neither a sparsity nor masks.
    """
    if sparsity is not None:
        return Budget(constant(sparsity), distribution, overrides, min_density, stacked)
    if start is None or callable(start) or isinstance(start, str):
        raise ValueError(wrong("sparsity", "be given unless `start` is masks", None))
    if distribution == "global":
        share = _sparsity_of(start, where)
        return Budget(constant(share), distribution, overrides, min_density, stacked)
    given = {path: np.asarray(mask, bool) for path, mask in by_path(start).items()}
    layers = Layers.of(given, stacked).each(given)
    densities = {name: mask.mean() if mask.size else 1.0 for name, mask in layers.items()}
    return Budget(constant(0.0), densities, overrides, min_density, stacked)


def drawn(
    budget: Budget,
    score: Callable[[Signals], Leaves] = scores.random,
    select: Callable[[Leaves, Counts], Leaves] | None = None,
) -> MaskUpdate:
    """The first masks, at the first update: as many entries as the budget keeps.

    Args:
      budget: how many.
      score: which; by default chance decides.
      select: how they are chosen; by default the highest of each leaf.

    Returns:
      The change of masks.
    """
    select = select or partial(largest, min_density=budget.min_density)
    return MaskUpdate(once(1), score, budget, select, Candidates.KEPT)


class Together(NamedTuple):
    """The counts of a budget as one number, for all leaves ranked together.

    Leaves with an override keep a count of their own.

    Attributes:
      budget: Signals -> counts.
    """

    budget: Budget

    def __call__(self, signals: Signals) -> Counts:
        """The sum at a step."""
        counts = self.budget(signals)
        own = by_pattern(dict(self.budget.overrides), signals.mask, "overrides")
        others = [jnp.sum(count) for path, count in counts.items() if path not in own]
        total = sum(others, jnp.zeros((), jnp.int32))
        return {path: counts[path] for path in own} | ({REST: total} if others else {})


def drop_and_grow(
    when: When,
    budget: Callable[[Signals], Counts],
    share: Callable[[Any], Any],
    *,
    drop: Callable[[Signals], Leaves],
    grow: Callable[[Signals], Leaves],
    min_density: float = 0.0,
) -> tuple[MaskUpdate, MaskUpdate]:
    """Drops a share of the kept entries, then grows pruned ones until the budget is full again.

    Args:
      when: the steps at which both happen.
      budget: how many entries are kept afterwards.
      share: step -> the share of them that is dropped first.
      drop: what the kept entries are ranked by; the lowest go.
      grow: what the pruned entries are ranked by, those just dropped included; the highest come.
      min_density: share of each leaf that dropping leaves, where leaves are ranked together.

    Returns:
      The two changes of masks, in this order.
    """
    return (
        MaskUpdate(
            when,
            drop,
            Less(budget, share),
            partial(largest, min_density=min_density),
            Candidates.KEPT,
        ),
        MaskUpdate(when, grow, budget, largest, Candidates.PRUNED),
    )


class Less(NamedTuple):
    """The counts of a budget less a share of them: ``k - floor(share k)``, in float32.

    Attributes:
      budget: Signals -> counts.
      share: step -> share.
    """

    budget: Callable[[Signals], Counts]
    share: Callable[[Any], Any]

    def __call__(self, signals: Signals) -> Counts:
        """The counts at a step."""
        share = jnp.asarray(self.share(signals.step), jnp.float32)

        def less(count: Any) -> jax.Array:
            gone = jnp.floor(share * jnp.asarray(count).astype(jnp.float32))
            return count - gone.astype(jnp.int32)

        return jax.tree.map(less, self.budget(signals))


class CosineDecay(NamedTuple):
    """A share that falls along half a cosine: ``first / 2 (1 + cos(pi n / stop))``.

    Attributes:
      first: the share at step 0.
      stop: the step at which it is 0.
    """

    first: Any
    stop: int

    def __call__(self, step: Any) -> jax.Array:
        """The share at a step."""
        way = jnp.minimum(jnp.asarray(step).astype(jnp.float32) / self.stop, 1)
        return jnp.asarray(self.first, jnp.float32) / 2 * (1 + jnp.cos(jnp.pi * way))


def periodic(interval: int, stop: int) -> When:
    """Every ``interval`` updates, as long as they come before ``stop``.

    Args:
      interval: updates between two changes of masks.
      stop: the update from which masks are fixed.

    Returns:
      n -> bool.

    Raises:
      ValueError: if no change comes before ``stop``.
      TypeError: if one of them is not an integer.
    """
    interval, stop = step_number("every", interval, 1), step_number("stop", stop, 1)
    last = (stop - 1) // interval * interval
    if not last:
        hint = "masks would never change"
        raise ValueError(wrong("stop", f"come after `every`, which is {interval}", stop, hint))
    return every(interval, 0, last)
