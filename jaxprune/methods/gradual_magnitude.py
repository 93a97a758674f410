"""Gradual magnitude pruning: the smallest weights go, along a cubic ramp."""

from collections.abc import Mapping
from typing import Any

import optax

from jaxprune import keep, scores, views
from jaxprune.distributions import Budget, Distribution
from jaxprune.methods.common import check_block, check_reachable, end_of, refreshes, schedule_of
from jaxprune.network import Network
from jaxprune.transform import Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import Candidates, MaskUpdate
from jaxprune.units import Groups, Stacked, units_for


@method
def gradual_magnitude(
    inner: optax.GradientTransformation | None,
    *,
    sparsity: Any,
    ramp: tuple[int, int] | None = None,
    every: int = 16,
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    distribution: Distribution = "uniform",
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    block: tuple[int, ...] | None = None,
    stacked: Stacked = None,
    channels: Groups | None = None,
    start: Start = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Drops the weights of smallest magnitude, more and more of them along a cubic ramp.

    At update n of a refresh the ``round(N (1 - s_n))`` largest ``|w|`` of the kept weights stay,
    with ``s_n = S - S (1 - (n - begin) / (end - begin))^3``. What is dropped does not come back.

    Args:
      inner: the optimizer; or None, written out, to stand last in a chain.
      sparsity: the share to prune, in [0, 1), or a schedule: updates completed -> sparsity.
      ramp: (begin, end) of the cubic ramp, in updates; needed with a number.
      every: updates between two refreshes; there is one at the ramp's end too.
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      distribution: "uniform", "global", "erk", densities, or a function that returns them.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking.
      block: the shape of blocks that live and die together, ranked by the mean of their scores; one
        shorter than a leaf's means its last axes. Counts are then those of blocks.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      channels: what ``network.channels(...)`` returned, or ``{name: Group}``: whole channels are
        pruned, in place of ``where``.
      start: first masks, by path, or a function of the first update's `Signals`; the ramp begins at
        the sparsity of masks that are given.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the pruned network after each update. Masks rank the
      weights of before the update that changes them.

    Raises:
      ValueError: if a sparsity lies outside [0, 1), comes without its ramp, or the ramp ends before
        it begins.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=0.75, ramp=(0, 1))
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> zeros = {"kernel": jnp.zeros((2, 2))}
      >>> updates, state = tx.update(zeros, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[ 0. -4.]
       [ 0.  0.]]

      Masks rank what was there before the update, which makes 2 of 1 here:

      >>> params = {"kernel": jnp.array([[1.0, 1.1]])}
      >>> tx = jaxprune.gradual_magnitude(optax.sgd(1.0), sparsity=0.5, ramp=(0, 1))
      >>> grads = {"kernel": jnp.array([[-1.0, 0.0]])}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[0.  1.1]]

    References:
      Zhu and Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878.
    """
    check_block(block, start)
    units = units_for(where, exclude, stacked=stacked, channels=channels, network=network)
    schedule = schedule_of(sparsity, ramp, start, units)
    check_reachable(schedule, start, units)
    budget = Budget(schedule, distribution, overrides, min_density)
    smallest_go = MaskUpdate(
        refreshes(every, schedule, end_of(schedule)),
        scores.magnitude,
        keep.in_blocks(keep.within(budget, units), block),
        Candidates.KEPT,
    )
    return prune(inner, [smallest_go], views.hard, units=units, start=start, seed=seed)
