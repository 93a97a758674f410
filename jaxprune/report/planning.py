"""`plan`: what a method will do, before anything is trained."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxprune import trees
from jaxprune.methods.common import Less, Together
from jaxprune.report.counts import budget_of
from jaxprune.report.table import shape_text, table
from jaxprune.schedules import Ramp
from jaxprune.schedules.moments import foreseen, last_step
from jaxprune.schedules.numbers import is_traced
from jaxprune.state import Parts, PruneState, states_of
from jaxprune.types import REST, Leaves


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
      learned: how many numbers are learned of it; None where nothing is.
      ends_as_learned: whether nothing but what is learned says how much is kept at the end.
    """

    path: str
    shape: tuple[int, ...]
    pruned: bool
    reason: str
    output_axis: int | None
    density_now: float | None
    density_end: float | None
    kept_end: int | None
    learned: int | None = None
    ends_as_learned: bool = False


class Plan(NamedTuple):
    """What a method will do to params of these shapes.

    Attributes:
      leaves: one row a leaf.
      kept: entries kept at the end over all prunable leaves; None if a schedule does not tell, or
        what is learned decides.
      total: all prunable entries.
      steps: updates at which masks change, up to the last one known.
      endless: whether masks go on changing after these.
      bytes_per_parameter: state beside the inner optimizer's, over all parameters.
      note: what the method wants its user to know.
      learned: how many numbers are learned beside the weights.
    """

    leaves: tuple[PlannedLeaf, ...]
    kept: int | None
    total: int
    steps: tuple[int, ...]
    endless: bool
    bytes_per_parameter: float
    note: str
    learned: int = 0

    def __str__(self) -> str:
        """The plan as a table."""
        names = ["leaf", "shape", "pruned", "output axis", "density now", "at the end", "kept"]
        rows = [
            [
                leaf.path,
                shape_text(leaf.shape),
                "yes" if leaf.pruned else f"no ({leaf.reason})",
                leaf.output_axis,
                *(_densities(leaf) if leaf.pruned else ("", "")),
                leaf.kept_end,
                *([leaf.learned] if self.learned else []),
            ]
            for leaf in self.leaves
        ]
        lines = [
            table([*names, "learned"] if self.learned else names, rows),
            f"kept at the end: {self._end()}",
            self._when(),
            f"state: {self.bytes_per_parameter:.2f} bytes a parameter beside the optimizer's",
        ]
        if self.learned:
            lines.append(f"numbers learned beside the weights: {self.learned}")
        return "\n".join([*lines, self.note] if self.note else lines)

    def _end(self) -> str:
        if self.kept is not None:
            return f"{self.kept} of {self.total}"
        learned = any(leaf.ends_as_learned for leaf in self.leaves)
        return "as it is learned" if learned else "as the schedule says"

    def _when(self) -> str:
        steps = [*map(str, self.steps)]
        if self.endless:
            return f"masks change after updates {', '.join([*steps, 'and so on without end'])}"
        if not steps:
            return "no changes of masks"
        shown = steps if len(steps) < 7 else [*steps[:5], "...", steps[-1]]
        changes = "1 change of masks" if len(steps) == 1 else f"{len(steps)} changes of masks"
        return f"{changes}, after update {', '.join(shown)}"


def _densities(leaf: PlannedLeaf) -> tuple[str, str]:
    """What a pruned leaf keeps at the start and at the end, in words where no number is known."""
    unknown = "as it is learned" if leaf.ends_as_learned else "by rank or schedule"
    now, end = leaf.density_now, leaf.density_end
    return (
        "at the first update" if now is None else f"{now:.4f}",
        unknown if end is None else f"{end:.4f}",
    )


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
        path: PlannedLeaf(
            path, leaf.shape, False, reasons[path] or "left out", None, None, None, None
        )
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
        note=" ".join(filter(None, (_note(part, leaves) for part in states))),
        learned=sum(x.size for part in states for x in jax.tree.leaves(part.prune_learned)),
    )


def _rows(state: PruneState, counts: Any) -> dict[str, PlannedLeaf]:
    parts: Parts = state.prune_spec.parts
    masks, learned = trees.by_path(state.prune_mask), trees.by_path(state.prune_learned)
    as_learned = parts.learner is not None and not any(
        budget_of(update.count) for update in parts.mask_updates
    )
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
        numbers = learned[path].size if path in learned else None
        rows[path] = PlannedLeaf(
            path, mask.shape, True, "", axes[path], now, density, end, numbers,
            ends_as_learned=as_learned and end is None,
        )  # fmt: skip
    return rows


def _note(state: PruneState, leaves: Leaves) -> str:
    """The method's note; of leaves that its rule would prune, it is told of its own alone."""
    parts: Parts = state.prune_spec.parts
    if not callable(parts.note):
        return parts.note
    own = trees.by_path(state.prune_mask)
    reasons = trees.pruning_reasons(leaves, parts.where)
    return parts.note({p: leaf for p, leaf in leaves.items() if p in own or reasons[p]})


def _counts_at_end(state: PruneState) -> dict[str, int] | None:
    """Entries kept at the end, by path or for the rest together; None where nothing tells.

    Of several changes of masks the last with a budget tells: what one drops, the next one grows.
    """
    for update in reversed(state.prune_spec.parts.mask_updates):
        budget = None if isinstance(update.count, Less) else budget_of(update.count)
        if budget is not None and isinstance(budget.schedule, Ramp):
            if is_traced(budget.schedule.sparsity):
                return None
            counts = budget.at_end(trees.by_path(state.prune_mask))
            return {REST: sum(counts.values())} if isinstance(update.count, Together) else counts
    return None


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
