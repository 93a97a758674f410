"""What the methods with a target sparsity share: reading it, and the steps that follow from it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.distributions import Budget, Distribution
from jaxprune.names import OutputAxis
from jaxprune.network import Network
from jaxprune.numbers import checked_share, is_traced, step_number
from jaxprune.schedules import Ramp, When, constant, cubic, either, every, once
from jaxprune.trees import Where, by_path
from jaxprune.types import one_of, wrong
from jaxprune.units import Stacked, Units, units_for

Schedule = Callable[[Any], Any]
"""n -> a number, n the updates completed; as optax has it."""


def schedule_of(
    sparsity: Any, ramp: tuple[int, int] | None, start: Any, units: Units, argument: str = "start"
) -> Schedule:
    """The schedule that ``sparsity`` and ``ramp`` mean: a cubic ramp to a number, or itself.

    Args:
      sparsity: a number, with ``ramp``; or a schedule n -> sparsity, without.
      ramp: the first and the last update of the cubic ramp.
      start: the first masks; the ramp begins at their sparsity. Of a function's masks nothing is
        known beforehand, and the ramp begins at 0.
      units: what is pruned; masks of others do not count.
      argument: what the caller's user knows ``start`` as.

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
    return ramp_of(sparsity, ramp, start, units, argument)


def ramp_of(
    sparsity: Any, ramp: tuple[int, int], start: Any, units: Units, argument: str = "start"
) -> Ramp:
    """The cubic ramp to a number, from the sparsity of first masks; as `schedule_of`."""
    check_span("ramp", ramp)
    return cubic(*ramp, sparsity, initial=sparsity_of_start(start, units, argument))


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


def sparsity_of_start(start: Any, units: Units, argument: str = "start") -> Any:
    """The sparsity of first masks, 0 where they are not known: of None, or of a function.

    Args:
      start: masks by path, a function, or None.
      units: what is pruned; masks of others do not count.
      argument: what the caller's user knows ``start`` as.

    Returns:
      A python float, or a traced one.

    Raises:
      ValueError: if the masks keep nothing.
    """
    if start is None or callable(start):
        return 0.0
    masks = by_path(start)
    if units.cost is not None:
        return 1 - units.cost({site: masks[site] for site in units.own(masks)}) / units.cost()
    pruned = [masks[site] for site in units.own(masks)]
    total = sum(mask.size for mask in pruned)
    kept = sum(jnp.sum(mask.astype(bool), dtype=jnp.int32) for mask in pruned)
    if not total or is_traced(kept):
        return (total - kept) / total if total else 0.0
    if not int(kept):
        raise ValueError(wrong(argument, "keep at least one entry", "none"))
    return (total - int(kept)) / total


def check_reachable(schedule: Schedule, start: Any, units: Units) -> None:
    """Refuses first masks that are sparser than a method can become that never lets weights grow.

    Args:
      schedule: of sparsity.
      start: the first masks.
      units: what is pruned; masks of others do not count.

    Raises:
      ValueError: if the schedule ends at a lower sparsity than ``start`` has.
    """
    if not isinstance(schedule, Ramp) or is_traced(schedule.sparsity):
        return
    first = sparsity_of_start(start, units)
    if not is_traced(first) and first > schedule.sparsity:
        expected = f"prune no more than the {schedule.sparsity:g} that `sparsity` says"
        hint = "what is pruned does not come back here"
        raise ValueError(wrong("start", expected, round(first, 4), hint))


def end_of(schedule: Schedule) -> int | None:
    """The step at which a schedule reaches its target, where that is known."""
    return schedule.end if isinstance(schedule, Ramp) else None


def refreshes(interval: int, schedule: Schedule, stop: int | None) -> When:
    """Every ``interval`` updates from the ramp's begin to ``stop``, and at the ramp's own end.

    Args:
      interval: updates between two refreshes.
      schedule: the schedule of sparsity.
      stop: the last refresh; None means for ever.

    Returns:
      n -> bool.

    Raises:
      ValueError: if ``stop`` comes before the ramp's end, or ``interval`` is below 1.
      TypeError: if one of them is not an integer.
    """
    interval = step_number("every", interval, 1)
    stop = None if stop is None else step_number("stop", stop, 1)
    if not isinstance(schedule, Ramp):
        return every(interval, 0, stop)
    if stop is not None and stop < schedule.end:
        expected = f"not come before the ramp's end, {schedule.end}"
        raise ValueError(wrong("stop", expected, stop))
    times = every(interval, schedule.begin, stop)
    return either(times, once(max(schedule.end, 1))) if stop != schedule.end else times


