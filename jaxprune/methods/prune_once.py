"""One shot: prune a trained network, without an optimizer."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxprune import keep, masks, scores, trees
from jaxprune.distributions import Budget, Distribution
from jaxprune.methods.common import units_of_groups
from jaxprune.names import OutputAxis
from jaxprune.network import Network
from jaxprune.numbers import checked_share, decimal, is_traced
from jaxprune.schedules import constant
from jaxprune.selection import any_nan, as_array
from jaxprune.trees import Where
from jaxprune.types import Chosen, Keep, Leaves, Ranked, Signals, wrong
from jaxprune.units import Groups, Stacked, units_for
from jaxprune.views import masked

Score = Callable[[str, jax.Array], jax.Array]
"""(path, leaf) -> a score for each of its entries."""


def prune_once(
    params: Any,
    sparsity: Any = None,
    *,
    score: Score | None = None,
    distribution: Distribution | Literal["output"] = "global",
    n: int | None = None,
    m: int | None = None,
    block: tuple[int, ...] | None = None,
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    output_axis: OutputAxis = None,
    unfit: Literal["refuse", "skip"] = "refuse",
    stacked: Stacked = None,
    channels: Groups | None = None,
) -> tuple[Any, Any]:
    """Prunes the weights of lowest score at once.

    The ``round(N (1 - s))`` highest scores stay: over the tree, in each leaf, or of the inputs of
    each output unit; or the n highest of every m neighbours along the contraction; or as many
    blocks, by the mean of their scores.

    Args:
      params: any tree of arrays.
      sparsity: the share to prune, in [0, 1); not beside ``n`` and ``m``.
      score: ``(path, leaf) -> array`` of the leaf's shape; higher stays. By default ``|w|``;
        Wanda's is ``|w|`` times the norm of the activation that meets each input.
      distribution: "global", "uniform", "erk", densities, or a function that returns them; or
        "output", by which each output unit (filter, neuron) keeps the same share of its inputs.
      n: how many weights of each group are kept, in [1, m].
      m: how many make a group, at least 2.
      block: the shape of blocks; one shorter than a leaf's means its last axes.
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking.
      output_axis: the axes that count a leaf's outputs, where its name says it wrongly or not at
        all: an integer, a tuple, or ``{pattern: either}``.
      unfit: what becomes of leaves that do not sum a multiple of m inputs: "refuse" names them all,
        "skip" leaves them dense.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      channels: what ``network.channels(...)`` returned, or ``{name: Group}``: whole channels are
        pruned, in place of ``where``; a ``score`` is then summed over all that belongs to one.

    Returns:
      The pruned params, exactly +0.0 off the masks, and the masks (holes on unpruned leaves).

    Raises:
      ValueError: if the sparsity lies outside [0, 1), no leaf is prunable, groups do not fit or
        stand beside a sparsity, a score has another shape than its leaf or is NaN, or the outputs
        of a leaf are not known where they are needed.
      TypeError: if a score is no function.

    Examples:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]]), "bias": jnp.ones(2)}
      >>> pruned, masks = jaxprune.prune_once(params, 0.5)
      >>> print(pruned["kernel"])
      [[ 0. -4.]
       [ 3.  0.]]
      >>> norms = {"kernel": jnp.array([[9.0], [1.0]])}  # of the activations, by input
      >>> pruned, masks = jaxprune.prune_once(
      ...     params, 0.5, score=lambda path, w: jnp.abs(w) * norms[path], distribution="output"
      ... )
      >>> print(pruned["kernel"])
      [[ 1. -4.]
       [ 0.  0.]]

    References:
      Han et al., Learning both Weights and Connections, 2015, https://arxiv.org/abs/1506.02626;
      Sun et al., A Simple and Effective Pruning Approach for Large Language Models (Wanda), 2023,
      https://arxiv.org/abs/2306.11695, by output unit; Mishra et al., Accelerating Sparse Deep
      Neural Networks, 2021, https://arxiv.org/abs/2104.08378, N:M.
    """
    leaves = trees.by_path(params)
    if channels is None:
        units = units_of_groups(m or 1, unfit, where, exclude, output_axis, stacked, network)
    else:
        units = units_for(where, exclude, output_axis, stacked, channels, network=network)
        if m or block or distribution == "output":
            expected = "stand without `n`, `m`, `block` and outputs of its own"
            raise ValueError(wrong("channels", expected, "one of them"))
    s = Signals(jnp.zeros((), jnp.int32), leaves, units.whole(leaves), units=units)
    ranked = scores.magnitude(s) if score is None else units.pooled(_scored(score, s))
    if (n is None) != (m is None) or (n is None) == (sparsity is None):
        expected = "be given unless `n` and `m` are, which say it"
        raise ValueError(wrong("sparsity", expected, sparsity))
    if n is not None and m is not None:
        kept = keep.n_of_m(n, m)
        if overrides or min_density or block or distribution != "global":
            expected = "stand without `overrides`, `min_density`, `block` and `distribution`"
            raise ValueError(wrong("n", expected, n, "its groups are the counts"))
    elif distribution == "output":
        kept = _of_outputs(checked_share("sparsity", sparsity))
        if overrides or min_density or block:
            expected = "stand without `overrides`, `min_density` and `block`"
            raise ValueError(wrong("distribution", expected, distribution))
    else:
        budget = Budget(constant(sparsity), distribution, overrides, min_density)
        kept = keep.in_blocks(keep.within(budget, units), block)
    found = kept({path: _lazy(x) for path, x in ranked.items()}, s, {})
    if score is not None and not is_traced(found.nan) and found.nan:
        raise ValueError(wrong("score", "have no NaN", "NaN"))  # a weight that is NaN ranks last
    mask = dict(found.masks)
    pruned = {**leaves, **masked(leaves, units.support(mask, leaves))}
    return trees.from_paths(params, pruned), units.packed(mask, params)


def _lazy(score: Any) -> Ranked:
    return score if isinstance(score, Ranked) else Ranked(score)


def _scored(score: Score, s: Signals) -> Leaves:
    if not callable(score):
        expected = "be None or a function of a path and a weight"
        raise TypeError(wrong("score", expected, score))
    found = {path: jnp.asarray(score(path, s.dense[path])) for path in s.support}
    for path, x in found.items():
        if x.shape != s.dense[path].shape:
            expected = f"return the shape {s.dense[path].shape} for '{path}'"
            raise ValueError(wrong("score", expected, x.shape))
    return found


def _of_outputs(sparsity: Any) -> Keep:
    """The same share of the inputs of each output unit."""
    density = 1 - sparsity if is_traced(sparsity) else float(1 - decimal(sparsity))

    def highest(scores: Mapping[str, Ranked], s: Signals, kept: Leaves) -> Chosen:
        del kept
        axes = keep.known_axes(s)
        found = {path: masks.topk(as_array(x), density, axes[path]) for path, x in scores.items()}
        return Chosen(found, any_nan([*scores.values()]))

    return highest
