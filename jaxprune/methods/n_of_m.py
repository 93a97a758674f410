"""N:M sparsity by magnitude: n of every m neighbours, at once or along a ramp."""

from typing import Literal

import optax

from jaxprune import keep, scores, views
from jaxprune.fences import cut
from jaxprune.methods.common import end_of, ramp_of, refreshes, units_of_groups
from jaxprune.names import OutputAxis
from jaxprune.network import Network
from jaxprune.schedules import cubic
from jaxprune.transform import Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import Candidates, Leaves, MaskUpdate, Signals, View, one_of
from jaxprune.units import Stacked


@method
def n_of_m(
    inner: optax.GradientTransformation | None,
    *,
    n: int,
    m: int,
    ramp: tuple[int, int] | None = None,
    every: int = 16,
    view: Literal["hard", "straight_through"] = "hard",
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    start: Start = None,
    output_axis: OutputAxis = None,
    unfit: Literal["refuse", "skip"] = "refuse",
    stacked: Stacked = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the n largest weights of every m neighbours along the contraction.

    Without a ramp masks are chosen at the first update. Along a ramp the
    ``ceil(m (1 - s_t))`` largest ``|w|`` of each group stay at update t of a refresh, with ``s_t``
    the cubic from 0 to ``(m - n) / m``: from all m down to n.

    Args:
      inner: the optimizer; or None, written out, to stand last in a chain.
      n: how many weights of each group are kept, in [1, m].
      m: how many make a group, at least 2.
      ramp: (begin, end) of the cubic ramp, in updates; None prunes at once.
      every: updates between two refreshes; there is one at the ramp's end too.
      view: "hard": what is dropped does not come back, and masks are fixed from the ramp's end on;
        "straight_through": dense weights go on learning from the pruned network's gradient, and
        masks are renewed among all of them without end.
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      start: first masks, by path, or a function of the first update's `Signals`; a leaf that is
        missing stays whole. A ramp begins at the sparsity of masks that are given.
      output_axis: the axes that count a leaf's outputs, where its name says it wrongly or not at
        all: an integer, a tuple, or ``{pattern: either}``.
      unfit: what becomes of leaves that do not sum a multiple of m inputs: "refuse" names them all,
        "skip" leaves them dense, and `plan` says so.
      stacked: ``{pattern: axis}`` of scanned layers; groups never cross slices.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the pruned network after each update. With the hard
      view masks rank the weights of before the update that changes them.

    Raises:
      ValueError: if ``n`` lies outside [1, m], ``m`` is below 2, the ramp ends before it begins, or
        a choice is none of its values; at ``init`` if leaves do not fit, or their
        outputs are not known.
      TypeError: if a number is not an integer.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.n_of_m(optax.sgd(0.1), n=1, m=2)
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> zeros = {"kernel": jnp.zeros((2, 2))}
      >>> updates, state = tx.update(zeros, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[ 0. -4.]
       [ 3.  0.]]

    References:
      Mishra et al., Accelerating Sparse Deep Neural Networks, 2021,
      https://arxiv.org/abs/2104.08378 (at once, of a trained network; hard); straight-through: the
      form without decay in Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks
      From Scratch, 2021, https://arxiv.org/abs/2102.04010. The ramp within groups is ours.
    """
    one_of("view", view, ("hard", "straight_through"))
    hard, groups = view == "hard", keep.n_of_m(n, m)
    units = units_of_groups(m, unfit, where, exclude, output_axis, stacked, network)
    share = groups.sparsity
    course = cubic(0, 1, share) if ramp is None else ramp_of(share, ramp, start, units)
    largest_stay = MaskUpdate(
        refreshes(every, course, end_of(course) if hard else None),
        scores.magnitude,
        keep.n_of_m(n, m, course),
        Candidates.KEPT if hard else Candidates.ALL,
    )
    seen = views.hard if hard else View(_straight_through)
    return prune(inner, [largest_stay], seen, units=units, start=start, seed=seed)


def _straight_through(s: Signals) -> Leaves:
    # No guard against dead units: along the contraction each has n of m weights.
    return {p: views.through(cut(s.dense[p], mask), s.dense[p]) for p, mask in s.support.items()}
