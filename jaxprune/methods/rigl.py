"""RigL: drop the smallest weights, grow where the gradient is largest."""

from collections.abc import Mapping
from typing import Any

import optax

from jaxprune import keep, scores, views
from jaxprune.distributions import Distribution
from jaxprune.methods.common import (
    CosineDecay,
    Schedule,
    budget_of,
    check_block,
    periodic,
    refuse_channels,
    share_of,
)
from jaxprune.network import Network
from jaxprune.transform import AtRandom, Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import KEPT, PRUNED, MaskUpdate
from jaxprune.units import Stacked, units_for


@method
def rigl(
    inner: optax.GradientTransformation,
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
    block: tuple[int, ...] | None = None,
    stacked: Stacked = None,
    channels: None = None,
    start: Start = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains sparse from the first update: drops small weights, grows where the gradient is large.

    Masks are drawn at random. Every ``every`` updates, up to ``stop``, the ``floor(f_n k)``
    smallest ``|w|`` of the k kept weights of a leaf are dropped, and as many of the largest
    ``|dL/de|`` among all pruned ones are grown, with ``f_n = f / 2 (1 + cos(pi n / stop))``. Grown
    weights start at 0.

    Args:
      inner: the optimizer. The method cannot stand last in a chain, where no gradients arrive.
      stop: the last update that may change masks; 0.75 of training is usual.
      sparsity: the share to prune, in [0, 1). Not needed beside masks as ``start``, whose counts
        are then kept.
      every: updates between two changes of masks. Results depend on it: tune it.
      drop_fraction: f, the share of the kept weights that is dropped at first, in [0, 1); or a
        schedule n -> ``f_n``.
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      distribution: "erk", "uniform", densities, a function that returns them, or "global": then
        weights and gradients of all leaves are ranked together.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf.
      block: the shape of blocks that live and die together, ranked by the mean of their scores; one
        shorter than a leaf's means its last axes. Counts are then those of blocks.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      channels: refused: a channel that is 0 all over has no gradient, by which this method would
        find it again.
      start: first masks, by path, or a function of the first update's `Signals`; by default chance
        decides.
      seed: of the first masks.

    Returns:
      A gradient transformation; the params are the pruned network after each update. Masks rank the
      weights and the gradient of before the update that changes them.

    Raises:
      ValueError: if a share lies outside [0, 1), there is neither a sparsity nor masks, or no
        change comes by ``stop``; at ``init`` if it stands last in a chain.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> params = {"kernel": jnp.array([[1.0, 4.0], [0.0, 0.0]])}
      >>> masks = jaxprune.masks.nonzero(params)
      >>> tx = jaxprune.rigl(optax.sgd(1.0), stop=9, every=1, drop_fraction=0.6, start=masks)
      >>> grads = {"kernel": jnp.array([[0.0, 0.0], [2.0, 3.0]])}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[ 0.  4.]
       [ 0. -3.]]

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
      https://arxiv.org/abs/1911.11134, section 3 and algorithm 1. As there, a weight that was just
      dropped may grow again; it then goes on from its value. Where ours departs: kept weights are
      updated on the step that changes masks, too, and grown ones with them; and second moments of
      grown weights restart at the mean of their leaf, first ones at 0.
    """
    check_block(block, start)
    refuse_channels(channels)
    units = units_for(where, exclude, stacked=stacked, network=network)
    budget = budget_of(sparsity, distribution, overrides, min_density, start, units)
    dropped = share_of("drop_fraction", drop_fraction, lambda f: CosineDecay(f, stop))
    swapping = periodic(every, stop)
    fewer = keep.in_blocks(keep.largest(budget.less(dropped)), block)
    full = keep.in_blocks(keep.largest(budget), block)
    return prune(
        inner,
        [
            MaskUpdate(swapping, scores.magnitude, fewer, KEPT),
            MaskUpdate(swapping, scores.gradient, full, PRUNED),
        ],
        views.hard,
        units=units,
        start=AtRandom(full) if start is None else start,
        seed=seed,
    )
