"""The family of dynamic sparse training against known answers and small NumPy formulas."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from test_methods import RATE, highest, kernels
from tiny import Loop, masks_of, theirs

import jaxprune
from jaxprune import trees

LONG = 10**6  # so long that a cosine has not moved after one update
MASK = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
WEIGHTS, GRADS = [0.1, 0.2, 0.3, 0.4, 0, 0, 0, 0], [0, 0, 0, 0, 0.5, 0.9, 0.1, 0.2]


def run(tx: Any, steps: int, params: Any = None, pull: float = 0.0) -> list[tuple[Any, Any]]:
    """The params and states of ages 0 to ``steps``; the gradient of update n is normal(n)."""
    if params is None:
        params = tiny.params()
    step, trail = tiny.updater(tx), [(params, tx.init(params))]
    for n in range(1, steps + 1):
        params, state = trail[-1]
        push = jax.tree.map(lambda p, g: g + pull * p, params, like(params, n))
        trail.append(step(push, state, params))
    return trail


def like(params: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)


def sgd() -> Any:
    return theirs(optax.sgd(RATE))


# ------------------------------------------------------------------------------------------- RigL


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rigl_gives_the_known_answers(dtype: Any) -> None:
    params, grads = jnp.asarray(WEIGHTS, dtype), jnp.asarray(GRADS, dtype)

    @jax.jit
    def mask(share: Any, scale: Any) -> Any:
        tx = jaxprune.rigl(
            optax.sgd(0.1), stop=LONG, every=1, drop_fraction=share, start=MASK, where=".*"
        )
        _, state = tx.update(scale.astype(dtype) * grads, tx.init(params), params)
        return jaxprune.get_masks(state)

    for scale in (1.0, 1e4):
        for share, expected in {
            0.5: [0, 0, 1, 1, 1, 1, 0, 0],
            0.25: [0, 1, 1, 1, 0, 1, 0, 0],
            0.0: [1, 1, 1, 1, 0, 0, 0, 0],
        }.items():
            np.testing.assert_array_equal(mask(jnp.float32(share), jnp.float32(scale)), expected)


def test_rigl_a_weight_just_dropped_may_regrow_and_goes_on_from_its_value() -> None:
    params, grads = jnp.asarray(WEIGHTS), jnp.asarray([5.0, 0, 0, 0, 0.5, 0.9, 0.1, 0.2])
    tx = jaxprune.rigl(
        optax.sgd(0.1, momentum=0.9), stop=LONG, every=1, drop_fraction=0.25, start=MASK, where=""
    )
    step, state = tiny.updater(tx), tx.init(params)
    for trace in (5.0, 5.0 + 0.9 * 5.0):
        before = params
        params, state = step(grads, state, params)
        np.testing.assert_array_equal(jaxprune.get_masks(state), MASK)
        np.testing.assert_allclose(params[0], before[0] - 0.1 * trace, rtol=1e-5)
        params = params.at[0].set(0.05)  # the smallest again


@pytest.mark.parametrize("method", [jaxprune.rigl, jaxprune.sparse_evolution])
def test_swaps_conserve_the_count_of_every_shape(method: Any) -> None:
    shapes = [(1,), (5,), (4, 5), (2, 9, 1), (2, 2, 4, 4)]
    params = {str(i): jnp.ones(shape) for i, shape in enumerate(shapes)}
    wanted = {"0": 1, "1": 3, "2": 12, "3": 11, "4": 38}
    tx = method(
        sgd(), sparsity=0.4, stop=6, every=1, drop_fraction=0.4, where=".*", distribution="uniform"
    )
    trail = run(tx, 8, params)
    for _, state in trail:
        assert tiny.kept(state) == wanted
    masks = [np.concatenate([m.ravel() for m in masks_of(s).values()]) for _, s in trail[1:]]
    assert all((a != b).any() for a, b in itertools.pairwise(masks[:4]))
    # `stop` is the last update that may change them; RigL's share to drop is 0 by then.
    assert (masks[4] != masks[5]).any() == (method is jaxprune.sparse_evolution)
    for later in masks[6:]:
        np.testing.assert_array_equal(later, masks[5])


def test_rigl_is_its_formula() -> None:
    """By leaf, under SGD: grown weights take their first step with those kept."""
    tx = jaxprune.rigl(
        sgd(), sparsity=0.5, stop=8, every=3, drop_fraction=0.5, distribution="uniform"
    )
    trail = run(tx, 8)
    w, mask = kernels(trail[0][0]), kernels(trail[1][1].prune_mask)
    for n in range(1, 9):
        g = kernels(like(trail[0][0], n))
        if n in (3, 6):
            share = 0.25 * (1 + np.cos(np.pi * n / 8))
            for part in (slice(0, 32), slice(32, 72)):
                total = mask[part].sum()
                less = total - int(share * total)
                mask[part] = highest(np.where(mask[part], np.abs(w[part]), -1), less)
                mask[part] |= highest(np.where(mask[part], -1, np.abs(g[part])), total - less)
        w = np.where(mask, w - RATE * g, 0)
        np.testing.assert_array_equal(kernels(trail[n][1].prune_mask), mask)
        np.testing.assert_allclose(kernels(trail[n][0]), w, rtol=2e-5, atol=1e-6)


def test_rigl_keeps_the_counts_of_masks_it_starts_from() -> None:
    start = {"body": {"kernel": np.arange(32).reshape(4, 8) % 4 == 0}}
    trail = run(jaxprune.rigl(sgd(), start=start, stop=6, every=1), 6)
    assert {tuple(tiny.kept(state).items()) for _, state in trail} == {(("body/kernel", 8),)}
    assert (masks_of(trail[6][1])["body/kernel"] != start["body"]["kernel"]).any()
    with pytest.raises(ValueError, match="`sparsity` must be given unless `start` is masks"):
        jaxprune.rigl(optax.sgd(0.1), stop=6, every=1)


@pytest.mark.parametrize("method", [jaxprune.rigl, jaxprune.sparse_evolution])
def test_a_global_ranking_leaves_each_leaf_its_least(method: Any) -> None:
    params = tiny.params()
    params["head"]["kernel"] = 1e-6 * params["head"]["kernel"]
    swaps = {"sparsity": 0.7, "stop": 5, "every": 1, "distribution": "global", "min_density": 0.2}
    trail = run(method(theirs(optax.sgd(1e-9)), **swaps, drop_fraction=0.9), 4, params)
    for _, state in trail[1:]:
        kept = tiny.kept(state)
        assert sum(kept.values()) == 22
        assert kept["head/kernel"] >= 8


# -------------------------------------------------------------------------------------------- SET


def test_sparse_evolution_drops_the_smallest_and_grows_by_chance() -> None:
    grown = []
    for seed in (0, 1):
        tx = jaxprune.sparse_evolution(
            sgd(), sparsity=0.5, stop=7, every=2, drop_fraction=0.25, distribution="uniform",
            seed=seed,
        )  # fmt: skip
        trail = run(tx, 8)
        for n in (2, 4, 6):
            (before, old), (_, new) = trail[n - 1], trail[n]
            for path, mask in masks_of(old).items():
                now, w = masks_of(new)[path], np.abs(np.asarray(trees.by_path(before)[path]))
                total = int(mask.sum())
                stay = total - total // 4
                survivors = highest(np.where(mask, w, -1).ravel(), stay).reshape(mask.shape)
                assert now[survivors].all()
                assert now.sum() == total
                grown.append((seed, n, (now & ~survivors).nonzero()))
        for n in (3, 5, 7, 8):
            tiny.same_bits(trail[n][1].prune_mask, trail[n - 1][1].prune_mask)
    halves = [[str(where) for s, _, where in grown if s == seed] for seed in (0, 1)]
    assert halves[0] != halves[1]


def test_sparse_evolution_stands_last_in_a_chain() -> None:
    values = {"sparsity": 0.5, "stop": 6, "every": 2}
    inside = run(jaxprune.sparse_evolution(sgd(), **values), 6)
    last = run(theirs(optax.chain(optax.sgd(RATE), jaxprune.sparse_evolution(None, **values))), 6)
    for (a, _), (b, state) in zip(inside[1:], last[1:], strict=True):
        np.testing.assert_array_equal(kernels(a) != 0, kernels(jaxprune.get_masks(state)))
        tiny.close(a, b)


@pytest.mark.parametrize("method", [jaxprune.rigl, jaxprune.sparse_evolution])
@pytest.mark.parametrize(("stop", "steps"), [(3, (3,)), (6, (3, 6)), (8, (3, 6))])
def test_stop_is_the_last_update_that_may_change_masks(method: Any, stop: int, steps: Any) -> None:
    plan = jaxprune.plan(method(sgd(), sparsity=0.5, stop=stop, every=3), tiny.params())
    assert (plan.steps, plan.endless) == (steps, False)


@pytest.mark.parametrize("method", [jaxprune.rigl, jaxprune.sparse_evolution])
def test_what_is_dropped_may_follow_a_schedule(method: Any) -> None:
    """A function of the update: everything of half at 3, nothing at 6."""
    values = {"sparsity": 0.5, "stop": 6, "every": 3, "distribution": "uniform"}

    def half_then_none(n: Any) -> Any:
        return jnp.where(n < 6, jnp.float32(0.5), jnp.float32(0))

    trail = run(method(sgd(), drop_fraction=half_then_none, **values), 6)
    (before, old), (_, new), (_, last) = trail[2], trail[3], trail[6]
    tiny.same_bits(last.prune_mask, new.prune_mask)
    for path, mask in masks_of(old).items():
        size = np.abs(np.asarray(trees.by_path(before)[path]))
        stay = highest(np.where(mask, size, -1).ravel(), int(mask.sum()) // 2).reshape(mask.shape)
        assert masks_of(new)[path][stay].all()
        assert not masks_of(new)[path][mask & ~stay].all()


def test_what_is_regrown_may_follow_a_schedule() -> None:
    values = {"sparsity": 0.7, "ramp": (0, 4), "every": 2}
    by_hand = run(jaxprune.granet(sgd(), regrow_fraction=optax.constant_schedule(0.0), **values), 5)
    none = run(jaxprune.granet(sgd(), regrow_fraction=0.0, **values), 5)
    tiny.same_bits(by_hand[-1][1].prune_mask, none[-1][1].prune_mask)
    some = run(jaxprune.granet(sgd(), regrow_fraction=optax.constant_schedule(0.5), **values), 5)
    assert (kernels(some[-1][1].prune_mask) != kernels(none[-1][1].prune_mask)).any()


# ------------------------------------------------------------------------------------------- SNIP


def test_snip_keeps_what_the_loss_would_miss_most_and_then_stays() -> None:
    trail = run(jaxprune.snip(sgd(), sparsity=0.7), 3)
    params = trail[0][0]
    expected = highest(np.abs(kernels(params) * kernels(like(params, 1))), 22)
    for _, state in trail[1:]:
        np.testing.assert_array_equal(kernels(state.prune_mask), expected)


# ----------------------------------------------------------------------------------------- GraNet


def test_granet_is_its_formula() -> None:
    tx = jaxprune.granet(sgd(), sparsity=0.7, ramp=(0, 6), every=2, regrow_fraction=0.4)
    trail = run(tx, 8)
    w, mask = kernels(trail[0][0]), np.ones(72, bool)
    regrown = 0
    for n in range(1, 9):
        g = kernels(like(trail[0][0], n))
        if n in (2, 4, 6):
            count = tiny.scheduled(72, 22, n, 6, 2)
            less = count - int(0.2 * (1 + np.cos(np.pi * n / 6)) * count)
            mask = highest(np.where(mask, np.abs(w), -1), less)
            mask |= highest(np.where(mask, -1, np.abs(g)), count - less)
            regrown += count - less
        w = np.where(mask, w - RATE * g, 0)
        np.testing.assert_array_equal(kernels(trail[n][1].prune_mask), mask)
        np.testing.assert_allclose(kernels(trail[n][0]), w, rtol=2e-5, atol=1e-6)
    assert regrown > 10
    assert mask.sum() == 22


def test_granet_that_regrows_nothing_is_gradual_magnitude() -> None:
    values = {"sparsity": 0.7, "ramp": (0, 4), "every": 2, "distribution": "global"}
    ours = run(jaxprune.granet(sgd(), regrow_fraction=0.0, **values), 5)
    plain = run(jaxprune.gradual_magnitude(sgd(), **values), 5)
    for (a, state), (b, other) in zip(ours, plain, strict=True):
        tiny.same_bits(state.prune_mask, other.prune_mask)
        tiny.close(a, b)


# ------------------------------------------------------------------------------------------ AC/DC


def test_acdc_alternates_and_ends_sparse() -> None:
    tx = jaxprune.acdc(sgd(), sparsity=0.75, begin=2, sparse_steps=3, dense_steps=2, stop=13)
    trail = run(tx, 16)
    sparse = [n in (2, 3, 4, 7, 8, 9) or n >= 12 for n in range(17)]
    names = ("dense", "sparse")
    for n, (params, state) in enumerate(trail):
        assert sum(tiny.kept(state).values()) == (18 if sparse[n] else 72)
        assert jaxprune.phase_of(state).name == names[sparse[n]]
        tiny.on_support(params, state)
    for n in (2, 7, 12):  # masks rank the weights before the update
        expected = highest(np.abs(kernels(trail[n - 1][0])), 18)
        np.testing.assert_array_equal(kernels(trail[n][1].prune_mask), expected)
    for n in (5, 10):  # what comes back starts at 0, and takes the step of that update
        back = ~kernels(trail[n - 1][1].prune_mask)
        step = -RATE * kernels(like(trail[0][0], n))
        np.testing.assert_allclose(kernels(trail[n][0])[back], step[back], rtol=1e-6)


# ------------------------------------------------------------------------- slots of grown entries


SWAPPERS: Any = {
    "rigl": lambda inner: jaxprune.rigl(inner, sparsity=0.5, stop=80, every=4),
    "sparse_evolution": lambda inner: jaxprune.sparse_evolution(
        inner, sparsity=0.5, stop=80, every=4
    ),
    "granet": lambda inner: jaxprune.granet(inner, sparsity=0.5, ramp=(0, 80), every=4),
    "acdc": lambda inner: jaxprune.acdc(
        inner, sparsity=0.5, begin=20, sparse_steps=10, dense_steps=10, stop=80
    ),
}


@pytest.mark.parametrize("name", SWAPPERS)
def test_no_grown_entry_moves_more_than_twice_the_rate_under_adam(name: str) -> None:
    rate, tx = 1e-3, SWAPPERS[name](theirs(optax.adam(1e-3)))
    trail, grown = run(tx, 90, pull=1.0), 0
    for (before, old), (after, new) in itertools.pairwise(trail):
        stays = kernels(new.prune_mask)
        moved = np.abs(kernels(after) - kernels(before))[stays]
        assert moved.max() <= 2 * rate
        grown += (stays & ~kernels(old.prune_mask)).sum()
    assert grown > 20


def test_growth_changes_no_other_slots() -> None:
    """Adam's slots after a swap are those of Adam alone on the new masks, but where it grew."""
    adam = theirs(optax.adam(1e-3))
    params, state = run(SWAPPERS["rigl"](adam), 7)[-1]
    grads = like(params, 8)

    @jax.jit
    def both(params: Any, state: Any) -> Any:
        _, new = SWAPPERS["rigl"](adam).update(grads, state, params)
        cut = jax.tree.map(jnp.copy, grads)
        for part in ("body", "head"):
            mask = new.prune_mask[part]["kernel"]
            cut[part]["kernel"] = jnp.where(mask, grads[part]["kernel"], 0)
        return new, adam.update(cut, state.prune_inner, params)[1]

    new, alone = both(params, state)
    old = kernels(state.prune_mask)
    grown, kept = kernels(new.prune_mask) & ~old, kernels(new.prune_mask) & old
    assert grown.sum() > 3
    (ours, _), (others, _) = new.prune_inner, alone
    g = kernels(grads)
    for slot, first in (("mu", 0.1 * g), ("nu", 1e-3 * g**2)):
        mine, plain = getattr(ours, slot), getattr(others, slot)
        np.testing.assert_allclose(kernels(mine)[~grown], kernels(plain)[~grown], rtol=1e-6)
        np.testing.assert_allclose(mine["body"]["bias"], plain["body"]["bias"], rtol=1e-6)
        start = np.zeros(72)
        if slot == "nu":  # at the mean of the leaf's kept entries
            before = kernels(state.prune_inner[0].nu)
            for part in (slice(0, 32), slice(32, 72)):
                start[part] = 0.999 * before[part][kept[part]].mean()
        np.testing.assert_allclose(kernels(mine)[grown], (start + first)[grown], rtol=1e-5)


