"""`plan` before training and `summarize` at any moment: numbers, and the tables that print them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from test_readers import every_method, trained
from tiny import updater

import jaxprune
from jaxprune import schedules


def gradual(**values: Any) -> Any:
    return jaxprune.gradual_magnitude(
        optax.sgd(0.1, momentum=0.9), **({"sparsity": 0.9, "ramp": (0, 40)} | values)
    )


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
@pytest.mark.parametrize("overrides", [None, {"head": 0.9}])
def test_a_plan_is_what_happens(distribution: str, overrides: Any) -> None:
    values = {"distribution": distribution, "overrides": overrides, "ramp": (0, 2), "every": 2}
    tx, params = gradual(sparsity=0.5, **values), tiny.params()
    plan = jaxprune.plan(tx, jax.eval_shape(tiny.params))
    state, step = tx.init(params), updater(tx)
    changes, before = [], tiny.saved(state.prune_mask)
    for n in range(1, 5):
        params, state = step(tiny.zeros_like(params), state, params)
        if not all(map(np.array_equal, *map(jax.tree.leaves, (before, state.prune_mask)))):
            changes.append(n)
        before = tiny.saved(state.prune_mask)
    found = tiny.kept(state)
    assert (plan.kept, plan.total) == (sum(found.values()), 72)
    assert plan.steps == tuple(changes) == (2,)
    assert not plan.endless
    for leaf in plan.leaves:
        if leaf.kept_end is not None:
            assert leaf.kept_end == found[leaf.path]
            assert leaf.density_end == leaf.kept_end / tiny.size(leaf.path)
    known = {leaf.path for leaf in plan.leaves if leaf.kept_end is not None}
    by_leaf = set(tiny.PRUNED) if distribution != "global" else set()
    # An override sets its leaf apart, and then the other one has nothing to be ranked with.
    assert known == (set(tiny.PRUNED) if overrides else by_leaf)


def test_a_plan_gives_a_reason_for_every_leaf() -> None:
    params = {
        "embed": {"embedding": jnp.ones((4, 4))},
        "norm": {"weight": jnp.ones((4, 4))},
        "head": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
        "count": jnp.ones((4, 4), jnp.int32),
        "empty": jnp.ones((0, 4)),
        "weight": jnp.ones((3, 2)),
    }
    plan = jaxprune.plan(gradual(), params)
    assert {leaf.path: leaf.reason for leaf in plan.leaves} == {
        "count": "not floating",
        "embed/embedding": "embedding",
        "empty": "empty",
        "head/bias": "fewer than two dimensions",
        "head/kernel": "",
        "norm/weight": "norm",
        "weight": "",
    }
    assert [leaf.path for leaf in plan.leaves] == sorted(leaf.path for leaf in plan.leaves)
    axes = {leaf.path: leaf.output_axis for leaf in plan.leaves if leaf.pruned}
    assert axes == {"head/kernel": (1,), "weight": (0,)}
    by_hand = jaxprune.plan(gradual(where="head"), params).leaves
    assert {leaf.reason for leaf in by_hand if leaf.path not in ("count", "empty")} == {
        "",
        "left out by `where`",
    }
    text = str(plan)
    for words in ("no (not floating)", "no (norm)", "4x4", "kept at the end: 3 of 22", "0.1250"):
        assert words in text


def test_a_plan_knows_when_masks_change() -> None:
    def steps(method: Any = jaxprune.straight_through, **values: Any) -> Any:
        plan = jaxprune.plan(method(optax.sgd(0.1), **values), tiny.params())
        return plan.steps, plan.endless

    half = {"sparsity": 0.5, "ramp": (0, 40)}
    assert steps(jaxprune.gradual_magnitude, **half) == ((16, 32, 40), False)
    assert steps(jaxprune.magnitude_attention, stop=50, **half) == (
        (16, 32, 40, 48, 50),
        False,
    )
    found, endless = steps(**half)
    assert (found[:3], endless) == ((16, 32, 40), True)
    assert steps(jaxprune.static, sparsity=0.5) == ((), False)
    masks = {"head": {"kernel": jnp.ones((8, 5), bool)}}
    assert steps(jaxprune.static, masks=masks) == ((), False)
    assert "no changes" in str(jaxprune.plan(jaxprune.static(None, masks=masks), tiny.params()))
    assert "without end" in str(
        jaxprune.plan(jaxprune.straight_through(None, **half), tiny.params())
    )


def test_a_plan_counts_the_state_beside_the_optimizers() -> None:
    """A byte of mask an entry of 72 of 80; a dense copy has four more; and a few scalars."""
    hard = jaxprune.plan(gradual(), tiny.params())
    copied = jaxprune.plan(
        jaxprune.straight_through(optax.adam(0.1), sparsity=0.5, ramp=(0, 4)), tiny.params()
    )
    scalars = 2 * 4 + 8 + 1  # counters, the key, and whether copies hold the weights
    assert hard.bytes_per_parameter == (72 + scalars) / 80
    assert copied.bytes_per_parameter == (72 + scalars + 4 * 72 + 8 + 5) / 80  # and living units


def test_a_plan_tells_what_is_not_known() -> None:
    tx = gradual(sparsity=lambda n: 0.5, ramp=None)
    plan = jaxprune.plan(tx, tiny.params())
    assert (plan.kept, plan.endless) == (None, True)
    assert "kept at the end: as the schedule says" in str(plan)
    adam = jaxprune.magnitude_attention(optax.adam(0.1), sparsity=0.5, ramp=(0, 4))
    assert 'attention_on="update"' in str(jaxprune.plan(adam, tiny.params()))
    with pytest.raises(ValueError, match="`tx` must hold a jaxprune method"):
        jaxprune.plan(optax.adam(0.1), tiny.params())


def test_a_plan_begins_at_the_start() -> None:
    start = {"body": {"kernel": jnp.arange(32).reshape(4, 8) < 8}}
    given, drawn = (
        jaxprune.plan(gradual(start=start, sparsity=0.95), tiny.params()),
        jaxprune.plan(gradual(start=lambda signals: {}), tiny.params()),
    )
    now = {leaf.path: leaf.density_now for leaf in given.leaves if leaf.pruned}
    assert now == {"body/kernel": 0.25}  # what has no mask is not pruned
    assert {leaf.density_now for leaf in drawn.leaves} == {None}
    assert str(drawn).count("at the first update") == 2
    assert "at the first update" not in str(given)


def test_a_plan_tells_a_bound_from_a_number() -> None:
    """As many stay as a budget says, or as given first masks keep; drawn ones may keep fewer."""
    start = {"body": {"kernel": jnp.arange(32).reshape(4, 8) % 4 > 0}}
    given = jaxprune.plan(gradual(start=start, sparsity=0.5), tiny.params())
    drawn = jaxprune.plan(gradual(start=lambda signals: {}, sparsity=0.5), tiny.params())
    assert (given.at_most, drawn.at_most) == (False, True)
    assert "kept at the end: 16 of 32" in str(given)
    assert "kept at the end: at most 36 of 72" in str(drawn)


def test_a_summary_counts_what_is_kept_and_what_is_dead() -> None:
    masks = {
        "body": {"kernel": jnp.ones((4, 8), bool).at[:, :3].set(False)},
        "head": {"kernel": jnp.zeros((8, 5), bool)},
    }
    tx = jaxprune.static(optax.sgd(0.1), masks=masks)
    params = tiny.params()
    params, state = updater(tx)(tiny.zeros_like(params), tx.init(params), params)
    summary = jaxprune.summarize(params, state)
    body, head = summary.leaves
    assert (body.kept, body.total, body.nonzero, body.dead_units, body.units) == (20, 32, 20, 3, 8)
    assert (head.kept, head.nonzero, head.dead_units, head.sparsity) == (0, 0, 5, 1.0)
    assert (summary.kept, summary.total, summary.step) == (20, 72, 1)
    assert summary.sparsity == 1 - 20 / 72
    assert summary.collapsed == ("head/kernel",)
    text = str(summary)
    for words in ("after update 1, phase 'train'", "3 of 8", "0.7222", "layer collapse: nothing"):
        assert words in text
    assert "drift" not in text
    assert "skipped" not in text
    assert "zeros" not in text


@every_method
def test_a_summary_tells_its_troubles(method: Any) -> None:
    params, state, step = trained(method)
    off = np.argwhere(~tiny.masks_of(state)["head/kernel"])[:3].T
    head = {"kernel": params["head"]["kernel"].at[tuple(off)].set(5.0)}
    summary = jaxprune.summarize(params | {"head": head}, state._replace(prune_skipped=2))
    assert (summary.drift, summary.skipped) == (3, 2)
    text = str(summary)
    for words in ("drift: 3 entries", "skipped refreshes: 2"):
        assert words in text
    # The next update puts them on zero again, and nothing is remembered of it.
    params, state = step(tiny.zeros_like(params), state, params | {"head": head})
    assert jaxprune.summarize(params, state).drift == 0
    tiny.on_support(params, state)
    jaxprune.verify(params, state)


@every_method
def test_a_summary_counts_zeros_that_would_grow_again(method: Any) -> None:
    """Of a network that was sparse when it came; a zero-initialised leaf is none."""
    tx = method(optax.sgd(0.1), sparsity=0.5, ramp=(0, 4), every=2)
    params = {"a": jnp.eye(4), "b": jnp.zeros((2, 2))}
    state = tx.init(params)
    summary = jaxprune.summarize(params, state)
    assert (summary.kept_zeros, [leaf.kept_zeros for leaf in summary.leaves]) == (12, [12, 0])
    assert "12 zeros of a network that is sparse already will grow again" in str(summary)
    assert "`start=masks.nonzero(params)`" in str(summary)
    start = {"a": jnp.eye(4, dtype=bool)}
    told = jaxprune.summarize(params, jaxprune.static(optax.sgd(0.1), start=start).init(params))
    assert (told.kept_zeros, "zeros" in str(told)) == (0, False)
    params, state = updater(tx)(tiny.zeros_like(params), state, params)
    assert "zeros" not in str(jaxprune.summarize(params, state))  # now it is too late to say so


def test_a_schedule_of_ones_own_is_planned_by_its_grid() -> None:
    ramp = schedules.linear(0, 8, 0.5)
    plan = jaxprune.plan(gradual(sparsity=ramp, ramp=None, every=3), tiny.params())
    assert (plan.steps, plan.kept) == ((3, 6, 8), 36)


def swapping(**values: Any) -> Any:
    """Prune-and-grow with cycles of 9 updates: two of them, and then it trains."""
    lengths = {"measure_steps": 2, "improve_steps": 3, "explore_steps": 4, "stop": 20}
    return jaxprune.prune_and_grow(optax.sgd(0.1), **{"sparsity": 0.5} | lengths | values)


def test_a_plan_counts_what_is_kept_once_grown_weights_have_replaced_dropped_ones() -> None:
    methods = (
        swapping(),
        jaxprune.rigl(optax.sgd(0.1), sparsity=0.5, every=4, stop=14),
        jaxprune.sparse_evolution(optax.sgd(0.1), sparsity=0.5, every=4, stop=14),
    )
    for tx in methods:
        plan = jaxprune.plan(tx, tiny.params())
        ends = {leaf.path: leaf.kept_end for leaf in plan.leaves if leaf.pruned}
        state, params = tx.init(tiny.params()), tiny.params()
        _, state = updater(tx)(tiny.normal(3), state, params)
        assert ends == tiny.kept(state) and plan.kept == 36
        now = {leaf.path: leaf.density_now for leaf in plan.leaves if leaf.pruned}
        assert now == {path: kept / tiny.size(path) for path, kept in tiny.kept(state).items()}
        assert "at the first update" not in str(plan)
    together = jaxprune.plan(swapping(ranking="global"), tiny.params())
    assert together.kept == 36
    assert {leaf.kept_end for leaf in together.leaves} == {None}
    given = {"body": {"kernel": jnp.arange(32).reshape(4, 8) < 8}}
    plan = jaxprune.plan(swapping(sparsity=None, start=given), tiny.params())
    now = {leaf.path: (leaf.density_now, leaf.kept_end) for leaf in plan.leaves if leaf.pruned}
    assert now == {"body/kernel": (0.25, 8)}


@pytest.mark.parametrize(
    ("tx", "steps", "told"),
    [
        (swapping(), (2, 9, 11, 18), "4 changes of masks, after update 2, 9, 11, 18\n"),
        (
            swapping(stop=27, start="magnitude"),
            (1, 2, 9, 11, 18, 20, 27),
            "7 changes of masks, after update 1, 2, 9, 11, 18, ..., 27\n",
        ),
        (jaxprune.static(None, sparsity=0.5), (), "no changes of masks\n"),
        (
            jaxprune.snip(optax.sgd(0.1), sparsity=0.5),
            (1,),
            "1 change of masks, after update 1\n",
        ),
        (
            jaxprune.straight_through(None, sparsity=0.5, ramp=(0, 20)),
            (16, 20, 32),
            "masks change after updates 16, 20, 32, and so on without end\n",
        ),
    ],
)
def test_a_plan_tells_the_steps_of_masks(tx: Any, steps: Any, told: str) -> None:
    plan = jaxprune.plan(tx, tiny.params())
    assert plan.steps == steps
    assert told in str(plan)


def test_a_summary_tells_how_far_a_phase_is() -> None:
    state = swapping().init(tiny.params())
    for step, name, within, length in ((7, "explore", 2, 4), (11, "improve", 0, 3)):
        summary = jaxprune.summarize(tiny.params(), state._replace(prune_count=jnp.int32(step)))
        assert (summary.phase, summary.phase_step, summary.phase_length) == (name, within, length)
        told = f"after update {step}, phase '{name}', step {within} of {length}\n"
        assert str(summary).startswith(told)
    summary = jaxprune.summarize(tiny.params(), state._replace(prune_count=jnp.int32(30)))
    assert summary.phase_length == -1
    assert str(summary).startswith("after update 30, phase 'train'\n")


def test_a_summary_tells_what_the_network_and_its_training_cost() -> None:
    masks = {
        "body": {"kernel": jnp.ones((4, 8), bool).at[:, :4].set(False)},
        "head": {"kernel": jnp.ones((8, 5), bool)},
    }
    flops, kept = {"body/kernel": 60.0, "head/kernel": 20.0}, (60 / 2 + 20) / 80
    state = swapping(sparsity=None, start=masks).init(tiny.params())
    summary = jaxprune.summarize(tiny.params(), state, flops=flops)
    explore = (3 - kept) / 3
    assert summary.inference_flops == pytest.approx(kept)
    assert summary.training_flops == pytest.approx(
        {"measure": kept, "improve": kept, "explore": explore, "train": kept}
    )
    told = (
        "operations, as fractions of dense: inference 0.6250; a training step 0.6250 (measure), "
        "0.6250 (improve), 0.7917 (explore), 0.6250 (train)"
    )
    assert told in str(summary).splitlines()
    rigl = jaxprune.rigl(optax.sgd(0.1), sparsity=None, start=masks, every=4, stop=14)
    found = jaxprune.summarize(tiny.params(), rigl.init(tiny.params()), flops).training_flops
    assert found == pytest.approx({"train": kept, "mask step": (2 * kept + 1) / 3})
    plain = jaxprune.summarize(tiny.params(), state)
    assert (plain.inference_flops, plain.training_flops) == (None, None)
    assert "operations" not in str(plain)


def ends_with(tx: Any, params: Any, steps: int) -> int:
    state, step = tx.init(params), updater(tx)
    for _ in range(steps):
        params, state = step(tiny.zeros_like(params), state, params)
    return sum(int(mask.sum()) for mask in jaxprune.masks_by_path(state).values())


def test_a_plan_knows_that_pruned_weights_come_back() -> None:
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32)}
    tx = jaxprune.acdc(
        optax.sgd(0.1),
        **{"sparsity": 0.5, "begin": 1, "sparse_steps": 1, "dense_steps": 1, "stop": 5},
        start={"kernel": np.arange(64).reshape(8, 8) < 6},
    )
    assert jaxprune.plan(tx, params).kept == ends_with(tx, params, 6) == 32


def test_a_plan_of_slices_that_start_unevenly_says_at_most() -> None:
    params = {"layers": jnp.asarray(np.random.default_rng(0).normal(size=(2, 10, 10)), jnp.float32)}
    start = {"layers": np.arange(200).reshape(2, 10, 10) >= 90}
    tx = gradual(sparsity=0.5, ramp=(0, 1), stacked={"layers": 0}, start=start, where="layers")
    promised = jaxprune.plan(tx, params).kept
    assert promised is not None
    assert ends_with(tx, params, 2) < promised
    assert "at most" in str(jaxprune.plan(tx, params))


def test_two_methods_that_prune_one_leaf_are_no_plan() -> None:
    tx = optax.chain(
        jaxprune.static(optax.sgd(0.1), sparsity=0.5), jaxprune.static(None, sparsity=0.9)
    )
    with pytest.raises(ValueError, match=r"`tx` must hold .* in which one method prunes a leaf"):
        jaxprune.plan(tx, tiny.params())
    for read in (jaxprune.verify, jaxprune.summarize):
        with pytest.raises(ValueError, match=r"`opt_state` must hold .*two masks of"):
            read(tiny.params(), tx.init(tiny.params()))
