"""What networks cost at widths of their channels, and the most that is worth it."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import networks_of_images
import networks_of_sequences
import networks_of_vectors
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune
from jaxprune import knapsack, trees
from jaxprune.network.costs import Cost, Term, Width


def widths(
    cost: Cost, worth: Any, budget: float, step: int = 1, additive: bool = True
) -> list[int]:
    """Those that are found, compiled once for a network."""
    found = compiled(cost, step, additive)(worth, budget)
    return [int(found[name]) for name in cost.sizes]


@functools.cache
def compiled(cost: Cost, step: int, additive: bool) -> Any:
    steps = dict.fromkeys(cost.sizes, step)

    def find(worth: Any, budget: Any) -> Any:
        most = dict(cost.sizes)
        return knapsack.widths_within(cost, worth, steps, most, steps, budget, additive=additive)

    return jax.jit(find)


def of_chain(*widths: int) -> tuple[Any, Any, Any]:
    """A chain of layers, its params, and an input."""

    def fn(params: Any, x: Any) -> Any:
        for name in sorted(params):
            x = jax.nn.relu(x @ params[name])
        return x

    shapes = [*itertools.pairwise(widths)]
    return (
        fn,
        {f"w{k}": jnp.ones(shape) for k, shape in enumerate(shapes)},
        jnp.ones((1, widths[0])),
    )


MADE = {
    make.__name__: make
    for make in (
        *(networks_of_images.linen_resnet, networks_of_images.mobilenet),
        *(networks_of_images.densenet, networks_of_images.resnext),
        *(networks_of_images.vgg, networks_of_sequences.grouped_queries),
        *(networks_of_sequences.gated_linear_unit, networks_of_vectors.low_rank),
    )
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("unit", ["parameters", "FLOPs"])
def test_a_cost_is_what_the_cut_network_has(name: str, unit: str) -> None:
    network = MADE[name]()
    net = jaxprune.trace(network.fn, network.params, *network.args, also=network.also)
    rng = np.random.default_rng(0)
    masks = {g.name: rng.random(g.size) < 0.6 for g in net.groups if not g.inexact}
    masks = {name: mask | ~mask.any() for name, mask in masks.items()}
    small = jaxprune.shrink(net, network.params, masks, also=network.also)
    if unit == "parameters":
        wanted = {p: x.size for p, x in trees.by_path(small.params).items()}
    else:
        also = () if small.also is None else (small.also,)
        wanted = jaxprune.flops.forward_flops(small.fn, small.params, *also, *network.args)
    found = net.cost(unit).layers(masks)
    assert found == pytest.approx({p: float(n) for p, n in wanted.items()})


def brute(cost: Cost, worth: Any, step: int, budget: float) -> float:
    """The most that is worth it of all widths that fit."""
    whole, best = cost(), -np.inf
    choices = [[c for c in range(1, n + 1) if c % step == 0 or c == n] for n in cost.sizes.values()]
    for each in itertools.product(*choices):
        if cost.values(np.array(each)).sum() <= budget * whole * (1 + 1e-6):
            total = sum(np.sort(w)[::-1][:c].sum() for w, c in zip(worth, each, strict=True))
            best = max(best, total)
    return best


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.9), st.sampled_from([1, 2]))
def test_what_is_found_is_worth_as_much_as_can_be(seed: int, budget: float, step: int) -> None:
    """Within the worth of one step of one group, of all widths that there are."""
    rng = np.random.default_rng(seed)
    net = jaxprune.trace(*of_chain(3, 6, 5, 4, 2))
    cost = net.cost(str(rng.choice(["parameters", "FLOPs"])))
    worth = [rng.exponential(size=n) for n in cost.sizes.values()]
    found = widths(cost, dict(zip(cost.sizes, worth, strict=True)), budget, step)
    wanted = brute(cost, worth, step, budget)
    if wanted == -np.inf:
        assert found == [step] * len(worth)
        return
    assert cost.values(np.array(found)).sum() <= budget * cost() * (1 + 1e-6)
    total = sum(np.sort(w)[::-1][:c].sum() for w, c in zip(worth, found, strict=True))
    assert total >= wanted - step * max(map(np.max, worth)) - 1e-6


def in_order(cost: Cost, worth: Any, step: int, budget: float) -> list[int]:
    """As many of the highest as fit, in multiples of a step, and then single steps by worth."""
    sizes, budget = [*cost.sizes.values()], budget * cost() * (1 + 1e-6)
    ranked = sorted((-x, k) for k, each in enumerate(worth) for x in each)
    best = [step] * len(sizes)
    for number in range(len(ranked) + 1):
        have = np.bincount([k for _, k in ranked[:number]], minlength=len(sizes))
        pairs = zip(have, sizes, strict=True)
        tried = [n if x >= n else max(step, x // step * step) for x, n in pairs]
        if cost.values(np.array(tried)).sum() <= budget:
            best = tried
    while True:
        more = {}
        for k, n in enumerate(sizes):
            after = [*best]
            after[k] = min(n, best[k] // step * step + step)
            if after[k] > best[k] and cost.values(np.array(after)).sum() <= budget:
                more[np.sort(worth[k])[::-1][best[k]]] = after
        if not more:
            return best
        best = more[max(more)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.95), st.sampled_from([1, 2]))
def test_in_order_the_highest_stay_whatever_they_cost(seed: int, budget: float, step: int) -> None:
    rng = np.random.default_rng(seed)
    net = jaxprune.trace(*of_chain(3, 6, 5, 4, 2))
    cost = net.cost(str(rng.choice(["parameters", "FLOPs"])))
    worth = [rng.exponential(size=n) for n in cost.sizes.values()]
    for each in worth, [x**3 for x in worth]:  # only their order counts
        given = {n: np.float32(x) for n, x in zip(cost.sizes, each, strict=True)}
        found = widths(cost, given, budget, step, additive=False)
        assert found == in_order(cost, worth, step, budget)


@pytest.mark.parametrize("additive", [True, False])
def test_equal_scores_are_kept_alike(additive: bool) -> None:
    net = jaxprune.trace(*of_chain(4, 64, 64, 4))
    cost = net.cost("parameters")
    same = {name: jnp.ones(64) for name in cost.sizes}
    found = np.array(widths(cost, same, 0.25, additive=additive))
    assert cost.values(found).sum() <= 0.25 * cost()
    assert cost.values(found + 1).sum() > 0.25 * cost()
    assert abs(found[0] - found[1]) <= 8


def test_what_is_worth_nothing_or_everything() -> None:
    net = jaxprune.trace(*of_chain(4, 8, 8, 4))
    cost = net.cost("parameters")
    a, b = cost.sizes
    worth = {a: jnp.full(8, jnp.nan), b: jnp.arange(8.0).at[0].set(jnp.inf)}
    few, many = widths(cost, worth, 0.4)
    assert few < many
    assert widths(cost, worth, 1.0) == [8, 8]
    assert widths(cost, worth, 0.0) == [1, 1]


def test_between_the_widths_of_a_table_it_is_linear() -> None:
    grid = ((0, 4, 8), (0, 6))
    term = Term("w", 9.0, (Width(0, (("a", 1),)), Width(2, (("b", 2),))), grid, (0, 1, 2, 4, 3, 9))
    plain = Term("v", 8.0, (Width(0, (("a", 1),)),))
    cost = Cost("seconds", {"a": 8, "b": 2}, (term, plain))
    assert cost() == 9 + 8
    masks = {
        "a": np.arange(8) < 6,
        "b": np.arange(2) < 1,
    }
    low, high = 2 + (4 - 2) * 4 / 6, 3 + (9 - 3) * 4 / 6
    assert cost.layers(masks) == pytest.approx({"w": (low + high) / 2, "v": 6.0})


def test_negative_scores_count_by_what_they_are_above_the_lowest() -> None:
    net = jaxprune.trace(*of_chain(4, 16, 16, 4))
    cost = net.cost("parameters")
    worth = {name: -jnp.arange(1.0, 17) for name in cost.sizes}
    found = np.array(widths(cost, worth, 0.5))
    assert cost.values(found).sum() <= 0.5 * cost() < cost.values(found + 1).sum()
    nothing = {name: jnp.zeros(16) for name in cost.sizes}
    found = np.array(widths(cost, nothing, 0.5))
    assert cost.values(found).sum() <= 0.5 * cost() < cost.values(found + 1).sum()


def test_a_number_that_is_kept_need_not_be_a_multiple() -> None:
    net = jaxprune.trace(*of_chain(4, 16, 16, 4))
    cost = net.cost("parameters")
    a, b = cost.sizes
    worth, steps = {name: jnp.arange(16.0) for name in cost.sizes}, dict.fromkeys(cost.sizes, 8)
    found = knapsack.widths_within(cost, worth, {a: 9, b: 9}, {a: 16, b: 16}, steps, 0.45)
    assert [int(found[name]) for name in (a, b)] == [9, 9]
