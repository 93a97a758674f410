"""How a sparsity is spread over the leaves, as densities and as counts."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jaxprune.distributions import Budget, erk, exact_count, uniform
from jaxprune.schedules import Ramp, constant, cubic, linear
from jaxprune.types import Signals
from jaxprune.units import Layers

shapes_of = st.dictionaries(
    st.sampled_from([f"layer{i}/kernel" for i in range(6)]),
    st.lists(st.integers(1, 12), min_size=2, max_size=4).map(tuple),
    min_size=1,
)
sparsities = st.integers(0, 999).map(lambda thousandths: thousandths / 1000)


def structs(shapes):
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}


def size(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


def signals(shapes, step=0):
    masks = {path: jnp.ones(shape, bool) for path, shape in shapes.items()}
    return Signals(step=jnp.int32(step), dense={}, mask=masks)


REST = "the rest"


def by_name(found):
    """Counts by path; of several leaves ranked together under `REST`."""
    return {sites[0] if len(sites) == 1 else REST: int(n) for sites, n in found.items()}


def counts(budget, shapes, step):
    return by_name(budget(signals(shapes, step)))


def layers(shapes):
    return Layers(shapes, {})


def at_end(budget, shapes):
    return by_name(budget.at_end(layers(shapes)))


SMALL = {"a/kernel": (4, 5), "b/kernel": (20, 30), "c/kernel": (3, 3, 20, 10)}


@given(st.integers(0, 2**40), st.integers(0, 10**6))
def test_a_count_is_the_decimal_rounded_half_to_even(entries, millionths):
    assert exact_count(entries, millionths / 10**6) == oracle.rounded(
        entries * (10**6 - millionths), 10**6
    )


def test_a_count_is_exact_at_any_size():
    assert exact_count(25, 0.9) == 2 and exact_count(35, 0.9) == 4
    assert exact_count(2**31, 0.9) == 214748365
    assert exact_count(1000, np.float32(0.9)) == 100


@given(shapes_of, sparsities)
def test_erk_is_the_loop_of_the_paper(shapes, sparsity):
    densities = erk(structs(shapes), sparsity)
    expected = oracle.erk(shapes, sparsity)
    for path in shapes:
        assert densities[path] == pytest.approx(float(expected[path]), rel=1e-12)
    kept = sum(densities[path] * math.prod(shape) for path, shape in shapes.items())
    assert kept == pytest.approx(size(shapes) * (1 - sparsity), rel=1e-9)


def test_layers_above_one_become_dense_and_the_rest_is_solved_again():
    densities = erk(structs({"a/kernel": (2, 2), "b/kernel": (50, 50)}), 0.5)
    assert densities["a/kernel"] == 1.0
    assert densities["b/kernel"] == pytest.approx((1252 - 4) / 2500)


@given(shapes_of, sparsities)
def test_erk_counts_add_up_and_lie_next_to_the_densities(shapes, sparsity):
    kept = at_end(Budget(constant(sparsity), "erk"), shapes)
    assert sum(kept.values()) == exact_count(size(shapes), sparsity)
    densities = oracle.erk(shapes, sparsity)
    for path, shape in shapes.items():
        assert 0 <= kept[path] <= math.prod(shape)
        assert abs(kept[path] - densities[path] * math.prod(shape)) < 1.5


@given(shapes_of, sparsities)
def test_uniform_rounds_each_leaf(shapes, sparsity):
    assert set(uniform(structs(shapes), sparsity).values()) == {float(1 - oracle.exact(sparsity))}
    kept = at_end(Budget(constant(sparsity), "uniform"), shapes)
    assert kept == {path: exact_count(math.prod(s), sparsity) for path, s in shapes.items()}


def test_a_density_is_the_decimal():
    assert set(uniform(structs(SMALL), 0.9).values()) == {0.1}


@given(shapes_of, sparsities, sparsities, st.sampled_from([uniform, erk]))
def test_what_an_override_keeps_the_others_do_without(shapes, sparsity, other, distribute):
    path, *rest = shapes
    outside = math.prod(shapes[path])
    left = size(shapes) * (1 - sparsity) - outside * (1 - other)
    assume(rest and 0 < left < size(shapes) - outside)
    overrides = {f"^{path}$": other}
    densities = distribute(structs(shapes), sparsity, overrides=overrides)
    assert densities[path] == pytest.approx(1 - other)
    kept = sum(densities[path] * math.prod(shape) for path, shape in shapes.items())
    assert kept == pytest.approx(size(shapes) * (1 - sparsity))
    budget = Budget(constant(sparsity), distribute, overrides)
    assert sum(at_end(budget, shapes).values()) == pytest.approx(
        exact_count(size(shapes), sparsity), abs=0 if distribute is erk else len(shapes)
    )


def test_global_counts_are_one_number_and_those_of_overrides():
    budget = Budget(constant(0.9), "global", {"a/kernel": 0.0})
    total = exact_count(size(SMALL), 0.9)
    assert at_end(budget, SMALL) == {"a/kernel": 20, REST: total - 20}
    assert at_end(Budget(constant(0.9)), SMALL) == {REST: total}


def test_overrides_may_name_every_leaf():
    budget = Budget(constant(0.5), "global", {"kernel": 0.5})
    assert at_end(budget, SMALL) == {"a/kernel": 10, "b/kernel": 300, "c/kernel": 900}


def test_the_first_pattern_that_matches_wins():
    densities = uniform(structs(SMALL), 0.7, overrides={"a/": 0.5, "[ac]/": 0.8})
    assert densities["a/kernel"] == 0.5 and densities["c/kernel"] == pytest.approx(0.2)


def test_holes_stay_where_nothing_is_pruned():
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "step": jnp.int32(1)}
    densities = uniform(params, 0.5)
    hole = optax.MaskedNode()
    assert densities == {"dense": {"kernel": 0.5, "bias": hole}, "step": hole}
    assert uniform(params, 0.5, where="bias")["dense"] == {"kernel": hole, "bias": 0.5}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: uniform(p, 90), r"`sparsity` must lie in \[0, 1\), got 90: .* did you mean 0.9"),
        (lambda p: erk(p, -0.1), r"`sparsity` must lie in \[0, 1\), got -0.1"),
        (lambda p: erk(p, float("nan")), r"`sparsity` must lie in \[0, 1\), got nan"),
        (lambda p: erk(p, 0.5, where="d/"), "`where` must match at least one path, got 'd/'"),
        (lambda p: erk(p, 0.5, overrides={"c/kernle": 0.0}), "`overrides` .* did you mean"),
        (lambda p: erk(p, 0.5, overrides={"c": 50}), r"`overrides\['c'\]` .* mean 0.5"),
        (
            lambda p: uniform(p, 0.9, overrides={"c": 0.0}),
            "got -1558.0: at sparsity 0.9 all leaves",
        ),
        (lambda p: erk(p, 0.1, overrides={"c": 0.5}), "leave 0 to 620 entries to the other leaves"),
        (lambda p: erk(p, 0.5, overrides={"kernel": 0.4}), "leave 0 to 0 entries to the other"),
        (lambda p: erk({"bias": jnp.ones(3)}, 0.5), "`params` must have a prunable leaf"),
    ],
)
def test_what_wrong_input_gets(call, message):
    with pytest.raises(ValueError, match=message):
        call(structs(SMALL))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(constant(0.5), "ekr"), "`distribution` must be global, .* got 'ekr'"),
        (lambda: Budget(constant(0.5), {"a": 1.5}), r"`distribution\['a'\]` must lie in \[0, 1\]"),
        (lambda: Budget(lambda n: 0.5, {"a": 0.5}), "`distribution` must be no tree of dens"),
        (lambda: Budget(constant(0.5), overrides={"a": 1.0}), r"`overrides\['a'\]` must lie"),
        (lambda: Budget(constant(0.5), min_density=5), r"`min_density` .* did you mean 0.05"),
        (
            lambda: Budget(constant(0.5), {"a": 0.5}).at_end(layers({"b": (3,)})),
            "a density for 'b', got",
        ),
        (
            lambda: Budget(constant(0.9), min_density=0.5).at_end(layers({"b": (100,)})),
            "`min_density` must keep no more than the 10 entries that are kept, got 50",
        ),
        (
            lambda: Budget(constant(0.5), overrides={"x": 0.1}).at_end(layers({"b": (3,)})),
            "`overrides`",
        ),
    ],
)
def test_what_a_wrong_budget_gets(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
@pytest.mark.parametrize("overrides", [{}, {"a/kernel": 0.0}])
def test_a_ramp_goes_from_all_kept_to_the_exact_target(distribution, overrides):
    ramp = cubic(2, 20, 0.9)
    budget = Budget(ramp, distribution, overrides)
    end = at_end(budget, SMALL)
    course = [counts(budget, SMALL, step) for step in range(24)]
    assert sum(course[0].values()) == sum(course[2].values()) == size(SMALL)
    assert course[20] == course[21] == end
    for before, after in itertools.pairwise(course):
        assert all(after[path] <= before[path] for path in after)
    for step, now in enumerate(course):
        progress = float(ramp.progress(step))
        for path, start in course[0].items():
            assert abs(now[path] - (start - (start - end[path]) * progress)) <= 0.501


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
def test_a_ramp_begins_at_its_initial_sparsity(distribution):
    overrides = {"a/kernel": 0.5}
    budget = Budget(linear(0, 10, 0.8, initial=0.4), distribution, overrides)
    start = counts(budget, SMALL, 0)
    assert sum(start.values()) == pytest.approx(exact_count(size(SMALL), 0.4), abs=2)
    assert start["a/kernel"] == 15  # half of its way from 20 to 10, as the tree's
    assert counts(budget, SMALL, 10) == at_end(budget, SMALL)


def test_a_ramp_may_go_down_to_a_lower_sparsity():
    budget = Budget(linear(0, 10, 0.2, initial=0.6))
    course = [counts(budget, SMALL, step)[REST] for step in (0, 5, 10)]
    assert course == [exact_count(size(SMALL), s) for s in (0.6, 0.4, 0.2)]


@pytest.mark.parametrize("entries", [2**24 + 3, 2**31 - 1])
def test_the_end_is_exact_for_large_leaves(entries):
    mask = {"a": jax.ShapeDtypeStruct((entries,), bool)}
    for step in (10, 11):
        now = Budget(linear(0, 10, 0.9))(Signals(jnp.int32(step), {}, mask))
        assert int(now["a",]) == exact_count(entries, 0.9)
    half = Budget(linear(0, 10, 0.9))(Signals(jnp.int32(5), {}, mask))
    error = abs(int(half["a",]) - exact_count(entries, 0.45))
    assert error <= entries * 2**-23


def test_too_many_entries_for_a_count_are_an_error():
    mask = {"a": jax.ShapeDtypeStruct((2**31,), bool)}
    with pytest.raises(ValueError, match=r"fewer than 2\^31 entries in a group, got 2147483648"):
        Budget(linear(0, 10, 0.9))(Signals(jnp.int32(0), {}, mask))


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
def test_counts_are_int32_under_jit(distribution):
    budget = Budget(cubic(0, 9, 0.9), distribution, {"a/kernel": 0.0})
    jitted = jax.jit(lambda step: budget(signals(SMALL)._replace(step=step)))
    for step in (0, 4, 9):
        now = jitted(jnp.int32(step))
        assert by_name(now) == counts(budget, SMALL, step)
        assert {(x.dtype, x.shape) for x in now.values()} == {(np.dtype("int32"), ())}


@pytest.mark.parametrize("distribution", ["global", "uniform"])
@pytest.mark.parametrize("overrides", [{}, {"a/kernel": 0.3}])
@pytest.mark.parametrize("min_density", [0.0, 0.05])
def test_a_traced_sparsity_gives_the_same_counts_but_for_rounding(
    distribution, overrides, min_density
):
    def now(sparsity, step):
        budget = Budget(cubic(0, 9, sparsity), distribution, overrides, min_density)
        return budget(signals(SMALL, step))

    for sparsity in (0.0, 0.25, 0.9) if not overrides else (0.25, 0.9):
        swept = jax.jit(now, static_argnums=1)
        for step in (0, 5, 9):
            traced, known = swept(sparsity, step), now(sparsity, step)
            for path in known:
                assert abs(int(traced[path]) - int(known[path])) <= 1


def test_a_traced_initial_sparsity_still_ends_exactly():
    now = jax.jit(lambda i: Budget(cubic(0, 9, 0.9, i), "erk")(signals(SMALL, 9)))(0.5)
    assert by_name(now) == at_end(Budget(constant(0.9), "erk"), SMALL)
    begin = jax.jit(lambda i: Budget(cubic(0, 9, 0.9, i), "erk")(signals(SMALL, 0)))(0.45)
    end = by_name(now)
    for path, kept in by_name(begin).items():  # half of the way from all kept to the end
        whole = math.prod(SMALL[path])
        assert abs(kept - (whole + end[path]) / 2) <= 1


@pytest.mark.parametrize("distribution", ["erk", lambda shapes, s: dict.fromkeys(shapes, 1 - s)])
def test_what_needs_a_known_sparsity_says_so(distribution):
    with pytest.raises(ValueError, match="`distribution` must be global or uniform where"):
        jax.jit(lambda s: Budget(constant(s), distribution)(signals(SMALL)))(0.8)
    with pytest.raises(ValueError, match="`distribution` must be global or uniform where"):
        Budget(optax.linear_schedule(0.0, 0.8, 10), distribution)(signals(SMALL))
    with pytest.raises(TypeError, match="`sparsity` must be known when the program is built"):
        jax.jit(lambda s: erk(structs(SMALL), s))(0.8)


@pytest.mark.parametrize("distribution", ["global", "uniform"])
def test_any_schedule_will_do(distribution):
    budget = Budget(optax.linear_schedule(0.0, 0.8, 10), distribution, {"a/kernel": 0.5})
    course = [counts(budget, SMALL, step) for step in range(12)]
    assert {now["a/kernel"] for now in course} == {10}
    for step in (3, 10, 11):
        target = exact_count(size(SMALL), round(min(0.08 * step, 0.8), 2))
        assert abs(sum(course[step].values()) - target) <= len(SMALL)
    assert sum(course[0].values()) == size(SMALL) - 10  # all that the override leaves


def test_densities_by_hand_are_those_at_the_end():
    densities = {"a": {"kernel": 0.5}, "b": {"kernel": 0.1}, "c": {"kernel": 1.0}}
    budget = Budget(linear(0, 10, 0.8), densities)
    assert counts(budget, SMALL, 0) == {"a/kernel": 20, "b/kernel": 600, "c/kernel": 1800}
    assert counts(budget, SMALL, 5) == {"a/kernel": 15, "b/kernel": 330, "c/kernel": 1800}
    assert at_end(budget, SMALL) == {"a/kernel": 10, "b/kernel": 60, "c/kernel": 1800}
    over = dataclasses.replace(budget, overrides={"c/": 0.75}, min_density=0.6)
    assert at_end(over, SMALL) == {"a/kernel": 12, "b/kernel": 360, "c/kernel": 450}


def test_a_function_gives_densities_at_both_ends():
    def halves(shapes, sparsity):
        return {path: 1 - sparsity if "a" in path else 1.0 for path in shapes}

    budget = Budget(linear(0, 10, 0.8, initial=0.4), halves)
    assert [counts(budget, SMALL, step)["a/kernel"] for step in (0, 5, 10)] == [12, 8, 4]


@given(shapes_of, sparsities, sparsities, st.sampled_from(["uniform", "erk"]))
def test_no_leaf_falls_below_its_floor_and_the_total_stands(shapes, sparsity, least, distribution):
    budget = Budget(constant(sparsity), distribution, min_density=least)
    floors = budget.floors(layers(shapes))
    assert floors == {p: oracle.kept(math.prod(s), least) for p, s in shapes.items()}
    assume(sum(floors.values()) <= size(shapes) * oracle.exact(1 - oracle.exact(sparsity)))
    kept = at_end(budget, shapes)
    assert all(kept[path] >= floors[path] for path in shapes)
    target = exact_count(size(shapes), sparsity)
    assert sum(kept.values()) == pytest.approx(
        target, abs=0 if distribution == "erk" else len(shapes)
    )


def test_a_traced_floor_is_kept_to_leaf_by_leaf():
    def now(least):
        return Budget(constant(0.9), "erk", min_density=least)(signals(SMALL, 0))

    known = at_end(Budget(constant(0.9), "erk"), SMALL)
    zero, some = jax.jit(now)(0.0), jax.jit(now)(0.1)
    assert by_name(zero) == known
    assert by_name(some) == {
        path: max(count, math.prod(SMALL[path]) // 10) for path, count in known.items()
    }


def test_an_override_is_not_held_up_by_the_floor():
    budget = Budget(constant(0.5), "uniform", {"a/": 0.9}, min_density=0.4)
    assert budget.floors(layers(SMALL))["a/kernel"] == 0
    assert at_end(budget, SMALL)["a/kernel"] == 2


def test_budgets_are_compared_by_value():
    a, b = (Budget(cubic(0, 9, 0.9), "erk", {"a": 0.5}) for _ in range(2))
    assert a == b and hash(a) == hash(b)
    assert a == Budget(cubic(0, 9, 0.9), erk, {"a": 0.5})
    assert a != Budget(cubic(0, 9, 0.9), "erk", {"a": 0.4})
    c, d = (Budget(constant(0.9), {"a": jnp.float32(0.5)}) for _ in range(2))
    assert c == d and hash(c) == hash(d)


def test_nothing_to_prune_gives_no_counts():
    assert Budget(Ramp(0, 9, 0.9))(signals({})) == {}
