"""What reports say of methods that learn: notes, what is learned, and of what."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import updater

import jaxprune
from jaxprune import distributions, keep, schedules, views
from jaxprune.units import Entries


def attention(**values: Any) -> Any:
    given = {"sparsity": 0.5, "learner": optax.sgd(0.1), "ramp": None}
    return jaxprune.layer_attention(optax.sgd(0.1), **given | values)


def scored(schedule: Any, distribution: Any = "uniform", stacked: Any = None) -> Any:
    """A method of one's own: one score an entry, learned; how many are kept a budget says."""
    budget = distributions.Budget(schedule, distribution)
    return jaxprune.prune(
        optax.sgd(0.1),
        [jaxprune.MaskUpdate(schedules.once(2), lambda s: s.learned, keep.largest(budget))],
        jaxprune.View(lambda s: views.masked(s.dense, s.support)),
        units=Entries(stacked=stacked),
        learner=jaxprune.Learner(
            init=lambda s: {path: jnp.zeros(m.shape) for path, m in s.mask.items()},
            optimizer=optax.sgd(0.1),
        ),
    )


def block(name: int) -> Any:
    """A convolution, and a norm whose name says that it follows."""
    return {
        f"conv_{name}": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
        f"norm_{name}": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
    }


def network() -> Any:
    return {**block(0), **block(1), "head": {"kernel": jnp.ones((4, 5))}}


def scanned() -> Any:
    """Three layers in one leaf along its second axis, and one alone."""
    return {"layers": {"kernel": jnp.ones((4, 3, 5))}, "head": {"kernel": jnp.ones((4, 5))}}


def side_by_side() -> Any:
    """Method a learns, b has a note of its own, and one block is not pruned."""
    both = {
        "a": tiny.ours(attention()),
        "b": tiny.ours(
            jaxprune.magnitude_attention(tiny.theirs(optax.adam(0.1)), sparsity=0.5, ramp=(0, 4))
        ),
        "dense": optax.sgd(0.1),
    }
    labels = {"conv_0": "a", "norm_0": "a", "head": "b"}
    return tiny.theirs(
        optax.multi_transform(both, labels | dict.fromkeys(("conv_1", "norm_1"), "dense"))
    )


# ----------------------------------------------------------------------------------------- the plan


def test_the_notes_of_two_methods_are_both_printed() -> None:
    def noted(note: str) -> Any:
        return tiny.ours(jaxprune.prune(optax.sgd(0.1), [], views.hard, note=note))

    both = {"a": noted("One thing."), "b": noted("Another.")}
    plan = jaxprune.plan(optax.multi_transform(both, {"body": "a", "head": "b"}), tiny.params())
    assert plan.note == "One thing. Another."
    assert str(plan).splitlines()[-1] == plan.note


def test_a_note_that_has_nothing_to_say_is_not_printed() -> None:
    plan = jaxprune.plan(attention(), tiny.params())
    assert plan.note == ""
    assert str(plan).splitlines()[-1] == "numbers learned beside the weights: 2"


@pytest.mark.parametrize(("stacked", "layers"), [(None, 1), ({"layers": 1}, 3)])
def test_a_plan_tells_how_much_is_learned(stacked: Any, layers: int) -> None:
    tx = attention(stacked=stacked)
    plan = jaxprune.plan(tx, scanned())
    learned = {leaf.path: leaf.learned for leaf in plan.leaves}
    assert learned == {"head/kernel": 1, "layers/kernel": layers}
    of_state = jaxprune.get_learned(tx.init(scanned()))
    assert learned == {path: x.size for path, x in of_state.items()}
    assert plan.learned == 1 + layers
    header, _, head, stack, *lines = str(plan).splitlines()
    assert header.endswith("  learned")
    assert (head.split()[-1], stack.split()[-1]) == ("1", str(layers))
    assert f"numbers learned beside the weights: {1 + layers}" in lines


def test_a_plan_knows_whether_what_is_learned_decides_how_much_is_kept() -> None:
    plan = jaxprune.plan(attention(), tiny.params())
    assert plan.kept is None
    assert {leaf.ends_as_learned for leaf in plan.leaves if leaf.pruned} == {True}
    assert "kept at the end: as it is learned" in str(plan)
    assert str(plan).count("as it is learned") == 3  # two leaves, and all
    for schedule, distribution, kept, told in (
        (schedules.constant(0.5), "uniform", 36, "kept at the end: 36 of 72"),
        (lambda n: 0.5, "uniform", None, "kept at the end: as the schedule says"),
        (lambda n: 0.5, "global", None, "kept at the end: as the schedule says"),
    ):
        plan = jaxprune.plan(scored(schedule, distribution), tiny.params())
        assert (plan.kept, plan.learned) == (kept, 72)
        assert told in str(plan)
        assert {leaf.ends_as_learned for leaf in plan.leaves} == {False}
        assert str(plan).count("by rank or schedule") == (0 if kept else 2)


def test_a_plan_of_what_learns_nothing_does_not_speak_of_it() -> None:
    plan = jaxprune.plan(
        jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=0.5, ramp=(0, 4)), tiny.params()
    )
    assert plan.learned == 0
    assert {leaf.learned for leaf in plan.leaves} == {None}
    assert "learned" not in str(plan)


