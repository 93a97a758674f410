"""First masks: drawn in `init`, so that they are true before the first update."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import masks_of, updater

import jaxprune
from jaxprune import keep, trees, views
from jaxprune.distributions import Budget
from jaxprune.schedules import constant
from jaxprune.transform import AtRandom
from jaxprune.units import Channels, Entries, Group

HALF = {"body/kernel": 16, "head/kernel": 20}
SPREAD = {"sparsity": 0.5, "distribution": "uniform"}

DRAWN: Any = {
    "static": lambda **values: jaxprune.static(optax.sgd(0.1), **SPREAD, **values),
    "rigl": lambda **values: jaxprune.rigl(optax.sgd(0.1), **SPREAD, every=4, stop=9, **values),
    "sparse_evolution": lambda **values: jaxprune.sparse_evolution(
        optax.sgd(0.1), **SPREAD, every=4, stop=9, **values
    ),
    "prune_and_grow": lambda **values: jaxprune.prune_and_grow(
        optax.sgd(0.1), **SPREAD, stop=450, **values
    ),
}
every_method = pytest.mark.parametrize("name", DRAWN)


def at_random(word: Any, units: Any = None, seed: Any = 0) -> Any:
    """A method of one's own that draws its masks and leaves them."""
    units = Entries() if units is None else units
    return jaxprune.prune(
        optax.sgd(0.1), [], views.hard, units=units, start=AtRandom(word), seed=seed
    )


@every_method
def test_masks_are_true_before_the_first_update(name: str) -> None:
    tx, params = DRAWN[name](), tiny.params()
    state = tx.init(params)
    before = {path: mask.copy() for path, mask in masks_of(state).items()}
    assert tiny.kept(state) == HALF
    assert float(jaxprune.sparsity_of(state)) == 0.5
    tiny.on_support(jaxprune.view_params(params, state), state)
    step = updater(tx)
    for n in range(2):
        params, state = step(tiny.normal(n), state, params)
        tiny.same_bits(masks_of(state), before)


@every_method
def test_the_seed_and_the_shapes_alone_decide(name: str) -> None:
    """Not the values, nor jit, nor which leaves there are beside."""
    tx, params = DRAWN[name](), tiny.params()
    masks = masks_of(tx.init(params))
    tiny.same_bits(masks_of(tx.init(tiny.normal(7))), masks)
    tiny.same_bits(masks_of(jax.jit(tx.init)(params)), masks)
    body = masks_of(tx.init({"body": params["body"]}))
    tiny.same_bits(body["body/kernel"], masks["body/kernel"])
    other = masks_of(DRAWN[name](seed=1).init(params))
    assert all((other[path] != masks[path]).any() for path in masks)
    assert (masks["body/kernel"].ravel() != masks["head/kernel"].ravel()[:32]).any()


def test_a_sweep_of_seeds_has_the_masks_of_its_single_runs() -> None:
    def drawn(seed: Any) -> Any:
        tx = jaxprune.static(None, **SPREAD, seed=seed)
        return jaxprune.get_masks(tx.init(tiny.params()))

    swept = jax.vmap(drawn)(jnp.array([0, 5]))
    for i, seed in enumerate((0, 5)):
        tiny.same_bits(tiny.part(swept, i), drawn(seed))


def test_no_step_compiles_a_draw() -> None:
    """But that of a method whose scores are drawn."""

    def draws(tx: Any) -> bool:
        params = tiny.params()
        return "random_bits" in str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))

    found = {name: draws(make()) for name, make in DRAWN.items()}
    assert found == dict.fromkeys(DRAWN, False) | {"sparse_evolution": True}


def test_any_word_of_keep_may_be_drawn() -> None:
    params = tiny.params()
    for tx, kept in (
        (at_random(keep.largest(30)), {"*": 30}),
        (at_random(keep.largest(Budget(constant(0.75), "uniform"))), {"body/kernel": 8}),
        (at_random(keep.largest(Budget(constant(0.75), "global"))), {"*": 18}),
        (at_random(keep.n_of_m(1, 4)), {"body/kernel": 8, "head/kernel": 10}),
        (at_random(keep.everything), {"*": 72}),
        (at_random(keep.above(1.0)), {"*": 0}),
    ):
        found = tiny.kept(tx.init(params))
        assert found | {"*": sum(found.values())} == found | {"*": sum(found.values())} | kept
    groups = masks_of(at_random(keep.n_of_m(1, 4)).init(params))["head/kernel"]
    assert (groups.reshape(2, 4, 5).sum(1) == 1).all()


def test_channels_are_drawn_too() -> None:
    group = Group(8, {"body/kernel": 1, "body/bias": 0, "head/kernel": 0})
    tx = at_random(keep.largest(5), Channels({"hidden": group}))
    params = tiny.params()
    state = tx.init(params)
    mask = masks_of(state)["hidden"]
    assert mask.shape == (8,) and mask.sum() == 5
    params, state = updater(tx)(tiny.normal(1), state, params)
    for path, axis in group.members.items():
        zeros = np.moveaxis(np.asarray(trees.by_path(params)[path]), axis, 0)[~mask]
        assert zeros.size and not tiny.bits(zeros).any()


def test_a_plan_knows_how_many_are_drawn() -> None:
    by_leaf, together = (
        jaxprune.plan(at_random(keep.largest(Budget(constant(0.75), spread))), tiny.params())
        for spread in ("uniform", "global")
    )
    now = {leaf.path: leaf.density_now for leaf in by_leaf.leaves if leaf.pruned}
    assert now == {"body/kernel": 0.25, "head/kernel": 0.25}
    assert (by_leaf.kept, together.kept) == (18, 18)


def test_a_network_of_two_is_refused() -> None:
    """`optax.lookahead` holds slow weights beside the fast ones."""
    params = optax.LookaheadParams.init_synced(tiny.params())
    with pytest.raises(TypeError, match=r"`params` must be one network, got .*lookahead"):
        DRAWN["static"]().init(params)
