"""Movement pruning: weights that training moves towards zero go, however large they are."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune import keep
from jaxprune.distributions import Budget, Distribution
from jaxprune.fences import cut
from jaxprune.methods.common import refreshes, schedule_of
from jaxprune.names import OutputAxis
from jaxprune.network import Network
from jaxprune.transform import Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import Learner, Leaves, MaskUpdate, Signals, View, check_optimizer
from jaxprune.units import Stacked, units_for
from jaxprune.views import through


@method
def movement(
    inner: optax.GradientTransformation,
    *,
    sparsity: Any,
    ramp: tuple[int, int] | None = None,
    every: int = 16,
    learner: optax.GradientTransformation = optax.sgd(1.0),  # noqa: B008 (holds no state)
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    distribution: Distribution = "global",
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    stacked: Stacked = None,
    start: Start = None,
    output_axis: OutputAxis = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the weights that move away from zero; a score of each learns how far it does.

    Every weight has a score S, 0 at first, whose gradient is ``g w`` straight through the mask, of
    pruned weights too, with g = dL/de at the network ``e = m w``. Plain gradient descent makes it
    ``S = - rate sum w g``: it rises where a step on g makes ``|w|`` grow. Each refresh keeps the
    ``round(N (1 - s_n))`` highest S of all, with
    ``s_n = S_end - S_end (1 - (n - begin) / (end - begin))^3``; refreshes go on after the ramp, at
    the target, without end.

    A pruned weight stands still: its gradient and its update are 0, momentum and weight decay
    included. It comes back with the value it had, if its score has risen meanwhile.

    Args:
      inner: the optimizer of the weights. The method cannot stand last in a chain, where no
        gradients arrive. Under schedule-free optimizers weights that come back jump.
      sparsity: the share to prune, in [0, 1), or a schedule: updates completed -> sparsity.
      ramp: (begin, end) of the cubic ramp, in updates; needed with a number.
      every: updates between two refreshes; there is one at the ramp's end too.
      learner: the optimizer of the scores. ``optax.sgd(1.0)`` adds up exactly ``- w g``.
        Another constant rate only multiplies all scores, so that their ranks and the masks are the
        same; a schedule would weigh some updates more than others, and weight decay forgets.
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      distribution: "global", "uniform", "erk", densities, or a function that returns them.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      start: first masks, by path, or a function of the first update's `Signals`; the ramp begins at
        the sparsity of masks that are given.
      output_axis: the axes that count a leaf's outputs, where its name says it wrongly or not at
        all: an integer, a tuple, or ``{pattern: either}``.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the pruned network after each update. Scores are
      as large as the weights, in float32.

    Raises:
      ValueError: if ``inner`` is None; if a sparsity lies outside [0, 1), comes without its ramp,
        or the ramp ends before it begins.
      TypeError: if ``learner`` is not an optimizer.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.movement(optax.sgd(0.1), sparsity=0.5, ramp=(0, 1))
      >>> params = {"kernel": jnp.array([[0.25, 4.0]])}  # one grows, the other shrinks
      >>> grads = {"kernel": jnp.array([[-1.0, 1.0]])}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[0.35 0.  ]]
      >>> print(jaxprune.get_learned(state)["kernel"])
      [[ 0.25 -4.  ]]

    References:
      Sanh, Wolf and Rush, Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020,
      https://arxiv.org/abs/2005.07683: scores, their gradient, the ramp. Ours: a refresh every
      ``every`` updates instead of one in each; the default ranking over the tree; and that pruned
      weights stand still, not only without a gradient. Scores that are
      equal, as the zeros of a leaf without gradient, go to the lower index. A NaN gradient stays in
      its score, a pruned weight's too, and refreshes are skipped from then on, and counted.
    """
    check_optimizer("learner", learner)
    units = units_for(where, exclude, output_axis, stacked, network=network)
    schedule = schedule_of(sparsity, ramp, start, units)
    budget = Budget(schedule, distribution, overrides, min_density)
    highest_stay = MaskUpdate(
        when=refreshes(every, schedule, None),
        score=lambda s: s.learned,
        keep=keep.largest(budget),
    )
    return prune(
        inner,
        [highest_stay],
        View(_seen, update_scale=lambda s: s.support),
        units=units,
        start=start,
        learner=Learner(_zeros, learner),
        seed=seed,
    )


def _zeros(s: Signals) -> Leaves:
    return {path: jnp.zeros_like(m, dtype=jnp.float32) for path, m in s.mask.items()}


def _seen(s: Signals) -> Leaves:
    """``m w``: w has the gradient ``m g``, and its score ``w g``, pruned or not."""
    seen = {}
    for path, mask in s.support.items():
        w = s.dense[path]
        straight = s.learned[path].astype(w.dtype) * jax.lax.stop_gradient(w)
        seen[path] = through(cut(w, mask), jnp.where(mask, w, 0) + straight)
    return seen
