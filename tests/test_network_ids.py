"""Ids that live and die together, against a brute-force reference; what operations do to zeros."""

import inspect
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxprune.network import elementwise, shapes
from jaxprune.network.ids import Ids
from jaxprune.network.values import NUMBER, PERHAPS, SINGULAR, ZERO
from jaxprune.network.walk import Equation


def why() -> str:
    return "a reason"


pairs = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=8)


@given(pairs, st.sets(st.integers(0, 11), max_size=2))
@settings(max_examples=60)
def test_ties_are_the_components_of_a_graph_and_pins_fix_them(ties: Any, pinned: Any) -> None:
    ids = Ids()
    axis = ids.fresh(12)
    for a, b in ties:
        ids.tie(axis[[a]], axis[[b]], why)
    ids.pin(axis[sorted(pinned)], why)
    closed = ids.closed()
    component = list(range(12))
    for _ in range(12):
        for a, b in ties:
            component[a] = component[b] = min(component[a], component[b])
    roots = closed.roots[axis]
    for a, b in itertools.combinations(range(12), 2):
        assert (roots[a] == roots[b]) == (component[a] == component[b])
    fixed = {component[p] for p in pinned}
    assert closed.fixed[axis].tolist() == [c in fixed for c in component]
    assert [*closed.reasons([axis])[0]] == (["a reason"] if pinned else [])


def test_what_meets_the_fixed_id_is_fixed() -> None:
    ids = Ids()
    axis = ids.fresh(3)
    ids.tie(axis, np.array([0, axis[1], 0]), why)
    assert ids.closed().fixed[axis].tolist() == [True, False, True]


def test_a_merged_index_goes_with_any_of_its_parts() -> None:
    ids = Ids()
    heads, entries = ids.fresh(2), ids.fresh(3)
    merged = ids.fresh(6)
    parts = np.stack([np.repeat(heads, 3), np.tile(entries, 2)], axis=1)
    ids.define(merged, parts, why)
    closed = ids.closed()
    removed = np.zeros(len(closed.roots), bool)
    removed[closed.roots[heads[0]]] = removed[closed.roots[entries[2]]] = True
    kept = closed.kept(removed)
    assert kept[merged].tolist() == [False, False, False, True, True, False]
    positions, units = closed.units(merged)
    found = {(int(p), int(u)) for p, u in zip(positions, units, strict=True)}
    assert found == {(i, int(closed.roots[part])) for i, row in enumerate(parts) for part in row}


def test_equal_tuples_are_one_index_and_one_index_has_one_tuple() -> None:
    ids = Ids()
    rows, columns = ids.fresh(2), ids.fresh(2)
    parts = np.stack([np.repeat(rows, 2), np.tile(columns, 2)], axis=1)
    first, second = ids.fresh(4), ids.fresh(4)
    ids.define(first, parts, why)
    ids.define(second, parts, why)
    others, more = ids.fresh(2), ids.fresh(2)
    ids.define(first, np.stack([np.repeat(others, 2), np.tile(more, 2)], axis=1), why)
    closed = ids.closed()
    np.testing.assert_array_equal(closed.roots[first], closed.roots[second])
    np.testing.assert_array_equal(closed.roots[rows], closed.roots[others])
    np.testing.assert_array_equal(closed.roots[columns], closed.roots[more])
    assert not closed.fixed[first].any()


def test_an_index_that_is_read_in_two_ways_has_nothing_to_cut() -> None:
    ids, every = Ids(), []
    axis = ids.fresh(12)
    for sizes in ((3, 4), (2, 2, 3)):
        parts = [ids.fresh(n) for n in sizes]
        every += parts
        grid = np.stack([g.ravel() for g in np.meshgrid(*parts, indexing="ij")], axis=1)
        ids.define(axis, grid, why)
    closed = ids.closed()
    assert not closed.units(axis)[0].size
    assert all(why["reshaped in two ways"] for why in closed.reasons(every))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
@settings(max_examples=60)
def test_reshapes_are_runs_of_axes_with_the_same_entries(old: list[int], data: Any) -> None:
    size = int(np.prod(old))
    new: list[int] = []
    while (left := size // int(np.prod(new))) > 1:
        new.append(data.draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0])))
    runs = shapes.alike(old, new)
    assert [k for run, _ in runs for k, _ in run] == [k for k, n in enumerate(old) if n > 1]
    assert [k for _, run in runs for k, _ in run] == [*range(len(new))]
    for ours, theirs in runs:
        assert np.prod([n for _, n in ours]) == np.prod([n for _, n in theirs])
        both = shapes.common_factors([n for _, n in ours], [n for _, n in theirs])
        if both is not None:
            flat = [[part for parts in side for part in parts] for side in both]
            assert flat[0] == flat[1]
            assert [int(np.prod(p)) for p in both[0]] == [n for _, n in ours]


