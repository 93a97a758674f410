"""GraNet: gradual magnitude pruning that also regrows a share where the gradient is largest."""

from collections.abc import Mapping
from typing import Any

import optax

from jaxprune import keep, scores, views
from jaxprune.distributions import Budget, Distribution
from jaxprune.methods.common import (
    CosineDecay,
    Schedule,
    end_of,
    refreshes,
    schedule_of,
    share_of,
)
from jaxprune.network import Network
from jaxprune.transform import Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import KEPT, PRUNED, MaskUpdate, wrong
from jaxprune.units import Stacked, units_for


@method
def granet(
    inner: optax.GradientTransformation,
    *,
    sparsity: Any,
    ramp: tuple[int, int] | None = None,
    every: int = 16,
    regrow_fraction: float | Schedule = 0.5,
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    distribution: Distribution = "global",
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    stacked: Stacked = None,
    start: Start = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Prunes along a cubic ramp, and at each refresh replaces a share of what is left.

    At update n of a refresh ``k_n = round(N (1 - s_n))`` entries stay, with
    ``s_n = S - S (1 - (n - begin) / (end - begin))^3``: first the ``k_n - floor(r_n k_n)`` largest
    ``|w|`` of the kept weights are kept, then as many are grown as are missing, those of largest
    ``|dL/de|`` among all pruned ones. ``r_n = r / 2 (1 + cos(pi n / end))`` ends at 0.

    Args:
      inner: the optimizer. The method cannot stand last in a chain, where no gradients arrive.
      sparsity: the share to prune, in [0, 1), or one of the ramps of `schedules`.
      ramp: (begin, end) of the cubic ramp, in updates; needed with a number.
      every: updates between two refreshes; there is one at the ramp's end too.
      regrow_fraction: r, the share of the kept weights that is replaced at first, in [0, 1), or a
        schedule n -> ``r_n``; with 0 it is gradual magnitude pruning.
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      distribution: "global", "uniform", "erk", densities, or a function that returns them.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      start: first masks, by path, or a function of the first update's `Signals`; the ramp begins at
        the sparsity of masks that are given: the paper's sparse-to-sparse form.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the pruned network after each update. Masks rank the
      weights and the gradient of before the update that changes them.

    Raises:
      ValueError: if a share lies outside [0, 1), a sparsity comes without its ramp, the ramp ends
        before it begins, or a schedule has no known end; at ``init`` if it stands last in a chain.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.granet(optax.sgd(0.0), sparsity=0.75, ramp=(0, 1))
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> zeros = {"kernel": jnp.zeros((2, 2))}
      >>> updates, state = tx.update(zeros, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[ 0. -4.]
       [ 0.  0.]]

    References:
      Liu et al., Sparse Training via Boosting Pruning Plasticity with Neuroregeneration, 2021,
      https://arxiv.org/abs/2106.10404. There as many weights grow in a layer as were dropped in it;
      ours ranks gradients as it ranks weights: over all leaves by default, and both by leaf with
      ``distribution="uniform"`` or ``"erk"``. Our reading: regrowth ends with the ramp.
    """
    units = units_for(where, exclude, stacked=stacked, network=network)
    schedule = schedule_of(sparsity, ramp, start, units)
    end = end_of(schedule)
    if not end:
        hint = "what is regrown falls to 0 at its end"
        raise ValueError(wrong("sparsity", "be a number or a ramp, which ends", sparsity, hint))
    budget = Budget(schedule, distribution, overrides, min_density)
    dropped = share_of("regrow_fraction", regrow_fraction, lambda r: CosineDecay(r, end))
    swapping = refreshes(every, schedule, end)
    return prune(
        inner,
        [
            MaskUpdate(swapping, scores.magnitude, keep.largest(budget.less(dropped)), KEPT),
            MaskUpdate(swapping, scores.gradient, keep.largest(budget), PRUNED),
        ],
        views.hard,
        units=units,
        start=start,
        seed=seed,
    )
