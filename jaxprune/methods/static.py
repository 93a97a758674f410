"""Static masks: given, or drawn at random at the first update."""

from collections.abc import Mapping
from typing import Any

import optax

from jaxprune import keep, views
from jaxprune.distributions import Budget, Distribution
from jaxprune.network import Network
from jaxprune.schedules import constant
from jaxprune.transform import AtRandom, Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import wrong
from jaxprune.units import Groups, Stacked, units_for


@method
def static(
    inner: optax.GradientTransformation | None,
    *,
    masks: Any = None,
    sparsity: Any = None,
    start: Start = None,
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    distribution: Distribution = "erk",
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    stacked: Stacked = None,
    channels: Groups | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains under masks that never change: ``e = m * w``.

    Args:
      inner: the optimizer; or None, written out, to stand last in a chain.
      masks: the masks, by path; a leaf that is missing stays whole. Give these or ``sparsity``.
      sparsity: the share to prune at random, in [0, 1).
      start: instead of ``masks``, as other methods have it: masks, or a function of the first
        update's `Signals`.
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      distribution: of random masks: "erk", "uniform", "global", densities, or a function.
      overrides: ``{pattern: sparsity}`` for random masks, counted in the total.
      min_density: least share kept in each leaf of random masks that are drawn over the tree.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      channels: what ``network.channels(...)`` returned, or ``{name: Group}``: whole channels are
        pruned, in place of ``where``.
      seed: of random masks.

    Returns:
      A gradient transformation; the params are the pruned network after each update.

    Raises:
      ValueError: unless exactly one of ``masks``, ``sparsity`` and ``start`` is given, or if a
        sparsity lies outside [0, 1).

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> finished = {"kernel": jnp.array([[0.0, 2.0], [3.0, 0.0]])}
      >>> tx = jaxprune.static(optax.sgd(1.0), masks=jaxprune.masks.nonzero(finished))
      >>> grads = {"kernel": jnp.ones((2, 2))}
      >>> updates, state = tx.update(grads, tx.init(finished), finished)
      >>> print(optax.apply_updates(finished, updates)["kernel"])
      [[0. 1.]
       [2. 0.]]

    References:
      Evci et al., Rigging the Lottery, 2020, https://arxiv.org/abs/1911.11134 (random masks of ERK
      densities).
    """
    given = {"masks": masks, "sparsity": sparsity, "start": start}
    came = [name for name, value in given.items() if value is not None]
    if len(came) != 1:
        expected = "be given, or else `sparsity` or `start`, one of them"
        raise ValueError(wrong("masks", expected, came))
    first = start if masks is None else masks
    units = units_for(where, exclude, stacked=stacked, channels=channels, network=network)
    if sparsity is not None:
        budget = Budget(constant(sparsity), distribution, overrides, min_density)
        first = AtRandom(keep.within(budget, units, additive=False))
    named = "masks" if start is None else "start"
    return prune(inner, [], views.hard, units=units, start=first, start_named=named, seed=seed)
