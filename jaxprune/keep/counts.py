"""As many of the highest as a budget says; or as many as may be had for a cost."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.distributions import Budget
from jaxprune.knapsack import widths_within
from jaxprune.masks.ranking import largest as ranked_largest
from jaxprune.network import at_least
from jaxprune.numbers import is_traced
from jaxprune.schedules import Ramp
from jaxprune.selection import as_array, count_true
from jaxprune.types import Chosen, Counts, Keep, Leaves, Scores, Signals, wrong
from jaxprune.units import Channels, Layers, Units, units_of


@dataclasses.dataclass(frozen=True)
class largest:
    """As many of the highest as a budget says; of what grows, as many as are missing.

    Attributes:
      budget: a `Budget`; one number for all sites together; or a function of `Signals` that returns
        ``{site: number}``, or ``{(site, ...): number}`` for sites that share one.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import keep
      >>> from jaxprune.types import Ranked, Signals
      >>> scores = {"a": Ranked(jnp.array([3.0, 1.0])), "b": Ranked(jnp.array([2.0, 0.0]))}
      >>> s = Signals(jnp.int32(1), {}, {"a": jnp.ones(2, bool), "b": jnp.ones(2, bool)})
      >>> found = keep.largest(2)(scores, s, {})
      >>> found.masks["a"].tolist(), found.masks["b"].tolist()
      ([True, False], [True, False])
    """

    budget: Budget | int | Callable[[Signals], Any]

    def __call__(self, scores: Scores, s: Signals, kept: Leaves) -> Chosen:
        """The masks after a change."""
        counts, units = self._counts(scores, s), units_of(s)
        joint = any(len(sites) > 1 for sites in counts)
        least = self.budget.least(s) if joint and isinstance(self.budget, Budget) else {}
        if isinstance(units, Channels) and units.min_keep:
            fewest = units.min_keep
            counts = {x: jnp.maximum(n, fewest) if len(x) == 1 else n for x, n in counts.items()}
            least = {x: max(least.get(x, 0), fewest) for y in counts if len(y) > 1 for x in y}
        found = _highest(scores, kept, counts, least)
        if isinstance(units, Channels) and units.rounds and self._final:
            # Of channels that are ranked together nobody knows before how many each group keeps.
            kept_now = {site: count_true(mask) for site, mask in found.masks.items()}
            counts = {(site,): units.rounded(site, n) for site, n in kept_now.items()}
            found = _highest(scores, kept, counts)
        return found

    @property
    def _final(self) -> bool:
        """Whether it is not for a moment: what drops now and grows at once is counted as it is."""
        return getattr(self.budget, "share", None) is None

    def _counts(self, scores: Scores, s: Signals) -> Counts:
        given = self.budget(s) if callable(self.budget) else self.budget
        if not isinstance(given, Mapping):
            return {tuple(scores): given}
        counts = {(site,) if isinstance(site, str) else site: n for site, n in given.items()}
        named = {site for sites in counts for site in sites}
        for site in sorted(named):
            trees.known(site, scores, "budget", "return numbers of sites that are ranked")
        if left := {*scores} - named:
            expected = "return a number for every site that is ranked"
            raise ValueError(wrong("budget", expected, f"none for '{min(left)}'"))
        return counts

    def at_end(self, layers: Layers) -> dict[tuple[str, ...], int] | None:
        """What `at_end` gives."""
        counts = self.budget.at_end(layers) if isinstance(self.budget, Budget) else None
        if counts is None or layers.rounded is None or not self._final:
            return counts
        if any(len(sites) > 1 for sites in counts):
            return None
        return {sites: layers.rounded(sites[0], n) for sites, n in counts.items()}


@dataclasses.dataclass(frozen=True)
class cheapest:
    """The channels that are worth the most, within what the network may cost.

    Of each group the best stay (`jaxprune.knapsack`). At a sparsity s the network that is left
    costs at most the share ``1 - s`` of the whole one, what is not pruned included; the cost is
    that of the channels.

    Attributes:
      budget: its schedule says the sparsity, and its ``min_density`` what each group keeps at
        least; the distribution is not read.
      additive: whether scores add up, as changes of the loss do: then what channels are worth
        together is greatest, by one multiplier on their cost. By default scores are an order, and
        as many of the highest stay as fit.

    Examples:
      >>> import jax, jax.numpy as jnp, jaxprune
      >>> from jaxprune import keep
      >>> from jaxprune.distributions import Budget
      >>> from jaxprune.schedules import constant
      >>> from jaxprune.types import Ranked, Signals
      >>> from jaxprune.units import units_for
      >>> params = {"first": jnp.ones((4, 8)), "head": jnp.ones((8, 2))}
      >>> def fn(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["head"]
      >>> net = jaxprune.trace(fn, params, jnp.ones((1, 4)))
      >>> units = units_for(channels=net.channels(round_to=1, cost="parameters"))
      >>> s = Signals(jnp.int32(1), params, units.whole(params), units=units)
      >>> scores = {"first[1]": Ranked(jnp.arange(8.0))}
      >>> found = keep.cheapest(Budget(constant(0.6)))(scores, s, {})
      >>> print(found.masks["first[1]"].astype(int))
      [0 0 0 0 0 1 1 1]
    """

    budget: Budget
    additive: bool = False

    def __call__(self, scores: Scores, s: Signals, kept: Leaves) -> Chosen:
        """The masks after a change."""
        units, drops = units_of(s), self.budget.share
        if not isinstance(units, Channels) or units.cost is None:
            expected = "have a cost, as network.channels(cost=...) gives them"
            raise ValueError(wrong("channels", expected, type(units).__name__))
        # Also of what drops for a moment: else what stays then would decide widths for good.
        fewest = _fewest(self.budget, units)
        worth, least, most = {}, {}, {}
        for name, score in scores.items():
            stays = kept.get(name, jnp.zeros_like(s.mask[name]))
            may = jnp.ones_like(stays) if score.candidates is None else score.candidates
            each = as_array(score).astype(jnp.float32)
            worth[name] = jnp.where(stays, jnp.inf, jnp.where(may, each, -jnp.inf))
            most[name] = count_true(stays | may)
            least[name] = jnp.maximum(count_true(stays), fewest[name])
            least[name] = jnp.minimum(least[name], most[name])
        share = 1 - jnp.asarray(self.budget.schedule(s.step), jnp.float32)
        if drops is not None:
            share *= 1 - jnp.asarray(drops(s.step), jnp.float32)
        found = widths_within(
            units.cost, worth, least, most, units.steps, share, additive=self.additive
        )
        return _highest(scores, kept, {(name,): found[name] for name in scores})


def within(budget: Budget, units: Units, *, additive: bool | None = None) -> Keep:
    """What a budget means for some units: `cheapest` if they have a cost, else `largest`.

    Args:
      budget: of what is kept.
      units: of which it is.
      additive: of `cheapest`; None is as the score says that channels were chosen with.

    Returns:
      The word.

    Raises:
      ValueError: if there are overrides beside a cost, or a sparsity cannot be had because of what
        is not pruned, or has to be kept.

    Examples:
      >>> from jaxprune import keep
      >>> from jaxprune.distributions import Budget
      >>> from jaxprune.schedules import constant
      >>> from jaxprune.units import Entries
      >>> keep.within(Budget(constant(0.5)), Entries()) == keep.largest(Budget(constant(0.5)))
      True
    """
    if not isinstance(units, Channels) or units.cost is None:
        return largest(budget)
    if budget.overrides:
        hint = "counts follow from what channels are worth and cost"
        raise ValueError(wrong("overrides", "be None beside a cost", dict(budget.overrides), hint))
    ramp, cost = budget.schedule, units.cost
    if isinstance(ramp, Ramp) and not is_traced(ramp.sparsity):
        fewest = _fewest(budget, units)
        left = {name: np.arange(size) < fewest[name] for name, size in cost.sizes.items()}
        reached = 1 - cost(left) / cost()
        if ramp.sparsity > reached:
            hint = f"groups keep {fewest}, by `round_to`, `min_keep` and `min_density`"
            raise ValueError(wrong("sparsity", f"be at most {reached:.4g}", ramp.sparsity, hint))
    return cheapest(budget, units.score == "taylor" if additive is None else additive)


def _fewest(budget: Budget, units: Channels) -> dict[str, int]:
    """What each group keeps at least, in multiples of its step."""
    sizes = {name: group.size for name, group in units.groups.items()}
    floors = budget.floors(units.layers({name: np.ones(n, bool) for name, n in sizes.items()}))
    return {
        name: at_least(max(floors[name], units.min_keep), units.steps.get(name, 1), size)
        for name, size in sizes.items()
    }


def _highest(
    scores: Scores, kept: Leaves, counts: Counts, least: Mapping[str, Any] | None = None
) -> Chosen:
    """So many of the highest; what stays is counted, and no floor asks for more of it."""
    if not kept:
        return ranked_largest(scores, counts, least or {})
    missing = {sites: _missing(n, [kept[x] for x in sites]) for sites, n in counts.items()}
    found = ranked_largest(scores, missing)
    return Chosen({site: m | kept[site] for site, m in found.masks.items()}, found.nan)


def _missing(count: Any, kept: list[jax.Array]) -> jax.Array:
    """How many are to grow, so that as many as counted are kept; of a stack in each slice."""
    if jnp.ndim(count) and jnp.size(count) != 1:
        together = [axis for axis, n in enumerate(jnp.shape(count)) if n == 1]
        return jnp.maximum(count - jnp.sum(kept[0], together, jnp.int32, keepdims=True), 0)
    return jnp.maximum(jnp.reshape(count, ()) - sum(map(count_true, kept)), 0)
