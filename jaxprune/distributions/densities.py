"""The two distributions of the literature as trees of densities."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.typing import ArrayLike

from jaxprune.distributions.filling import Filling, Kind, number
from jaxprune.schedules.numbers import checked_share
from jaxprune.trees import Tree, Where, by_path, by_pattern, from_paths, prunable
from jaxprune.types import wrong

Overrides = Mapping[str, float]


def uniform(
    params: Tree,
    sparsity: ArrayLike,
    *,
    where: Where | None = None,
    overrides: Overrides | None = None,
) -> Tree:
    """The same density in every leaf.

    d_l = 1 - s; beside overrides s_o it is ((1 - s) N - sum_o (1 - s_o) n_o) / (N - sum_o n_o).

    Args:
      params: tree of arrays, or of their shapes.
      sparsity: share of all prunable entries that is pruned, in [0, 1).
      where: which leaves are pruned (a regex, several, or ``(path, leaf) -> bool``); replaces the
        default rule.
      overrides: sparsity of single leaves by regex; the first that matches wins.

    Returns:
      A tree like ``params`` of unrounded densities, holes where nothing is pruned.

    Raises:
      ValueError: if the sparsity is outside [0, 1), a pattern matches no path, no leaf is prunable,
        or the overrides leave the other leaves too much or too little.

    Examples:
      >>> params = {"a": {"kernel": np.ones((10, 10))}, "b": {"kernel": np.ones((10, 30))}}
      >>> uniform(params, 0.9)
      {'a': {'kernel': 0.1}, 'b': {'kernel': 0.1}}
      >>> uniform(params, 0.75, overrides={"a/kernel": 0.0})
      {'a': {'kernel': 1.0}, 'b': {'kernel': 0.0}}

    References:
      Original.
    """
    return _densities(params, sparsity, where, overrides, "uniform")


def erk(
    params: Tree,
    sparsity: ArrayLike,
    *,
    where: Where | None = None,
    overrides: Overrides | None = None,
) -> Tree:
    """Erdos-Renyi-kernel densities: large leaves sparser than small ones.

    d_l = min(1, eps sum(shape_l) / prod(shape_l)), with eps such that sum_l d_l n_l = (1 - s) N:
    leaves above 1 become dense and the rest is solved again.

    Args:
      params: tree of arrays, or of their shapes.
      sparsity: share of all prunable entries that is pruned, in [0, 1).
      where: which leaves are pruned (a regex, several, or ``(path, leaf) -> bool``); replaces the
        default rule.
      overrides: sparsity of single leaves by regex; the first that matches wins.

    Returns:
      A tree like ``params`` of unrounded densities, holes where nothing is pruned.

    Raises:
      ValueError: if the sparsity is outside [0, 1), a pattern matches no path, no leaf is prunable,
        or the overrides leave the other leaves too much or too little.

    Examples:
      >>> params = {"a": {"kernel": np.ones((2, 3))}, "b": {"kernel": np.ones((20, 30))}}
      >>> densities = erk(params, 0.9)
      >>> round(densities["a"]["kernel"], 4), round(densities["b"]["kernel"], 4)
      (0.9182, 0.0918)

    References:
      Evci et al., "Rigging the lottery: making all tickets winners", 2020,
      https://arxiv.org/abs/1911.11134, section 3.
    """
    return _densities(params, sparsity, where, overrides, "erk")


def _densities(
    params: Tree,
    sparsity: Any,
    where: Where | None,
    overrides: Overrides | None,
    kind: Kind,
) -> Tree:
    """The unrounded densities of `uniform` and `erk`."""
    leaves = by_path(params)
    shapes = {path: tuple(leaves[path].shape) for path in prunable(leaves, where)}
    if not shapes:
        raise ValueError(wrong("params", "have a prunable leaf", list(leaves)))
    sparsity = checked_share("sparsity", sparsity)
    given = checked_overrides(overrides or {})
    fixed = {
        path: 1 - number(value, sparsity)
        for path, value in by_pattern(given, shapes, "overrides").items()
    }
    problem = Filling(shapes, kind, dict.fromkeys(shapes, 0), fixed)
    densities = {**problem.solve(problem.rest(sparsity)), **fixed}
    plain = {path: d if isinstance(d, jax.Array) else float(d) for path, d in densities.items()}
    return from_paths(params, plain)


def checked_overrides(overrides: Overrides) -> Overrides:
    """The overrides with each sparsity checked."""
    return {
        pattern: checked_share(f"overrides['{pattern}']", value)
        for pattern, value in overrides.items()
    }
