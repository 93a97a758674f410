"""Straight-through magnitude pruning, or dynamic pruning with feedback (DPF)."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import optax

from jaxprune import scores
from jaxprune.distributions import Budget, Distribution, Stacked
from jaxprune.masks import largest
from jaxprune.methods.common import refreshes, schedule_of
from jaxprune.selection import cut
from jaxprune.transform import Start, method, prune
from jaxprune.trees import OutputAxis, Where
from jaxprune.types import Leaves, MaskUpdate, Signals, View, one_of
from jaxprune.views import guard, through


@method
def straight_through(
    inner: optax.GradientTransformation | None,
    *,
    sparsity: Any,
    ramp: tuple[int, int] | None = None,
    every: int = 16,
    where: Where | None = None,
    distribution: Distribution = "global",
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    stacked: Stacked = None,
    start: Start = None,
    dead_units: Literal["hold", "move"] = "hold",
    output_axis: OutputAxis = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Prunes by magnitude while masked weights go on learning from the pruned network's gradient.

    The network is ``e = m * w``; dense weights move by ``w <- w + inner(dL/de)``, masked ones too,
    and can come back: each refresh keeps the ``round(N (1 - s_n))`` largest ``|w|`` of all.
    Refreshes go on after the ramp, at the target, without end.

    Args:
      inner: the optimizer; or None, written out, to stand last in a chain.
      sparsity: the share to prune, in [0, 1), or a schedule: updates completed -> sparsity.
      ramp: (begin, end) of the cubic ramp, in updates; needed with a number.
      every: updates between two refreshes; there is one at the ramp's end too.
      where: which leaves are pruned; replaces the default rule.
      distribution: "global", "uniform", "erk", densities, or a function that returns them.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      start: first masks, by path, or a function of the first update's `Signals`; the ramp begins at
        the sparsity of masks that are given.
      dead_units: "hold": masked weights of an output unit without any kept weight get no gradient
        (momentum and decay run on; no update where ``inner`` is None), our guard against collapse
        under batch norm; "move": they do.
      output_axis: the axis of a leaf that counts its outputs, where the default rule is wrong.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the pruned network after each update.

    Raises:
      ValueError: if a sparsity lies outside [0, 1), comes without its ramp, or the ramp ends before
        it begins; if ``dead_units`` is neither "hold" nor "move".

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.straight_through(optax.sgd(0.1), sparsity=0.5, ramp=(0, 1), every=1)
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> zeros = {"kernel": jnp.zeros((2, 2))}
      >>> updates, state = tx.update(zeros, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[ 0. -4.]
       [ 3.  0.]]
      >>> print(state.prune_dense["kernel"])
      [[ 1. -4.]
       [ 3.  2.]]

    References:
      Lin et al., Dynamic Model Pruning with Feedback, 2020, https://arxiv.org/abs/2006.07253; the
      guard is original.
    """
    schedule = schedule_of(sparsity, ramp, start, where)
    budget = Budget(schedule, distribution, overrides, min_density, stacked)
    one_of("dead_units", dead_units, ("hold", "move"))
    largest_stay = MaskUpdate(
        when=refreshes(every, schedule, None),
        score=scores.magnitude,
        count=budget,
        select=partial(largest, min_density=min_density),
    )

    def moving(s: Signals, path: str) -> Any:
        return s.mask[path] | s.memory["alive"][path]

    def apply(s: Signals) -> Leaves:
        return {p: through(cut(s.dense[p], m), learning(s, p)) for p, m in s.mask.items()}

    def learning(s: Signals, path: str) -> Any:
        if dead_units == "move":
            return s.dense[path]
        return jnp.where(moving(s, path), s.dense[path], 0)

    def living(s: Signals) -> Leaves:
        return {path: moving(s, path) for path in s.mask}

    # Finished updates have no gradient to hold: there it is the update that is held.
    hold_updates = living if inner is None and dead_units == "hold" else None

    return prune(
        inner,
        [largest_stay],
        View(apply, update_scale=hold_updates, copy=True),
        where=where,
        start=start,
        memory=guard(output_axis, stacked) if dead_units == "hold" else None,
        output_axis=output_axis,
        seed=seed,
    )
