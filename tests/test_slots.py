"""What an optimizer remembers of entries that begin: found by path, restarted by kind."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

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


def test_nothing_begins_nothing_changes() -> None:
    state = {"mu": {"w": jnp.ones(2)}}
    assert slots.restarted(state, {}, {}, {}) is state