# ------------------------------------------------------------------------------------------ errors


SWAP: Any = {"sparsity": 0.5, "stop": 9, "every": 2}
TURNS: Any = {"sparsity": 0.5, "begin": 2, "sparse_steps": 2, "dense_steps": 2, "stop": 9}


@pytest.mark.parametrize(
    ("method", "values", "error", "message"),
    [
        (jaxprune.rigl, SWAP | {"drop_fraction": 30}, ValueError, "did you mean 0.3"),
        (jaxprune.rigl, SWAP | {"stop": 1}, ValueError, "`stop` must not come .* update 2, got 1"),
        (jaxprune.sparse_evolution, SWAP | {"drop_fraction": 1.0}, ValueError, "`drop_fraction`"),
        (jaxprune.sparse_evolution, SWAP | {"every": 2.0}, TypeError, "`every` must be an int"),
        (jaxprune.granet, {"sparsity": lambda n: 0.5}, ValueError, "or a ramp, which ends"),
        (jaxprune.granet, {"sparsity": 0.5}, ValueError, "a number needs ramp="),
        (jaxprune.acdc, TURNS | {"stop": 5}, ValueError, "`stop` must leave room .*got 5"),
        (jaxprune.acdc, TURNS | {"begin": 0}, ValueError, "`begin` must be at least 1, got 0"),
        (jaxprune.acdc, TURNS | {"dense_steps": 0}, ValueError, "`dense_steps` must be at least 1"),
        (jaxprune.n_of_m, {"n": 5, "m": 4}, ValueError, r"`n` must lie in \[0, m\] with m = 4"),
        (jaxprune.n_of_m, {"n": 0, "m": 4}, ValueError, r"`n` must lie in \[1, m\] with m = 4"),
        (jaxprune.n_of_m, {"n": 1, "m": 1}, ValueError, "`m` must be at least 2, got 1"),
        (jaxprune.n_of_m, {"n": 1.0, "m": 4}, TypeError, "`n` must be an integer"),
        (jaxprune.n_of_m, {"n": 1, "m": 4, "view": "soft"}, ValueError, "`view` must be 'hard' or"),
        (jaxprune.n_of_m, {"n": 1, "m": 4, "ramp": (4, 2)}, ValueError, "`ramp` must .* in order"),
        (jaxprune.sr_ste, {"n": 3, "m": 2}, ValueError, r"`n` must lie in \[0, m\] with m = 2"),
        (jaxprune.sr_ste, {"n": 1, "m": 2, "decay": -1}, ValueError, "`decay` must be 0 or more"),
        (jaxprune.sr_ste, {"n": 1, "m": 2, "every": 0}, ValueError, "must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(method: Any, values: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        method(optax.sgd(0.1), **values)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        (jaxprune.rigl, SWAP),
        (jaxprune.snip, {"sparsity": 0.5}),
        (jaxprune.granet, {"sparsity": 0.5, "ramp": (0, 4)}),
        (jaxprune.sr_ste, {"n": 1, "m": 2}),
    ],
)
def test_what_reads_gradients_cannot_stand_last(method: Any, values: Any) -> None:
    with pytest.raises(ValueError, match="last in a chain"):
        method(None, **values).init(tiny.params())


def test_one_trace_serves_all_of_a_course() -> None:
    """Phases and swaps are conditions in one program."""
    step = Loop(SWAPPERS["acdc"](sgd()), compiler_options=tiny.quick())
    params = tiny.params()
    state = step.tx.init(params)
    for _ in range(45):
        params, state = step(params, state)
    assert (step.traces, step.compiled) == (1, 1)
