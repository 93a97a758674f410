"""Channels: a group made by hand is pruned as one, in every leaf that has its index."""

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import theirs

import jaxprune
from jaxprune import trees
from jaxprune.units import Channels, Entries, Group, units_for

SIZE, LATER = 6, 4
HIDDEN = Group(SIZE, {"conv_0/kernel": 3, "norm/scale": 0, "norm/bias": 0, "conv_1/kernel": 2})
LAST = Group(LATER, {"conv_1/kernel": 3, "conv_1/bias": 0, "head/kernel": 0})
GROUPS = {"hidden": HIDDEN, "last": LAST}
SHAPES = {
    "conv_0/kernel": (3, 3, 2, SIZE),
    "norm/scale": (SIZE,),
    "norm/bias": (SIZE,),
    "conv_1/kernel": (3, 3, SIZE, LATER),
    "conv_1/bias": (LATER,),
    "head/kernel": (LATER, 3),
}
TOTAL = SIZE + LATER


def params_of(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    leaves = {path: 0.5 * rng.normal(size=shape) for path, shape in SHAPES.items()}
    leaves["norm/scale"] += 1.0
    tree: Any = {}
    for path, leaf in leaves.items():
        module, name = path.split("/")
        tree.setdefault(module, {})[name] = jnp.asarray(leaf, jnp.float32)
    return tree


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def wide(vector: jax.Array) -> jax.Array:
    return vector[None, None, None]


def network(params: Any, x: jax.Array) -> jax.Array:
    """Convolution, batch norm, relu, convolution, relu, mean, dense."""
    x = conv(x, params["conv_0"]["kernel"])
    mean, variance = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
    x = jax.nn.relu(x * wide(params["norm"]["scale"]) + wide(params["norm"]["bias"]))
    x = conv(x, params["conv_1"]["kernel"]) + wide(params["conv_1"]["bias"])
    return jax.nn.relu(x).mean((1, 2)) @ params["head"]["kernel"]


DATA = np.random.default_rng(1).normal(size=(8, 5, 5, 2)).astype("f4")
TARGETS = np.random.default_rng(2).normal(size=(8, 3)).astype("f4")


def loss(params: Any) -> jax.Array:
    return jnp.mean((network(params, jnp.asarray(DATA)) - jnp.asarray(TARGETS)) ** 2)


class Training:
    """A compiled step that donates what it gets, and counts its traces."""

    def __init__(self, tx: Any):
        self.tx, self.traces = tx, 0

        def step(params: Any, state: Any) -> Any:
            self.traces += 1
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        self.step = jax.jit(step, donate_argnums=(0, 1))

    def trail(self, steps: int, params: Any = None, state: Any = None) -> Any:
        """Copies of params and states of all ages."""
        params = params_of() if params is None else params
        state = self.tx.init(params) if state is None else state
        found = [tiny.saved((params, state))]
        for _ in range(steps):
            old = params
            params, state = self.step(params, state)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old)), "not donated"
            found.append(tiny.saved((params, state)))
        assert self.traces == 1
        return found


def inner() -> Any:
    """Momentum and decay, which would move a weight without a gradient."""
    return theirs(optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.05, momentum=0.9)))


def gradual(**values: Any) -> Any:
    given = {"sparsity": 0.5, "ramp": (0, 6), "every": 2, "channels": GROUPS}
    return jaxprune.gradual_magnitude(inner(), **(given | values))


STAGES = {"measure_steps": 2, "improve_steps": 1, "explore_steps": 2, "stop": 10}


def growing(**values: Any) -> Any:
    given = {"sparsity": 0.5, "distribution": "uniform", "swap_fraction": (0.4, 0.4)} | STAGES
    given |= {"channels": GROUPS, "reactivate_from": "init"}
    return jaxprune.prune_and_grow(inner(), **(given | values))


def off(masks: dict[str, np.ndarray], path: str) -> np.ndarray:
    """Which entries of a leaf belong to a pruned channel, in its shape."""
    found = np.zeros(SHAPES[path], bool)
    for name, group in GROUPS.items():
        if path in group.members:
            axis = group.members[path]
            np.moveaxis(found, axis, -1)[..., ~masks[name]] = True
    return found


