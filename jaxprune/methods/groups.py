"""N:M sparsity as parts of a method: n kept of every m neighbours along the contraction axis."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxprune import masks
from jaxprune.distributions import Budget
from jaxprune.masks import check_groups
from jaxprune.schedules import constant
from jaxprune.trees import OutputAxis, contraction_axes
from jaxprune.types import Counts, Leaves, Signals, wrong

Score = Callable[[Signals], Leaves]


class Groups(NamedTuple):
    """Groups of m neighbours, n of them kept.

    Attributes:
      n: how many are kept of each group.
      m: how many there are.
      output_axis: the axis of a leaf that counts its outputs, where the default rule is wrong.
    """

    n: int
    m: int
    output_axis: OutputAxis = None

    def agreed_budget(self, sparsity: Any = None) -> Budget:
        """N of m entries of each leaf; raises if a sparsity that is given says another number."""
        check_groups(self.n, self.m)
        own = (self.m - self.n) / self.m
        if sparsity is not None and sparsity != own:
            expected = f"be {own:g} or left out beside {self.n}:{self.m}"
            raise ValueError(wrong("sparsity", expected, sparsity))
        return Budget(constant(own), "uniform")

    def keep(self, scores: Leaves, counts: Counts = 0) -> Leaves:
        """The n highest of each group, a `select`; the groups are the count."""
        del counts
        axes = contraction_axes(scores, self.output_axis)
        return masks.n_of_m(dict(scores), self.n, self.m, axes)

    def fill(self, scores: Leaves, counts: Counts = 0) -> Leaves:
        """What is kept, which comes as NaN, and the highest others up to n: a `select` to grow."""
        kept = {path: jnp.where(jnp.isnan(x), jnp.inf, x) for path, x in scores.items()}
        return self.keep(kept, counts)

    def weakest_of(self, score: Score) -> Score:
        """A score by which at most one entry of each group can be dropped: infinite on others."""

        def weakest(signals: Signals) -> Leaves:
            given = score(signals)
            axes = contraction_axes(signals.mask, self.output_axis)
            below = {p: jnp.where(m, -given[p], -jnp.inf) for p, m in signals.mask.items()}
            least = masks.n_of_m(below, 1, self.m, axes)
            return {
                path: jnp.where(least[path] | jnp.isnan(given[path]), given[path], jnp.inf)
                for path in signals.mask
            }

        return weakest
