"""Budgets less a share, of leaves together, with a least, and with an end that is not known."""

import jax
import jax.numpy as jnp
import pytest
from test_distributions import REST, SMALL, at_end, counts, layers, signals

from jaxprune.distributions import Budget
from jaxprune.schedules import constant, cubic, linear


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
def test_less_is_short_of_the_counts_by_a_share_of_each(distribution):
    budget = Budget(cubic(0, 9, 0.9), distribution, {"a/": 0.5})
    less = budget.less(lambda step: 0.75 - 0.0625 * step.astype(jnp.float32))
    for step in (0, 5, 9):
        whole, share = counts(budget, SMALL, step), 0.75 - 0.0625 * step
        assert counts(less, SMALL, step) == {x: n - int(share * n) for x, n in whole.items()}
    assert counts(budget.less(lambda step: 0), SMALL, 5) == counts(budget, SMALL, 5)


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk", dict.fromkeys(SMALL, 0.3)])
def test_together_is_the_sum_of_all_but_overrides(distribution):
    budget = Budget(linear(0, 9, 0.9), distribution, {"a/": 0.5})
    for step in (0, 5, 9):
        each, sums = counts(budget, SMALL, step), counts(budget.together(), SMALL, step)
        own = each.pop("a/kernel")
        assert sums == {"a/kernel": own, REST: sum(each.values())}
    assert at_end(budget.together(), SMALL) == counts(budget.together(), SMALL, 9)
    assert [*budget.together()(signals(SMALL))] == [("a/kernel",), ("b/kernel", "c/kernel")]


def test_together_of_overrides_alone_keeps_them_apart():
    budget = Budget(constant(0.5), "uniform", {"kernel": 0.5}).together()
    right = {"a/kernel": 10, "b/kernel": 300, "c/kernel": 900}
    assert counts(budget, SMALL, 0) == at_end(budget, SMALL) == right


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
def test_there_is_a_least_where_leaves_are_ranked_together(distribution):
    """Else the floors are in the counts."""
    floors = {"a/kernel": 0, "b/kernel": 120, "c/kernel": 360}
    budget = Budget(constant(0.5), distribution, {"a/": 0.9}, min_density=0.2)
    assert budget.floors(layers(SMALL)) == floors
    assert budget.least(signals(SMALL)) == (floors if distribution == "global" else {})
    assert budget.together().least(signals(SMALL)) == floors


def test_what_is_kept_at_the_end_is_not_always_known():
    assert Budget(lambda n: 0.5).at_end(layers(SMALL)) is None
    assert Budget(constant(0.5)).less(lambda n: 0.5).at_end(layers(SMALL)) is None
    assert Budget(lambda n: 0.5, "uniform").together().at_end(layers(SMALL)) is None
    found = []
    jax.jit(lambda s: found.append(Budget(cubic(0, 9, s)).at_end(layers(SMALL))))(0.5)
    assert found == [None]