def budget_of(
    sparsity: Any,
    distribution: Distribution,
    overrides: Mapping[str, float] | None,
    min_density: float,
    start: Any,
    units: Units,
) -> Budget:
    """How many units are kept, where that does not change: by a sparsity, or as first masks do.

    Args:
      sparsity: a number, or None beside masks as ``start``.
      distribution: how a sparsity is spread over the leaves.
      overrides: sparsity by pattern.
      min_density: least share kept in each leaf.
      start: the first masks.
      units: what is pruned; masks of others do not count.

    Returns:
      The budget.

    Raises:
      ValueError: if there is neither a sparsity nor masks.
    """
    if sparsity is not None:
        return Budget(constant(sparsity), distribution, overrides, min_density)
    if start is None or callable(start) or isinstance(start, str):
        raise ValueError(wrong("sparsity", "be given unless `start` is masks", None))
    if distribution == "global" or units.cost is not None:
        share = sparsity_of_start(start, units)
        return Budget(constant(share), distribution, overrides, min_density)
    given = {path: np.asarray(mask, bool) for path, mask in by_path(start).items()}
    layers = units.layers(given).each(given)
    densities = {name: mask.mean() if mask.size else 1.0 for name, mask in layers.items()}
    return Budget(constant(0.0), densities, overrides, min_density)


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


def share_of(argument: str, share: Any, course: Callable[[Any], Schedule]) -> Schedule:
    """The schedule that a share means: itself, or the course that a number takes.

    Args:
      argument: the name of the argument, for the error.
      share: a number in [0, 1), or a schedule n -> share.
      course: number -> schedule.

    Returns:
      n -> share.

    Raises:
      TypeError: if it is neither a number nor a function.
      ValueError: if a number lies outside [0, 1).
    """
    return share if callable(share) else course(checked_share(argument, share))


def periodic(interval: int, stop: int) -> When:
    """Every ``interval`` updates, ``stop`` the last that may be one.

    Args:
      interval: updates between two changes of masks.
      stop: the last update that may change masks.

    Returns:
      n -> bool.

    Raises:
      ValueError: if no change comes by ``stop``.
      TypeError: if one of them is not an integer.
    """
    interval, stop = step_number("every", interval, 1), step_number("stop", stop, 1)
    if stop < interval:
        expected = f"not come before the first change, after update {interval}"
        raise ValueError(wrong("stop", expected, stop, "masks would never change"))
    return every(interval, 0, stop // interval * interval)


def check_block(block: Any, start: Any) -> None:
    """Refuses first masks beside blocks, which they might cut.

    Args:
      block: the shape of blocks, or None.
      start: the first masks, or None.

    Raises:
      ValueError: if both are given.
    """
    if block is not None and start is not None:
        raise ValueError(wrong("start", "be None beside `block`", "first masks"))


def refuse_channels(channels: Any) -> None:
    """Refuses channels in a method that needs the gradients of what is pruned.

    Args:
      channels: what was given.

    Raises:
      ValueError: if it is not None.
    """
    if channels is not None:
        hint = "a channel that is 0 all over has no gradient, by which this method would find it "
        hint += "again: `gradual_magnitude`, `sparse_evolution` and `prune_and_grow` prune channels"
        raise ValueError(wrong("channels", "be None here", type(channels).__name__, hint))


def units_of_groups(
    m: int,
    unfit: str,
    where: Where | None,
    exclude: Where | None,
    output_axis: OutputAxis,
    stacked: Stacked,
    network: Network | None,
) -> Units:
    """The units of N:M sparsity: entries, of leaves whose contraction is made of groups of m.

    Args:
      m: how many make a group.
      unfit: "refuse" or "skip" other leaves.
      where: which leaves are pruned.
      exclude: which of them are not.
      output_axis: the axes that count a leaf's outputs.
      stacked: ``{pattern: axis}`` of scanned layers.
      network: what was traced of the network.

    Returns:
      The units.

    Raises:
      ValueError: if ``unfit`` is none of its values.
    """
    one_of("unfit", unfit, ("refuse", "skip"))
    multiple_of = m if unfit == "skip" else 1
    return units_for(where, exclude, output_axis, stacked, multiple_of=multiple_of, network=network)
