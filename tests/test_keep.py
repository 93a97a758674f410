"""Who stays, word by word, against NumPy references."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import hard, normal, seeds

from jaxprune import keep
from jaxprune.distributions import Budget
from jaxprune.schedules import constant, cubic
from jaxprune.types import Chosen, Ranked, Signals
from jaxprune.units import Channels, Entries, Group, Layers

SHAPES = {"a/kernel": (8, 3), "b/kernel": (4, 6)}


def drawn(seed: int, make: Any = hard, shapes: Any = None) -> dict[str, np.ndarray]:
    shapes = shapes or SHAPES
    return {path: make([seed, i], shape) for i, (path, shape) in enumerate(shapes.items())}


def drawn_masks(seed: int, share: float, shapes: Any = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {path: rng.random(shape) < share for path, shape in (shapes or SHAPES).items()}


def signals(mask: Any = None, step: int = 1, units: Any = None) -> Signals:
    if mask is None:
        mask = {path: np.ones(shape, bool) for path, shape in SHAPES.items()}
    return Signals(jnp.int32(step), {}, {p: jnp.asarray(m) for p, m in mask.items()}, units=units)


def ranked(values: Any, mask: Any = None, pruned: bool = False) -> dict[str, Ranked]:
    return {
        path: Ranked(jnp.asarray(x), mask=mask and jnp.asarray(mask[path]), pruned=pruned)
        for path, x in values.items()
    }


def among_all(word: Any, values: Any, **options: Any) -> Chosen:
    return word(ranked(values), signals(**options), {})


def among_kept(word: Any, values: Any, mask: Any, **options: Any) -> Chosen:
    return word(ranked(values, mask), signals(mask, **options), {})


def among_pruned(word: Any, values: Any, mask: Any, **options: Any) -> Chosen:
    s = signals(mask, **options)
    return word(ranked(values, mask, pruned=True), s, s.mask)


def equal(found: Any, expected: Any) -> None:
    assert [*found] == [*expected]
    for path, mask in expected.items():
        assert found[path].dtype == bool
        np.testing.assert_array_equal(found[path], mask, err_msg=path)


def of_sort(values: Any, counts: Any, groups: Any, candidates: Any = None) -> dict[str, np.ndarray]:
    some = None if candidates is None else [candidates[path] for path in values]
    found = oracle.keep_largest([*values.values()], counts, groups, candidates=some)
    return dict(zip(values, found, strict=True))


# ---------------------------------------------------------------------------------------- largest


@given(seeds, st.integers(0, 50))
@settings(max_examples=15)
def test_a_number_is_of_all_sites_together(seed: int, number: int) -> None:
    values, mask = drawn(seed), drawn_masks(seed, 0.5)
    some = keep.largest(number)
    found = among_all(some, values)
    equal(found.masks, of_sort(values, [number], [0, 0]))
    assert bool(found.nan) == any(np.isnan(x).any() for x in values.values())
    found = among_kept(some, values, mask)
    equal(found.masks, of_sort(values, [number], [0, 0], mask))
    assert bool(found.nan) == any(np.isnan(x[mask[path]]).any() for path, x in values.items())


@given(seeds, st.integers(0, 50))
@settings(max_examples=15)
def test_as_many_grow_as_are_missing(seed: int, number: int) -> None:
    values, mask = drawn(seed), drawn_masks(seed, 0.4)
    pruned = {path: ~m for path, m in mask.items()}
    missing = max(number - sum(int(m.sum()) for m in mask.values()), 0)
    found = among_pruned(keep.largest(number), values, mask)
    grown = of_sort(values, [missing], [0, 0], pruned)
    equal(found.masks, {path: mask[path] | m for path, m in grown.items()})
    assert bool(found.nan) == any(np.isnan(x[pruned[path]]).any() for path, x in values.items())


@pytest.mark.parametrize(
    "name", [lambda path: path, lambda path: (path,)], ids=["by path", "by tuple"]
)
def test_a_function_says_how_many_each_site_keeps(name: Any) -> None:
    values, mask = drawn(0, normal), drawn_masks(0, 0.3)
    a, b = values

    def numbers(s: Signals) -> Any:
        return {name(a): 5 + s.step, name(b): 9}

    found = jax.jit(lambda step: keep.largest(numbers)(ranked(values), signals(step=step), {}))(2)
    equal(found.masks, of_sort(values, [7, 9], [0, 1]))
    grown = among_pruned(keep.largest(numbers), values, mask, step=20)
    missing = [max(n - int(mask[path].sum()), 0) for path, n in ((a, 25), (b, 9))]
    expected = of_sort(values, missing, [0, 1], {path: ~m for path, m in mask.items()})
    equal(grown.masks, {path: m | mask[path] for path, m in expected.items()})


def test_a_function_says_which_sites_share_a_number() -> None:
    values = drawn(1, normal)
    found = among_all(keep.largest(lambda s: {tuple(values): 11}), values)
    equal(found.masks, of_sort(values, [11], [0, 0]))


def test_a_function_that_names_a_site_that_is_not_ranked_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`budget` must return .* got 'a/kernal': near .*a/kernel"
    ):
        among_all(keep.largest(lambda s: {"a/kernal": 3}), drawn(1, normal))
    with pytest.raises(ValueError, match=r"`budget` must return a number for every .* 'b/kernel'"):
        among_all(keep.largest(lambda s: {"a/kernel": 3}), drawn(1, normal))


@pytest.mark.parametrize("distribution", ["uniform", "global", "erk"])
def test_a_budget_says_how_many_stay_and_its_floor_holds_unless_it_grows(distribution: Any) -> None:
    values = drawn(2, normal)
    values["b/kernel"] = values["b/kernel"] - 1000  # the worst, all of them
    budget = Budget(constant(0.75), distribution, min_density=0.25)
    found = among_all(keep.largest(budget), values)
    least = [oracle.kept(24, 0.25)] * 2
    if distribution == "global":
        expected = oracle.global_topk([*values.values()], 12, least)
        equal(found.masks, dict(zip(values, expected, strict=True)))
    else:
        counts = [int(n) for n in budget(signals()).values()]
        assert sum(counts) == 12 and min(counts) >= 6
        equal(found.masks, of_sort(values, counts, [0, 1]))
    mask = {path: np.zeros(shape, bool) for path, shape in SHAPES.items()}
    mask["a/kernel"][:3] = True  # nine entries; three are missing, of the best of all
    grown = among_pruned(keep.largest(Budget(constant(0.75), min_density=0.25)), values, mask)
    assert {path: int(m.sum()) for path, m in grown.masks.items()} == {
        "a/kernel": 12,
        "b/kernel": 0,
    }


def test_largest_are_those_of_each_channel_too() -> None:
    units = Channels({"inner": Group(3, {"a/kernel": 1}), "outer": Group(6, {"b/kernel": 1})})
    mask = {"inner": np.ones(3, bool), "outer": np.ones(6, bool)}
    values = {"inner": np.array([1, 3, 2], "f4"), "outer": np.arange(6, dtype="f4")}
    found = among_all(
        keep.largest(Budget(constant(1 / 3), "uniform")), values, mask=mask, units=units
    )
    equal(found.masks, of_sort(values, [2, 4], [0, 1]))


# ------------------------------------------------------------------------------------------ n of m


@given(seeds, st.sampled_from([(1, 2), (2, 4), (3, 4), (4, 4)]))
@settings(max_examples=20)
def test_groups_keep_their_highest_along_the_contraction(seed: int, groups: Any) -> None:
    values, (n, m) = drawn(seed), groups
    found = among_all(keep.n_of_m(n, m), values)
    equal(found.masks, {path: oracle.n_of_m(x, n, m, 0) for path, x in values.items()})
    assert bool(found.nan) == any(np.isnan(x).any() for x in values.values())


@given(seeds)
@settings(max_examples=15)
def test_what_stays_is_the_first_of_its_group_even_before_infinity(seed: int) -> None:
    values, full = drawn(seed), {path: np.ones(shape, bool) for path, shape in SHAPES.items()}
    mask = {p: oracle.n_of_m(x, 1, 4, 0) for p, x in drawn(seed + 1, normal).items()}
    found = among_pruned(keep.n_of_m(2, 4), values, mask).masks
    for path, x in values.items():
        assert not (mask[path] & ~np.asarray(found[path])).any()
        np.testing.assert_array_equal(np.asarray(found[path]).reshape(-1, 4, x.shape[1]).sum(1), 2)
        with np.errstate(invalid="ignore"):
            below = np.where(mask[path], np.inf, np.minimum(x, np.finfo("f4").max))
        np.testing.assert_array_equal(found[path], oracle.n_of_m(below, 2, 4, 0))
    first = {path: oracle.n_of_m(np.zeros(m.shape), 2, 4, 0) for path, m in full.items()}
    equal(among_pruned(keep.n_of_m(2, 4), values, full).masks, first)  # all rank alike


@given(seeds)
@settings(max_examples=15)
def test_what_is_no_candidate_is_not_kept_though_its_group_may_be_short(seed: int) -> None:
    values, mask = drawn(seed, normal), drawn_masks(seed, 0.5)
    found = among_kept(keep.n_of_m(2, 4), values, mask).masks
    for path, x in values.items():
        inside = np.where(mask[path], x, -np.inf)
        np.testing.assert_array_equal(found[path], oracle.n_of_m(inside, 2, 4, 0) & mask[path])


def test_along_a_course_groups_keep_fewer_and_fewer() -> None:
    values = drawn(3, normal)
    word = keep.n_of_m(1, 4, cubic(0, 6, 0.75))
    course = jax.jit(lambda step: word(ranked(values), signals(step=step), {}).masks)
    for step, number in {0: 4, 1: 3, 2: 2, 3: 2, 4: 2, 5: 2, 6: 1, 9: 1}.items():
        exact = math.ceil(4 - 3 * (1 - (1 - min(step, 6) / 6) ** 3))
        assert exact == number
        expected = {path: oracle.n_of_m(x, number, 4, 0) for path, x in values.items()}
        equal(course(step), expected)
        equal(among_all(word, values, step=step).masks, expected)


def test_groups_go_on_over_the_axes_of_one_contraction() -> None:
    shapes = {"conv/kernel": (2, 2, 3, 2), "out/kernel": (2, 6, 3), "conv/weight": (2, 3, 2, 2)}
    values, orders = (
        drawn(4, normal, shapes),
        {"conv/kernel": (3, 0, 1, 2), "out/kernel": (2, 0, 1)},
    )
    orders["conv/weight"] = (0, 2, 3, 1)
    mask = {path: np.ones(shape, bool) for path, shape in shapes.items()}
    found = among_all(keep.n_of_m(1, 4), values, mask=mask).masks
    for path, order in orders.items():
        rows = values[path].transpose(order).reshape(shapes[path][order[0]], 12)
        kept = np.asarray(found[path]).transpose(order).reshape(rows.shape)
        np.testing.assert_array_equal(kept, oracle.n_of_m(rows, 1, 4, -1))


def test_leaves_that_groups_do_not_fit_are_all_named() -> None:
    shapes = {"a/kernel": (6, 4), "b/kernel": (8, 2), "c/kernel": (3, 3, 2, 8)}
    mask = {path: np.ones(shape, bool) for path, shape in shapes.items()}
    expected = r"sum multiples of m = 4 .* got \{'a/kernel': 6, 'c/kernel': 18\}: .*unfit=\"skip\""
    with pytest.raises(ValueError, match=expected):
        among_all(keep.n_of_m(2, 4), mask, mask=mask)


@pytest.mark.parametrize(
    ("n", "m", "error", "message"),
    [
        (0, 4, ValueError, r"`n` must lie in \[1, m\] with m = 4, got 0"),
        (5, 4, ValueError, r"`n` must lie in \[0, m\] with m = 4, got 5"),
        (1, 1, ValueError, "`m` must be at least 2, got 1"),
        (1, 0, ValueError, "`m` must be at least 1, got 0"),
        (1.5, 4, TypeError, "`n` must be an integer, got 1.5"),
        (2, 4.0, TypeError, "`m` must be an integer, got 4.0"),
    ],
)
def test_groups_that_cannot_be_are_refused(n: Any, m: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        keep.n_of_m(n, m)


def test_axes_are_known_or_all_that_are_not_are_named() -> None:
    shapes = {"query/kernel": (16, 4, 8), "fused/kernel": (4, 2, 3), "mix/kernel": (5, 2, 2)}
    mask = {path: np.ones(shape, bool) for path, shape in shapes.items()}
    got = r"\{'fused/kernel': \(4, 2, 3\), 'mix/kernel': \(5, 2, 2\)\}"
    with pytest.raises(ValueError, match=f"`output_axis` must be given where .* got {got}: say"):
        keep.known_axes(signals(mask))
    units = Entries(output_axis={"fused": (1, 2), "mix": 0})
    assert keep.known_axes(signals(mask, units=units)) == {
        "query/kernel": (0,),
        "fused/kernel": (0,),
        "mix/kernel": keep.known_axes(signals(mask, units=units))["mix/kernel"],
    }
    assert sorted(keep.known_axes(signals(mask, units=units))["mix/kernel"]) == [1, 2]


# ------------------------------------------------------------------------------------------ blocks


@given(seeds, st.sampled_from([-1.0, 0.0, 1.0, math.inf]))
@settings(max_examples=10)
def test_what_scores_above_a_threshold_stays(seed: int, threshold: float) -> None:
    values, mask = drawn(seed), drawn_masks(seed, 0.5)
    with np.errstate(invalid="ignore"):
        high = {path: x > threshold for path, x in values.items()}
    found = among_all(keep.above(threshold), values)
    equal(found.masks, high)
    assert bool(found.nan) == any(np.isnan(x).any() for x in values.values())
    kept = among_kept(keep.above(threshold), values, mask).masks
    equal(kept, {path: m & mask[path] for path, m in high.items()})
    grown = among_pruned(keep.above(threshold), values, mask).masks
    equal(grown, {path: m | mask[path] for path, m in high.items()})


def test_everything_comes_back() -> None:
    mask = drawn_masks(0, 0.3)
    for among in (among_kept, among_pruned):
        found = among(keep.everything, drawn(0), mask)
        assert all(m.all() for m in found.masks.values()) and not found.nan
    assert {path: m.shape for path, m in found.masks.items()} == SHAPES


# ----------------------------------------------------------------------------------------- the end

LAYERS = Layers(SHAPES, {})


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (keep.n_of_m(1, 4), {("a/kernel",): 6, ("b/kernel",): 6}),
        (keep.n_of_m(1, 4, cubic(0, 9, 0.75)), {("a/kernel",): 6, ("b/kernel",): 6}),
        (keep.everything, {("a/kernel",): 24, ("b/kernel",): 24}),
        (keep.largest(Budget(cubic(0, 9, 0.75), "uniform")), {("a/kernel",): 6, ("b/kernel",): 6}),
        (keep.largest(Budget(cubic(0, 9, 0.75), "global")), {("a/kernel", "b/kernel"): 12}),
        (
            keep.in_blocks(keep.largest(Budget(constant(0.5), "uniform")), (2, 3)),
            {("a/kernel",): 12, ("b/kernel",): 12},
        ),
        (
            keep.in_blocks(keep.largest(Budget(constant(0.5), "global")), (2, 3)),
            {("a/kernel", "b/kernel"): 24},
        ),
        (keep.in_blocks(keep.n_of_m(1, 4), None), {("a/kernel",): 6, ("b/kernel",): 6}),
        (keep.in_blocks(keep.largest(Budget(constant(0.5))), (3, 3)), None),  # ragged
        (keep.in_blocks(keep.largest(4), (2, 3)), None),
        (keep.largest(4), None),
        (keep.largest(Budget(lambda step: 0.5)), None),
        (keep.largest(Budget(constant(0.5)).less(lambda step: 0.1)), None),
        (keep.above(1.0), None),
        (lambda scores, s, kept: None, None),
    ],
)
def test_the_end_is_known_beforehand_where_something_tells(word: Any, expected: Any) -> None:
    assert keep.at_end(word, LAYERS) == expected


@pytest.mark.parametrize(
    "word",
    [
        keep.n_of_m(1, 4, cubic(0, 9, 0.75)),
        keep.everything,
        keep.largest(Budget(cubic(0, 9, 0.7), "erk")),
        keep.in_blocks(keep.largest(Budget(cubic(0, 9, 0.7), "global")), (2, 3)),
    ],
)
def test_the_end_is_what_is_kept_there(word: Any) -> None:
    found = among_all(word, drawn(7, normal), step=9).masks
    end = keep.at_end(word, LAYERS)
    assert end
    for sites, number in end.items():
        assert sum(int(found[site].sum()) for site in sites) == number


def test_words_are_compared_by_value() -> None:
    def made(m: int = 4) -> Any:
        budget = Budget(constant(0.5), "uniform")
        return keep.n_of_m(1, m), keep.in_blocks(keep.largest(budget), [2, 2]), keep.above(0.5)

    assert made() == made() and hash(made()) == hash(made())
    assert made() != made(2)
