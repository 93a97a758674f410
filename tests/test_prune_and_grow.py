"""Prune and grow (IEE): its five stages against NumPy, and what must not move in which."""

import itertools
import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import Loop, masks_of, theirs

import jaxprune
from jaxprune import trees

MEASURE, IMPROVE, EXPLORE, CYCLES = 3, 2, 2, 2
LENGTH = MEASURE + IMPROVE + EXPLORE
STOP = CYCLES * LENGTH + 1  # one more than two cycles: it is a bound
STEPS = STOP + 4
SWAP = (0.4, 0.2)
KEPT = {"body/kernel": 16, "head/kernel": 20}
SHAPES = {"body/kernel": (4, 8), "head/kernel": (8, 5)}
STAGES = {"measure_steps": MEASURE, "improve_steps": IMPROVE, "explore_steps": EXPLORE}


def momentum() -> Any:
    """Momentum and decay: what would move a weight that has no gradient."""
    sgd = optax.sgd(0.05, momentum=0.9)
    return theirs(optax.chain(optax.add_decayed_weights(0.1), sgd))


def method(inner: Any = None, **values: Any) -> Any:
    given = {"sparsity": 0.5, "distribution": "uniform", "stop": STOP, "swap_fraction": SWAP}
    inner = momentum() if inner is None else inner
    return jaxprune.prune_and_grow(inner, **(given | STAGES | values))


def stage(n: int, **stages: int) -> str:
    """The stage of the pass after n updates."""
    lengths = STAGES | stages
    whole = sum(lengths.values())
    if n >= STOP // whole * whole:
        return "train"
    ends = np.cumsum([*lengths.values()])
    return ("measure", "improve", "explore")[int(np.searchsorted(ends, n % whole, side="right"))]


def run(tx: Any, steps: int = STEPS, push: Any = None, state: Any = None) -> list[tuple[Any, Any]]:
    """The params and states of ages 0 to ``steps``."""
    loop = Loop(tx, compiler_options=tiny.quick())
    params = tiny.params()
    trail = [(params, tx.init(params) if state is None else state)]
    for n in range(steps):
        copy = tiny.saved(trail[-1])
        trail.append(loop(*copy, push=None if push is None else push(n)))
    assert (loop.traces, loop.compiled) == (1, 1)
    return trail


def dense_of(state: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(w) for path, w in trees.by_path(state.prune_dense).items()}


def leaves_of(params: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(w) for path, w in trees.by_path(params).items()}


