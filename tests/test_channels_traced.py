"""Channels of a traced network while it trains: pruned by the methods, then really cut."""

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from test_shrink import IMAGES, STEM, UP, apply, traced
from tiny import theirs

import jaxprune
from jaxprune import trees
from jaxprune.network import rounded

pytestmark = pytest.mark.usefixtures("standard_promotion")

TARGETS = jax.random.normal(jax.random.key(5), (2, 5))
SIZES = {UP: 12, STEM: 8}


def inner() -> Any:
    """Momentum and decay, which would move a weight without a gradient."""
    return theirs(optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.02, momentum=0.9)))


def fours(net: Any, **choices: Any) -> Any:
    return net.channels(**({"round_to": 4} | choices))


METHODS: dict[str, Any] = {
    "gradual_magnitude": lambda c: jaxprune.gradual_magnitude(
        inner(), sparsity=0.5, ramp=(0, 4), every=2, channels=c
    ),
    "gradual_magnitude, global": lambda c: jaxprune.gradual_magnitude(
        inner(), sparsity=0.5, ramp=(0, 4), every=2, channels=c, distribution="global"
    ),
    "static": lambda c: jaxprune.static(
        inner(), sparsity=0.5, distribution="uniform", channels=c, seed=1
    ),
    "snip": lambda c: jaxprune.snip(inner(), sparsity=0.5, channels=c, distribution="uniform"),
    "sparse_evolution": lambda c: jaxprune.sparse_evolution(
        inner(), sparsity=0.5, stop=4, every=2, distribution="uniform", channels=c
    ),
    "prune_and_grow": lambda c: jaxprune.prune_and_grow(
        inner(), sparsity=0.5, stop=6, measure_steps=1, improve_steps=1, explore_steps=1,
        distribution="uniform", channels=c, reactivate_from="init",
    ),
    "prune_and_grow, after a warm-up": lambda c: jaxprune.prune_and_grow(
        inner(), sparsity=0.5, stop=6, measure_steps=1, improve_steps=1, explore_steps=1, warmup=2,
        distribution="uniform", channels=c, importance="taylor",
    ),
    "slimming": lambda c: jaxprune.slimming(
        inner(), sparsity=0.5, ramp=(0, 4), every=2, channels=c, distribution="uniform",
    ),
    "filter_attention": lambda c: jaxprune.filter_attention(
        inner(), sparsity=0.5, begin=1, attention_steps=2, channels=c, scope="layer",
        learner=optax.adam(0.03),
    ),
}  # fmt: skip


