"""What stands still does so to the bit: a weight of -0.0 stays -0.0, in params and dense copy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import Loop, masks_of, theirs

import jaxprune
from jaxprune import Learner, View, landing, trees, views

NEGATIVE = np.float32(-0.0)
PLACES = {"body/kernel": (1, 2), "head/kernel": (3, 4), "body/bias": (5,)}


def with_negative_zeros(tree: Any) -> Any:
    """A tree like the params with one -0.0 in each leaf."""
    leaves = {
        path: leaf.at[PLACES[path]].set(NEGATIVE) for path, leaf in trees.by_path(tree).items()
    }
    return trees.from_paths(tree, leaves)


def around(place: str, kept: bool) -> Any:
    """Half of the entries kept, and the -0.0 among them or not."""
    masks = {}
    for path in tiny.PRUNED:
        shape = trees.by_path(tiny.params())[path].shape
        mask = np.arange(np.prod(shape)).reshape(shape) % 2 == 0
        mask[PLACES[path]] = kept if path == place else mask[PLACES[path]]
        masks[path] = jnp.asarray(mask)
    return trees.from_paths(tiny.params(), masks)


def is_negative_zero(tree: Any, path: str) -> bool:
    leaf = np.asarray(trees.by_path(tree)[path])
    return tiny.bits(leaf[PLACES[path]]) == tiny.bits(NEGATIVE)


def inner() -> Any:
    """Momentum and decay, which would move a weight without a gradient."""
    return theirs(optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9)))


def run(tx: Any, steps: int) -> Any:
    loop, params = Loop(tx, compiler_options=tiny.quick()), with_negative_zeros(tiny.params())
    state = loop.tx.init(params)
    for _ in range(steps):
        yield tiny.saved((params, state))
        params, state = loop(params, state)
    yield params, state


@pytest.mark.parametrize("on", ["gradient", "update"])
@pytest.mark.parametrize("path", tiny.PRUNED)
def test_pruned_weights_of_a_frozen_magnitude_attention(path: str, on: str) -> None:
    """The params show +0.0, bit for bit, what the dense copy holds as -0.0."""
    tx = jaxprune.magnitude_attention(
        inner(), sparsity=0.5, ramp=(0, 1), every=1, attention_on=on, dead_units="hold"
    )
    spread = around(path, kept=False)
    params, seen = with_negative_zeros(tiny.params()), 0
    state = jaxprune.next_stage(tx, params, jaxprune.static(inner(), masks=spread).init(params))
    state = state._replace(prune_count=jnp.int32(5))
    step = tiny.updater(tx)
    for n in range(3):
        params, state = step(tiny.normal(n), state, params)
        assert is_negative_zero(state.prune_dense, path)
        tiny.on_support(params, state)
        seen += int(state.prune_count)
    assert seen == 6 + 7 + 8


@pytest.mark.parametrize("path", tiny.PRUNED)
def test_kept_weights_that_stand_still_while_the_pruned_ones_explore(path: str) -> None:
    stages = {"measure_steps": 1, "improve_steps": 0, "explore_steps": 3, "stop": 4}
    tx = jaxprune.prune_and_grow(
        inner(), **stages, start=around(path, kept=True), swap_fraction=(0.0, 0.0),
        reactivate_from="init", freeze_rest=True,
    )  # fmt: skip
    params = with_negative_zeros(tiny.params())
    state, step = tx.init(params), tiny.updater(tx)
    params, state = step(tiny.normal(1), state, params)
    assert jaxprune.phase_of(state).name == "explore"
    # Training has moved them since: they are put back, in the params and in the copy.
    params, dense = with_negative_zeros(params), with_negative_zeros(state.prune_dense)
    state = state._replace(prune_dense=dense)
    for n in range(2):
        params, state = step(tiny.normal(n), state, params)
        assert masks_of(state)[path][PLACES[path]]
        assert is_negative_zero(params, path)
        assert is_negative_zero(params, "body/bias")  # with all the rest
        assert is_negative_zero(state.prune_dense, path)


def test_what_has_no_turn() -> None:
    """Weights, biases and dense copies while another part learns; and then they move."""

    def scaled(s: Any) -> Any:
        return {path: s.learned[path] * s.dense[path] for path in s.mask}

    learner = Learner(
        lambda s: dict.fromkeys(s.mask, jnp.float32(1)),
        optax.sgd(0.0),
        alternate=lambda step: (step >= 3, step < 3),
    )
    tx = jaxprune.prune(inner(), [], View(scaled), learner=learner)
    *held, (params, state) = run(tx, 4)
    for before, copies in held:
        for path in PLACES:
            assert is_negative_zero(before, path), path
        if int(copies.prune_count):
            assert all(is_negative_zero(copies.prune_dense, path) for path in tiny.PRUNED)
    assert not any(is_negative_zero(params, path) for path in PLACES)
    assert not any(is_negative_zero(state.prune_dense, path) for path in tiny.PRUNED)


def test_what_lands_is_that_zero_that_was_meant() -> None:
    """-0.0 lands on +0.0 where it is pruned, and on either zero where the view has it."""
    p, t = jnp.array([-0.0, -0.0, 0.0, 0.0, 3.0]), jnp.array([0.0, -0.0, 0.0, -0.0, -0.0])
    moves = {"w": jnp.zeros(5)}
    updates = landing.on_view({"w": p}, moves, {"w": t})
    found = jax.jit(optax.apply_updates)({"w": p}, updates)["w"]
    # From +0.0 or from 3 nothing that is added makes -0.0: there +0.0 is as near.
    wanted = jnp.array([0.0, -0.0, 0.0, 0.0, 0.0])
    tiny.same_bits(found, wanted)
    on_zero = landing.on_support({"w": p}, moves, {"w": jnp.zeros(5, bool)})
    tiny.same_bits(jax.jit(optax.apply_updates)({"w": p}, on_zero)["w"], jnp.zeros(5))


def test_a_factor_of_0_moves_nothing_not_a_bit() -> None:
    moves = {"w": jnp.array([1.0, jnp.nan, jnp.inf, -0.0])}
    for factor in (jnp.zeros(4), jnp.zeros(4, bool), jnp.zeros(1, bool)):
        (scaled,) = landing.scaled(moves, {"w": factor}).values()
        tiny.same_bits(jnp.full(4, -0.0) + scaled, jnp.full(4, -0.0))


def test_an_unpruned_leaf_under_a_hard_mask_is_left_to_its_optimizer() -> None:
    """Who says -0.0, as `set_to_zero` does not, moves it not a bit."""
    still = optax.stateless(lambda updates, _: jax.tree.map(lambda u: -jnp.zeros_like(u), updates))
    tx = jaxprune.static(still, masks=around("head/kernel", kept=True))
    *_, (params, _) = run(tx, 2)
    assert is_negative_zero(params, "body/bias")
    assert is_negative_zero(params, "head/kernel")


def test_a_view_of_other_values_than_it_could_land_on_is_refused() -> None:
    """Of views without a copy the params are the dense weights: only m w can be landed on."""

    def halved(s: Any) -> Any:
        return {path: 0.5 * w for path, w in views.masked(s.dense, s.support).items()}

    with pytest.raises(ValueError, match=r"`view` must keep a copy \(copy=True\), got .*of `views"):
        jaxprune.prune(optax.sgd(0.1), [], View(halved, copy=False))
    same = View(lambda s: views.masked(s.dense, s.support), copy=False)
    with pytest.raises(ValueError, match=r"`view` must keep a copy"):
        jaxprune.prune(optax.sgd(0.1), [], same)
    scaled = views.hard._replace(update_scale=lambda s: s.support)
    jaxprune.prune(optax.sgd(0.1), [], scaled).init(tiny.params())


def test_a_view_of_other_values_lands_beside_a_copy() -> None:
    """The case that was silent: what the state says is what the params are."""

    def halved(s: Any) -> Any:
        return {path: 0.5 * w for path, w in views.masked(s.dense, s.support).items()}

    start = {"kernel": jnp.array([[False, True], [True, False]])}
    tx = jaxprune.prune(optax.sgd(0.1), [], View(halved), start=start)
    params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
    state, step = tx.init(params), tiny.updater(tx)
    for _ in range(2):
        params, state = step(tiny.zeros_like(params), state, params)
        np.testing.assert_array_equal(params["kernel"], [[0, -2], [1.5, 0]])
        tiny.same_bits(params, jaxprune.view_params(params, state))
        jaxprune.verify(params, state)