def best(scores: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` highest of some entries; ties to the lower index."""
    order = np.argsort(-np.where(among, scores, -np.inf).ravel(), kind="stable")[:count]
    mask = np.zeros(scores.size, bool)
    mask[order] = True
    return mask.reshape(scores.shape) & among


def counts_hold(trail: list[tuple[Any, Any]]) -> None:
    """|K| is the budget, less exactly k between prune and grow."""
    for n, (_, state) in enumerate(trail[1:], start=1):
        cycle = (n - 1) // LENGTH
        omega = SWAP[min(cycle, CYCLES - 1)]
        reduced = n < CYCLES * LENGTH and n % LENGTH >= MEASURE
        for path, kept in KEPT.items():
            gone = int(np.floor(np.float32(omega) * np.float32(kept))) if reduced else 0
            assert masks_of(state)[path].sum() == kept - gone, (n, path)


def test_the_five_stages() -> None:
    trail = run(method())
    counts_hold(trail)
    for n in range(1, STEPS):
        (params, state), (after, later) = trail[n], trail[n + 1]
        masks, now = masks_of(state), stage(n)
        phase = jaxprune.phase_of(state)
        assert phase.name == now
        begin = [0, MEASURE, MEASURE + IMPROVE, n % LENGTH - (n - CYCLES * LENGTH)][phase.index]
        assert int(phase.step) == n % LENGTH - begin
        old, new = dense_of(state), dense_of(later)
        for path, mask in masks.items():
            still = mask if now == "explore" else ~mask
            np.testing.assert_array_equal(tiny.bits(new[path])[still], tiny.bits(old[path])[still])
            assert (new[path] != old[path])[~still].all()
            seen = old[path] if now == "explore" else np.where(mask, old[path], 0)
            np.testing.assert_allclose(leaves_of(params)[path], seen, rtol=3e-7, atol=1e-7)
        if now != "explore":
            tiny.on_support(params, state)
        jaxprune.verify(params, state)
        active = jaxprune.active_params(params, state)
        assert {p: int((leaves_of(active)[p] != 0).sum()) for p in masks} == tiny.kept(state)
        bias = (leaves_of(p)["body/bias"] for p in (params, after))
        assert (next(bias) != next(bias)).all()  # what is not pruned stays live


def test_masks_change_at_the_two_events_only_and_by_the_magnitude_of_new_weights() -> None:
    trail = run(method())
    for n in range(1, STEPS):
        masks, after = masks_of(trail[n][1]), masks_of(trail[n + 1][1])
        age, dense = n + 1, dense_of(trail[n + 1][1])
        cycle = n // LENGTH
        prunes = age <= CYCLES * LENGTH and age % LENGTH == MEASURE
        grows = age <= CYCLES * LENGTH and age % LENGTH == 0
        for path, kept in KEPT.items():
            size, expected = np.abs(dense[path]), masks[path]
            if prunes:
                gone = int(np.floor(np.float32(SWAP[cycle]) * np.float32(kept)))
                expected = best(size, masks[path], kept - gone)
            if grows:
                missing = kept - int(masks[path].sum())
                expected = masks[path] | best(size, ~masks[path], missing)
            np.testing.assert_array_equal(after[path], expected)
    assert any((masks_of(trail[LENGTH][1])[p] != masks_of(trail[1][1])[p]).any() for p in KEPT)


def test_taylor_ranks_by_the_mean_of_w_times_g_over_the_stage() -> None:
    def push(n: int) -> Any:
        tree: Any = tiny.normal(100 + n)
        if n == 1:  # an entry of one step that is no number is left out of its mean
            tree["body"]["kernel"] = tree["body"]["kernel"].at[0, 0].set(jnp.nan)
        return tree

    # The inner optimizer must survive the NaN; what is tested is the memory.
    tx = method(theirs(optax.chain(optax.zero_nans(), optax.sgd(0.05))), importance="taylor")
    trail = run(tx, LENGTH, push)
    total = {path: np.zeros(SHAPES[path], np.float32) for path in KEPT}
    for n in range(LENGTH):
        params, state = trail[n]
        seen = leaves_of(params)
        grads = jax.tree.map(lambda a, b: a + b, tiny.pull(params), push(n))
        if n in (0, MEASURE + IMPROVE):
            total = {path: np.zeros_like(x) for path, x in total.items()}
        if stage(n) in ("measure", "explore"):
            for path in KEPT:
                saliency = np.abs(seen[path] * leaves_of(grads)[path])
                total[path] += np.where(np.isfinite(saliency), saliency, 0)
        mask, after = masks_of(state), masks_of(trail[n + 1][1])
        for path, kept in KEPT.items():
            if n + 1 == MEASURE:
                gone = int(np.floor(np.float32(SWAP[0]) * np.float32(kept)))
                expected = best(total[path], mask[path], kept - gone)
                np.testing.assert_array_equal(after[path], expected)
            if n + 1 == LENGTH:
                missing = kept - int(mask[path].sum())
                expected = mask[path] | best(total[path], ~mask[path], missing)
                np.testing.assert_array_equal(after[path], expected)


def test_without_exploring_the_pruned_weights_never_act() -> None:
    trail = run(method(explore_steps=0), 3 * (MEASURE + IMPROVE) + 2)
    for params, state in trail[1:]:
        for path, mask in masks_of(state).items():
            assert not tiny.bits(leaves_of(params)[path])[~mask].any()
        assert jaxprune.phase_of(state).name != "explore"
    assert (
        sum(
            (masks_of(a[1])["body/kernel"] != masks_of(b[1])["body/kernel"]).any()
            for a, b in itertools.pairwise(trail[1:])
        )
        >= 4
    )


def test_without_freezing_the_kept_weights_move_while_exploring() -> None:
    trail = run(method(freeze_kept=False), LENGTH)
    old, new = (dense_of(state) for _, state in trail[LENGTH - 2 : LENGTH])
    assert stage(LENGTH - 2) == "explore"
    assert all((old[path] != new[path]).all() for path in KEPT)


def test_freeze_rest_holds_what_is_not_pruned_while_exploring() -> None:
    trail = run(method(freeze_rest=True), LENGTH)
    for n in range(1, LENGTH):
        bias = [leaves_of(params)["body/bias"] for params, _ in trail[n : n + 2]]
        same = (tiny.bits(bias[0]) == tiny.bits(bias[1])).all()
        assert same == (stage(n) == "explore")


@pytest.mark.parametrize("source", ["recent", "init", "zero"])
def test_what_pruned_weights_start_exploring_from(source: str) -> None:
    begin = MEASURE + IMPROVE
    trail = run(method(reactivate_from=source), LENGTH + begin)
    first, second = dense_of(trail[begin][1]), dense_of(trail[LENGTH + begin][1])
    ended = dense_of(trail[LENGTH][1])
    for path in KEPT:
        drawn = masks_of(trail[1][1])[path]
        pruned, again = ~masks_of(trail[begin][1])[path], ~masks_of(trail[LENGTH + begin][1])[path]
        dropped = drawn & pruned
        never = ~drawn
        assert dropped.any() and never.any()
        if source == "zero":
            assert not first[path][pruned].any() and not second[path][again].any()
            continue
        np.testing.assert_array_equal(first[path][never] == 0, source == "recent")
        assert (first[path][dropped] != 0).all()
        left = again & ~masks_of(trail[LENGTH][1])[path]  # not in K in between
        np.testing.assert_array_equal(second[path][left], ended[path][left])


@pytest.mark.parametrize("source", ["explored", "zero"])
def test_what_grown_weights_start_from(source: str) -> None:
    trail = run(method(grow_from=source), LENGTH)
    (_, state), (params, after) = trail[LENGTH - 1], trail[LENGTH]
    for path in KEPT:
        grown = masks_of(after)[path] & ~masks_of(state)[path]
        assert grown.any()
        assert (leaves_of(params)[path][grown] == 0).all() == (source == "zero")


def test_nothing_swapped_is_training_under_fixed_masks() -> None:
    trail = run(method(swap_fraction=(0.0, 0.0), explore_steps=0))
    masks = jaxprune.get_masks(trail[1][1])
    params, tx = trail[1][0], jaxprune.static(momentum(), masks=masks)
    loop, state = Loop(tx, compiler_options=tiny.quick()), cast("Any", tx.init(params))
    state = state._replace(prune_inner=trail[1][1].prune_inner, prune_count=jnp.int32(1))
    params, state = tiny.saved((params, state))
    for _ in range(STEPS - 1):
        params, state = loop(params, state)
    tiny.same_bits(masks, jaxprune.get_masks(trail[-1][1]))
    tiny.close(params, trail[-1][0])


def test_a_skipped_growth_heals_at_the_next_one() -> None:
    def nan_at_first_growth(signals: Any) -> Any:
        bad = jnp.where(signals.step == LENGTH, jnp.nan, 0.0).astype(jnp.float32)
        return {path: jnp.abs(signals.dense[path]) + bad for path in signals.mask}

    trail = run(method(importance=nan_at_first_growth))
    for path, kept in KEPT.items():
        gone = int(np.floor(np.float32(SWAP[0]) * np.float32(kept)))
        assert masks_of(trail[LENGTH][1])[path].sum() == kept - gone
        assert masks_of(trail[2 * LENGTH][1])[path].sum() == kept
    assert int(trail[-1][1].prune_skipped) == 1


def test_groups_of_n_in_m_stay_groups() -> None:
    tx = method(
        sparsity=None,
        distribution="erk",
        n_of_m=(2, 4),
        swap_fraction=(0.4, 0.4),
        reactivate_from="init",
    )
    trail = run(tx)
    for n, (_, state) in enumerate(trail[1:], start=1):
        reduced = n < CYCLES * LENGTH and n % LENGTH >= MEASURE
        for mask in masks_of(state).values():
            groups = mask.reshape(mask.shape[0] // 4, 4, mask.shape[1]).sum(1)
            if not reduced:
                assert (groups == 2).all(), n
            else:
                assert set(np.unique(groups)) == {1, 2}
                gone = int(np.floor(np.float32(0.4) * np.float32(mask.size // 2)))
                assert (groups == 1).sum() == gone
    moved = masks_of(trail[1][1])["body/kernel"] != masks_of(trail[-1][1])["body/kernel"]
    assert moved.any()


def test_a_global_ranking_moves_counts_between_leaves_and_keeps_their_sum() -> None:
    trail = run(method(ranking="global", reactivate_from="init"))
    ends = [tiny.kept(trail[n][1]) for n in (1, LENGTH, 2 * LENGTH, STEPS)]
    assert all(sum(kept.values()) == sum(KEPT.values()) for kept in ends)
    assert ends[0] == KEPT and ends[-1] != KEPT


def test_an_override_holds_under_a_global_ranking_too() -> None:
    trail = run(method(ranking="global", reactivate_from="init", overrides={"body": 0.25}), LENGTH)
    assert tiny.kept(trail[-1][1]) == {"body/kernel": 24, "head/kernel": 12}


def test_taylor_of_a_stage_that_was_never_finite_skips_the_change() -> None:
    def push(n: int) -> Any:
        nan = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), tiny.params())
        return nan if n < MEASURE else tiny.normal(n)

    tx = method(theirs(optax.chain(optax.zero_nans(), optax.sgd(0.05))), importance="taylor")
    trail = run(tx, MEASURE, push)
    assert tiny.kept(trail[-1][1]) == KEPT and int(trail[-1][1].prune_skipped) == 1


def test_taylor_without_exploring_grows_by_what_was_measured() -> None:
    tx = method(importance="taylor", explore_steps=0, reactivate_from="init")
    trail = run(tx, MEASURE + IMPROVE)
    last, end = masks_of(trail[-2][1]), masks_of(trail[-1][1])
    memory = trail[-1][1].prune_memory
    for path in KEPT:
        grown = end[path] & ~last[path]
        assert grown.any() and np.isfinite(memory[path]).all()
        np.testing.assert_array_equal(
            grown, best(np.asarray(memory[path]), ~last[path], int(grown.sum()))
        )


def test_from_zero_means_what_was_just_dropped_too() -> None:
    trail = run(method(reactivate_from="zero", improve_steps=0), MEASURE)
    dense = dense_of(trail[-1][1])
    for path, mask in masks_of(trail[-1][1]).items():
        assert not dense[path][~mask].any()


def test_starts() -> None:
    given = {path: jnp.arange(np.prod(s)).reshape(s) % 4 == 0 for path, s in SHAPES.items()}
    tree = {"body": {"kernel": given["body/kernel"]}, "head": {"kernel": given["head/kernel"]}}
    params = tiny.params()
    state = method(sparsity=None, start=tree).init(params)
    assert tiny.kept(state) == {"body/kernel": 8, "head/kernel": 10}
    trail = run(method(sparsity=None, start=tree))
    assert tiny.kept(trail[-1][1]) == {"body/kernel": 8, "head/kernel": 10}

    trained = run(method(start="magnitude", reactivate_from="init"), 1)
    (_, state), dense = trained[1], dense_of(trained[1][1])
    for path, kept in KEPT.items():
        everything = np.ones(SHAPES[path], bool)
        np.testing.assert_array_equal(
            masks_of(state)[path], best(np.abs(dense[path]), everything, kept)
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stop": 3}, "`stop` must leave room for a cycle, which is 7 updates long, got 3"),
        ({"measure_steps": 0}, "`measure_steps` must be at least 1, got 0"),
        ({"swap_fraction": (0.3,)}, "`swap_fraction` must be"),
        ({"swap_fraction": (0.3, 1.5)}, "`swap_fraction` must lie in"),
        ({"importance": "wg"}, "`importance` must be 'magnitude' or 'taylor', got 'wg'"),
        ({"ranking": "tree"}, "`ranking` must be"),
        ({"reactivate_from": "one"}, "`reactivate_from` must be"),
        ({"grow_from": "one"}, "`grow_from` must be"),
        ({"sparsity": None}, "`sparsity` must be given unless `start` is masks"),
        (
            {"n_of_m": (2, 4), "sparsity": 0.9, "distribution": "erk"},
            "`sparsity` must be 0.5 or left out beside 2:4",
        ),
        ({"n_of_m": (5, 4), "sparsity": None, "distribution": "erk"}, "`n` must lie in"),
        ({"start": "trained"}, "`start` must be"),
        ({"n_of_m": "2:4", "sparsity": None}, "`n_of_m` must be (n, m)"),
        ({"n_of_m": (2, 4), "sparsity": None, "ranking": "global"}, "`n_of_m` must stand without"),
    ],
)
def test_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        method(**values).init(tiny.params())


def test_it_does_not_stand_last_in_a_chain() -> None:
    with pytest.raises(ValueError, match="last in a chain"):
        jaxprune.prune_and_grow(None, sparsity=0.5, stop=450)


def test_a_score_that_reads_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match="dense copy ranks new weights"):
        method(importance=jaxprune.scores.saliency).init(tiny.params())
