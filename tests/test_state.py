"""What a state was made from: specs that compare, describe, pickle, and find themselves again."""

import functools
import json
import pickle
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import theirs

import jaxprune
from jaxprune import keep, schedules, scores, views
from jaxprune.spec import Spec
from jaxprune.state import states_of
from jaxprune.types import MaskUpdate, Signals

START = {
    "body": {"kernel": np.ones((4, 8), bool)},
    "head": {"kernel": np.arange(40).reshape(8, 5) % 2 == 0},
}


def gradual(sparsity: Any = 0.5, **values: Any) -> Any:
    return jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=sparsity, ramp=(0, 4), **values)


def two(signals: Signals) -> int:
    del signals
    return 2


def several(number: int, signals: Signals) -> int:
    del signals
    return number


def custom(score: Any = scores.magnitude, count: Any = two) -> Any:
    update = MaskUpdate(schedules.once(1), score, keep.largest(count))
    return jaxprune.prune(optax.sgd(0.1), [update], views.hard)


def spec(tx: Any) -> Spec:
    return jax.eval_shape(tx.init, tiny.params()).prune_spec


@pytest.mark.parametrize(
    "make",
    [
        gradual,
        lambda: gradual(np.float32(0.5)),
        lambda: gradual(start=jax.tree.map(jnp.array, START)),
        lambda: gradual(overrides={"head": 0.1}, where=["body", "head"]),
        lambda: gradual(overrides={}),
        custom,
        lambda: custom(count=functools.partial(several, 3)),
    ],
)
def test_two_constructions_are_equal(make: Any) -> None:
    a, b = spec(make()), spec(make())
    assert a == b
    assert hash(a) == hash(b)
    again = pickle.loads(pickle.dumps(a))
    assert again == a
    assert again.describe() == a.describe()
    json.dumps(a.describe())


def test_other_rules_are_another_spec() -> None:
    other = [
        gradual(),
        gradual(0.25),
        gradual(every=8),
        gradual(where="head"),
        gradual(start=START),
        gradual(start=START | {"head": {"kernel": ~START["head"]["kernel"]}}),
        jaxprune.straight_through(optax.sgd(0.1), sparsity=0.5, ramp=(0, 4)),
        jaxprune.gradual_magnitude(None, sparsity=0.5, ramp=(0, 4)),
        custom(),
        custom(scores.saliency),
        custom(count=functools.partial(several, 3)),
        custom(count=functools.partial(several, 4)),
        custom(count=lambda signals: 2),
        custom(count=lambda signals: 2),
    ]
    assert len({spec(tx) for tx in other}) == len(other)
    assert len({repr(spec(tx)) for tx in other[:8]}) == 8


def test_states_of_two_constructions_are_mapped_together() -> None:
    a, b = (gradual(start=START).init(tiny.params()) for _ in range(2))
    both = jax.tree.map(lambda x, y: jnp.stack([x, y]), a, b)
    assert both.prune_count.shape == (2,)
    with pytest.raises(ValueError, match=r"[Mm]ismatch|differ"):
        jax.tree.map(lambda x, y: x, a, gradual(0.25).init(tiny.params()))


def test_jit_never_takes_another_methods_trace() -> None:
    """Two custom methods with states of the same shapes through one compiled function."""
    traces = []

    @jax.jit
    def sparsity(state: Any) -> Any:
        traces.append(1)
        return jaxprune.sparsity_of(state)

    for tx in (custom(), custom(), custom(scores.saliency)):
        sparsity(tx.init(tiny.params()))
    assert len(traces) == 2


def test_describe_is_json_and_check_names_what_differs() -> None:
    state = gradual(overrides={"head": 0.1}, start=START).init(tiny.params())
    saved = json.loads(json.dumps(jaxprune.describe(state)))
    assert (saved["method"], saved["sparsity"], saved["ramp"]) == ("gradual_magnitude", 0.5, [0, 4])
    assert saved["overrides"] == {"head": 0.1}
    jaxprune.check_rules(saved, state)
    with pytest.raises(ValueError, match=r"got overrides=None where {'head': 0.1} was saved"):
        jaxprune.check_rules(saved, gradual(start=START).init(tiny.params()))
    with pytest.raises(ValueError, match="got start="):
        other = START | {"head": {"kernel": ~START["head"]["kernel"]}}
        jaxprune.check_rules(
            saved, gradual(overrides={"head": 0.1}, start=other).init(tiny.params())
        )
    with pytest.raises(ValueError, match="got method='prune' where 'gradual_magnitude' was saved"):
        jaxprune.check_rules(saved, custom().init(tiny.params()))


def test_flax_saves_what_has_leaves_and_passes_over_the_spec() -> None:
    tx = gradual(start=START)
    state = tx.init(tiny.params())
    state = state._replace(prune_count=state.prune_count + 3)
    data = flax.serialization.to_bytes(state)
    again: Any = flax.serialization.from_bytes(tx.init(tiny.params()), data)
    assert again.prune_spec == state.prune_spec
    tiny.same_bits(jax.tree.map(jnp.asarray, again), state)


def test_states_are_found_in_any_nesting() -> None:
    params = tiny.params()
    labels = {"body": "a", "head": "b"}
    both = optax.multi_transform({"a": theirs(gradual()), "b": theirs(gradual(0.25))}, labels)
    tx = optax.chain(optax.clip(1.0), optax.MultiSteps(both, 2).gradient_transformation())
    assert [s.prune_spec for s in states_of(tx.init(params))] == [
        spec(gradual()),
        spec(gradual(0.25)),
    ]


def test_a_state_without_a_method_or_with_nested_ones_is_an_error() -> None:
    params = tiny.params()
    with pytest.raises(ValueError, match=r"hold the state of a jaxprune method.*target tree"):
        jaxprune.get_masks(optax.adam(0.1).init(params))
    with pytest.raises(ValueError, match="`inner` must hold methods side by side, got 'one inside"):
        jaxprune.gradual_magnitude(gradual(), sparsity=0.25, ramp=(0, 4)).init(params)
    nested = gradual().init(params)._replace(prune_inner=gradual(0.25).init(params))
    for reader in (jaxprune.get_masks, jaxprune.sparsity_of, jaxprune.describe):
        with pytest.raises(ValueError, match="side by side, got 'one inside another'"):
            reader(nested)
