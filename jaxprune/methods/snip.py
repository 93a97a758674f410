"""SNIP: prune once, before training, what the loss would miss least."""

from collections.abc import Mapping
from typing import Any

import optax

from jaxprune import keep, scores, views
from jaxprune.distributions import Budget, Distribution
from jaxprune.network import Network
from jaxprune.schedules import constant, once
from jaxprune.transform import Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import KEPT, MaskUpdate
from jaxprune.units import Groups, Stacked, units_for


@method
def snip(
    inner: optax.GradientTransformation,
    *,
    sparsity: Any,
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    distribution: Distribution = "global",
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    stacked: Stacked = None,
    channels: Groups | None = None,
    start: Start = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Prunes at the first update, by the gradient of its batch; then masks are fixed.

    The ``round(N (1 - s))`` entries of largest ``|w dL/dw|`` stay: to first order, those whose
    removal would change the loss most.

    Args:
      inner: the optimizer. The method cannot stand last in a chain, where no gradients arrive.
      sparsity: the share to prune, in [0, 1).
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      distribution: "global", "uniform", "erk", densities, or a function that returns them.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking. A leaf that is initialised
        to zero has no saliency, and keeps nothing without it.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      channels: what ``network.channels(...)`` returned, or ``{name: Group}``: whole channels are
        pruned, in place of ``where``.
      start: masks, by path, or a function of the first update's `Signals`, among whose kept entries
        it chooses.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the pruned network after each update. Masks rank the
      weights and the gradient of before the update that changes them.

    Raises:
      ValueError: if a sparsity lies outside [0, 1); at ``init`` if it stands last in a chain.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.snip(optax.sgd(0.0), sparsity=0.5)
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> grads = {"kernel": jnp.array([[9.0, 1.0], [0.0, 4.0]])}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[1. 0.]
       [0. 2.]]

    References:
      Lee, Ajanthan and Torr, SNIP: Single-shot Network Pruning based on Connection Sensitivity,
      2019, https://arxiv.org/abs/1810.02340, equation 6 and algorithm 1. There pruning comes before
      the first step of training; ours also updates what it keeps on that step, by the gradient of
      the dense network. For a gradient of several batches wrap it in `optax.MultiSteps`.
    """
    budget = Budget(constant(sparsity), distribution, overrides, min_density)
    units = units_for(where, exclude, stacked=stacked, channels=channels, network=network)
    most_missed = MaskUpdate(
        once(1), scores.saliency, keep.within(budget, units, additive=True), KEPT
    )
    return prune(inner, [most_missed], views.hard, units=units, start=start, seed=seed)
