"""What the counts and the values of a method say about its leaves."""

from typing import Any

from jaxprune.distributions import Budget
from jaxprune.methods.common import Less, Together
from jaxprune.state import PruneState


def budget_of(count: Any) -> Budget | None:
    """The budget that a count is made of, if it is."""
    while isinstance(count, Together | Less):
        count = count.budget
    return count if isinstance(count, Budget) else None


def stacks_of(state: PruneState) -> dict[str, int] | None:
    """``{pattern: axis}`` of the stacked leaves, as the method or one of its budgets was given."""
    spec = state.prune_spec
    budgets = (budget_of(update.count) for update in spec.parts.mask_updates)
    given = spec.values.get("stacked") or next((b.stacked for b in budgets if b and b.stacked), ())
    return dict(given) or None
