"""How many channels of each group stay within a cost.

Of each group the best stay, so only numbers are sought. Where scores are an order, as sizes are, as
many of the highest stay as fit. Where they add up, as changes of the loss do, they are weighed
against the cost: at the widths of its neighbours a group's cost is a function of its own width
alone; ``worth_g(c) - lambda cost_g(c)`` is greatest at a number that falls as lambda grows, and
lambda is bisected until the whole network costs no more than it may. Neighbours' widths then are
those just found, a few rounds long. What is left over in the end goes to single steps, the one that
is worth most first.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.network import Cost

_ROUNDS, _HALVINGS, _RANGE = 6, 48, 40.0
"""Rounds of neighbours; halvings of a bracket; the logarithm of multipliers that are tried."""


def widths_within(
    cost: Cost,
    worth: Mapping[str, Any],
    least: Mapping[str, Any],
    most: Mapping[str, Any],
    steps: Mapping[str, int],
    budget: Any,
    *,
    additive: bool = False,
) -> dict[str, jax.Array]:
    """How many channels of each group stay.

    Args:
      cost: what the network costs at any widths.
      worth: ``{group: [size]}``, of its channels, in any order; NaN is worth nothing, and what is
        infinite stays first and is worth nothing more. Where some are negative, all count by what
        they are above the lowest.
      least: channels that each group keeps at least.
      most: at most.
      steps: widths are multiples of these, or one of the two bounds.
      budget: the share of the whole network's cost that may be kept.
      additive: whether worth adds up, as changes of the loss do, and is weighed against the cost;
        by default it is an order: those worth the most stay, as many as fit, whatever each costs.

    Returns:
      ``{group: int32}``: the cost is within the budget, unless the least numbers are not; each
      group's worth at its number is that of its best channels.

    Examples:
      >>> import jax, jax.numpy as jnp, jaxprune
      >>> from jaxprune.knapsack import widths_within
      >>> params = {"first": jnp.ones((4, 8)), "head": jnp.ones((8, 2))}
      >>> def fn(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["head"]
      >>> cost = jaxprune.trace(fn, params, jnp.ones((1, 4))).cost("parameters")
      >>> only = {"first[1]": 1}
      >>> worth = {"first[1]": jnp.arange(8.0)}
      >>> found = widths_within(cost, worth, only, {"first[1]": 8}, only, 0.5)
      >>> int(found["first[1]"])
      4
    """
    names = [*cost.sizes]
    low, high = (jnp.stack([jnp.asarray(x[n], jnp.int32) for n in names]) for x in (least, most))
    step = np.array([steps.get(name, 1) for name in names])
    each = [worth[name] for name in names]
    task = _Task(cost, _Curves.of(cost), low, high, step, jnp.asarray(budget, jnp.float32))
    found = _weighed(task, each) if additive else _in_order(task, each)
    return {name: found[k] for k, name in enumerate(names)}


class _Task(NamedTuple):
    """What widths are sought for.

    Attributes:
      cost: what the network costs.
      curves: all numbers of channels of all groups.
      low: the least number of each group, `[G]`.
      high: the largest.
      step: what numbers between them are multiples of.
      budget: the share of the whole cost that may be kept.
    """

    cost: Cost
    curves: "_Curves"
    low: jax.Array
    high: jax.Array
    step: np.ndarray
    budget: jax.Array

    @property
    def whole(self) -> float:
        """What the whole network costs."""
        return float(np.sum(self.cost.values(np.array([*self.cost.sizes.values()]))))

    @property
    def allowed(self) -> jax.Array:
        """Which numbers of all groups may be."""
        number, group = self.curves.number, self.curves.group
        low, high = self.low[group], self.high[group]
        may = (number % self.step[group] == 0) | (number == high) | (number == low)
        return may & (number >= low) & (number <= high)

    def fits(self, widths: jax.Array) -> jax.Array:
        """Whether widths are within the budget."""
        return jnp.sum(self.cost.values(widths.astype(jnp.float32))) / self.whole <= self.budget

    def rounded(self, wanted: jax.Array, least: jax.Array) -> jax.Array:
        """Numbers that may be, not above those that are wanted unless the least are."""
        below = wanted // self.step * self.step
        return jnp.where(wanted >= self.high, self.high, jnp.maximum(below, least))

    def halved(self, within: Any, fits: Any, over: Any) -> tuple[jax.Array, jax.Array]:
        """The widths on either side of where they begin to fit, as they were when it was asked."""

        def half(_: Any, carry: Any) -> Any:
            fits, over, few, many = carry
            middle = (fits + over) / 2
            tried = within(middle)
            good = self.fits(tried)
            return (
                jnp.where(good, middle, fits),
                jnp.where(good, over, middle),
                jnp.where(good, tried, few),
                jnp.where(good, many, tried),
            )

        fits, over = jnp.float32(fits), jnp.float32(over)
        return lax.fori_loop(0, _HALVINGS, half, (fits, over, within(fits), within(over)))[2:]


def _in_order(task: _Task, worth: list[Any]) -> jax.Array:
    """The widths of the channels that are worth the most, as many as fit."""
    which, each = _sorted(worth)
    sizes = np.bincount(which, minlength=len(worth))
    share = np.concatenate([np.arange(n) / n for n in sizes])  # equals take turns
    number = np.arange(len(which), dtype=np.int32)
    keys = -each, jnp.asarray(share, jnp.float32), jnp.asarray(number)
    order = lax.sort(keys, num_keys=2)[2]
    place = jnp.zeros_like(order).at[order].set(number)  # 0 is worth the most

    def first(share: jax.Array) -> jax.Array:
        stays = place < jnp.ceil(share * len(which)).astype(jnp.int32)
        wanted = jax.ops.segment_sum(stays.astype(jnp.int32), which, len(worth))
        return task.rounded(wanted, task.low)

    def sooner(widths: jax.Array, after: jax.Array) -> jax.Array:
        del after
        begins = task.curves.begins - np.arange(len(worth))  # a group has a number more
        return -place[jnp.minimum(begins + widths, len(which) - 1)].astype(jnp.float32)

    whole = first(jnp.float32(1))
    found = jnp.where(task.fits(whole), whole, task.halved(first, 0.0, 1.0)[0])
    return _filled(task, sooner, found)


def _weighed(task: _Task, worth: list[Any]) -> jax.Array:
    """The widths that are worth the most beside what they cost, as far as one multiplier tells."""
    value = _value(task.curves, worth)
    cost, curves, low, high = task.cost, task.curves, task.low, task.high
    number, allowed, whole = len(curves.begins), task.allowed, task.whole

    def best(multiplier: Any, curve: jax.Array) -> jax.Array:
        gain = jnp.where(allowed, value - multiplier * curve, -jnp.inf)
        highest = jax.ops.segment_max(gain, curves.group, number)
        at = jnp.where(gain >= highest[curves.group], curves.number, 0)
        return jnp.maximum(jax.ops.segment_max(at, curves.group, number), low)

    def a_round(_: Any, carry: Any) -> Any:
        widths, chosen, chosen_worth = carry
        curve = curves.costs(cost, widths.astype(jnp.float32)) / whole

        def at(power: jax.Array) -> jax.Array:
            return best(jnp.exp(power) - jnp.exp(-_RANGE), curve)

        few, many = task.halved(at, _RANGE, -_RANGE)

        def between(share: jax.Array) -> jax.Array:  # where many are worth their cost alike
            more = jnp.floor(share * (many - few).astype(jnp.float32)).astype(jnp.int32)
            return task.rounded(few + more, few)

        found, _ = task.halved(between, 0.0, 1.0)
        found_worth = jnp.sum(value[curves.begins + found])
        better = found_worth > chosen_worth
        return (
            found,
            jnp.where(better, found, chosen),
            jnp.where(better, found_worth, chosen_worth),
        )

    sizes = jnp.asarray([*cost.sizes.values()], jnp.float32)
    first = jnp.clip((sizes * jnp.sqrt(task.budget)).astype(jnp.int32), low, high)
    found = lax.fori_loop(0, _ROUNDS, a_round, (first, low, jnp.float32(-jnp.inf)))[1]

    def more(widths: jax.Array, after: jax.Array) -> jax.Array:
        return value[curves.begins + after] - value[curves.begins + widths]

    return _filled(task, more, found)


def _filled(task: _Task, gained: Any, widths: jax.Array) -> jax.Array:
    """What is left over goes to the next step of greatest gain, while one fits."""
    curves, allowed = task.curves, task.allowed
    number, one = len(curves.begins), np.eye(len(curves.begins), dtype=bool)

    def tried(widths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next widths of each group, and what they gain; -inf if none fits."""
        above = allowed & (curves.number > widths[curves.group])
        after = jnp.where(above, curves.number, np.iinfo(np.int32).max)
        after = jax.ops.segment_min(after, curves.group, number)
        after = jnp.where(after == np.iinfo(np.int32).max, widths, after)
        fit = jax.vmap(task.fits)(jnp.where(one, after[None], widths[None]))
        return after, jnp.where(fit & (after > widths), gained(widths, after), -jnp.inf)

    def more(carry: Any) -> jax.Array:
        return jnp.any(carry[2] > -jnp.inf)

    def add(carry: Any) -> Any:
        widths, after, gain = carry
        widths = jnp.where(jnp.arange(number) == jnp.argmax(gain), after, widths)
        return (widths, *tried(widths))

    return lax.while_loop(more, add, (widths, *tried(widths)))[0]


def _value(curves: "_Curves", worth: list[Any]) -> jax.Array:
    """What the best channels of each group are worth together, at each of its numbers."""
    each = _sorted(worth)[1]
    lowest = jnp.min(jnp.where(jnp.isfinite(each), each, 0), initial=0)  # 0 but of signed scores
    each = jnp.where(jnp.isfinite(each), each - lowest, 0)
    each = each / jnp.maximum(jnp.sum(jnp.abs(each)), jnp.finfo(jnp.float32).tiny)
    total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(each)])
    at = curves.begins - np.arange(len(worth))  # each group has one number more than channels
    return total[at[curves.group] + curves.number] - total[at[curves.group]]