def test_a_plan_of_two_methods_of_which_one_learns() -> None:
    plan = jaxprune.plan(side_by_side(), jax.eval_shape(network))
    rows = {leaf.path: leaf for leaf in plan.leaves if leaf.pruned}
    assert {path: leaf.learned for path, leaf in rows.items()} == {
        "conv_0/kernel": 1,
        "head/kernel": None,
    }
    assert [leaf.ends_as_learned for leaf in rows.values()] == [True, False]
    assert (plan.kept, plan.learned) == (None, 1)
    assert "kept at the end: as it is learned" in str(plan)
    assert 'attention_on="update"' in plan.note  # of the one method that has something to say


# -------------------------------------------------------------------------------------- the summary


def test_a_summary_shows_what_is_learned_of_each_layer() -> None:
    params, state = tiny.params(), attention().init(tiny.params())
    learned = {"body/kernel": jnp.float32(0.25), "head/kernel": jnp.float32(0.75)}
    summary = jaxprune.summarize(params, state._replace(prune_learned=learned))
    assert [leaf.learned for leaf in summary.leaves] == [0.25, 0.75]
    assert [leaf.learned_range for leaf in summary.leaves] == [(0.25, 0.25), (0.75, 0.75)]
    _, header, _, body, head, total = str(summary).splitlines()
    assert header.endswith("  learned")
    assert (body.split()[-1], head.split()[-1]) == ("0.25", "0.75")
    assert total.split() == ["all", "0.0000", "72", "72", "72"]


def test_a_summary_of_stacked_layers_tells_the_range_and_the_units_of_each() -> None:
    params, state = scanned(), attention(stacked={"layers": 1}).init(scanned())
    learned = {
        "head/kernel": jnp.float32(0.5),
        "layers/kernel": jnp.array([0.25, 0.5, 0.9], jnp.float32).reshape(1, 3, 1),
    }
    mask = {"layers": {"kernel": jnp.ones((4, 3, 5), bool).at[:, 1, :2].set(False)}}
    state = state._replace(prune_learned=learned, prune_mask=state.prune_mask | mask)
    head, stack = jaxprune.summarize(params, state).leaves
    assert (head.learned, head.learned_range) == (0.5, (0.5, 0.5))
    assert stack.learned == pytest.approx(0.55)
    assert stack.learned_range == pytest.approx((0.25, 0.9))
    assert (stack.dead_units, stack.units) == (2, 15)
    assert "0.55 (0.25 to 0.9)" in str(jaxprune.summarize(params, state))
    budgeted = scored(schedules.constant(0.5), stacked={"layers": 1}).init(scanned())
    assert [leaf.units for leaf in jaxprune.summarize(params, budgeted).leaves] == [5, 15]


def test_a_summary_of_scores_of_entries_tells_their_mean_and_range() -> None:
    rng = np.random.default_rng(0)
    values = {path: rng.normal(size=tiny.size(path)) for path in tiny.PRUNED}
    shapes = {"body/kernel": (4, 8), "head/kernel": (8, 5)}
    learned = {
        path: jnp.asarray(x.reshape(shapes[path]), jnp.float32) for path, x in values.items()
    }
    state = scored(schedules.constant(0.5)).init(tiny.params())
    for leaf in jaxprune.summarize(tiny.params(), state._replace(prune_learned=learned)).leaves:
        expected = values[leaf.path]
        assert leaf.learned == pytest.approx(expected.mean(), rel=1e-5)
        assert leaf.learned_range == pytest.approx((expected.min(), expected.max()))
    plain = str(jaxprune.summarize(tiny.params(), state))
    assert " to " not in plain  # all are 0


def test_a_summary_tells_of_what_is_learned_that_is_nan() -> None:
    tx, params = attention(), tiny.params()
    state = tx.init(params)
    learned = {**state.prune_learned, "body/kernel": jnp.float32(jnp.nan)}
    state = state._replace(prune_learned=learned)
    params, state = updater(tx)(tiny.zeros_like(params), state, params)
    summary = jaxprune.summarize(params, state)
    assert summary.skipped == 1
    text = str(summary)
    assert "skipped refreshes: 1, because a score, or what is learned, was NaN" in text
    assert text.splitlines()[3].split()[-1] == "nan"


def test_a_summary_of_two_methods_of_which_one_learns() -> None:
    tx, params = side_by_side(), network()
    params, state = updater(tx)(tiny.zeros_like(params), tx.init(params), params)
    summary = jaxprune.summarize(params, state)
    found = {leaf.path: leaf.learned for leaf in summary.leaves}
    attentions = jaxprune.get_learned(state)
    assert found == {"conv_0/kernel": float(attentions["conv_0/kernel"]), "head/kernel": None}
    header, _, conv, head = str(summary).splitlines()[1:5]
    assert header.endswith("  learned")
    assert conv.split()[-1] == f"{found['conv_0/kernel']:.4g}"
    assert head.split()[-3:] == ["0", "of", "5"]


def test_a_summary_of_what_learns_nothing_does_not_speak_of_it() -> None:
    state = jaxprune.static(optax.sgd(0.1), sparsity=0.5).init(tiny.params())
    summary = jaxprune.summarize(tiny.params(), state)
    assert {(leaf.learned, leaf.learned_range) for leaf in summary.leaves} == {(None, None)}
    assert "learned" not in str(summary)
