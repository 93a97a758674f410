"""N:M sparsity as parts of a method: n kept of every m neighbours along the contraction axis."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import masks
from jaxprune.distributions import Budget, Stacked, stack_axes
from jaxprune.masks.patterns import check_groups
from jaxprune.numbers import is_traced
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
      stacked: ``{pattern: axis}`` of scanned layers; their other axes are those of a layer.
    """

    n: int
    m: int
    output_axis: OutputAxis = None
    stacked: Stacked = None

    def axes(self, leaves: Leaves) -> dict[str, int]:
        """Along which axis of each leaf groups lie."""
        stacks = stack_axes(leaves, self.stacked)
        layers = {
            path: jax.ShapeDtypeStruct(
                tuple(n for axis, n in enumerate(leaf.shape) if axis != stacks.get(path)), bool
            )
            for path, leaf in leaves.items()
        }
        found = contraction_axes(layers, self.output_axis)
        return {p: a + (p in stacks and a >= stacks[p]) for p, a in found.items()}

    @property
    def share_pruned(self) -> float:
        """``(m - n) / m``; raises where no such groups can be pruned."""
        check_groups(self.n, self.m)
        if self.m < 2:
            raise ValueError(wrong("m", "be at least 2", self.m, "a group of one is kept or empty"))
        if not self.n:
            raise ValueError(wrong("n", f"lie in [1, m] with m = {self.m}", self.n))
        return (self.m - self.n) / self.m

    def agreed_budget(self, sparsity: Any = None) -> Budget:
        """N of m entries of each leaf; raises if a sparsity that is given says another number."""
        own = self.share_pruned
        if sparsity is not None and sparsity != own:
            expected = f"be {own:g} or left out beside {self.n}:{self.m}"
            raise ValueError(wrong("sparsity", expected, sparsity))
        return Budget(constant(own), "uniform")

    def keep(self, scores: Leaves, counts: Counts) -> Leaves:
        """The highest of each group, a `select`: as many in each as make up a leaf's count.

        A count on the way from m to n of each group, as a ramp gives it, is rounded up.
        """
        kept, axes = {}, self.axes(scores)
        for path, score in scores.items():
            count: Any = counts[path] if isinstance(counts, Mapping) else counts
            number = -(-jnp.sum(count) // max(score.size // self.m, 1))
            whole = number if is_traced(number) else int(number)
            kept |= masks.n_of_m({path: score}, whole, self.m, axes)
        return kept

    def fill(self, scores: Leaves, counts: Counts = 0) -> Leaves:
        """What is kept, which comes as NaN, and the highest others up to n: a `select` to grow."""
        del counts
        kept = {
            path: jnp.where(jnp.isnan(x), jnp.inf, jnp.minimum(x, jnp.finfo(x.dtype).max))
            for path, x in scores.items()
        }
        return masks.n_of_m(kept, self.n, self.m, self.axes(scores))

    def weakest_of(self, score: Score) -> Score:
        """A score by which at most one entry of each group can be dropped: infinite on others."""

        def weakest(signals: Signals) -> Leaves:
            given = score(signals)
            axes = self.axes(signals.mask)
            below = {p: jnp.where(m, -given[p], -jnp.inf) for p, m in signals.mask.items()}
            least = masks.n_of_m(below, 1, self.m, axes)
            return {
                path: jnp.where(least[path] | jnp.isnan(given[path]), given[path], jnp.inf)
                for path in signals.mask
            }

        return weakest
