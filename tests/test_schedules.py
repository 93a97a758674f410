"""Schedules of sparsity, and the steps at which something is due."""

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.numbers import checked_share, decimal
from jaxprune.schedules import (
    Every,
    Ramp,
    constant,
    cubic,
    either,
    every,
    geometric,
    linear,
    once,
    steps_due,
)
from jaxprune.schedules.moments import last_step

SHAPES = ("cubic", "linear", "geometric")
MAKERS = (cubic, linear, geometric)

shares = st.floats(0, 0.99, allow_subnormal=False)
spans = st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda s: (min(s), max(s)))


def test_the_cubic_ramp_of_the_paper():
    schedule = cubic(0, 100, 0.9)
    values = [float(schedule(n)) for n in (0, 25, 50, 75, 100, 150)]
    assert values == pytest.approx([0, 0.5203125, 0.7875, 0.8859375, 0.9, 0.9], abs=1e-7)


@given(st.sampled_from(SHAPES), spans, shares, shares)
def test_a_ramp_is_its_formula(shape, span, sparsity, initial):
    ramp = Ramp(*span, sparsity, initial, shape)
    ages = np.arange(0, 60)
    expected = [oracle.ramp(n, *span, sparsity, initial, shape) for n in ages]
    np.testing.assert_allclose(ramp(ages), expected, atol=2e-6)


@given(st.sampled_from(SHAPES), spans, shares, shares)
def test_a_ramp_stands_still_before_its_begin_and_after_its_end(shape, span, sparsity, initial):
    begin, end = span
    ramp = Ramp(begin, end, sparsity, initial, shape)
    ages = np.arange(0, 60)
    progress = np.asarray(ramp.progress(ages))
    assert (progress[ages >= end] == 1).all()
    assert (progress[(ages <= begin) & (ages < end)] == 0).all()
    assert ((progress >= 0) & (progress <= 1)).all() and (np.diff(progress) >= -1e-6).all()
    assert (np.asarray(ramp(ages))[ages >= end] == np.float32(sparsity)).all()


@pytest.mark.parametrize("make", MAKERS)
def test_where_it_begins_and_ends_at_one_step_it_jumps(make):
    assert [float(make(5, 5, 0.5)(n)) for n in (4, 5, 6)] == [0, 0.5, 0.5]


def test_a_long_ramp_ends_on_its_target():
    ramp = linear(3, 2**31 - 2, 0.7)
    assert float(ramp.progress(2**31 - 2)) == 1
    assert float(ramp.progress(2**31 - 1)) == 1
    assert 0.49 < float(ramp.progress(2**30)) < 0.51


def test_a_constant_is_at_its_end_from_the_start():
    assert np.asarray(constant(0.5).progress(np.arange(3))).tolist() == [1, 1, 1]
    assert np.asarray(constant(0.5)(np.arange(3))).tolist() == [0.5, 0.5, 0.5]
    assert constant(0.5) == Ramp(0, 0, 0.5, 0.5)


def test_a_constant_does_not_look_at_the_age():
    jaxpr = jax.make_jaxpr(constant(0.5).progress)(jnp.int32(7)).jaxpr
    read = [*jaxpr.outvars, *(x for eqn in jaxpr.eqns for x in eqn.invars)]
    assert not any(x is jaxpr.invars[0] for x in read)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ramp_is_traced_once_and_float32(shape):
    ramp = Ramp(2, 9, 0.8, 0.1, shape)
    jitted = jax.jit(ramp)
    values = [jitted(jnp.int32(n)) for n in range(12)]
    assert {value.dtype for value in values} == {np.dtype("float32")}
    np.testing.assert_allclose(values, [ramp(n) for n in range(12)], rtol=1e-6)


def test_the_sparsity_may_be_traced_and_swept():
    sweep = jax.vmap(lambda s: cubic(0, 10, s)(5))(jnp.array([0.0, 0.4, 0.8]))
    np.testing.assert_allclose(sweep, [cubic(0, 10, s)(5) for s in (0.0, 0.4, 0.8)], rtol=1e-6)


