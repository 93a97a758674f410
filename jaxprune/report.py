"""Reports: `plan` before training, `summarize` at any moment. Both print as a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxprune import trees
from jaxprune.distributions import Budget
from jaxprune.flops import inference_cost, stage_costs
from jaxprune.methods.common import Less, Together
from jaxprune.readers import phase_of
from jaxprune.schedules import Ramp
from jaxprune.schedules.moments import foreseen, last_step
from jaxprune.schedules.numbers import is_traced
from jaxprune.state import Parts, PruneState, states_of
from jaxprune.types import REST
from jaxprune.views import living_units


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Text in columns: the first to the left, the others to the right."""
    cells = [list(header), *[["" if c is None else str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


class PlannedLeaf(NamedTuple):
    """One leaf of a plan.

    Attributes:
      path: its path.
      shape: its shape.
      pruned: whether it is pruned.
      reason: why it is not.
      output_axis: the axis that counts its outputs; None if it is not pruned.
      density_now: share kept at the start; None where the first update draws the masks.
      density_end: share kept at the end; None where leaves are ranked together.
      kept_end: entries kept at the end; None where leaves are ranked together.
    """

    path: str
    shape: tuple[int, ...]
    pruned: bool
    reason: str
    output_axis: int | None
    density_now: float | None
    density_end: float | None
    kept_end: int | None


class Plan(NamedTuple):
    """What a method will do to params of these shapes.

    Attributes:
      leaves: one row a leaf.
      kept: entries kept at the end over all prunable leaves; None if a schedule does not tell.
      total: all prunable entries.
      steps: updates at which masks change, up to the last one known.
      endless: whether masks go on changing after these.
      bytes_per_parameter: state beside the inner optimizer's, over all parameters.
      note: what the method wants its user to know.
    """

    leaves: tuple[PlannedLeaf, ...]
    kept: int | None
    total: int
    steps: tuple[int, ...]
    endless: bool
    bytes_per_parameter: float
    note: str

    def __str__(self) -> str:
        """The plan as a table."""
        names = "leaf", "shape", "pruned", "output axis", "density now", "at the end", "kept"
        rows = [
            (
                leaf.path,
                "x".join(map(str, leaf.shape)) or "scalar",
                "yes" if leaf.pruned else f"no ({leaf.reason})",
                leaf.output_axis,
                (_share(leaf.density_now) or "at the first update") if leaf.pruned else "",
                (_share(leaf.density_end) or "by rank or schedule") if leaf.pruned else "",
                leaf.kept_end,
            )
            for leaf in self.leaves
        ]
        kept = "as the schedule says" if self.kept is None else f"{self.kept} of {self.total}"
        lines = [
            _table(names, rows),
            f"kept at the end: {kept}",
            self._when(),
            f"state: {self.bytes_per_parameter:.2f} bytes a parameter beside the optimizer's",
        ]
        return "\n".join([*lines, self.note] if self.note else lines)

    def _when(self) -> str:
        steps = [*map(str, self.steps)]
        if self.endless:
            return f"masks change after updates {', '.join([*steps, 'and so on without end'])}"
        if not steps:
            return "no changes of masks"
        shown = steps if len(steps) < 7 else [*steps[:5], "...", steps[-1]]
        changes = "1 change of masks" if len(steps) == 1 else f"{len(steps)} changes of masks"
        return f"{changes}, after update {', '.join(shown)}"


def _share(density: float | None) -> str | None:
    return None if density is None else f"{density:.4f}"


def plan(tx: optax.GradientTransformation, params: Any) -> Plan:
    """A dry run: what a method will prune, how far and when; trains and allocates nothing.

    Args:
      tx: the whole transformation, with the method anywhere in it.
      params: the params, or their shapes (`jax.ShapeDtypeStruct`).

    Returns:
      A `Plan`; print it for the table.

    Raises:
      ValueError: if ``tx`` holds no method, or the method refuses the params.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> params = {"dense": {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)}}
      >>> tx = jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=0.9, ramp=(0, 40))
      >>> plan = jaxprune.plan(tx, params)
      >>> plan.kept, plan.total, plan.steps
      (2, 20, (16, 32, 40))

    References:
      original.
    """
    leaves = trees.by_path(params)
    states = states_of(jax.eval_shape(tx.init, params), argument="tx")
    rows: dict[str, PlannedLeaf] = {}
    kept: list[int | None] = []
    steps: set[int] = set()
    for part in states:
        counts = _counts_at_end(part)
        planned = _rows(part, counts)
        ends = list(counts.values()) if counts else [row.kept_end for row in planned.values()]
        known = [end for end in ends if end is not None]
        kept.append(sum(known) if len(known) == len(ends) else None)
        rows |= planned
        steps |= {n for u in part.prune_spec.parts.mask_updates for n in foreseen(u.when)}
    where = states[0].prune_spec.parts.where if len(states) == 1 else None
    reasons = trees.pruning_reasons(leaves, where)
    unpruned = {
        path: PlannedLeaf(path, leaf.shape, False, reasons[path] or "left out", *[None] * 4)
        for path, leaf in leaves.items()
    }
    whens = [u.when for part in states for u in part.prune_spec.parts.mask_updates]
    extra = sum(_bytes(part._replace(prune_inner=())) for part in states)
    return Plan(
        leaves=tuple((unpruned | rows)[path] for path in leaves),
        kept=None if None in kept else sum(k for k in kept if k is not None),
        total=sum(math.prod(rows[path].shape) for path in rows if rows[path].pruned),
        steps=tuple(sorted(steps)),
        endless=any(last_step(when) is None for when in whens),
        bytes_per_parameter=extra / max(sum(leaf.size for leaf in leaves.values()), 1),
        note=" ".join(filter(None, (part.prune_spec.parts.note for part in states))),
    )


def _rows(state: PruneState, counts: Any) -> dict[str, PlannedLeaf]:
    parts: Parts = state.prune_spec.parts
    masks = trees.by_path(state.prune_mask)
    axes = trees.output_axes(masks, parts.output_axis)
    given = {} if parts.start is None or callable(parts.start) else trees.by_path(parts.start)
    rows = {}
    for path, mask in masks.items():
        size, start = math.prod(mask.shape), given.get(path)
        now = 1.0 if start is None else float(np.sum(np.asarray(start, bool))) / size
        if callable(parts.start) or any(1 in foreseen(u.when) for u in parts.mask_updates):
            now = None
        end = None if counts is None else counts.get(path)
        if counts is None and not parts.mask_updates and now is not None:
            end = round(now * size)
        density = None if end is None else end / size
        rows[path] = PlannedLeaf(path, mask.shape, True, "", axes[path], now, density, end)
    return rows


def _counts_at_end(state: PruneState) -> dict[str, int] | None:
    """Entries kept at the end, by path or for the rest together; None where nothing tells.

    Of several changes of masks the last with a budget tells: what one drops, the next one grows.
    """
    for update in reversed(state.prune_spec.parts.mask_updates):
        budget = None if isinstance(update.count, Less) else _budget(update.count)
        if budget is not None and isinstance(budget.schedule, Ramp):
            if is_traced(budget.schedule.sparsity):
                return None
            counts = budget.at_end(trees.by_path(state.prune_mask))
            return {REST: sum(counts.values())} if isinstance(update.count, Together) else counts
    return None


def _budget(count: Any) -> Budget | None:
    """The budget that a count is made of, if it is."""
    while isinstance(count, Together | Less):
        count = count.budget
    return count if isinstance(count, Budget) else None


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


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
    """

    path: str
    shape: tuple[int, ...]
    kept: int
    total: int
    nonzero: int
    dead_units: int
    units: int

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
      skipped: refreshes skipped because a score was NaN.
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
        names = "leaf", "shape", "sparsity", "kept", "total", "not 0", "dead units"
        rows = [
            (x.path, "x".join(map(str, x.shape)), f"{x.sparsity:.4f}", x.kept, x.total, x.nonzero,
             f"{x.dead_units} of {x.units}")
            for x in self.leaves
        ]  # fmt: skip
        nonzero = sum(leaf.nonzero for leaf in self.leaves)
        rows.append(("all", "", f"{self.sparsity:.4f}", self.kept, self.total, nonzero, ""))
        troubles = [
            f"layer collapse: nothing is kept of {', '.join(self.collapsed)}; see `min_density`"
            if self.collapsed else "",
            f"drift: {self.drift} entries off the mask were written by something else; "
            "nothing may change updates after a method" if self.drift else "",
            f"skipped refreshes: {self.skipped}, because a score was NaN" if self.skipped else "",
            f"revived: {self.revived} zeros of a sparse network began to grow again at the first "
            "update; go on from its masks by `start=`" if self.revived else "",
        ]  # fmt: skip
        head = f"after update {self.step}, phase '{self.phase}'"
        if self.phase_length >= 0:
            head += f", step {self.phase_step} of {self.phase_length}"
        lines = [head, _table(names, rows), self._costs(), *troubles]
        return "\n".join(filter(None, lines))

    def _costs(self) -> str:
        if self.inference_flops is None or self.training_flops is None:
            return ""
        stages = [f"{cost:.4f} ({name})" for name, cost in self.training_flops.items()]
        told = f"inference {self.inference_flops:.4f}; a training step {', '.join(stages)}"
        return f"operations, as fractions of dense: {told}"


_COUNTERS = ("drift", "skipped", "revived")


def summarize(params: Any, opt_state: Any, flops: Mapping[str, float] | None = None) -> Summary:
    """What is pruned now, what it costs, and what went wrong.

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
    weights, rows, states = trees.by_path(params), [], states_of(opt_state)
    for state in states:
        masks = trees.by_path(state.prune_mask)
        parts = state.prune_spec.parts
        budgets = (_budget(update.count) for update in parts.mask_updates)
        stacked = next((dict(b.stacked) for b in budgets if b and b.stacked), None)
        alive = living_units(masks, parts.output_axis, stacked)
        for path, mask in masks.items():
            units = alive[path].size
            rows.append(
                LeafSummary(
                    path,
                    tuple(mask.shape),
                    int(np.sum(mask)),
                    mask.size,
                    int(np.count_nonzero(np.asarray(weights[path]))),
                    units - int(np.sum(alive[path])),
                    units,
                )
            )
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
