"""Soft threshold (STR): each layer learns the threshold below which its weights are zero."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import keep
from jaxprune.fences import cut
from jaxprune.network import Network
from jaxprune.numbers import is_traced
from jaxprune.schedules import every
from jaxprune.selection import sum_to
from jaxprune.transform import method, prune
from jaxprune.trees import Where
from jaxprune.types import (
    Learner,
    Leaves,
    MaskUpdate,
    Signals,
    View,
    check_optimizer,
    wrong,
)
from jaxprune.units import Stacked, units_for


@method
def soft_threshold(
    inner: optax.GradientTransformation,
    *,
    learner: optax.GradientTransformation,
    threshold_init: Any,
    decay: Any,
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    stacked: Stacked = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """STR: weights shrink by a threshold that their layer learns, and those below it are zero.

    With ``t_l = sigmoid(s_l)`` the threshold of layer l, and s_l learned,

    - the network is ``e = sign(w) relu(|w| - t_l)``, its masks ``|w| > t_l`` after every update;
    - w has the gradient g where it is kept and none elsewhere, s_l by the chain rule
      ``- sigmoid'(s_l) sum g sign(w)`` over the kept weights of the layer;
    - ``decay / 2 sum s_l^2`` joins the loss: it draws every s_l to 0, and the threshold up towards
      ``sigmoid(0) = 0.5``. The sparsity comes from this pull; there is no target.

    What is reached depends on the decay, on the optimizer of the thresholds, on weight decay and on
    the length of training. Nothing bounds it: a layer may be emptied, and none of its weights has a
    gradient then; `summarize` names it. While s_l is so low that ``sigmoid(s_l)`` is 0 in float32
    (below about -100), the loss does not move it: plain gradient descent of rate h takes it to
    ``(1 - h decay)^n s_l`` in n updates. A pruned weight comes back if its threshold falls below
    it; meanwhile momentum and weight decay of the optimizer move it.

    Args:
      inner: the optimizer of the weights. Its weight decay acts on w, not on what is seen of it.
      learner: the optimizer of every s_l. The paper has one optimizer, one learning
        rate and one decay for weights and thresholds; an optimizer such as Adam rescales the decay.
      threshold_init: the paper's s_init, every s_l before the first update, below 0. The first
        threshold is its sigmoid: 0 for the paper's -3200 (ResNet-50 on ImageNet).
      decay: lambda, the weight of the penalty, 0 or more.
      where: which leaves are pruned, each with its threshold; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices have thresholds of their own.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the pruned network, thresholds subtracted.

    Raises:
      ValueError: if ``inner`` is None, ``threshold_init`` is not below 0 or not finite, or
        ``decay`` is negative.
      TypeError: if ``learner`` is not an optimizer.

    Examples:
      >>> import jax.numpy as jnp, numpy as np, optax, jaxprune
      >>> tx = jaxprune.soft_threshold(
      ...     optax.sgd(0.1),
      ...     learner=optax.sgd(1.0),
      ...     threshold_init=-1.0986123,  # sigmoid gives 0.25
      ...     decay=0.0,
      ... )
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [0.2, 2.0]])}
      >>> zeros = {"kernel": jnp.zeros((2, 2))}
      >>> updates, state = tx.update(zeros, tx.init(params), params)
      >>> print(np.asarray(optax.apply_updates(params, updates)["kernel"]).round(2))
      [[ 0.75 -3.75]
       [ 0.    1.75]]

    References:
      Kusupati et al., Soft Threshold Weight Reparameterization for Learnable Sparsity, 2020,
      https://arxiv.org/abs/2002.03231. Ours: before the first masks every weight has its gradient,
      so that a leaf of zeros can leave 0 where the first threshold allows it; and the loss of the
      first update is that of the weights as they are given.
    """
    check_optimizer("learner", learner)
    if not is_traced(threshold_init) and not -np.inf < threshold_init < 0:
        hint = "it is no threshold yet, sigmoid makes one of it"
        raise ValueError(wrong("threshold_init", "be finite and below 0", threshold_init, hint))
    if not is_traced(decay) and not decay >= 0:
        raise ValueError(wrong("decay", "be 0 or more", decay))

    def penalty(s: Signals) -> jax.Array:
        return decay / 2 * sum(jnp.sum(jnp.square(x)) for x in s.learned.values())

    return prune(
        inner,
        [MaskUpdate(every(1), excess, keep.above(0.0))],
        View(shrunk, inverse=_grown_back),
        units=units_for(where, exclude, stacked=stacked, network=network),
        learner=Learner(
            init=lambda s: s.units.layers(s.mask).full(threshold_init),
            optimizer=learner,
            penalty=penalty,
        ),
        seed=seed,
    )


def excess(s: Signals) -> Leaves:
    """``|w| - t``, by which a weight exceeds the threshold of its layer."""
    return {path: jnp.abs(s.dense[path]) - _threshold(s, path) for path in s.mask}


def _threshold(s: Signals, path: str) -> jax.Array:
    real = jnp.finfo(s.dense[path].dtype).dtype
    return jax.nn.sigmoid(s.learned[path]).astype(real)


def shrunk(s: Signals) -> Leaves:
    """``sign(w) relu(|w| - t)``; what is pruned passes nothing back to w and s, not even NaN."""
    return {path: shrink(s.dense[path], m, _threshold(s, path)) for path, m in s.mask.items()}


@jax.custom_vjp
def shrink(w: jax.Array, mask: jax.Array, t: jax.Array) -> jax.Array:
    """``sign(w) relu(|w| - t)`` where the mask keeps w, which has the gradient g then."""
    value = jnp.sign(w) * jnp.maximum(jnp.abs(w) - t, 0).astype(w.dtype)
    return cut(value, mask)


def _forward(w: jax.Array, mask: jax.Array, t: jax.Array) -> tuple[jax.Array, tuple]:
    return shrink(w, mask, t), (w, mask, t)


def _backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    w, mask, t = saved
    slopes = jnp.where(mask, (jnp.sign(w) * g).real, 0).astype(t.dtype)
    return jnp.where(mask, g, 0), None, -sum_to(slopes, t.shape)


shrink.defvjp(_forward, _backward)


def _grown_back(s: Signals) -> Leaves:
    """The weights of which seen values are the view."""
    return {
        path: s.dense[path] + jnp.sign(s.dense[path]) * _threshold(s, path).astype(x.dtype)
        for path, x in s.dense.items()
        if path in s.mask
    }
