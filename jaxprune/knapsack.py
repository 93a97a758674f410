"""How many channels of each group stay within a cost: the most worth, by one multiplier.

Of each group the best stay, so only numbers are sought. At the widths of its neighbours a group's
cost is a function of its own width alone; ``worth_g(c) - lambda cost_g(c)`` is greatest at a
number that falls as lambda grows, and lambda is bisected until the whole network costs no more than
it may. Neighbours' widths then are those just found, a few rounds long; what is left over in the
end goes to single steps, the one that is worth most first.
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
    curves = _Curves.of(cost)
    low, high = (jnp.stack([jnp.asarray(x[n], jnp.int32) for n in names]) for x in (least, most))
    step = np.array([steps.get(name, 1) for name in names])
    value = _value(curves, [worth[name] for name in names])
    allowed = (curves.number % step[curves.group] == 0) | (curves.number == high[curves.group])
    allowed |= curves.number == low[curves.group]
    allowed &= (curves.number >= low[curves.group]) & (curves.number <= high[curves.group])
    whole = float(np.sum(cost.values(np.array([*cost.sizes.values()]))))

    def costs(widths: jax.Array) -> jax.Array:
        return jnp.sum(cost.values(widths.astype(jnp.float32))) / whole

    def best(multiplier: Any, curve: jax.Array) -> jax.Array:
        gain = jnp.where(allowed, value - multiplier * curve, -jnp.inf)
        highest = jax.ops.segment_max(gain, curves.group, len(names))
        at = jnp.where(gain >= highest[curves.group], curves.number, 0)
        return jnp.maximum(jax.ops.segment_max(at, curves.group, len(names)), low)

    def halved(within: Any, fits: Any, over: Any) -> tuple[jax.Array, jax.Array]:
        """The widths on either side of where they begin to fit, as they were when it was asked."""

        def half(_: Any, carry: Any) -> Any:
            fits, over, few, many = carry
            middle = (fits + over) / 2
            tried = within(middle)
            good = costs(tried) <= budget
            return (
                jnp.where(good, middle, fits),
                jnp.where(good, over, middle),
                jnp.where(good, tried, few),
                jnp.where(good, many, tried),
            )

        fits, over = jnp.float32(fits), jnp.float32(over)
        return lax.fori_loop(0, _HALVINGS, half, (fits, over, within(fits), within(over)))[2:]

    def a_round(_: Any, carry: Any) -> Any:
        widths, chosen, chosen_worth = carry
        curve = curves.costs(cost, widths.astype(jnp.float32)) / whole

        def at(power: jax.Array) -> jax.Array:
            return best(jnp.exp(power) - jnp.exp(-_RANGE), curve)

        few, many = halved(at, _RANGE, -_RANGE)

        def between(share: jax.Array) -> jax.Array:  # where many are worth their cost alike
            wanted = few + jnp.floor(share * (many - few).astype(jnp.float32)).astype(jnp.int32)
            return jnp.where(wanted >= high, high, jnp.maximum(wanted // step * step, few))

        found, _ = halved(between, 0.0, 1.0)
        found_worth = jnp.sum(value[curves.begins + found])
        better = found_worth > chosen_worth
        return (
            found,
            jnp.where(better, found, chosen),
            jnp.where(better, found_worth, chosen_worth),
        )

    sizes = jnp.asarray([*cost.sizes.values()], jnp.float32)
    first = jnp.clip((sizes * jnp.sqrt(budget)).astype(jnp.int32), low, high)
    found = lax.fori_loop(0, _ROUNDS, a_round, (first, low, jnp.float32(-jnp.inf)))[1]
    found = _filled(found, value, allowed, curves, lambda widths: costs(widths) <= budget)
    return {name: found[k] for k, name in enumerate(names)}


def _filled(
    widths: jax.Array, value: jax.Array, allowed: jax.Array, curves: "_Curves", fits: Any
) -> jax.Array:
    """What a multiplier leaves over goes to the next step that is worth most, while one fits."""
    number, one = len(curves.begins), np.eye(len(curves.begins), dtype=bool)

    def tried(widths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next widths of each group, and what they are worth more; nothing if none fits."""
        above = allowed & (curves.number > widths[curves.group])
        after = jnp.where(above, curves.number, np.iinfo(np.int32).max)
        after = jax.ops.segment_min(after, curves.group, number)
        after = jnp.where(after == np.iinfo(np.int32).max, widths, after)
        gain = value[curves.begins + after] - value[curves.begins + widths]
        fit = jax.vmap(fits)(jnp.where(one, after[None], widths[None]))
        return after, jnp.where(fit & (after > widths), gain, -jnp.inf)

    def more(carry: Any) -> jax.Array:
        return jnp.any(carry[2] > -jnp.inf)

    def add(carry: Any) -> Any:
        widths, after, gain = carry
        widths = jnp.where(jnp.arange(number) == jnp.argmax(gain), after, widths)
        return (widths, *tried(widths))

    return lax.while_loop(more, add, (widths, *tried(widths)))[0]


def _value(curves: "_Curves", worth: list[Any]) -> jax.Array:
    """What the best channels of each group are worth together, at each of its numbers."""
    each = jnp.concatenate([jnp.asarray(x, jnp.float32) for x in worth])
    each = jnp.where(jnp.isnan(each), -jnp.inf, each)
    which = np.repeat(np.arange(len(worth)), [np.size(x) for x in worth])
    _, each = lax.sort((jnp.asarray(which), -each), num_keys=2)
    lowest = jnp.min(jnp.where(jnp.isfinite(each), -each, 0), initial=0)  # 0 but of signed scores
    each = jnp.where(jnp.isfinite(each), -each - lowest, 0)
    each = each / jnp.maximum(jnp.sum(jnp.abs(each)), jnp.finfo(jnp.float32).tiny)
    total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(each)])
    at = curves.begins - np.arange(len(worth))  # each group has one number more than channels
    return total[at[curves.group] + curves.number] - total[at[curves.group]]


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
