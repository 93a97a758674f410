"""Phases that come back in turn, against a walk through all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune import Phase
from jaxprune.schedules import Every, cycles, steps_due
from jaxprune.schedules.moments import last_step

LAST_AGE = 2**31 - 1

lengths = st.integers(0, 9)
stages = st.lists(st.tuples(st.sampled_from("abc"), lengths), min_size=1, max_size=4)
firsts = st.none() | st.tuples(st.sampled_from("ad"), lengths)


def laid_out(course):
    """The phases of all cycles one after another, and the step at which each of them ends."""
    first = [] if course.first is None else [course.first]
    parts = [*first, *course.parts * course.number]
    ends = np.cumsum([length for _, length in parts], dtype=int).tolist()
    return [*parts, (course.then, None)], ends


def assert_walked(course, step):
    """The phase at a step is that which a walk through all of them finds."""
    parts, _ = laid_out(course)
    place, within, length = oracle.phase(parts, step)
    phase = course(step)
    assert (phase.name, int(phase.step), int(phase.length)) == (parts[place][0], within, length)
    assert [bool(phase.named(name)) for name in phase.names] == [
        name == phase.name for name in phase.names
    ]


@given(stages, firsts, st.integers(1, 80), st.data())
def test_a_phase_of_cycles_is_the_one_that_a_walk_finds(parts, first, stop, data):
    before, length = (first[1] if first else 0), sum(n for _, n in parts)
    if not length or stop < before + length:
        with pytest.raises(ValueError, match="`stop` must leave room for a cycle"):
            cycles(*parts, stop=stop, then="b", first=first)
        return
    course = cycles(*parts, stop=stop, then="b", first=first)
    assert course.length == length
    assert before + course.number * length <= stop < before + (course.number + 1) * length
    _, ends = laid_out(course)
    step = data.draw(st.sampled_from(ends) | st.integers(0, 2 * stop))
    for near in {max(step - 1, 0), step, step + 1}:
        assert_walked(course, near)


def of_number(parts, first, number):
    """So many cycles of some parts, after a first phase if there is one."""
    before, length = (first[1] if first else 0), sum(n for _, n in parts)
    stop = before + number * length if length else None
    return cycles(*parts, stop=stop, then="e", first=first)


few = st.builds(of_number, stages, firsts, st.integers(1, 4))


@given(few)
def test_the_ends_of_phases_are_those_that_a_walk_finds(course):
    laid, ends = laid_out(course)
    for name in {name for name, _ in laid[:-1]}:
        expected = {end for (part, _), end in zip(laid, ends, strict=False) if part == name and end}
        assert steps_due(course.at_end_of(name), 200) == sorted(expected)
        assert last_step(course.at_end_of(name)) == max(expected, default=0)


@given(few)
def test_the_first_steps_of_phases_are_those_that_a_walk_finds(course):
    laid, ends = laid_out(course)
    begins = {}
    for (name, length), begin in zip(laid, [0, *ends], strict=True):
        if length != 0:
            begins.setdefault(name, begin)
    assert course.begins == begins
    assert all(course(step).name == name for name, step in begins.items())


def test_the_cycle_of_a_step_is_held_at_both_ends():
    course = cycles(("look", 2), ("train", 3), stop=20, then="train", first=("train", 4))
    found = [int(course.cycle(step)) for step in range(25)]
    assert found == [0] * 9 + [1] * 5 + [2] * 11


def test_cycles_of_five_stages():
    course = cycles(("measure", 3), ("improve", 0), ("explore", 2), stop=14, then="train")
    names = [course(step).name for step in range(12)]
    assert names == (["measure"] * 3 + ["explore"] * 2) * 2 + ["train"] * 2
    assert course(0).names == ("measure", "improve", "explore", "train")
    assert course.at_end_of("measure") == course.at_end_of("improve") == Every(5, 3, 8)
    assert course.at_end_of("explore") == Every(5, 5, 10)


def test_a_phase_before_the_cycles_ends_too():
    course = cycles(("sparse", 2), ("dense", 1), stop=12, then="sparse", first=("dense", 4))
    names = [course(step).name for step in range(12)]
    assert names == ["dense"] * 4 + (["sparse"] * 2 + ["dense"]) * 2 + ["sparse"] * 2
    assert steps_due(course.at_end_of("dense")) == [4, 7, 10]
    assert steps_due(course.at_end_of("sparse")) == [6, 9]


def test_without_a_stop_there_is_one_cycle():
    course = cycles(("explore", 5), then="exploit")
    assert [course(step).name for step in (0, 4, 5, LAST_AGE)] == ["explore"] * 2 + ["exploit"] * 2
    assert [int(x) for x in course(7)] == [1, 2, -1]
    assert cycles(("explore", 0), then="exploit")(0).name == "exploit"
    for_ever = cycles(then="explore")(LAST_AGE)
    assert (for_ever.name, int(for_ever.step), int(for_ever.length)) == ("explore", LAST_AGE, -1)


@pytest.mark.parametrize("first", [None, ("before", 7)])
@pytest.mark.parametrize("lengths", [(1, 0), (2, 3), (2**30, 2**29), (LAST_AGE - 8, 1)])
def test_phases_are_right_at_the_last_ages(first, lengths):
    before, length = (first[1] if first else 0), sum(lengths)
    course = cycles(("a", lengths[0]), ("b", lengths[1]), stop=LAST_AGE, then="c", first=first)
    end = before + course.number * length
    for step in (LAST_AGE, LAST_AGE - 1, end, end - 1, end - length, 2**30, before, 0):
        step = min(step, LAST_AGE)
        turn, within = divmod(step - before, length)
        expected = ("a", within, lengths[0])
        if within >= lengths[0]:
            expected = ("b", within - lengths[0], lengths[1])
        if step < before:
            expected = ("before", step, before)
        if step >= end:
            expected = ("c", step - end, -1)
        phase = course(step)
        assert (phase.name, int(phase.step), int(phase.length)) == expected
        assert int(course.cycle(step)) == min(max(turn, 0), course.number - 1)


def test_the_program_of_a_course_does_not_grow_with_its_cycles():
    def size(number):
        course = cycles(("a", 3), ("b", 2), stop=5 * number, then="c")
        jaxpr = jax.make_jaxpr(lambda n: tuple(course(n)))(jnp.int32(0))
        return len(str(jaxpr).splitlines()), sum(np.size(c) for c in jaxpr.consts)

    assert size(2) == size(400_000_000)
    assert size(2) != (0, 0)


def test_a_phase_of_cycles_is_int32_traced_or_not():
    course = cycles(("a", 3), ("b", 2), stop=20, then="c", first=("c", 1))
    steps = np.arange(25, dtype=np.int32)
    mapped = jax.jit(jax.vmap(course))(steps)
    assert mapped.names == course(0).names == ("c", "a", "b")
    for phases in (map(course, steps.tolist()), map(jax.jit(course), steps)):
        phases = list(phases)
        assert {(x.dtype, x.shape) for phase in phases for x in phase} == {(np.dtype("int32"), ())}
        np.testing.assert_array_equal(np.array([tuple(p) for p in phases]).T, mapped)


def test_courses_are_compared_by_value_and_stand_in_a_static_place():
    def course(stop):
        return cycles(["a", np.int64(3)], ("b", 2), stop=stop, then="c", first=["d", 1])

    assert course(11) == course(12) == cycles(("a", 3), ("b", 2), stop=11, then="c", first=("d", 1))
    assert hash(course(11)) == hash(course(12)) and course(11) != course(16)
    traces = []

    def read(course, step):
        traces.append(course)
        return course(step)

    read = jax.jit(read, static_argnums=0)
    assert [read(course(stop), 2).name for stop in (11, 12)] == ["a", "a"]
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: cycles(("a", 5), ("b", 2), stop=3, then="c"),
            ValueError,
            "`stop` must leave room for a cycle, which is 7 updates long, got 3: none would run",
        ),
        (
            lambda: cycles(("a", 5), stop=6, then="c", first=("b", 2)),
            ValueError,
            "`stop` must leave room for a cycle, which is 5 updates long and begins at 2, got 6",
        ),
        (lambda: cycles(stop=9, then="a"), ValueError, "a cycle, which is 0 updates long, got 9"),
        (lambda: cycles(("a", 0), stop=9, then="a"), ValueError, "which is 0 updates long, got 9"),
        (lambda: cycles(("a", 5), stop=0, then="b"), ValueError, "`stop` must be at least 1"),
        (lambda: cycles(("a", 5), stop=9.5, then="b"), TypeError, "`stop` must be an integer"),
        (
            lambda: cycles(("a", -1), then="b"),
            ValueError,
            "length of phase 'a'` must be at least 0",
        ),
        (lambda: cycles(("a", 1.5), then="b"), TypeError, "phase 'a'` must be an integer, got 1.5"),
        (lambda: cycles(("a", None), then="b"), TypeError, "must be an integer, got None"),
        (lambda: cycles("ab", then="b"), TypeError, r"`parts` must give a phase as \(name"),
        (lambda: cycles((5, "a"), then="b"), TypeError, r"`parts` must give a phase as \(name"),
        (lambda: cycles(("a", 5), then="b", first=5), TypeError, r"`first` must give a phase as"),
        (lambda: cycles(("a", 5), then=None), TypeError, "`then` must be the name of a phase"),
        (
            lambda: cycles(("a", 5), ("b", 2), then="c", first=("d", 1)).at_end_of("c"),
            ValueError,
            "`name` must be 'd' or 'a' or 'b', got 'c'",
        ),
    ],
)
def test_what_a_course_that_cannot_be_gets(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["outside", "jit"])
def test_a_phase_has_no_name_that_is_not_there(transform):
    course = cycles(("explore", 2), ("train", 3), then="rest")
    read = transform(lambda n: [course(n).named(x) for x in ("explore", "x", "rest")])
    named = [read(step) for step in (0, 2, 5)]
    assert [[bool(x) for x in xs] for xs in named] == [
        [True, False, False],
        [False, False, False],
        [False, False, True],
    ]
    assert {(x.dtype, x.shape) for xs in named for x in xs} == {(np.dtype(bool), ())}


def test_a_phase_without_names_has_none():
    assert not Phase(jnp.int32(0), jnp.int32(0), jnp.int32(-1)).named("train")


def test_lengths_beyond_the_last_age_are_no_silent_wrap_around():
    with pytest.raises(OverflowError):
        cycles(("a", LAST_AGE), ("b", LAST_AGE), then="c")(0)