def members_are_zero(params: Any, masks: dict[str, np.ndarray]) -> None:
    """Exactly +0.0 in every member of what is pruned, and nowhere else."""
    for path, leaf in trees.by_path(params).items():
        zeros = off(masks, path)
        assert not tiny.bits(leaf)[zeros].any(), path
        assert (np.asarray(leaf)[~zeros] != 0).all(), path


def cut(params: Any, masks: dict[str, np.ndarray]) -> Any:
    """The small network: indices of pruned channels are taken out of every member."""
    leaves = {path: np.asarray(leaf) for path, leaf in trees.by_path(params).items()}
    for name, group in GROUPS.items():
        for path, axis in group.members.items():
            leaves[path] = np.compress(masks[name], leaves[path], axis)
    return trees.from_paths(params, {path: jnp.asarray(leaf) for path, leaf in leaves.items()})


def is_the_cut_network(params: Any, state: Any) -> None:
    masks = tiny.masks_of(state)
    small = cut(params, masks)
    assert small["conv_0"]["kernel"].shape[3] == masks["hidden"].sum() < SIZE
    for x in (DATA, 3 * DATA[:4]):
        whole, part = network(params, jnp.asarray(x)), network(small, jnp.asarray(x))
        np.testing.assert_allclose(part, whole, rtol=1e-5, atol=1e-6)


def strength(params: Any, name: str) -> np.ndarray:
    """The sum of magnitudes over all that a channel has."""
    members = GROUPS[name].members
    leaves = {path: np.abs(np.asarray(x)) for path, x in trees.by_path(params).items()}
    flat = [np.moveaxis(leaves[path], axis, -1) for path, axis in members.items()]
    return np.sum([leaf.reshape(-1, GROUPS[name].size).sum(0) for leaf in flat], axis=0)


# ------------------------------------------------------------------------------- gradual magnitude


