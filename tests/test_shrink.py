"""Cutting channels: what is chosen, what comes out, training on, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen

import jaxprune

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Net(linen.Module):
    """Two convolutions with batch norm, a residual block and a head."""

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        def norm(x: Any, name: str) -> Any:
            return linen.BatchNorm(use_running_average=not train, name=name)(x)

        x = linen.relu(norm(linen.Conv(8, (3, 3), use_bias=False, name="stem")(x), "stem_norm"))
        y = linen.relu(norm(linen.Conv(12, (3, 3), use_bias=False, name="up")(x), "up_norm"))
        x = x + norm(linen.Conv(8, (3, 3), use_bias=False, name="down")(y), "down_norm")
        return linen.Dense(5, name="head")(x.mean((1, 2)))


STEM, UP = "down/kernel[3]", "up/kernel[3]"
IMAGES = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


def variables(seed: int = 0) -> tuple[Any, Any]:
    """Params and statistics away from where they start."""
    made = Net().init(jax.random.key(seed), IMAGES)
    leaves, structure = jax.tree.flatten(made)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [
        x + (x.ndim == 1) * 0.3 * jnp.abs(jax.random.normal(k, x.shape))
        for x, k in zip(leaves, keys, strict=True)
    ]
    made = structure.unflatten(moved)
    return made["params"], {"batch_stats": made["batch_stats"]}


def apply(params: Any, stats: Any, x: Any) -> Any:
    return Net().apply({"params": params, **stats}, x)


def train(params: Any, stats: Any, x: Any) -> Any:
    return Net().apply({"params": params, **stats}, x, train=True, mutable=["batch_stats"])


def traced() -> Any:
    params, stats = variables()
    return jaxprune.trace(apply, params, IMAGES, also=stats), params, stats


def halved(net: Any) -> dict[str, Any]:
    return {group.name: np.arange(group.size) >= group.size // 2 for group in net.groups}


# ------------------------------------------------------------------------------- what is chosen


def test_scores_are_sums_over_all_that_goes_with_a_channel() -> None:
    net, params, _ = traced()
    pooled = jaxprune.pool_scores(net, jax.tree.map(jnp.square, params))
    square = jax.tree.map(lambda x: np.square(np.asarray(x)), params)
    up = square["up"]["kernel"].sum((0, 1, 2)) + square["down"]["kernel"].sum((0, 1, 3))
    up += square["up_norm"]["scale"] + square["up_norm"]["bias"]
    assert {name: score.shape for name, score in pooled.items()} == {STEM: (8,), UP: (12,)}
    np.testing.assert_allclose(pooled[UP], up, rtol=1e-5)


def test_the_highest_stay_in_multiples_and_at_least_so_many() -> None:
    scores = {"a": jnp.arange(20.0), "b": jnp.array([1.0, 1.0, 1.0, 1.0])}

    def kept(density: float, **options: Any) -> list[int]:
        masks = jaxprune.select_units(scores, density, **options)
        for name, mask in masks.items():  # the highest, the first of equal ones
            count = int(mask.sum())
            order = np.argsort(-np.asarray(scores[name]), kind="stable")
            np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(order[:count]))
        return [int(mask.sum()) for mask in masks.values()]

    assert kept(0.5, round_to=1) == [10, 2]
    assert kept(0.5, round_to=4) == [12, 4]  # halves go up
    assert kept(0.45, round_to={"a": 4}) == [8, 2]
    assert kept(0.01, round_to=1, min_keep=3) == [3, 3]
    assert kept(1.0, round_to=3) == [20, 4]  # never more than there are
    assert kept(0.5, round_to=1, scope="global") == [10, 2]  # in means of their group
    assert kept(1 / 3, round_to=1, scope="global") == [8, 1]


def test_what_cannot_be_chosen_is_named() -> None:
    scores = {"conv[3]": jnp.ones(4)}
    for density in (0.0, 1.5, -1, float("nan")):
        with pytest.raises(ValueError, match="`density` must lie in"):
            jaxprune.select_units(scores, density)
    with pytest.raises(ValueError, match=r"`round_to` must lie between 1 and the 4 channels of 'c"):
        jaxprune.select_units(scores, 0.5)
    with pytest.raises(ValueError, match=r"`min_keep` must lie between 1 and the 4 channels of 'c"):
        jaxprune.select_units(scores, 0.5, round_to=1, min_keep=5)
    with pytest.raises(ValueError, match="`round_to` must match at least one path"):
        jaxprune.select_units(scores, 0.5, round_to={"cnov": 2})
    with pytest.raises(ValueError, match=r"`scores\['conv\[3\]'\]` must have no NaN"):
        jaxprune.select_units({"conv[3]": scores["conv[3]"].at[1].set(jnp.nan)}, 0.5, round_to=1)
    with pytest.raises(ValueError, match="`scope` must be 'local' or 'global', got 'all'"):
        jaxprune.select_units(scores, 0.5, scope="all")


def test_channels_that_are_zero_all_the_way_are_found() -> None:
    """By what makes them or what reads them; a bias behind a norm keeps a channel alive."""
    net, params, stats = traced()
    assert all(mask.all() for mask in jaxprune.removable_units(net, params).values())
    edited = jax.tree.map(jnp.copy, params)
    edited["up_norm"]["scale"] = edited["up_norm"]["scale"].at[jnp.array([0, 1])].set(0)
    edited["up_norm"]["bias"] = edited["up_norm"]["bias"].at[jnp.array([0, 2])].set(0)
    edited["down"]["kernel"] = edited["down"]["kernel"].at[:, :, 5].set(0)  # nobody reads it
    edited["up"]["kernel"] = edited["up"]["kernel"].at[..., 7].set(0)  # the norm's bias is left
    found = jaxprune.removable_units(net, edited)
    assert np.flatnonzero(~found[UP]).tolist() == [0, 5]
    assert found[STEM].all()
    ((why, number),) = found.why[UP].items()
    assert why.startswith("contraction of channels at test_shrink.py:")
    assert number == 10
    small = jaxprune.shrink(net, edited, found, also=stats)
    tiny.close(small.fn(small.params, small.also, IMAGES), apply(edited, stats, IMAGES))


# ------------------------------------------------------------------------------- what comes out


def test_the_small_network_equals_the_masked_one_for_any_batch_and_size() -> None:
    net, params, stats = traced()
    small = jaxprune.shrink(net, params, halved(net), also=stats)
    assert small.params["up"]["kernel"].shape == (3, 3, 4, 6)
    assert small.also["batch_stats"]["up_norm"]["mean"].shape == (6,)
    masked, masked_stats = small.restore(small.params), small.restore(small.also)
    assert jax.tree.map(jnp.shape, (masked, masked_stats)) == jax.tree.map(
        jnp.shape, (params, stats)
    )
    fn = jax.jit(small.fn)
    for shape in ((2, 8, 8, 3), (3, 8, 8, 3), (1, 11, 6, 3)):
        x = jax.random.normal(jax.random.key(3), shape)
        tiny.close(fn(small.params, small.also, x), apply(masked, masked_stats, x))
    jaxprune.verify_shrink(small, IMAGES)


def test_another_function_of_the_same_trees_is_bound() -> None:
    """The network while it trains: its statistics come out cut, and gradients are the masked."""
    net, params, stats = traced()
    small = jaxprune.shrink(net, params, halved(net), also=stats)
    step = small.bind(train)
    masked, masked_stats = small.restore(small.params), small.restore(small.also)

    def loss(fn: Any) -> Any:
        def of(params: Any, stats: Any) -> Any:
            logits, updated = fn(params, stats, IMAGES)
            return jnp.sum(jnp.sin(logits)), updated

        return jax.jit(jax.grad(of, has_aux=True))

    ours, our_stats = loss(step)(small.params, small.also)
    theirs, their_stats = loss(train)(masked, masked_stats)
    tiny.close(ours, small.cut(theirs))
    tiny.close(our_stats, small.cut(their_stats))


def test_training_goes_on_with_the_cut_state_of_the_optimizer() -> None:
    """As that of the masked network does, of which what is cut stays 0."""
    net, params, stats = traced()
    small = jaxprune.shrink(net, params, halved(net), also=stats)
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1e-2, momentum=0.9))

    def trained(fn: Any, params: Any, stats: Any, state: Any, mask: Any = None) -> Any:
        @jax.jit
        def step(params: Any, state: Any) -> Any:
            grads = jax.grad(lambda p: jnp.mean(fn(p, stats, IMAGES) ** 2))(params)
            grads = grads if mask is None else jax.tree.map(jnp.multiply, grads, mask)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(3):
            params, state = step(params, state)
        return params, state

    masked = small.restore(small.params)
    mask = small.restore(jax.tree.map(jnp.ones_like, small.params))
    masked, state = trained(apply, masked, small.restore(small.also), tx.init(masked), mask)
    ours = trained(small.fn, small.cut(masked), small.also, small.cut(state))
    theirs = trained(apply, masked, small.restore(small.also), state, mask)
    tiny.close(ours, small.cut(theirs))
    tiny.close(small.restore(ours[0]), theirs[0])
    assert small.restore(small.cut(state))[1][0].trace["up"]["kernel"].shape == (3, 3, 8, 12)


def test_what_an_optimizer_remembers_in_another_form_is_refused() -> None:
    net, params, stats = traced()
    small = jaxprune.shrink(net, params, halved(net), also=stats)
    with pytest.raises(ValueError, match=r"`tree` must hold nothing of '.*' in a form of its own"):
        small.cut(optax.sm3(0.1).init(params))
    with pytest.raises(ValueError, match="begin such an optimizer anew, by `init` of the cut"):
        small.restore(optax.sm3(0.1).init(small.params))


def test_a_plan_is_json_and_makes_the_small_function_again() -> None:
    net, params, stats = traced()
    small = jaxprune.shrink(net, params, halved(net), also=stats)
    again = jaxprune.shrunk_from_plan(small.plan, small.params, small.also)
    assert again.plan == small.plan
    tiny.same_bits(again.restore(again.params), small.restore(small.params))
    x = IMAGES[:1]
    tiny.same_bits(
        again.bind(apply)(again.params, again.also, x), small.fn(small.params, small.also, x)
    )
    with pytest.raises(ValueError, match="`small` must come from `shrink` to have a function"):
        _ = again.fn


def test_a_network_from_json_cuts_as_well() -> None:
    net, params, stats = traced()
    read = jaxprune.network_from_json(net.to_json())
    small = jaxprune.shrink(read, params, halved(net), also=stats)
    tiny.same_bits(small.params, jaxprune.shrink(net, params, halved(net), also=stats).params)
    with pytest.raises(ValueError, match="`net` must have the function it was traced from"):
        _ = small.fn


# -------------------------------------------------------------------------------- what is refused


def test_masks_and_params_that_do_not_fit_are_refused() -> None:
    net, params, stats = traced()
    with pytest.raises(ValueError, match=r"`masks` must name groups of channels .* near paths are"):
        jaxprune.shrink(net, params, {"up/kernel": np.ones(12, bool)}, also=stats)
    for mask in (np.ones(11, bool), np.ones(12)):
        with pytest.raises(ValueError, match="must be a bool for each of the 12 channels"):
            jaxprune.shrink(net, params, {UP: mask}, also=stats)
    with pytest.raises(
        ValueError, match=r"`params` must have the shape .* at 'also:batch_stats/do"
    ):
        jaxprune.shrink(net, params, halved(net))
    other = {**params, "head": {"kernel": jnp.ones((9, 5)), "bias": jnp.ones(5)}}
    with pytest.raises(ValueError, match=r"`params` must have the shape \(8, 5\) at 'head/kernel'"):
        jaxprune.shrink(net, other, halved(net), also=stats)
    with pytest.raises(ValueError, match="`params` must have the leaves that were traced"):
        jaxprune.shrink(net, {**params, "new": jnp.ones(1)}, halved(net), also=stats)
    small = jaxprune.shrink(net, params, halved(net), also=stats)
    with pytest.raises(ValueError, match=r"`params` must have the shape .* as cut"):
        small.fn(params, stats, IMAGES)
    with pytest.raises(
        ValueError, match=r"`tree` must have the shape \(3, 3, 12, 8\) at 'down/ker"
    ):
        small.cut(small.params)


def test_sums_that_see_what_is_removed_are_refused_by_name() -> None:
    params = {"a": jnp.eye(4), "b": jnp.ones((4, 2))}

    def fn(params: Any, x: Any) -> Any:
        return jax.nn.softmax(x @ params["a"]) @ params["b"]

    net = jaxprune.trace(fn, params, jnp.ones((1, 4)))
    (group,) = net.groups
    assert group.inexact[0].startswith("reduce_")
    masks = {group.name: np.array([True, True, False, True])}
    with pytest.raises(
        ValueError, match=r"`masks` must keep 'a\[1\]'.*reduce_.* at test_shrink.py"
    ):
        jaxprune.shrink(net, params, masks)
    assert jaxprune.pool_scores(net, params) == {}
    assert [*jaxprune.pool_scores(net, params, inexact="allow")] == [group.name]
    small = jaxprune.shrink(net, params, masks, inexact="allow")
    with pytest.raises(
        ValueError, match=r"`small` must equal the masked network, got .* at test_sh"
    ):
        jaxprune.verify_shrink(small, jnp.ones((1, 4)))
    exact = jaxprune.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 4)))
    small = jaxprune.shrink(exact, params, masks)
    with pytest.raises(ValueError, match="`fn` must sum only zeros over channels that are removed"):
        small.bind(fn)(small.params, jnp.ones((1, 4)))


def test_a_function_that_fixes_what_is_cut_is_refused() -> None:
    net, params, stats = traced()
    small = jaxprune.shrink(net, params, halved(net), also=stats)
    bound = small.bind(lambda p, s, x: apply(p, s, x) + jnp.fft.fft(p["up_norm"]["scale"]).real[0])
    with pytest.raises(
        ValueError, match=r"`fn` must let '.*' be cut along axis \d, got 'fft at te"
    ):
        bound(small.params, small.also, IMAGES)


def test_outputs_that_keep_every_channel_are_named() -> None:
    """A function that returns its statistics, too."""
    params, stats = variables()
    net = jaxprune.trace(train, params, IMAGES, also=stats)
    assert net.groups == ()
    assert "an output of the network" in {pin.why for pin in net.leaf("up/kernel").pinned}
    for choose in (net.channels, lambda: jaxprune.pool_scores(net, params)):
        with pytest.raises(ValueError, match=r"have a channel .* all channels reach what"):
            choose()


def test_gradients_of_the_cut_network_are_those_of_the_masked_one_where_it_is() -> None:
    """So a method goes on with them, at the cut network's cost."""
    net, params, stats = traced()
    masks = {STEM: np.arange(8) % 2 == 0, UP: np.arange(12) > 3}
    small = jaxprune.shrink(net, params, masks, also=stats)
    pruned = small.restore(small.params)

    def loss(fn: Any, params: Any, stats: Any) -> Any:
        return jnp.mean(fn(params, stats, IMAGES) ** 2)

    whole = jax.grad(lambda p: loss(apply, p, stats))(pruned)
    cut = jax.grad(lambda p: loss(small.fn, p, small.also))(small.cut(pruned))
    there = small.restore(jax.tree.map(jnp.ones_like, cut))
    tiny.close(small.restore(cut), jax.tree.map(jnp.multiply, whole, there))
