"""Prune and grow (IEE): train the kept weights, explore the pruned ones, swap worst for best."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import scores
from jaxprune.distributions import Distribution, Stacked
from jaxprune.masks import largest
from jaxprune.methods.common import Less, Together, budget_of, drawn
from jaxprune.methods.groups import Groups
from jaxprune.numbers import checked_share, step_number
from jaxprune.schedules import Every, Timeline, timeline
from jaxprune.transform import Start, method, prune
from jaxprune.trees import OutputAxis, Where
from jaxprune.types import Candidates, Leaves, MaskUpdate, Memory, Signals, View, one_of, wrong
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
    swap_fraction: tuple[float, float] = (0.3, 0.05),
    importance: Literal["magnitude", "taylor"] | Score = "magnitude",
    ranking: Literal["leaf", "global"] = "leaf",
    reactivate_from: Literal["recent", "init", "zero"] = "recent",
    grow_from: Literal["explored", "zero"] = "explored",
    freeze_kept: bool = True,
    freeze_rest: bool = False,
    n_of_m: tuple[int, int] | None = None,
    where: Where | None = None,
    distribution: Distribution = "erk",
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    stacked: Stacked = None,
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
      swap_fraction: omega in the first cycle and in the last.
      importance: "magnitude" ``|w|``; "taylor", the mean of ``|w g|`` over stage 1 for K and over
        stage 4 for P, a step that is not finite adding 0; or a function of `Signals` (of new
        weights, without their gradient).
      ranking: within each "leaf", or "global": all leaves together, so that counts move between
        them.
      reactivate_from: what P starts exploring from. "recent": the value that each weight had last,
        0 if it was never kept or explored; "init": the same, but at first the initial weights;
        "zero": always 0.
      grow_from: what grown weights start from: the value that exploring gave them, or "zero".
      freeze_kept: whether K stands still while P explores.
      freeze_rest: whether everything else stands still then too: biases, norms, unpruned leaves.
      n_of_m: (n, m) for N:M sparsity: n kept of every m neighbours along the contraction axis;
        swaps then stay within groups, at most one in each.
      where: which leaves are pruned; replaces the default rule.
      distribution: of the first masks: "erk", "uniform", "global", densities, or a function. With
        "global" the ranking is global too.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      start: first masks, by path, or a function of the first update's `Signals`; "magnitude" takes
        the largest weights of a trained network; by default chance decides.
      output_axis: the axis of a leaf that counts its outputs, where the default rule is wrong.
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
    if isinstance(start, str):
        one_of("start", start, ("magnitude",))
    cycles = _Cycles.until(stop, measure_steps, improve_steps, explore_steps, swap_fraction)
    score, memory = _importance(importance, cycles.phases)
    if n_of_m is None:
        budget = budget_of(sparsity, distribution, overrides, min_density, start, stacked, where)
        counts = Together(budget) if ranking == "global" else budget
        highest = partial(largest, min_density=min_density)
        keep, drop, down, fill = highest, score, highest, largest
        share: Callable[[Any], jax.Array] = cycles.omega
    else:
        if not isinstance(n_of_m, tuple | list) or len(n_of_m) != 2:
            raise ValueError(wrong("n_of_m", "be (n, m)", n_of_m))
        if overrides or min_density or ranking != "leaf" or distribution != "erk":
            expected = "stand without `overrides`, `min_density`, `ranking` and `distribution`"
            raise ValueError(wrong("n_of_m", expected, n_of_m, "its groups are the counts"))
        groups = Groups(*n_of_m, output_axis, stacked)
        budget = groups.agreed_budget(sparsity)
        counts = replace(budget, stacked=stacked)
        keep, drop, down, fill = groups.keep, groups.weakest_of(score), largest, groups.fill
        share = partial(_at_most, cycles.omega, 1 / n_of_m[0])
    first = drawn(budget, scores.magnitude if start == "magnitude" else scores.random, keep)
    own_start = start is None or isinstance(start, str)
    return prune(
        inner,
        [
            *((first,) if own_start else ()),
            MaskUpdate(cycles.prune, drop, Less(counts, share), down, Candidates.KEPT),
            MaskUpdate(cycles.grow, score, counts, fill, Candidates.PRUNED),
        ],
        _view(cycles.phases, reactivate_from, grow_from, freeze_kept, freeze_rest),
        where=where,
        start=None if own_start else start,
        memory=memory,
        phases=cycles.phases,
        output_axis=output_axis,
        seed=seed,
    )


class _Cycles(NamedTuple):
    """When what happens: the phases, and the steps of the two changes of masks."""

    phases: Timeline
    prune: Every
    grow: Every
    shares: tuple[float, ...]

    @classmethod
    def until(cls, stop: Any, measure: Any, improve: Any, explore: Any, swap: Any) -> "_Cycles":
        """As many whole cycles as end by a step."""
        stop, measure = step_number("stop", stop, 1), step_number("measure_steps", measure, 1)
        improve = step_number("improve_steps", improve, 0)
        explore = step_number("explore_steps", explore, 0)
        length = measure + improve + explore
        number = stop // length
        if not number:
            expected = f"leave room for a cycle, which is {length} updates long"
            raise ValueError(wrong("stop", expected, stop, "nothing would ever be swapped"))
        if not isinstance(swap, tuple | list) or len(swap) != 2:
            raise ValueError(wrong("swap_fraction", "be (first, last)", swap))
        first, last = (checked_share("swap_fraction", share) for share in swap)
        way = [cycle / max(number - 1, 1) for cycle in range(number)]
        stages = (("measure", measure), ("improve", improve), ("explore", explore)) * number
        return cls(
            timeline(*stages, ("train", None)),
            Every(length, measure, measure + (number - 1) * length),
            Every(length, length, number * length),
            tuple(first ** (1 - w) * last**w for w in way),
        )

    def omega(self, step: Any) -> jax.Array:
        """The share of K that the cycle of a step swaps."""
        return jnp.asarray(self.shares, jnp.float32)[(step - 1) // self.prune.interval]


def _at_most(share: Callable[[Any], jax.Array], bound: float, step: Any) -> jax.Array:
    return jnp.minimum(share(step), bound)


def _importance(importance: Any, phases: Timeline) -> tuple[Score, Memory | None]:
    """The score of weights of K and P, and what has to be remembered for it."""
    if not isinstance(importance, str):
        return importance, None
    one_of("importance", importance, ("magnitude", "taylor"))
    if importance == "magnitude":
        return scores.magnitude, None

    def remembered(s: Signals) -> Leaves:
        return s.memory

    def nothing(mask: Leaves) -> Leaves:
        return {path: jnp.zeros_like(m, dtype=jnp.float32) for path, m in mask.items()}

    def summed(s: Signals) -> Leaves:
        """The sum over the stage, which ranks as the mean does; NaN where nothing was finite."""
        phase = phases(s.step)
        counts = phase.named("measure") | phase.named("explore")
        new = {}
        for path, saliency in scores.saliency(s).items():
            old = jnp.where(counts & (phase.step == 0), jnp.nan, s.memory[path])
            more = jnp.where(jnp.isnan(old), 0, old) + saliency
            new[path] = jnp.where(counts & jnp.isfinite(saliency), more, old)
        return new

    return remembered, Memory(init=nothing, update=summed, at="step")


def _view(phases: Timeline, reactivate: str, grow: str, freeze_kept: bool, rest: bool) -> View:
    """``e = m w``, and while exploring ``e = w``, where K stands still and P moves."""

    def exploring(s: Signals) -> jax.Array:
        return phases(s.step).named("explore")

    def apply(s: Signals) -> Leaves:
        return masked(s.dense, {path: m | exploring(s) for path, m in s.mask.items()})

    def update_scale(s: Signals) -> Leaves:
        now = exploring(s)
        scale = {path: m ^ now if freeze_kept else m | now for path, m in s.mask.items()}
        others = [path for path in s.dense if path not in s.mask] if rest else []
        return scale | dict.fromkeys(others, ~now)

    def settle(s: Signals, grown: Leaves) -> Leaves:
        dense = {path: s.dense[path] for path in s.mask}
        for path, m in s.mask.items():
            if reactivate == "zero":
                dense[path] = jnp.where(m, dense[path], 0)
            if reactivate == "recent":  # 0 at first, then whatever it was last
                dense[path] = jnp.where(m | (s.step > 1), dense[path], 0)
            if grow == "zero":
                dense[path] = jnp.where(grown[path], 0, dense[path])
        return dense

    settles = reactivate != "init" or grow != "explored"
    return View(apply, update_scale, copy=True, settle=settle if settles else None)
