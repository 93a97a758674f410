"""Prune and grow (IEE): train the kept weights, explore the pruned ones, swap worst for best."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import keep, masks, scores
from jaxprune.distributions import Budget, Distribution
from jaxprune.methods.common import Schedule, budget_of, share_of, units_of_groups
from jaxprune.names import OutputAxis
from jaxprune.network import Network
from jaxprune.numbers import checked_share, step_number
from jaxprune.schedules import Cycles, constant, cycles, once
from jaxprune.selection import as_array
from jaxprune.transform import AtRandom, Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import KEPT, PRUNED, Leaves, MaskUpdate, Memory, Signals, View, one_of, wrong
from jaxprune.units import Groups, Stacked, units_for
from jaxprune.views import masked

Score = Callable[[Signals], Leaves]


@method
def prune_and_grow(
    inner: optax.GradientTransformation,
    *,
    stop: int,
    sparsity: Any = None,
    measure_steps: int = 150,
    improve_steps: int = 150,
    explore_steps: int = 150,
    warmup: int | None = None,
    swap_fraction: float | Schedule | tuple[float, float] = (0.3, 0.05),
    importance: Literal["magnitude", "taylor"] | Score = "magnitude",
    ranking: Literal["leaf", "global"] = "leaf",
    reactivate_from: Literal["recent", "init", "zero"] = "recent",
    grow_from: Literal["explored", "zero"] = "explored",
    freeze_kept: bool = True,
    freeze_rest: bool = False,
    n_of_m: tuple[int, int] | None = None,
    unfit: Literal["refuse", "skip"] = "refuse",
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    distribution: Distribution = "erk",
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    stacked: Stacked = None,
    channels: Groups | None = None,
    start: Start | Literal["magnitude"] = None,
    output_axis: OutputAxis = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """IEE: trains the kept weights, then the pruned ones, and swaps the worst for the best.

    K are the kept weights, P the pruned ones. Until ``stop`` cycles of five stages follow each
    other:

    1. ``measure_steps`` updates train K and measure how important each weight is;
    2. *prune*: the ``floor(omega |K|)`` least important of K go to P;
    3. ``improve_steps`` updates train what is left of K;
    4. ``explore_steps`` updates train P, while K stands still: the network is dense;
    5. *grow*: as many of P, the most important, go to K. P is switched off again.

    Then K trains on. ``e = m w``, while exploring ``e = w``; omega falls geometrically over the
    cycles. Only whole cycles run: the last one ends at ``stop`` or before.

    Args:
      inner: the optimizer.
      stop: the update by which the last cycle has ended; 0.75 of training is usual.
      sparsity: the share to prune, in [0, 1). Not needed beside masks as ``start``, whose counts
        are then kept, nor beside ``n_of_m``.
      measure_steps: length of stage 1, at least 1.
      improve_steps: length of stage 3; 0 leaves it out.
      explore_steps: length of stage 4; with 0 what grows has had no training of its own.
      warmup: updates of the dense network before all that; the most important then stay, and there
        is no ``start``. For channels a tenth of training is a good choice: a random start
        loses to a random narrow network.
      swap_fraction: omega: (in the first cycle, in the last), geometric in between; or a number, or
        a schedule n -> omega.
      importance: "magnitude" ``|w|``; "taylor", the mean of ``|w g|`` over stage 1 for K and over
        stage 4 for P, a step that is not finite adding 0; or a function of `Signals` (of new
        weights, without their gradient).
      ranking: within each "leaf", or "global": all leaves together, so that counts move between
        them.
      reactivate_from: what P starts exploring from. "recent": the value that each weight had last,
        0 if it was never kept or explored; "init": the same, but at first the initial weights;
        "zero": always 0. A channel that is 0 has no gradient: channels need "init", or a warm-up.
      grow_from: what grown weights start from: the value that exploring gave them, or "zero".
      freeze_kept: whether K stands still while P explores.
      freeze_rest: whether everything else stands still then too: biases, norms, unpruned leaves.
      n_of_m: (n, m) for N:M sparsity: n kept of every m neighbours along the contraction; swaps
        then stay within groups, at most one in each.
      unfit: what becomes of leaves that do not sum a multiple of m inputs: "refuse" names them all,
        "skip" leaves them dense, and `plan` says so.
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      distribution: of the first masks: "erk", "uniform", "global", densities, or a function. With
        "global" the ranking is global too.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      channels: what ``network.channels(...)`` returned, or ``{name: Group}``: whole channels are
        pruned, in place of ``where``.
      start: first masks, by path, or a function of the first update's `Signals`; "magnitude" takes
        the largest weights of a trained network; by default chance decides, or the warm-up.
      output_axis: the axes that count a leaf's outputs, where its name says it wrongly or not at
        all: an integer, a tuple, or ``{pattern: either}``.
      seed: of the first masks.

    Returns:
      A gradient transformation; the params are the pruned network, but the dense one while
      exploring: `phase_of` tells, `active_params` gives the pruned one at any moment. What stands
      still does so bit for bit in the state's dense copy, of which params of lower precision, and
      those that have just changed their view, are the nearest values an update can land on.

    Raises:
      ValueError: if no cycle fits before ``stop``; if there is no sparsity, or one that contradicts
        ``n_of_m``; if a choice is none of its values.
      TypeError: if a number of steps is not an integer.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.prune_and_grow(
      ...     optax.sgd(0.1),
      ...     sparsity=0.5,
      ...     stop=9,
      ...     measure_steps=1,
      ...     improve_steps=1,
      ...     explore_steps=1,
      ... )
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> zeros, state = {"kernel": jnp.zeros((2, 2))}, tx.init(params)
      >>> updates, state = tx.update(zeros, state, params)
      >>> jaxprune.phase_of(state).name, float(jaxprune.sparsity_of(state))
      ('improve', 0.5)

    References:
      Sun et al., Advancing Weight and Channel Sparsification with Enhanced Saliency, 2025,
      https://arxiv.org/abs/2502.03658. From the paper: the five stages, 150 steps each, the same
      criterion for pruning and growing, grown weights from their most recent values. Our reading:
      the course of omega from 0.3 to 0.05, P from 0 at first, everything but K live while
      exploring.
    """
    one_of("ranking", ranking, ("leaf", "global"))
    one_of("reactivate_from", reactivate_from, ("recent", "init", "zero"))
    one_of("grow_from", grow_from, ("explored", "zero"))
    if inner is None:
        hint = "it freezes weights, and needs their gradients"
        raise ValueError(wrong("inner", "be an optimizer, not stand last in a chain", None, hint))
    if channels is not None:
        _check_alive(reactivate_from, warmup)
    if warmup and start is not None:
        raise ValueError(wrong("start", "be None beside a warm-up, which chooses", start))
    course = _course(measure_steps, improve_steps, explore_steps, stop, warmup)
    swap = _swap(swap_fraction, course)
    score, memory = _importance(importance, course)
    if n_of_m is None:
        units = units_for(where, exclude, output_axis, stacked, channels, network=network)
        budget = budget_of(sparsity, distribution, overrides, min_density, start, units)
        budget = budget.together() if ranking == "global" else budget
        weakest, (kept, swapped, by_chance) = score, _kept(budget, swap, units, importance)
    else:
        kept = by_chance = keep.n_of_m(*_checked_groups(n_of_m, sparsity))
        if overrides or min_density or ranking != "leaf" or distribution != "erk" or channels:
            others = ("overrides", "min_density", "ranking", "distribution", "channels")
            expected = f"stand without `{'`, `'.join(others)}`"
            raise ValueError(wrong("n_of_m", expected, n_of_m, "its groups are the counts"))
        units = units_of_groups(kept.m, unfit, where, exclude, output_axis, stacked, network)
        weakest, budget = _weakest_of(score, kept.m), Budget(constant(kept.sparsity), "uniform")
        swapped = keep.largest(budget.less(lambda step: jnp.minimum(swap(step), 1 / kept.n)))
    first = []
    if isinstance(start, str):
        one_of("start", start, ("magnitude",))
        first, start = [MaskUpdate(once(1), scores.magnitude, kept, KEPT)], None
    elif warmup:
        first = [MaskUpdate(course.at_end_of("warmup"), score, kept, KEPT)]
    elif start is None:
        start = AtRandom(by_chance)
    return prune(
        inner,
        [
            *first,
            MaskUpdate(course.at_end_of("measure"), weakest, swapped, KEPT),
            MaskUpdate(course.at_end_of("explore"), score, kept, PRUNED),
        ],
        _view(course, reactivate_from, grow_from, freeze_kept, freeze_rest),
        units=units,
        start=start,
        memory=memory,
        phases=course,
        seed=seed,
    )


def _course(measure: int, improve: int, explore: int, stop: int, warmup: int | None) -> Cycles:
    return cycles(
        ("measure", step_number("measure_steps", measure, 1)),
        ("improve", step_number("improve_steps", improve, 0)),
        ("explore", step_number("explore_steps", explore, 0)),
        stop=step_number("stop", stop, 1),
        then="train",
        first=("warmup", step_number("warmup", warmup, 0)) if warmup else None,
    )


def _check_alive(reactivate_from: str, warmup: int | None) -> None:
    """Refuses channels that would be explored from 0."""
    if reactivate_from == "zero" or (reactivate_from == "recent" and not warmup):
        expected = 'be "init", or "recent" after a warm-up, beside `channels`'
        hint = "a channel that is 0 all over has no gradient"
        raise ValueError(wrong("reactivate_from", expected, reactivate_from, hint))


class _Geometric(NamedTuple):
    """A share that goes geometrically from the first cycle's to the last one's."""

    course: Cycles
    first: float
    last: float

    def __call__(self, step: Any) -> jax.Array:
        """That of the cycle in which a step ends."""
        way = self.course.cycle(step - 1).astype(jnp.float32) / max(self.course.number - 1, 1)
        return jnp.float32(self.first) ** (1 - way) * jnp.float32(self.last) ** way


def _swap(fraction: Any, course: Cycles) -> Schedule:
    """Omega, the share of K that a cycle swaps, as a schedule."""
    if not isinstance(fraction, tuple | list):
        return share_of("swap_fraction", fraction, constant)
    if len(fraction) != 2:
        raise ValueError(
            wrong("swap_fraction", "be (first, last), a number or a schedule", fraction)
        )
    return _Geometric(course, *(checked_share("swap_fraction", share) for share in fraction))


def _kept(budget: Budget, swap: Schedule, units: Any, importance: Any) -> tuple[Any, Any, Any]:
    """What stays after growing, after pruning, and of first masks by chance."""
    within = functools.partial(keep.within, units=units)
    adds_up = True if importance == "taylor" else None
    swapped = within(budget.less(swap), additive=adds_up)
    return within(budget, additive=adds_up), swapped, within(budget, additive=False)


def _checked_groups(n_of_m: Any, sparsity: Any) -> tuple[int, int]:
    if not isinstance(n_of_m, tuple | list) or len(n_of_m) != 2:
        raise ValueError(wrong("n_of_m", "be (n, m)", n_of_m))
    n, m = n_of_m
    if sparsity is not None and sparsity != (m - n) / m:
        expected = f"be {(m - n) / m:g} or left out beside {n}:{m}"
        raise ValueError(wrong("sparsity", expected, sparsity))
    return n, m


def _weakest_of(score: Score, m: int) -> Score:
    """A score by which at most one entry of each group can be dropped: infinite on others."""

    def weakest(s: Signals) -> Leaves:
        given = {path: as_array(x) for path, x in score(s).items()}
        below = {path: jnp.where(kept, -given[path], -jnp.inf) for path, kept in s.mask.items()}
        least = masks.n_of_m(below, 1, m, s.units.contraction_axes(s.mask))
        return {
            path: jnp.where(least[path] | jnp.isnan(x), x, jnp.inf) for path, x in given.items()
        }

    return weakest


def _importance(importance: Any, phases: Cycles) -> tuple[Score, Memory | None]:
    """The score of weights of K and P, and what has to be remembered for it."""
    if not isinstance(importance, str):
        return importance, None
    one_of("importance", importance, ("magnitude", "taylor"))
    if importance == "magnitude":
        return scores.magnitude, None

    def remembered(s: Signals) -> Leaves:
        return s.memory

    def nothing(s: Signals) -> Leaves:
        return {site: jnp.zeros_like(m, dtype=jnp.float32) for site, m in s.mask.items()}

    def summed(s: Signals) -> Leaves:
        """The sum over the stage, which ranks as the mean does; NaN where nothing was finite."""
        phase = phases(s.step)
        left = phase.length - phase.step
        late = phase.named("warmup") & (left <= dict(phases.parts)["measure"])
        counts = phase.named("measure") | phase.named("explore") | late
        begins = (phase.step == 0) | (late & (left == dict(phases.parts)["measure"]))
        new = {}
        for site, score in s.units.pooled(scores.saliency(s)).items():
            saliency = as_array(score)
            old = jnp.where(counts & begins, jnp.nan, s.memory[site])
            more = jnp.where(jnp.isnan(old), 0, old) + saliency
            new[site] = jnp.where(counts & jnp.isfinite(saliency), more, old)
        return new

    return remembered, Memory(init=nothing, update=summed, at="step")


def _view(phases: Cycles, reactivate: str, grow: str, freeze_kept: bool, rest: bool) -> View:
    """``e = m w``, and while exploring ``e = w``, where K stands still and P moves."""

    def exploring(s: Signals) -> jax.Array:
        return phases(s.step).named("explore")

    def apply(s: Signals) -> Leaves:
        now = exploring(s)
        return masked(s.dense, {path: m | now for path, m in s.support.items()})

    def update_scale(s: Signals) -> Leaves:
        now, support = exploring(s), s.support
        scale = {path: m ^ now if freeze_kept else m | now for path, m in support.items()}
        others = [path for path in s.dense if path not in support] if rest else []
        return scale | dict.fromkeys(others, ~now)

    def settle(s: Signals, grown: Leaves) -> Leaves:
        support = s.support
        dense = {path: s.dense[path] for path in support}
        for path, m in support.items():
            if reactivate == "zero":
                dense[path] = jnp.where(m, dense[path], 0)
            if reactivate == "recent":  # 0 at first, then whatever it was last
                dense[path] = jnp.where(m | (s.step > 1), dense[path], 0)
            if grow == "zero":
                dense[path] = jnp.where(grown[path], 0, dense[path])
        return dense

    settles = reactivate != "init" or grow != "explored"
    return View(apply, update_scale, settle=settle if settles else None)
