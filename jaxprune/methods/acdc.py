"""AC/DC: phases in which the network is sparse alternate with phases in which it is dense."""

from collections.abc import Mapping
from typing import Any

import optax

from jaxprune import keep, scores, views
from jaxprune.distributions import Budget, Distribution
from jaxprune.network import Network
from jaxprune.numbers import step_number
from jaxprune.schedules import constant, cycles
from jaxprune.transform import Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import KEPT, PRUNED, MaskUpdate
from jaxprune.units import Stacked, units_for


@method
def acdc(
    inner: optax.GradientTransformation | None,
    *,
    sparsity: Any,
    begin: int,
    sparse_steps: int,
    dense_steps: int,
    stop: int,
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
    """Compresses and decompresses in turn: sparse and dense phases alternate, the last is sparse.

    The first ``begin`` updates train the dense network. Then it is compressed to the
    ``round(N (1 - s))`` largest ``|w|`` for ``sparse_steps`` updates; decompressed to all N weights
    for ``dense_steps`` updates, those that come back starting at 0; and so on. The compression that
    ends the last dense phase comes at ``stop`` or before; its masks stay. `phase_of` tells "dense"
    from "sparse".

    Args:
      inner: the optimizer; or None, written out, to stand last in a chain: no gradient is read. The
        optimizer's memory of weights that come back can then not restart.
      sparsity: the share to prune, in [0, 1).
      begin: the update that compresses first, at least 1.
      sparse_steps: length of a sparse phase, at least 1.
      dense_steps: length of a dense phase, at least 1.
      stop: the update by which the last dense phase has ended.
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      distribution: "global", "uniform", "erk", densities, or a function that returns them.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      start: masks of the first phase, by path, or a function of the first update's `Signals`;
        without them it is dense.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the network of the phase, sparse or dense, after
      each update. Masks rank the weights of before the update that changes them.

    Raises:
      ValueError: if a sparsity lies outside [0, 1), or no dense phase fits between ``begin`` and
        ``stop``.
      TypeError: if a number of updates is not an integer.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.acdc(
      ...     optax.sgd(0.1), sparsity=0.75, begin=1, sparse_steps=1, dense_steps=1, stop=3
      ... )
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> zeros, state = {"kernel": jnp.zeros((2, 2))}, tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(zeros, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(jaxprune.phase_of(state).name, float(jaxprune.sparsity_of(state)))
      sparse 0.75
      dense 0.0
      sparse 0.75

    References:
      Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks,
      2021, https://arxiv.org/abs/2106.12379. Ours: while the network is dense, second moments of
      weights that come back start from the mean of their leaf, first ones from 0.
    """
    course = cycles(
        ("sparse", step_number("sparse_steps", sparse_steps, 1)),
        ("dense", step_number("dense_steps", dense_steps, 1)),
        stop=step_number("stop", stop, 1),
        then="sparse",
        first=("dense", step_number("begin", begin, 1)),
    )
    budget = Budget(constant(sparsity), distribution, overrides, min_density)
    compressing, decompressing = course.at_end_of("dense"), course.at_end_of("sparse")
    return prune(
        inner,
        [
            MaskUpdate(decompressing, scores.magnitude, keep.everything, PRUNED),
            MaskUpdate(compressing, scores.magnitude, keep.largest(budget), KEPT),
        ],
        views.hard,
        units=units_for(where, exclude, stacked=stacked, network=network),
        start=start,
        phases=course,
        seed=seed,
    )
