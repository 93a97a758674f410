"""Sparse evolutionary training (SET): drop the smallest weights, grow others by chance."""

from collections.abc import Mapping
from typing import Any

import optax

from jaxprune import keep, scores, views
from jaxprune.distributions import Distribution
from jaxprune.methods.common import Schedule, budget_of, periodic, share_of
from jaxprune.network import Network
from jaxprune.schedules import constant
from jaxprune.transform import AtRandom, Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import KEPT, PRUNED, MaskUpdate
from jaxprune.units import Groups, Stacked, units_for


@method
def sparse_evolution(
    inner: optax.GradientTransformation | None,
    *,
    stop: int,
    sparsity: Any = None,
    every: int = 100,
    drop_fraction: float | Schedule = 0.3,
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    distribution: Distribution = "erk",
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    stacked: Stacked = None,
    channels: Groups | None = None,
    start: Start = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """SET: trains sparse from the first update, and replaces small weights by random others.

    Masks are drawn at random. Every ``every`` updates, up to ``stop``, the ``floor(f k)`` smallest
    ``|w|`` of the k kept weights of a leaf are dropped, and as many of all pruned ones are grown by
    chance. Grown weights start at 0; grown channels where they were, since one that is 0 all over
    has no gradient: a copy of pruned channels stands still in the state.

    Args:
      inner: the optimizer; or None, written out, to stand last in a chain: no gradient is read. The
        optimizer's memory of grown weights can then not restart.
      stop: the last update that may change masks.
      sparsity: the share to prune, in [0, 1). Not needed beside masks as ``start``, whose counts
        are then kept.
      every: updates between two changes of masks.
      drop_fraction: f, the share of the kept weights that is replaced each time, in [0, 1); or a
        schedule n -> f.
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      distribution: "erk", "uniform", densities, a function that returns them, or "global": then
        weights of all leaves are ranked together.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      channels: what ``network.channels(...)`` returned, or ``{name: Group}``: whole channels are
        pruned, in place of ``where``.
      start: first masks, by path, or a function of the first update's `Signals`; by default chance
        decides.
      seed: of the first masks and of what grows.

    Returns:
      A gradient transformation; the params are the pruned network after each update. Masks rank the
      weights of before the update that changes them.

    Raises:
      ValueError: if a share lies outside [0, 1), there is neither a sparsity nor masks, or no
        change comes by ``stop``.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> params = {"kernel": jnp.array([[1.0, 4.0], [0.0, 0.0]])}
      >>> masks = jaxprune.masks.nonzero(params)
      >>> tx = jaxprune.sparse_evolution(None, stop=9, every=1, drop_fraction=0.5, start=masks)
      >>> updates, state = tx.update({"kernel": jnp.zeros((2, 2))}, tx.init(params), params)
      >>> kept = jaxprune.get_masks(state)["kernel"]
      >>> bool(kept[0, 1]), int(kept.sum())  # the larger one stays, and another one grows
      (True, 2)

    References:
      Mocanu et al., Scalable training of artificial neural networks with adaptive sparse
      connectivity inspired by network science, 2018, https://arxiv.org/abs/1707.04780. There the
      share f is taken of the positive weights and of the negative ones, each closest to zero; ours
      ranks ``|w|`` of both. Their layers are Erdős-Rényi graphs; ours have its extension to
      kernels, exact counts, grown weights that start at 0, and one may grow that was just dropped.
    """
    units = units_for(where, exclude, stacked=stacked, channels=channels, network=network)
    budget = budget_of(sparsity, distribution, overrides, min_density, start, units)
    dropped = share_of("drop_fraction", drop_fraction, constant)
    swapping = periodic(every, stop)
    at_random = keep.within(budget, units, additive=False)
    return prune(
        inner,
        [
            MaskUpdate(swapping, scores.magnitude, keep.within(budget.less(dropped), units), KEPT),
            MaskUpdate(swapping, scores.random, at_random, PRUNED),
        ],
        views.hard if channels is None else views.at_rest,
        units=units,
        start=AtRandom(at_random) if start is None else start,
        seed=seed,
    )
