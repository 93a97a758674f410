"""The learner in the core: whose turn it is, what its optimizer is told, and what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import Loop, theirs

import jaxprune
from jaxprune import Learner, View, prune, views
from jaxprune.types import Leaves, Signals


def scaled(s: Signals) -> Leaves:
    """Each pruned leaf times a number that is learned."""
    return {path: s.learned[path] * s.dense[path] for path in s.mask}


def ones(s: Signals) -> Leaves:
    return dict.fromkeys(s.mask, jnp.float32(1))


def by_turns(step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weights at even ages, what is learned at odd ones."""
    return step % 2 == 0, step % 2 == 1


def toy(optimizer: Any = None, **values: Any) -> Any:
    learner = Learner(ones, optimizer or optax.adam(0.01), **values)
    return prune(theirs(optax.adam(0.05)), [], View(scaled), learner=learner)


def parts_of(state: Any) -> tuple[Any, Any]:
    """What belongs to the weights, and what to the learner."""
    weights = state.prune_dense, state.prune_inner
    return tiny.saved(weights), tiny.saved((state.prune_learned, state.prune_learner))


def same(a: Any, b: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_what_has_no_turn_is_held_whole() -> None:
    loop, params = Loop(toy(alternate=by_turns), compiler_options=tiny.quick()), tiny.params()
    state = loop.tx.init(params)
    for age in range(6):
        weights, learned = parts_of(state)
        bias = np.asarray(params["body"]["bias"])
        params, state = loop(params, state)
        later, learned_later = parts_of(state)
        assert same(weights, later) == (age % 2 == 1)
        assert same(learned, learned_later) == (age % 2 == 0)
        assert np.array_equal(bias, params["body"]["bias"]) == (age % 2 == 1)
        assert int(optax.tree.get(state.prune_inner, "count")) == (age + 2) // 2
        jaxprune.verify(params, state)
    assert (loop.traces, loop.compiled) == (1, 1)


def test_both_move_where_nothing_alternates() -> None:
    loop, params = Loop(toy(), compiler_options=tiny.quick()), tiny.params()
    state = loop.tx.init(params)
    weights, learned = parts_of(state)
    params, state = loop(params, state)
    later, learned_later = parts_of(state)
    assert not same(weights, later) and not same(learned, learned_later)


def test_the_gradient_is_that_of_the_loss_and_of_the_penalty() -> None:
    def penalty(s: Signals) -> jax.Array:
        return s.step.astype(jnp.float32) * sum(jnp.square(x) for x in s.learned.values())

    tx, params = toy(optax.sgd(0.1), penalty=penalty), tiny.params()
    state = tx.init(params)
    for age in range(3):
        before = tiny.saved(state)
        grads = tiny.normal(age)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for module in ("body", "head"):
            path, w = f"{module}/kernel", before.prune_dense[module]["kernel"]
            old = before.prune_learned[path]
            slope = (np.asarray(grads[module]["kernel"]) * w).sum() + 2 * age * old
            np.testing.assert_allclose(state.prune_learned[path], old - 0.1 * slope, rtol=1e-5)


def test_each_step_is_projected() -> None:
    def halved(learned: Any) -> Any:
        return jax.tree.map(lambda x: x / 2, learned)

    tx, params = toy(optax.set_to_zero(), project=halved), tiny.params()
    state = tx.init(params)
    for n in range(1, 4):
        updates, state = tx.update(tiny.zeros_like(params), state, params)
        params = optax.apply_updates(params, updates)
        assert {float(x) for x in jaxprune.get_learned(state).values()} == {0.5**n}


def test_its_optimizer_gets_extra_arguments() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, value: Any, **_: Any) -> Any:
        return jax.tree.map(lambda x: jnp.full_like(x, value), updates), state

    asking = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx, params = toy(asking), tiny.params()
    _, state = tx.update(tiny.zeros_like(params), tx.init(params), params, value=2.0)
    assert {float(x) for x in jaxprune.get_learned(state).values()} == {3.0}


def test_what_cannot_work_is_refused() -> None:
    learner = Learner(ones, optax.sgd(0.1))
    with pytest.raises(
        ValueError, match=r"`inner` must be an optimizer where something is learned"
    ):
        prune(None, [], View(scaled), learner=learner)
    with pytest.raises(ValueError, match=r"`view` must keep a copy \(copy=True\) beside a learner"):
        prune(optax.sgd(0.1), [], views.hard, learner=learner)


def test_a_method_that_learns_nothing_says_so() -> None:
    state = jaxprune.static(optax.sgd(0.1), sparsity=0.5).init(tiny.params())
    with pytest.raises(ValueError, match=r"hold a method that learns scores, got 'static'"):
        jaxprune.get_learned(state)
