"""SR-STE: N:M sparsity straight-through, with decay on the pruned weights."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxprune import keep, schedules, scores
from jaxprune.fences import cut
from jaxprune.methods.common import units_of_groups
from jaxprune.names import OutputAxis
from jaxprune.network import Network
from jaxprune.numbers import is_traced
from jaxprune.transform import Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import Leaves, MaskUpdate, Signals, View, wrong
from jaxprune.units import Stacked


@method
def sr_ste(
    inner: optax.GradientTransformation,
    *,
    n: int,
    m: int,
    decay: Any = 2e-4,
    every: int = 1,
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    start: Start = None,
    output_axis: OutputAxis = None,
    unfit: Literal["refuse", "skip"] = "refuse",
    stacked: Stacked = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Keeps n of every m weights while all of them learn; pruned ones are drawn towards zero.

    The network is ``e = mask * w``, with the n largest ``|w|`` of every m neighbours along the
    contraction kept. The gradient that the optimizer gets is
    ``dL/de + decay (1 - mask) w``: straight-through, and sparse-refined by a decay on pruned
    weights, which makes masks change less. They are renewed every ``every`` updates, without end.

    Args:
      inner: the optimizer. The method cannot stand last in a chain, where no gradients arrive.
      n: how many weights of each group are kept, in [1, m].
      m: how many make a group, at least 2.
      decay: lambda of the pruned weights, 0 or more. It is part of the gradient: an optimizer such
        as Adam rescales it. Weight decay of ``inner`` comes on top, on all weights.
      every: updates between two refreshes; there is one at the first update too.
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      start: masks that hold before the first update, by path, or a function of its `Signals`; a
        leaf that is missing stays whole.
      output_axis: the axes that count a leaf's outputs, where its name says it wrongly or not at
        all: an integer, a tuple, or ``{pattern: either}``.
      unfit: what becomes of leaves that do not sum a multiple of m inputs: "refuse" names them all,
        "skip" leaves them dense, and `plan` says so.
      stacked: ``{pattern: axis}`` of scanned layers; groups never cross slices.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the pruned network after each update.

    Raises:
      ValueError: if ``n`` lies outside [1, m], ``m`` is below 2, ``decay`` is negative, or it
        stands last in a chain; at ``init`` if leaves do not fit, or their outputs are not known.
      TypeError: if ``n``, ``m`` or ``every`` is not an integer.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.sr_ste(optax.sgd(1.0), n=1, m=2, decay=0.5)
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> zeros, state = {"kernel": jnp.zeros((2, 2))}, tx.init(params)
      >>> for _ in range(2):  # the masks come with the first update, the decay after them
      ...     updates, state = tx.update(zeros, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params["kernel"])
      [[ 0. -4.]
       [ 3.  0.]]
      >>> print(state.prune_dense["kernel"])
      [[ 0.5 -4. ]
       [ 3.   1. ]]

    References:
      Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, 2021,
      https://arxiv.org/abs/2102.04010 (the sparse-refined estimator; 2e-4 is the paper's decay).
      Masks of ours are those of the weights after the update: the params are the pruned network.
    """
    if inner is None:
        hint = "the decay is a part of the gradient, and updates arrive there"
        raise ValueError(wrong("inner", "be an optimizer, not stand last in a chain", None, hint))
    if not is_traced(decay) and not decay >= 0:
        raise ValueError(wrong("decay", "be 0 or more", decay))
    units = units_of_groups(m, unfit, where, exclude, output_axis, stacked, network)
    largest_stay = MaskUpdate(
        when=schedules.either(schedules.once(1), schedules.every(every)),
        score=scores.magnitude,
        keep=keep.n_of_m(n, m),
    )

    def apply(s: Signals) -> Leaves:
        return {p: _refined(s.dense[p], mask, decay) for p, mask in s.support.items()}

    return prune(
        inner,
        [largest_stay],
        View(apply),
        units=units,
        start=start,
        seed=seed,
    )


@jax.custom_vjp
def _refined(w: jax.Array, mask: jax.Array, decay: Any) -> jax.Array:
    """``mask * w``, of derivative one everywhere; going back, pruned entries get their decay."""
    del decay
    return cut(w, mask)


def _forward(w: jax.Array, mask: jax.Array, decay: Any) -> tuple:
    return cut(w, mask), (w, mask, decay)


def _backward(kept: tuple, g: jax.Array) -> tuple:
    w, mask, decay = kept
    return g + jnp.where(mask, 0, jnp.asarray(decay, w.dtype) * w), None, None


_refined.defvjp(_forward, _backward)