@pytest.mark.parametrize("distribution", ["uniform", "global"])
def test_whole_channels_go_along_the_ramp(distribution: Any) -> None:
    trail = Training(gradual(distribution=distribution)).trail(8)
    for n in range(1, 9):
        (before, _), (params, state) = trail[n - 1], trail[n]
        masks, old = tiny.masks_of(state), tiny.masks_of(trail[n - 1][1])
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        if distribution == "global":
            assert sum(kept.values()) == tiny.scheduled(TOTAL, 5, n, 6, 2)
        else:
            wanted = {name: tiny.scheduled(g.size, g.size // 2, n, 6, 2)
                      for name, g in GROUPS.items()}  # fmt: skip
            assert kept == wanted
            for name in GROUPS:  # those of the largest sum of magnitudes, before the update
                scores = np.where(old[name], strength(before, name), -1)
                largest = np.argsort(-scores, kind="stable")[: wanted[name]]
                assert np.flatnonzero(masks[name]).tolist() == sorted(largest)
        members_are_zero(params, masks)
        jaxprune.verify(params, state)
        assert float(jaxprune.sparsity_of(state)) == np.float32(1 - sum(kept.values()) / TOTAL)
    is_the_cut_network(*trail[-1])


def test_training_goes_on_from_a_save_bit_for_bit() -> None:
    for tx in (gradual(), growing()):
        training = Training(tx)
        trail = training.trail(8)
        for n in (0, 3, 5):
            again = training.trail(8 - n, *tiny.saved(trail[n]))
            tiny.same_bits(again[-1], trail[-1])


def test_masks_may_be_given_by_the_names_of_groups() -> None:
    first = {"hidden": np.arange(SIZE) % 3 > 0}
    tx = jaxprune.gradual_magnitude(
        inner(), sparsity=0.5, ramp=(0, 1), channels={"hidden": HIDDEN}, start=first
    )
    ((_, start), (params, state)) = Training(tx).trail(1)
    np.testing.assert_array_equal(tiny.masks_of(start)["hidden"], first["hidden"])
    masks = tiny.masks_of(state)["hidden"]
    assert masks.sum() == 3 and first["hidden"][masks].all()
    jaxprune.verify(params, state)
    for start, message in (
        ({"hide": first["hidden"]}, "near paths are hidden"),
        ({"hidden": np.ones(5, bool)}, r"shape \(6,\) at 'hidden', got \(5,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            gradual(start=start).init(params_of())


def test_a_layout_without_rank_is_the_same_under_any_container() -> None:
    """Members are known by their paths, whatever holds them."""
    flat = dict(trees.by_path(params_of()))
    tx = gradual()
    state = tx.init(flat)
    zeros = jax.tree.map(jnp.zeros_like, flat)
    _, state = jax.jit(tx.update)(zeros, state, flat)
    assert tiny.kept(state) == {"hidden": 6, "last": 4}


# ---------------------------------------------------------------------------------- prune and grow


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_channels_are_swapped(importance: Any) -> None:
    training = Training(growing(importance=importance))
    trail, back = training.trail(14), 0
    for n in range(1, 15):
        params, state = trail[n]
        masks, old = tiny.masks_of(state), tiny.masks_of(trail[n - 1][1])
        swapping = n < 10 and n % 5 >= 2
        gone = {name: int(0.4 * (g.size // 2)) for name, g in GROUPS.items()}
        for name, group in GROUPS.items():
            assert masks[name].sum() == group.size // 2 - (gone[name] if swapping else 0)
            back += int((masks[name] & ~old[name]).sum())
        exploring = jaxprune.phase_of(state).name == "explore"
        assert exploring == (n < 10 and n % 5 >= 3)
        active = jaxprune.active_params(params, state)
        members_are_zero(active, masks)
        if exploring:
            assert all((np.asarray(leaf) != 0).all() for leaf in jax.tree.leaves(params))
        else:
            members_are_zero(params, masks)
        jaxprune.verify(params, state)
    assert back == 2  # one of the hidden in each cycle; 0.4 of 2 is none
    is_the_cut_network(*trail[-1])


def test_what_explores_and_what_stands_still() -> None:
    trail = Training(growing()).trail(6)
    for n in range(1, 6):
        (_, state), (_, later) = trail[n], trail[n + 1]
        exploring = jaxprune.phase_of(state).name == "explore"
        old, new = (trees.by_path(s.prune_dense) for s in (state, later))
        for path in SHAPES:
            pruned = off(tiny.masks_of(state), path)
            still = ~pruned if exploring else pruned
            same = tiny.bits(new[path])[still] == tiny.bits(old[path])[still]
            assert same.all(), (n, path)
            assert (np.asarray(new[path])[~still] != np.asarray(old[path])[~still]).all(), (n, path)


def test_slots_of_channels_that_come_to_life_begin_anew() -> None:
    """No entry of one moves further than twice the learning rate under Adam."""
    rate = 1e-3
    trail = Training(
        jaxprune.prune_and_grow(
            theirs(optax.adam(rate)), sparsity=0.5, distribution="uniform", channels=GROUPS,
            swap_fraction=(0.4, 0.4), reactivate_from="init", **STAGES,
        )
    ).trail(12)  # fmt: skip
    largest = 0.0
    for (_, state), (_, later) in itertools.pairwise(trail[1:]):
        old, new = (trees.by_path(s.prune_dense) for s in (state, later))
        moves = [np.abs(np.asarray(new[path]) - np.asarray(old[path])).max() for path in SHAPES]
        largest = max(largest, *map(float, moves))
    assert 0.5 * rate < largest <= 2 * rate


# ------------------------------------------------------------------------------------------ reports


def test_reports_speak_of_channels() -> None:
    training = Training(gradual())
    plan = jaxprune.plan(training.tx, jax.eval_shape(params_of))
    rows = {leaf.path: leaf for leaf in plan.leaves if leaf.pruned}
    assert {name: (row.shape, row.kept_end) for name, row in rows.items()} == {
        "hidden": ((6,), 3),
        "last": ((4,), 2),
    }
    assert (plan.kept, plan.total, plan.steps) == (5, 10, (2, 4, 6))
    reasons = {leaf.path: leaf.reason for leaf in plan.leaves if not leaf.pruned}
    assert reasons["conv_1/kernel"] == "channels of hidden, last"
    assert [*reasons] == sorted(SHAPES)
    assert "kept at the end: 5 of 10" in str(plan)

    params, state = training.trail(6)[-1]
    summary = jaxprune.summarize(params, state)
    told = [(leaf.path, leaf.kept, leaf.total, leaf.nonzero) for leaf in summary.leaves]
    assert told == [("hidden", 3, 6, 3), ("last", 2, 4, 2)]
    assert (summary.drift, summary.sparsity) == (0, 0.5)
    masks = tiny.masks_of(state)
    pruned = tuple(np.argwhere(off(masks, "conv_1/kernel"))[0])
    edited = trees.map_with_path(
        lambda path, p: p.at[pruned].set(1.0) if path == "conv_1/kernel" else p, params
    )
    assert jaxprune.summarize(edited, state).drift == 1
    with pytest.raises(ValueError, match="got 1 other entries at 'conv_1/kernel'"):
        jaxprune.verify(edited, state)

    described = jaxprune.describe(state)
    assert described["channels"]["last"] == [4, dict(LAST.members)]
    json.dumps(described)
    other = gradual(channels={"hidden": HIDDEN}).init(params_of())
    with pytest.raises(ValueError, match="got channels="):
        jaxprune.check_rules(described, other)
    with pytest.raises(ValueError, match="same rules, got channels="):
        training.tx.update(params, other, params)


def test_readers_reach_all_members() -> None:
    params, state = Training(gradual()).trail(6)[-1]
    masks = tiny.masks_of(state)
    assert set(jaxprune.get_masks(state)) == {"hidden", "last"}
    average = jaxprune.project(jax.tree.map(jnp.ones_like, params), state)
    for path, leaf in trees.by_path(average).items():
        np.testing.assert_array_equal(np.asarray(leaf) == 0, off(masks, path))
    tiny.same_bits(jaxprune.view_params(params, state), params)
    doubled = optax.tree.map_params(gradual(), lambda x: 2 * x, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)
    with pytest.raises(ValueError, match="`tree` must be those of the state, and have every leaf"):
        jaxprune.project({"conv_0": params["conv_0"]}, state)


def test_costs_are_those_of_the_entries_that_are_left() -> None:
    """A leaf that two groups cut has the share of both."""
    params, state = Training(gradual()).trail(6)[-1]
    flops = {path: 2.0 * np.prod(SHAPES[path]) for path in ("conv_0/kernel", "conv_1/kernel")}
    left = {path: 1 - off(tiny.masks_of(state), path).mean() for path in flops}
    share = sum(flops[path] * left[path] for path in flops) / sum(flops.values())
    assert left == {"conv_0/kernel": 0.5, "conv_1/kernel": 0.25}
    assert float(jaxprune.flops.inference_cost(state, flops)) == pytest.approx(share)
    assert float(jaxprune.flops.step_cost(state, flops)) == pytest.approx(share)
    summary = jaxprune.summarize(params, state, flops=flops)
    assert summary.inference_flops == pytest.approx(share)
    with pytest.raises(ValueError, match="`flops` must have only paths of the params"):
        jaxprune.flops.inference_cost(state, {"conv/kernel": 2.0})


def test_a_next_stage_goes_on_with_the_channels() -> None:
    params, old = Training(gradual()).trail(6)[-1]
    state = jaxprune.next_stage(growing(), params, old)
    tiny.same_bits(state.prune_mask, old.prune_mask)
    with pytest.raises(ValueError, match="`tx` must prune only what the old method pruned"):
        jaxprune.next_stage(jaxprune.static(inner(), sparsity=0.5), params, old)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "`channels` must have at least one group"),
        ({"a": Group(6, {"conv_0/kernel": -1})}, r"give the axis of 'conv_0/kernel', 0 or more"),
        ({"a": Group(6, {"conv/kernel": 0})}, "have only members among the params in 'a'"),
        ({"a": Group(6, {"conv_0/kernel": 2})}, "have 6 channels along axis 2 of 'conv_0/kernel'"),
        ({"a": Group(6, {"norm/bias": 1})}, "have 6 channels along axis 1 of 'norm/bias'"),
        ({"norm/bias": Group(6, {"norm/bias": 0})}, "not name groups like leaves"),
    ],
)
def test_groups_that_cannot_be_are_refused(groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradual(channels=groups).init(params_of())


def test_channels_stand_alone() -> None:
    for values in ({"where": "conv"}, {"exclude": "head"}, {"stacked": {"conv": 0}}):
        with pytest.raises(ValueError, match="must be None beside `channels`"):
            gradual(**values)


def test_units_are_values() -> None:
    """Equal and hashable: jit finds the trace of one by the other."""
    a, b = units_for(channels=GROUPS), Channels({n: Group(*g) for n, g in GROUPS.items()})
    assert a == b and hash(a) == hash(b)
    assert a != Channels({"hidden": HIDDEN})
    assert units_for(where=["a"], exclude="b") == Entries(["a"], "b") != Entries(["a"])
    assert hash(Entries(["a"], stacked={"a": 0})) == hash(Entries(("a",), stacked={"a": 0}))
