"""AC/DC: phases in which the network is sparse alternate with phases in which it is dense."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import optax

from jaxprune import scores, views
from jaxprune.distributions import Budget, Distribution, Stacked
from jaxprune.masks import largest
from jaxprune.numbers import step_number
from jaxprune.schedules import constant, timeline
from jaxprune.schedules import every as each
from jaxprune.transform import Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import Candidates, Counts, Leaves, MaskUpdate, Signals, wrong


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
      distribution: "global", "uniform", "erk", densities, or a function that returns them.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      start: masks of the first phase, by path, or a function of the first update's `Signals`;
        without them it is dense.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the network of the phase, sparse or dense, after
      each update.

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
    begin = step_number("begin", begin, 1)
    sparse_steps = step_number("sparse_steps", sparse_steps, 1)
    dense_steps = step_number("dense_steps", dense_steps, 1)
    cycle = sparse_steps + dense_steps
    cycles = (step_number("stop", stop, 1) - begin) // cycle
    if cycles < 1:
        expected = f"leave room for a dense phase, from {begin + cycle} on"
        raise ValueError(wrong("stop", expected, stop, "nothing would come back"))
    compress = MaskUpdate(
        when=each(cycle, begin, begin + cycles * cycle),
        score=scores.magnitude,
        count=Budget(constant(sparsity), distribution, overrides, min_density, stacked),
        select=partial(largest, min_density=min_density),
        candidates=Candidates.KEPT,
    )
    decompress = MaskUpdate(
        when=each(cycle, begin + sparse_steps, begin + sparse_steps + (cycles - 1) * cycle),
        score=scores.magnitude,
        count=_sizes,
        select=_all,
        candidates=Candidates.PRUNED,
    )
    turns = (("sparse", sparse_steps), ("dense", dense_steps)) * cycles
    return prune(
        inner,
        [decompress, compress],
        views.hard,
        where=where,
        start=start,
        phases=timeline(("dense", begin), *turns, ("sparse", None)),
        seed=seed,
    )


def _sizes(signals: Signals) -> Counts:
    return {path: m.size for path, m in signals.mask.items()}


def _all(scores: Leaves, counts: Counts) -> Leaves:
    del counts
    return {path: jnp.ones_like(score, dtype=bool) for path, score in scores.items()}
