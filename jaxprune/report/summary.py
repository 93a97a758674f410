"""`summarize`: what is pruned and learned now, what it costs, and what went wrong."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxprune import trees
from jaxprune.flops import inference_cost, stage_costs
from jaxprune.readers import phase_of
from jaxprune.report.counts import stacks_of
from jaxprune.report.table import shape_text, table
from jaxprune.state import PruneState, states_of
from jaxprune.types import Leaves
from jaxprune.views import living_units


class LeafSummary(NamedTuple):
    """One pruned leaf of a summary.

    Attributes:
      path: its path.
      shape: its shape.
      kept: entries that the mask keeps.
      total: all entries.
      nonzero: entries of the params that are not 0.
      dead_units: output units without a kept weight.
      units: all output units.
      learned: what is learned of it: the number itself, or the mean of several; None where nothing
        is learned.
      learned_range: the least and the largest of these numbers.
    """

    path: str
    shape: tuple[int, ...]
    kept: int
    total: int
    nonzero: int
    dead_units: int
    units: int
    learned: float | None = None
    learned_range: tuple[float, float] | None = None

    @property
    def sparsity(self) -> float:
        """Share pruned."""
        return 1 - self.kept / self.total


class Summary(NamedTuple):
    """What the masks and the counters of a state say.

    Attributes:
      leaves: one row a pruned leaf.
      phase: name of the coming forward pass's phase.
      phase_step: updates completed within it.
      phase_length: its length in updates; -1 without end.
      step: updates completed.
      drift: entries off the mask that something else wrote, met at refreshes.
      skipped: refreshes skipped because a score, or what is learned, was NaN.
      revived: zeros of an already sparse network that the first update let grow again.
      inference_flops: operations of the pruned network, as a fraction of the dense one's; None
        where it is not known what the leaves cost.
      training_flops: those of a training step in each phase, and of a mask step where it costs
        more, as fractions of a dense step, under the masks of now (`jaxprune.flops.stage_costs`).
    """

    leaves: tuple[LeafSummary, ...]
    phase: str
    phase_step: int
    phase_length: int
    step: int
    drift: int
    skipped: int
    revived: int
    inference_flops: float | None = None
    training_flops: Mapping[str, float] | None = None

    @property
    def kept(self) -> int:
        """Entries kept over all pruned leaves."""
        return sum(leaf.kept for leaf in self.leaves)

    @property
    def total(self) -> int:
        """All entries of pruned leaves: the denominator of the sparsity."""
        return sum(leaf.total for leaf in self.leaves)

    @property
    def sparsity(self) -> float:
        """Share pruned, over all pruned leaves."""
        return 1 - self.kept / self.total

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Leaves pruned to nothing: no signal passes them."""
        return tuple(leaf.path for leaf in self.leaves if not leaf.kept)

    def __str__(self) -> str:
        """The summary as a table, with a sentence for each trouble."""
        names = ["leaf", "shape", "sparsity", "kept", "total", "not 0", "dead units"]
        rows = [
            [x.path, shape_text(x.shape), f"{x.sparsity:.4f}", x.kept, x.total, x.nonzero,
             f"{x.dead_units} of {x.units}"]
            for x in self.leaves
        ]  # fmt: skip
        nonzero = sum(leaf.nonzero for leaf in self.leaves)
        rows.append(["all", "", f"{self.sparsity:.4f}", self.kept, self.total, nonzero, ""])
        if any(leaf.learned is not None for leaf in self.leaves):
            learned = [*map(_learned_text, self.leaves), ""]
            names = [*names, "learned"]
            rows = [[*row, text] for row, text in zip(rows, learned, strict=True)]
        troubles = [
            f"layer collapse: nothing is kept of {', '.join(self.collapsed)}; see `min_density`"
            if self.collapsed else "",
            f"drift: {self.drift} entries off the mask were written by something else; "
            "nothing may change updates after a method" if self.drift else "",
            f"skipped refreshes: {self.skipped}, because a score, or what is learned, was NaN"
            if self.skipped else "",
            f"revived: {self.revived} zeros of a sparse network began to grow again at the first "
            "update; go on from its masks by `start=`" if self.revived else "",
        ]  # fmt: skip
        head = f"after update {self.step}, phase '{self.phase}'"
        if self.phase_length >= 0:
            head += f", step {self.phase_step} of {self.phase_length}"
        lines = [head, table(names, rows), self._costs(), *troubles]
        return "\n".join(filter(None, lines))

    def _costs(self) -> str:
        if self.inference_flops is None or self.training_flops is None:
            return ""
        stages = [f"{cost:.4f} ({name})" for name, cost in self.training_flops.items()]
        told = f"inference {self.inference_flops:.4f}; a training step {', '.join(stages)}"
        return f"operations, as fractions of dense: {told}"


def _learned_text(leaf: LeafSummary) -> str:
    """What is learned of a leaf; where it is several numbers that differ, with their range."""
    if leaf.learned is None or leaf.learned_range is None:
        return ""
    least, most = leaf.learned_range
    span = f" ({least:.4g} to {most:.4g})" if least < most else ""
    return f"{leaf.learned:.4g}{span}"


_COUNTERS = ("drift", "skipped", "revived")


def summarize(params: Any, opt_state: Any, flops: Mapping[str, float] | None = None) -> Summary:
    """What is pruned and learned now, what it costs, and what went wrong.

    Args:
      params: the params that the optimizer trains.
      opt_state: its state.
      flops: what `jaxprune.flops.forward_flops` returned, for the costs.

    Returns:
      A `Summary`; print it for the table.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state, or ``flops`` is not of these params.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> params = {"kernel": jnp.ones((4, 2))}
      >>> masks = {"kernel": jnp.ones((4, 2), bool).at[:, 0].set(False)}
      >>> state = jaxprune.static(optax.sgd(0.1), masks=masks).init(params)
      >>> summary = jaxprune.summarize(params, state)
      >>> summary.kept, summary.total, summary.leaves[0].dead_units
      (4, 8, 1)
      >>> jaxprune.summarize(params, state, flops={"kernel": 16.0}).inference_flops
      0.5

    References:
      original.
    """
    weights, states = trees.by_path(params), states_of(opt_state)
    rows = [row for state in states for row in _rows(state, weights)]
    phase = phase_of(opt_state)
    return Summary(
        tuple(rows),
        phase.name,
        int(phase.step),
        int(phase.length),
        int(states[0].prune_count),
        *(sum(int(getattr(s, f"prune_{name}")) for s in states) for name in _COUNTERS),
        inference_flops=None if flops is None else float(inference_cost(opt_state, flops)),
        training_flops=None if flops is None else stage_costs(opt_state, flops),
    )


def _rows(state: PruneState, weights: Leaves) -> list[LeafSummary]:
    masks, learned = trees.by_path(state.prune_mask), trees.by_path(state.prune_learned)
    alive = living_units(masks, state.prune_spec.parts.output_axis, stacks_of(state))
    rows = []
    for path, mask in masks.items():
        units = alive[path].size
        found = None if path not in learned else np.asarray(learned[path]).astype(np.float64)
        rows.append(
            LeafSummary(
                path,
                tuple(mask.shape),
                int(np.sum(mask)),
                mask.size,
                int(np.count_nonzero(np.asarray(weights[path]))),
                units - int(np.sum(alive[path])),
                units,
                learned=None if found is None else float(np.mean(found)),
                learned_range=None if found is None else (float(found.min()), float(found.max())),
            )
        )
    return rows