def _sorted(worth: list[Any]) -> tuple[np.ndarray, jax.Array]:
    """The group of each channel, and what it is worth, within each group the most first."""
    each = jnp.concatenate([jnp.asarray(x, jnp.float32) for x in worth])
    each = jnp.where(jnp.isnan(each), -jnp.inf, each)
    which = np.repeat(np.arange(len(worth)), [np.size(x) for x in worth])
    return which, -lax.sort((jnp.asarray(which), -each), num_keys=2)[1]


class _Curves(NamedTuple):
    """All numbers of channels of all groups, in one row; and the layers that each of them meets.

    Attributes:
      group: whose number it is, `[F]`.
      number: the number, `[F]`.
      begins: where each group's begin, `[G]`.
      place: of each meeting of a number with a layer the number, `[P]`.
      term: the layer, `[P]`.
    """

    group: np.ndarray
    number: np.ndarray
    begins: np.ndarray
    place: np.ndarray
    term: np.ndarray

    @staticmethod
    def of(cost: Cost) -> "_Curves":
        """Those of a cost."""
        sizes = np.array([*cost.sizes.values()])
        group = np.repeat(np.arange(len(sizes)), sizes + 1)
        number = np.concatenate([np.arange(size + 1) for size in sizes])
        meets = np.asarray(cost.parts.each.any(axis=1)).T
        place, term = np.nonzero(meets[group])
        return _Curves(group, number, np.cumsum([0, *(sizes + 1)])[:-1], place, term)

    def costs(self, cost: Cost, widths: jax.Array) -> jax.Array:
        """What the layers of a group cost at each of its numbers and these widths of others."""
        parts, of = cost.parts, self.group[self.place]
        here = (parts.fixed + parts.each @ widths)[self.term]
        each = parts.each[self.term, :, of]
        here += each * (self.number[self.place].astype(np.float32) - widths[of])[:, None]
        return jax.ops.segment_sum(cost.at(self.term, here), self.place, len(self.group))