SAMPLES = {NUMBER: (-1.5, 0.5, 2.0), ZERO: (0.0,), PERHAPS: (0.0, -1.5, 2.0), 1.0: (1.0,)}
FUNCTIONS = {
    name: getattr(lax, name)
    for name in (
        *("neg", "sign", "abs", "tanh", "sin", "exp", "sqrt", "expm1", "log1p", "floor", "erf"),
        *("logistic", "cos", "rsqrt", "log", "add", "sub", "mul", "div", "max", "min", "rem"),
        *("atan2", "pow", "eq", "gt"),
    )
}


def equation_of(function: Any, *args: Any) -> Equation:
    (equation,) = jax.make_jaxpr(function)(*args).eqns
    return Equation(equation, (), 1.0, "")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_said_of_a_result_is_true(name: str) -> None:
    """For each combination of numbers that are known, any, or perhaps 0: by trying them."""
    function = FUNCTIONS[name]
    operands = sum(p.default is p.empty for p in inspect.signature(function).parameters.values())
    equation = equation_of(function, *[jnp.float32(1)] * operands)
    for states in itertools.product(SAMPLES, repeat=operands):
        said = elementwise.outcome(equation, states, [None] * operands)
        for values in itertools.product(*(SAMPLES[state] for state in states)):
            signed = name not in ("sqrt", "log", "log1p", "rsqrt", "pow")
            found = float(function(*(jnp.float32(v if signed else abs(v)) for v in values)))
            if not np.isfinite(found):
                assert said == SINGULAR
            elif said not in (NUMBER, PERHAPS, SINGULAR):
                assert found == said


@pytest.mark.parametrize(
    ("function", "states", "expected"),
    [
        (lambda x: lax.max(x, 0.0), (ZERO, 0.0), ZERO),
        (lambda x: lax.max(x, 1e-6), (ZERO, 1e-6), np.float32(1e-6)),
        (lambda x: lax.max(x, 1e-6), (ZERO, NUMBER), NUMBER),
        (lambda x: lax.min(x, 6.0), (ZERO, 6.0), ZERO),
        (lambda x: lax.clamp(0.0, x, 6.0), (0.0, ZERO, 6.0), ZERO),
        (lambda x: lax.clamp(1.0, x, 6.0), (1.0, ZERO, 6.0), 1.0),
        (lambda x: x**2, (ZERO,), ZERO),
        (lambda x: x**-1, (ZERO,), SINGULAR),
        (lambda x: lax.pow(x, 0.5), (ZERO, 0.5), ZERO),
        (lambda x: lax.pow(x, 0.5), (ZERO, NUMBER), SINGULAR),
        (lambda x: lax.select_n(x > 0, x, x), (NUMBER, ZERO, ZERO), ZERO),
        (lambda x: lax.select_n(x > 0, x, x), (NUMBER, ZERO, NUMBER), PERHAPS),
        (lambda x: lax.select_n(x > 0, x, x), (ZERO, 2.0, SINGULAR), 2.0),
        (lambda x: x * 2.0, (ZERO, SINGULAR), SINGULAR),
        (lambda x: x * 2.0, (PERHAPS, NUMBER), PERHAPS),
        (lambda x: x / 2.0, (ZERO, ZERO), SINGULAR),
        (lambda x: x / 2.0, (NUMBER, PERHAPS), SINGULAR),
        (lambda x: x == 0.0, (ZERO, ZERO), 1.0),
        (lambda x: x - 1.0, (1.0, 1.0), ZERO),
    ],
)
def test_what_is_known_of_operands_counts(function: Any, states: Any, expected: Any) -> None:
    equation = Equation(jax.make_jaxpr(function)(jnp.float32(1)).eqns[-1], (), 1.0, "")
    assert elementwise.outcome(equation, states, [None] * len(states)) == expected


def test_a_nan_that_is_written_out_does_not_happen() -> None:
    equation = equation_of(lambda p, x, y: lax.select_n(p, x, y), True, 1.0, 2.0)
    said = elementwise.outcome(equation, (NUMBER, ZERO, NUMBER), (None, None, float("nan")))
    assert said == ZERO
