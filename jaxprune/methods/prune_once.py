"""One shot: prune a trained network by magnitude, without an optimizer."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxprune import masks, trees
from jaxprune.distributions import Budget, Distribution, Stacked
from jaxprune.schedules import constant
from jaxprune.selection import Ranked
from jaxprune.trees import Where
from jaxprune.types import Signals, wrong
from jaxprune.views import masked


def prune_once(
    params: Any,
    sparsity: Any,
    *,
    distribution: Distribution = "global",
    where: Where | None = None,
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    stacked: Stacked = None,
) -> tuple[Any, Any]:
    """Prunes the weights of smallest magnitude at once.

    The ``round(N (1 - s))`` largest ``|w|`` stay, over the tree or in each leaf.

    Args:
      params: any tree of arrays.
      sparsity: the share to prune, in [0, 1).
      distribution: "global", "uniform", "erk", densities, or a function that returns them.
      where: which leaves are pruned; replaces the default rule.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.

    Returns:
      The pruned params, exactly +0.0 off the masks, and the masks (holes on unpruned leaves).

    Raises:
      ValueError: if the sparsity lies outside [0, 1), or no leaf is prunable.

    Examples:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]]), "bias": jnp.ones(2)}
      >>> pruned, masks = jaxprune.prune_once(params, 0.5)
      >>> print(pruned["kernel"])
      [[ 0. -4.]
       [ 3.  0.]]

    References:
      Han et al., Learning both Weights and Connections, 2015, https://arxiv.org/abs/1506.02626.
    """
    leaves = trees.by_path(params)
    paths = trees.prunable(leaves, where)
    if not paths:
        raise ValueError(wrong("params", "have at least one prunable leaf", "none"))
    whole = {path: jnp.ones_like(leaves[path], dtype=bool) for path in paths}
    counts = Budget(constant(sparsity), distribution, overrides, min_density, stacked)(
        Signals(jnp.zeros((), jnp.int32), leaves, whole)
    )
    ranked = {path: Ranked(leaves[path], magnitude=True) for path in paths}
    mask = masks.largest(ranked, counts, min_density=min_density)
    return trees.from_paths(params, {**leaves, **masked(leaves, mask)}), trees.from_paths(
        params, mask
    )