def test_ramps_are_compared_by_value():
    assert cubic(0, 10, 0.9) == cubic(0, 10, np.float32(0.9)) == cubic(0, 10, jnp.float32(0.9))
    assert hash(cubic(0, 10, 0.9)) == hash(cubic(0, 10, jnp.float32(0.9)))
    assert cubic(0, 10, 0.9) != linear(0, 10, 0.9)
    assert cubic(0, 10, 0.9) != cubic(0, 10, 0.8)
    assert cubic(0, 10, 0.9) != "cubic"


def test_a_traced_sparsity_is_compared_by_identity():
    def compare(s, t):
        ramp = cubic(0, 10, s)
        assert ramp == cubic(0, 10, s) and hash(ramp) == hash(cubic(0, 10, s))
        assert ramp != cubic(0, 10, t) and ramp != cubic(0, 10, 0.5)
        return ramp(5)

    assert float(jax.jit(compare)(0.5, 0.5)) == pytest.approx(0.4375)


def test_a_frozen_ramp_can_be_replaced():
    assert dataclasses.replace(cubic(0, 10, 0.9), initial=0.5) == cubic(0, 10, 0.9, 0.5)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1, 1.5, float("nan"), float("inf"), np.float32(2)])
@pytest.mark.parametrize("make", [*MAKERS, lambda begin, end, sparsity: constant(sparsity)])
def test_a_sparsity_outside_its_range_is_refused(make, sparsity):
    with pytest.raises(ValueError, match=r"`sparsity` must lie in \[0, 1\), got "):
        make(0, 10, sparsity)


def test_a_percentage_is_refused_with_a_hint():
    message = r"`sparsity` must lie in \[0, 1\), got 90: give a fraction, did you mean 0.9\?"
    with pytest.raises(ValueError, match=message):
        cubic(0, 10, 90)
    with pytest.raises(ValueError, match=r"got 1\.0$"):
        cubic(0, 10, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cubic(10, 9, 0.5), ValueError, "`end` must not lie before `begin`, which is 10"),
        (lambda: cubic(-1, 9, 0.5), ValueError, "`begin` must be at least 0, got -1"),
        (lambda: cubic(0, 9, 0.5, -0.5), ValueError, "`initial` must lie in"),
        (lambda: cubic(0.5, 9, 0.5), TypeError, "`begin` must be an integer, got 0.5"),
        (lambda: cubic(0, 9, "0.5"), TypeError, "`sparsity` must be one number"),
        (lambda: cubic(0, 9, np.zeros(2)), TypeError, "`sparsity` must be one number"),
        (lambda: cubic(0, 9, None), TypeError, "`sparsity` must be one number"),
        (lambda: cubic(0, 9, True), TypeError, "`sparsity` must be one number"),
        (lambda: Ramp(0, 9, 0.5, shape="round"), ValueError, "`shape` must be 'cubic' or"),
        (lambda: every(0), ValueError, "`interval` must be at least 1, got 0"),
        (lambda: every(-3), ValueError, "`interval` must be at least 1, got -3"),
        (lambda: every(None), TypeError, "`interval` must be an integer, got None"),
        (lambda: every(2, -1), ValueError, "`begin` must be at least 0"),
        (lambda: every(2, 5, 4), ValueError, "`end` must not lie before `begin`, which is 5"),
        (lambda: every(2, 0, 0), ValueError, "`end` must be at least 1, got 0"),
        (lambda: once(0), ValueError, "`at` must be at least 1, got 0"),
        (lambda: once(1.5), TypeError, "`at` must be an integer, got 1.5"),
    ],
)
def test_what_wrong_input_gets(call, error, message):
    with pytest.raises(error, match=message):
        call()


