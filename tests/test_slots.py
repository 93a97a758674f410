"""What an optimizer remembers of entries that begin: found by path, restarted by kind."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import theirs

import jaxprune
from experiments import optimizers
from jaxprune import slots

KEPT = {"a/w": jnp.array([True, True, False, False]), "b/w": jnp.array([False, False, False])}
BEGIN = {"a/w": jnp.array([False, False, True, False]), "b/w": jnp.array([True, True, False])}


def adam(mu: Any, nu: Any) -> Any:
    return optax.ScaleByAdamState(jnp.int32(9), mu, nu)


def tree(a: Any, b: Any, dtype: Any = jnp.float32) -> Any:
    return {"a": {"w": jnp.asarray(a, dtype)}, "b": {"w": jnp.asarray(b, dtype)}}


def restarted(state: Any, params: Any = None) -> Any:
    return slots.restarted(state, BEGIN, KEPT, KEPT if params is None else params)


def test_a_leaf_without_a_kept_entry_takes_the_mean_of_all() -> None:
    state = restarted(adam(tree([1, -1, 5, 6], [7, 7, 7]), tree([2, 4, 9, 9], [0, 0, 0])))
    assert state.mu["a"]["w"].tolist() == [1, -1, 0, 6]
    assert state.nu["a"]["w"].tolist() == [2, 4, 3, 9]
    assert state.nu["b"]["w"].tolist() == [3, 3, 0]


def test_slots_of_a_kind_are_judged_together() -> None:
    """Momenta of one leaf that happen to be all positive are momenta still."""
    state = restarted(adam(tree([1, -1, 5, 6], [7, 7, 7]), tree([2, 4, 9, 9], [0, 0, 0])))
    assert state.mu["b"]["w"].tolist() == [0, 0, 7]


def test_means_of_half_precision_do_not_overflow() -> None:
    kept = {"w": jnp.ones(70_000, bool).at[0].set(False)}
    state = {"nu": {"w": jnp.full(70_000, 3.0, jnp.float16)}}
    found = slots.restarted(state, {"w": ~kept["w"]}, kept, kept)
    assert float(found["nu"]["w"][0]) == 3.0


def test_slots_of_a_parameter_that_is_not_pruned_are_left_alone() -> None:
    """Its path ends in that of a pruned one, and it has the same shape."""
    kept, begin = {"w": jnp.array([True, False])}, {"w": jnp.array([False, True])}
    state = {"mu": {"head": {"w": jnp.array([5.0, -5.0])}, "w": jnp.array([4.0, -4.0])}}
    params = {"head/w": jnp.ones(2), "w": jnp.ones(2)}
    found = slots.restarted(state, begin, kept, params)
    np.testing.assert_array_equal(found["mu"]["head"]["w"], [5, -5])
    np.testing.assert_array_equal(found["mu"]["w"], [4, 0])


GROWING: Any = {
    "rigl": lambda inner: jaxprune.rigl(inner, sparsity=0.5, stop=9, every=2),
    "sparse_evolution": lambda inner: jaxprune.sparse_evolution(
        inner, sparsity=0.5, stop=9, every=2
    ),
    "granet": lambda inner: jaxprune.granet(inner, sparsity=0.5, ramp=(0, 9)),
    "acdc": lambda inner: jaxprune.acdc(
        inner, sparsity=0.5, begin=1, sparse_steps=1, dense_steps=1, stop=9
    ),
    "prune_and_grow": lambda inner: jaxprune.prune_and_grow(inner, sparsity=0.5, stop=900),
}
growing = pytest.mark.parametrize("name", GROWING)
FLATTENING: Any = {
    "adam": lambda: optax.flatten(optax.adam(0.1)),
    "momentum": lambda: optax.chain(optax.clip(1.0), optax.flatten(optax.sgd(0.1, momentum=0.9))),
    "each leaf": lambda: each_flattened(optax.adam(0.1)),
}


def each_flattened(inner: Any) -> Any:
    """Every leaf as a vector, at its own path."""

    def vectors(tree: Any) -> Any:
        return jax.tree.map(jnp.ravel, tree)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        moves, state = inner.update(vectors(updates), state, vectors(params))
        return jax.tree.map(lambda u, v: v.reshape(u.shape), updates, moves), state

    return optax.GradientTransformation(lambda params: inner.init(vectors(params)), update)


@growing
@pytest.mark.parametrize("flattening", FLATTENING)
def test_memory_that_belongs_to_no_parameter_is_refused_where_weights_grow(
    name: str, flattening: str
) -> None:
    """It would be that of another weight: grown ones would move by several learning rates."""
    with pytest.raises(ValueError, match=r"`inner` must keep .* where weights grow, got .*shape"):
        GROWING[name](theirs(FLATTENING[flattening]())).init(tiny.params())


def test_what_never_grows_may_flatten() -> None:
    inner = theirs(FLATTENING["adam"]())
    for tx in (
        jaxprune.gradual_magnitude(inner, sparsity=0.5, ramp=(0, 4)),
        jaxprune.static(inner, sparsity=0.5),
        jaxprune.snip(inner, sparsity=0.5),
        jaxprune.straight_through(inner, sparsity=0.5, ramp=(0, 4)),
    ):
        tx.init(tiny.params())


OPTIMIZERS: Any = {
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "lamb": lambda: optax.lamb(0.1),
    "lbfgs": lambda: optax.lbfgs(0.1),  # a history of each leaf, and of each step
    "lion": lambda: optax.lion(0.1),
    "mechanize": lambda: optax.contrib.mechanize(optax.adam(0.1)),  # several rates of its own
    "muon": lambda: optax.contrib.muon(0.1),  # coefficients of a polynomial
    "novograd": lambda: optax.novograd(0.1),
    "prodigy": lambda: optax.contrib.prodigy(),
    "schedule-free": lambda: optax.contrib.schedule_free_adamw(0.1),
    "sm3": lambda: optax.sm3(0.1),  # vectors along the axes of each leaf
    "by parts": lambda: optax.multi_transform(
        {"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)}, {"body": "a", "head": "b"}
    ),
    "clipped, accumulated": lambda: optax.MultiSteps(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)), 2
    ).gradient_transformation(),
    "with injected numbers": lambda: optax.inject_hyperparams(optax.adamw)(0.1),
}


@growing
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_memory_at_the_paths_of_the_parameters_is_taken(name: str, optimizer: str) -> None:
    GROWING[name](theirs(OPTIMIZERS[optimizer]())).init(tiny.params())


@growing
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_optimizers_of_the_experiments_can_grow(name: str, optimizer: str) -> None:
    options = {"name": optimizer, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    options |= {"decayed": "", "warmup_from": 0.5}
    config = {"optimizer": {**options, "warmup": 0.1, "drops": ()}, "steps": 100}
    state = GROWING[name](theirs(optimizers.inner(config))).init(tiny.params())
    assert int(state.prune_count) == 0


def test_nothing_begins_nothing_changes() -> None:
    state = {"mu": {"w": jnp.ones(2)}}
    assert slots.restarted(state, {}, {}, {}) is state
