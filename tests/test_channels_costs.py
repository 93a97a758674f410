"""Channels within a cost: however a method prunes them, the network that is cut fits."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from test_channels_traced import METHODS, inner, trained
from test_shrink import IMAGES, traced

import jaxprune
from jaxprune import keep, trees
from jaxprune.distributions import Budget
from jaxprune.schedules import constant
from jaxprune.types import Signals
from jaxprune.units import Entries

pytestmark = pytest.mark.usefixtures("standard_promotion")


def size(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def no_more_fits(cost: Any, masks: Any) -> bool:
    """Whether one channel more of any group is more than half of all."""
    more = [{**masks, g: np.arange(n) <= masks[g].sum()} for g, n in cost.sizes.items()]
    return all(cost(each) > 0.5 * cost() for each in more if cost(each) > cost(masks))


PAAM = {"sparsity": 0.5, "begin": 1, "attention_steps": 2, "scores": "free"}
OVER_LAYERS = METHODS | {
    "filter_attention": lambda c: jaxprune.filter_attention(
        inner(), channels=c, learner=optax.adam(0.1), **PAAM
    )
}


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        *((name, "parameters") for name in OVER_LAYERS if name != "gradual_magnitude, global"),
        ("gradual_magnitude", "FLOPs"),
    ],
)
def test_the_network_that_is_cut_fits(name: str, unit: str) -> None:
    net, params, stats = traced()
    cost = net.cost(unit)
    choice = net.channels(round_to=1, min_keep=2, cost=unit)
    runs = trained(OVER_LAYERS[name](choice), params, stats, 8)
    masks = jaxprune.get_masks(runs[-1][1])
    assert cost(masks) <= 0.5 * cost() * (1 + 1e-6)
    assert no_more_fits(cost, masks)
    small = jaxprune.shrink(net, runs[-1][0], masks, also=stats)
    if unit == "parameters":
        assert size(small.params) <= 0.5 * size(params)
    else:
        counted = jaxprune.flops.forward_flops(small.fn, small.params, small.also, IMAGES)
        assert sum(counted.values()) == pytest.approx(cost(masks))


def test_along_a_ramp_it_never_costs_more_than_it_may() -> None:
    net, params, stats = traced()
    cost = net.cost("parameters")
    choice = net.channels(round_to=1, cost="parameters")
    tx = jaxprune.gradual_magnitude(inner(), sparsity=0.6, ramp=(0, 6), every=1, channels=choice)
    for step, (_, state) in enumerate(trained(tx, params, stats, 8)[1:], 1):
        way = min(step / 6, 1)
        allowed = 1 - 0.6 * (1 - (1 - way) ** 3)
        assert cost(jaxprune.get_masks(state)) <= allowed * cost() * (1 + 1e-5)


def test_once_and_by_scores() -> None:
    net, params, _ = traced()
    choice = net.channels(round_to=1, cost="parameters")
    _, masks = jaxprune.prune_once(params, 0.5, channels=choice)
    cost = net.cost("parameters")
    assert cost(masks) <= 0.5 * cost()
    assert no_more_fits(cost, masks)
    scores = jaxprune.pool_scores(net, jax.tree.map(abs, params))
    found = jaxprune.select_units(scores, 0.5, round_to=1, cost=cost)
    assert cost(found) <= 0.5 * cost()
    assert no_more_fits(cost, found)
    for name, mask in found.items():
        kept = scores[name][mask]
        assert mask.all() or kept.min() >= scores[name][~mask].max()


def test_what_cannot_be_is_refused() -> None:
    net, _, _ = traced()
    choice = net.channels(round_to=1, min_keep=4, cost="parameters")
    with pytest.raises(ValueError, match=r"`sparsity` must be at most 0\.\d+, got 0\.99: groups"):
        jaxprune.static(None, sparsity=0.99, channels=choice)
    for given in ({"round_to": 8}, {"round_to": 1, "min_keep": 6}):
        rounded = net.channels(cost="parameters", **given)
        with pytest.raises(ValueError, match=r"`sparsity` must be at most .*: groups keep"):
            jaxprune.gradual_magnitude(None, sparsity=0.9, ramp=(0, 1), channels=rounded)
    with pytest.raises(ValueError, match=r"`sparsity` must be at most .*: groups keep"):
        jaxprune.static(None, sparsity=0.9, channels=choice, min_density=0.5)
    with pytest.raises(ValueError, match="`overrides` must be None beside a cost"):
        jaxprune.static(None, sparsity=0.5, channels=choice, overrides={"stem": 0.1})
    with pytest.raises(ValueError, match="`cost` must be 'parameters' or 'FLOPs', got 'ms'"):
        net.channels(cost="ms")
    with pytest.raises(ValueError, match="`unit` must be"):
        net.cost("ms")
    with pytest.raises(ValueError, match="`channels` must have a cost"):
        s = Signals(np.int32(1), {}, {"w": np.ones(2, bool)}, units=Entries())
        keep.cheapest(Budget(constant(0.5)))({}, s, {})
    with pytest.raises(ValueError, match="`masks` must name groups of channels of the cost"):
        net.cost()({"other": np.ones(3, bool)})


def test_a_cost_is_a_value() -> None:
    net, _, _ = traced()
    assert net.cost("FLOPs") == net.cost("FLOPs") != net.cost("parameters")
    assert hash(net.cost("FLOPs")) == hash(net.cost("FLOPs"))
    layers = net.cost("parameters").layers()
    assert {p: x.size for p, x in trees.by_path(traced()[1]).items()} == layers