@given(st.integers(1, 12), st.integers(0, 30), st.none() | st.integers(0, 40))
def test_every_fires_on_its_grid_and_at_its_ends(interval, begin, length):
    end = None if length is None or begin + length == 0 else begin + length
    when = Every(interval, begin, end)
    expected = [n for n in range(1, 81) if oracle.due(n, interval, begin, end)]
    assert steps_due(when, 80) == expected
    assert np.flatnonzero(when(np.arange(81))).tolist() == expected


def test_every_fires_at_an_end_that_is_off_the_grid():
    assert steps_due(every(16, 0, 40), 100) == [16, 32, 40]
    assert steps_due(every(10, 5, 30), 100) == [5, 15, 25, 30]
    assert steps_due(every(3), 10) == [3, 6, 9]
    assert steps_due(every(3, 0, 8), 4) == [3]


def test_a_moment_is_one_bool_without_a_second_trace():
    jitted = jax.jit(every(4, 2, 9))
    assert [bool(jitted(jnp.int32(n))) for n in range(12)] == [n in (2, 6, 9) for n in range(12)]
    assert jitted(jnp.int32(3)).dtype == bool and jitted(jnp.int32(3)).shape == ()


def test_once_is_once():
    assert steps_due(once(7), 100) == [7]
    assert steps_due(once(7), 6) == []


def test_either_fires_where_any_does():
    when = either(every(10), once(5), lambda n: n == 7)
    assert steps_due(when, 20) == [5, 7, 10, 20]
    assert np.flatnonzero(when(np.arange(21))).tolist() == [5, 7, 10, 20]
    assert steps_due(either(), 20) == []


def test_moments_are_compared_by_value():
    assert every(4) == every(np.int64(4)) and hash(every(4)) == hash(Every(4))
    assert every(4) != every(5)
    assert either(every(4), once(3)) == either(every(4), once(3))
    assert hash(either(every(4))) == hash(either(every(4)))


def test_the_steps_of_any_function_can_be_listed():
    assert steps_due(lambda n: n % 7 == 0, 30) == [7, 14, 21, 28]
    assert steps_due(lambda n: n % 7 == 0, 0) == []
    assert steps_due(every(9), 30) == [9, 18, 27]


def test_a_moment_tells_its_last_step():
    assert [last_step(when) for when in (every(4, 0, 10), every(4), once(7))] == [10, None, 7]
    assert last_step(either(every(4, 0, 10), either(once(30)))) == 30
    assert last_step(either(every(4), once(30))) is None
    assert last_step(either(once(3), lambda n: n == 9)) is None
    assert last_step(either()) == 0
    assert last_step(lambda n: n == 9) is None


def test_the_steps_of_a_moment_are_listed_as_far_as_it_tells():
    assert steps_due(every(4, 0, 10)) == [4, 8, 10]
    assert steps_due(once(7)) == [7]
    assert steps_due(every(4)) == [4, 8]
    assert steps_due(every(4, 10)) == [10, 14, 18]
    assert steps_due(either(once(3), either(every(10, 0, 30)))) == [3, 10, 20, 30]
    assert steps_due(either(once(30), every(20))) == [20, 30, 40]
    assert steps_due(either(every(4), lambda n: n == 5)) == [4, 5, 8]
    assert steps_due(lambda n: n == 9) == steps_due(either()) == []
    assert steps_due(either(every(4)), 0) == []


@given(st.integers(1, 10**6), st.sampled_from([np.float32, np.float64, float, jnp.float32]))
def test_a_number_means_its_decimal(thousandths, kind):
    assert decimal(kind(thousandths / 1000)) == Fraction(thousandths, 1000)


def test_the_whole_is_a_share_only_where_it_is_allowed():
    assert checked_share("density", 1, whole=True) == 1.0
    with pytest.raises(ValueError, match=r"`density` must lie in \[0, 1\], got 50: .* mean 0.5"):
        checked_share("density", 50, whole=True)
