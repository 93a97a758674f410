"""RigL: drop the smallest weights, grow where the gradient is largest."""

from collections.abc import Mapping
from typing import Any

import optax

from jaxprune import scores, views
from jaxprune.distributions import Budget, Distribution
from jaxprune.methods.common import CosineDecay, drawn, drop_and_grow, periodic
from jaxprune.schedules import constant
from jaxprune.transform import Start, method, prune
from jaxprune.trees import Where


@method
def rigl(
    inner: optax.GradientTransformation,
    *,
    sparsity: Any,
    stop: int,
    every: int = 100,
    drop_fraction: float = 0.3,
    where: Where | None = None,
    distribution: Distribution = "erk",
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    start: Start = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Doc."""
    budget = Budget(constant(sparsity), distribution, overrides, min_density)
    changes = drop_and_grow(
        periodic(every, stop),
        budget,
        CosineDecay(drop_fraction, stop),
        drop=scores.magnitude,
        grow=scores.gradient,
    )
    first = (drawn(budget),) if start is None else ()
    return prune(inner, [*first, *changes], views.hard, where=where, start=start, seed=seed)
