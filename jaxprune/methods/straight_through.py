"""Straight-through magnitude pruning, or dynamic pruning with feedback (DPF)."""

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import optax

from jaxprune import keep, scores
from jaxprune.distributions import Budget, Distribution
from jaxprune.fences import cut
from jaxprune.methods.common import refreshes, refuse_channels, schedule_of
from jaxprune.names import OutputAxis
from jaxprune.network import Network
from jaxprune.transform import Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import Leaves, MaskUpdate, Signals, View, one_of
from jaxprune.units import Stacked, units_for
from jaxprune.views import guarded, through


@method
def straight_through(
    inner: optax.GradientTransformation | None,
    *,
    sparsity: Any,
    ramp: tuple[int, int] | None = None,
    every: int = 16,
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    distribution: Distribution = "global",
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    stacked: Stacked = None,
    channels: None = None,
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
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      distribution: "global", "uniform", "erk", densities, or a function that returns them.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      channels: refused: a channel that is 0 all over has no gradient, by which this method would
        find it again.
      start: first masks, by path, or a function of the first update's `Signals`; the ramp begins at
        the sparsity of masks that are given.
      dead_units: "hold": masked weights of an output unit without any kept weight get no gradient
        (momentum and decay run on; no update where ``inner`` is None), our guard against collapse
        under batch norm; "move": they do.
      output_axis: the axes that count a leaf's outputs, where its name says it wrongly or not at
        all: an integer, a tuple, or ``{pattern: either}``.
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
      guard is ours.
    """
    one_of("dead_units", dead_units, ("hold", "move"))
    refuse_channels(channels)
    units = units_for(where, exclude, output_axis, stacked, network=network)
    schedule = schedule_of(sparsity, ramp, start, units)
    budget = Budget(schedule, distribution, overrides, min_density)
    guard = guarded() if dead_units == "hold" else None

    def moving(s: Signals) -> Leaves:
        alive = s.memory["alive"] if guard else {}
        return {p: m | alive[p] for p, m in s.support.items() if p in alive}

    def apply(s: Signals) -> Leaves:
        learning = {p: jnp.where(m, s.dense[p], 0) for p, m in moving(s).items()}
        kept = s.support.items()
        return {p: through(cut(s.dense[p], m), learning.get(p, s.dense[p])) for p, m in kept}

    # Finished updates have no gradient to hold: there it is the update that is held.
    return prune(
        inner,
        [MaskUpdate(refreshes(every, schedule, None), scores.magnitude, keep.largest(budget))],
        View(apply, update_scale=moving if inner is None else None),
        units=units,
        start=start,
        memory=guard,
        seed=seed,
    )