def trained(tx: Any, params: Any, stats: Any, steps: int = 7) -> list[Any]:
    """Copies of params and states of all ages."""

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        grads = jax.grad(lambda p: jnp.mean((apply(p, stats, IMAGES) - TARGETS) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    trail = [tiny.saved((params, state))]
    for _ in range(steps):
        params, state = step(params, state)
        trail.append(tiny.saved((params, state)))
    return trail


@pytest.mark.parametrize("name", METHODS)
def test_channels_are_pruned_exactly_and_then_cut(name: str) -> None:
    net, params, stats = traced()
    trail = trained(METHODS[name](fours(net)), params, stats)
    for n, (params, state) in enumerate(trail[1:], 1):
        active = jaxprune.active_params(params, state)
        support = trees.by_path(jaxprune.support_of(state))
        for path, leaf in trees.by_path(active).items():
            if path in support:
                kept = np.broadcast_to(support[path], leaf.shape)
                assert not tiny.bits(leaf)[~kept].any(), (n, path)
                assert (np.asarray(leaf)[kept] != 0).any()
        jaxprune.verify(params, state)
    params, state = trail[-1]
    masks = tiny.masks_of(state)
    assert {site: mask.shape for site, mask in masks.items()} == {k: (n,) for k, n in SIZES.items()}
    assert [masks[STEM].sum(), masks[UP].sum()] == [4, 8]
    small = jaxprune.shrink(net, params, jaxprune.get_masks(state), also=stats)
    assert small.params["up"]["kernel"].shape == (3, 3, 4, 8)
    tiny.close(small.fn(small.params, small.also, IMAGES), apply(params, stats, IMAGES))
    found = jaxprune.removable_units(net, params)
    for site, mask in masks.items():
        np.testing.assert_array_equal(found[site], mask)


def test_channels_that_grow_again_learn() -> None:
    """From where they were: one that is 0 all over would have no gradient."""
    net, params, stats = traced()
    trail = trained(METHODS["sparse_evolution"](fours(net, round_to=1)), params, stats)
    grew = 0
    for (_, before), (params, state) in itertools.pairwise(trail[1:]):
        old, new = tiny.masks_of(before), tiny.masks_of(state)
        for channel in np.flatnonzero(new[UP] & ~old[UP]):
            grew += 1
            assert np.abs(params["up"]["kernel"][..., channel]).max() > 0
    assert grew


def by_hand(params: Any, score: str, grads: Any) -> np.ndarray:
    """What each channel of the group is worth, before it is divided by their mean."""
    w = jax.tree.map(np.asarray, params)
    g = jax.tree.map(np.asarray, grads)

    def pooled(f: Any) -> np.ndarray:
        return (
            f(w["up"]["kernel"], g["up"]["kernel"]).sum((0, 1, 2))
            + f(w["down"]["kernel"], g["down"]["kernel"]).sum((0, 1, 3))
            + f(w["up_norm"]["scale"], g["up_norm"]["scale"])
            + f(w["up_norm"]["bias"], g["up_norm"]["bias"])
        )

    if score == "scale":
        return np.abs(w["up_norm"]["scale"])
    if score == "taylor":
        return np.abs(pooled(lambda w, g: w * g))
    return pooled(lambda w, g: np.abs(w)) if score == "l1" else np.sqrt(pooled(lambda w, g: w * w))


@pytest.mark.parametrize("score", ["l1", "l2", "scale", "taylor"])
def test_the_channels_of_highest_score_stay(score: str) -> None:
    net, params, stats = traced()
    grads = jax.grad(lambda p: jnp.mean((apply(p, stats, IMAGES) - TARGETS) ** 2))(params)
    tx = jaxprune.gradual_magnitude(
        inner(), sparsity=0.5, ramp=(0, 1), channels=net.channels(round_to=1, score=score, where=UP)
    )
    _, state = tx.update(grads, tx.init(params), params)
    (mask,) = tiny.masks_of(state).values()
    order = np.argsort(-by_hand(params, score, grads), kind="stable")
    np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(order[:6]))


def test_a_score_of_ones_own_ranks_channels() -> None:
    net, params, _ = traced()
    choice = net.channels(round_to=1, where=UP, score=lambda s: {UP: jnp.arange(12.0)})
    tx = jaxprune.gradual_magnitude(inner(), sparsity=0.5, ramp=(0, 1), channels=choice)
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = tx.update(zeros, tx.init(params), params)
    assert np.flatnonzero(tiny.masks_of(state)[UP]).tolist() == [*range(6, 12)]


def test_once_prunes_channels_too() -> None:
    net, params, stats = traced()
    pruned, masks = jaxprune.prune_once(params, 0.5, channels=fours(net), distribution="uniform")
    assert {site: int(mask.sum()) for site, mask in masks.items()} == {UP: 8, STEM: 4}
    small = jaxprune.shrink(net, pruned, masks, also=stats)
    tiny.close(small.fn(small.params, small.also, IMAGES), apply(pruned, stats, IMAGES))
    _, by_mine = jaxprune.prune_once(
        params,
        0.5,
        channels=fours(net),
        distribution="uniform",
        score=lambda path, w: jnp.ones_like(w),
    )
    assert np.flatnonzero(by_mine[STEM]).tolist() == [0, 1, 2, 3], "the first of equal ones"
    with pytest.raises(ValueError, match="`channels` must stand without `n`, `m`, `block`"):
        jaxprune.prune_once(params, n=2, m=4, channels=fours(net))


@pytest.mark.parametrize("size", [5, 8, 13])
@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.parametrize("least", [1, 4])
def test_widths_are_the_nearest_that_may_be(size: int, step: int, least: int) -> None:
    allowed = [n for n in range(1, size + 1) if n >= least and (n % step == 0 or n == size)]
    traced_counts = jax.jit(lambda n: rounded(n, step, least, size))
    for count in range(size + 1):
        best = min(abs(n - count) for n in allowed)
        wanted = max(n for n in allowed if abs(n - count) == best)
        assert rounded(count, step, least, size) == wanted
        assert int(traced_counts(jnp.int32(count))) == wanted


def test_reports_speak_of_channels_of_the_network() -> None:
    net, params, stats = traced()
    tx = METHODS["gradual_magnitude"](fours(net))
    plan = jaxprune.plan(tx, params)
    assert {leaf.path: leaf.kept_end for leaf in plan.leaves if leaf.pruned} == {UP: 8, STEM: 4}
    params, state = trained(tx, params, stats)[-1]
    told = {leaf.path: (leaf.kept, leaf.total) for leaf in jaxprune.summarize(params, state).leaves}
    assert told == {UP: (8, 12), STEM: (4, 8)}
    json.dumps(jaxprune.describe(state))
    with pytest.raises(ValueError, match="same rules, got channels="):
        METHODS["gradual_magnitude"](fours(net, round_to=2)).update(params, state, params)


def test_choices_that_cannot_be_are_refused() -> None:
    net, params, _ = traced()
    with pytest.raises(ValueError, match=r"`round_to` must lie between 1 and the 12 channels of"):
        net.channels(round_to=16)
    with pytest.raises(ValueError, match=r"`min_keep` must lie between 1 and the 8 channels of"):
        net.channels(min_keep=9)
    with pytest.raises(ValueError, match="`where` must match at least one path, got 'stam'"):
        net.channels(where="stam")
    with pytest.raises(ValueError, match="`score` must be 'l1' or 'l2' or 'scale' or 'taylor'"):
        net.channels(score="l3")
    with pytest.raises(ValueError, match="`inexact` must be 'pin' or 'allow'"):
        net.channels(inexact="no")
    pinned = jaxprune.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="`network` must have a channel that can be removed"):
        pinned.channels()
    other = {**params, "up": {"kernel": jnp.ones((3, 3, 8, 13))}}
    with pytest.raises(ValueError, match=r"have 12 channels along axis 3 of 'up/kernel'"):
        METHODS["gradual_magnitude"](fours(net)).init(other)
    for method, values in (
        (jaxprune.rigl, {"stop": 9}),
        (jaxprune.straight_through, {"ramp": (0, 9)}),
        (jaxprune.magnitude_attention, {"ramp": (0, 9)}),
    ):
        with pytest.raises(ValueError, match="`channels` must be None here, got 'ChannelChoice': "):
            method(inner(), sparsity=0.5, channels=fours(net), **values)


def test_a_pruned_channel_has_no_gradient() -> None:
    """Why methods that wait for one to come back refuse channels."""
    net, params, stats = traced()
    pruned, masks = jaxprune.prune_once(params, 0.5, channels=fours(net), distribution="uniform")
    grads = jax.grad(lambda p: jnp.mean((apply(p, stats, IMAGES) - TARGETS) ** 2))(pruned)
    gone = ~np.asarray(masks[UP])
    assert not np.asarray(grads["up_norm"]["scale"])[gone].any()
    assert not np.asarray(grads["up_norm"]["bias"])[gone].any()
    assert not np.asarray(grads["up"]["kernel"])[..., gone].any()
    assert not np.asarray(grads["down"]["kernel"])[:, :, gone].any()
