"""The one core: where updates land, where masks start, what changes them, what it refuses."""

import functools
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from hypothesis import example, given
from tiny import updater

import jaxprune
from jaxprune import keep, landing, schedules, scores, views
from jaxprune.refresh import changed
from jaxprune.types import Candidates, MaskUpdate, Signals
from jaxprune.units import Entries

EYE = jnp.eye(3, dtype=bool)


def once(score: Any, count: Any, candidates: Candidates = Candidates.ALL, at: int = 1) -> Any:
    """One change of masks over the tree."""
    return MaskUpdate(schedules.once(at), score, keep.largest(count), candidates)


def row(*values: float) -> Any:
    """A tree of one prunable leaf."""
    return {"kernel": jnp.array([values])}


def mask_of(state: Any) -> list[bool]:
    return jaxprune.get_masks(state)["kernel"][0].tolist()


# ------------------------------------------------------------------------------------------ landing


@functools.partial(jax.jit, static_argnums=2)
def landed(p: Any, t: Any, dtype: Any) -> Any:
    params = {"w": p.astype(dtype)}
    updates = landing.on_view(params, params, {"w": t.astype(dtype)})
    found: Any = optax.apply_updates(params, updates)
    return found["w"]


@given(st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_update_lands_on_its_target_within_an_ulp(dtype: str, seed: int) -> None:
    """Exact for t = 0, for p = 0 and for t/2 <= p <= 2t; compiled as any user's step is."""
    rng = np.random.default_rng(seed)
    p, near, far = rng.choice([-1, 1], (3, 300)) * 2.0 ** rng.uniform(-20, 20, (3, 300))
    t = np.concatenate([p[:100] * rng.uniform(0.5, 2, 100), far[:100], 0 * p[:50], near[250:]])
    p[250:] = 0
    p, t = (np.asarray(jnp.asarray(x, dtype).astype(jnp.float32)) for x in (p, t))
    found = np.asarray(landed(jnp.asarray(p), jnp.asarray(t), dtype).astype(jnp.float32))
    exact = (t == 0) | (p == 0) | ((np.abs(t) / 2 <= np.abs(p)) & (np.abs(p) <= 2 * np.abs(t)))
    exact &= (t * p) >= 0
    np.testing.assert_array_equal(found[exact], t[exact])
    assert exact.sum() > 150
    assert not tiny.bits(found)[t == 0].any(), "a zero has a sign"
    ulp = float(jnp.finfo(dtype).eps) * np.maximum(np.abs(p), np.abs(t))
    assert (np.abs(found - t) <= ulp).all()


# ------------------------------------------------------------------------------------------- starts


def test_start_masks_are_matched_by_path() -> None:
    """A leaf without one is not pruned; the mask of a leaf that the rule leaves out is ignored."""
    params = {"a": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}, "b": jnp.ones((2, 2))}
    start = {"a": {"kernel": EYE, "bias": jnp.zeros(3, bool)}}
    state = jaxprune.prune(optax.sgd(0.1), [], views.hard, start=start).init(params)
    assert tiny.kept(state) == {"a/kernel": 3}


def test_a_ramp_begins_at_the_sparsity_of_its_start() -> None:
    start = {"kernel": jnp.arange(16).reshape(4, 4) >= 8}
    tx = jaxprune.gradual_magnitude(None, sparsity=0.75, ramp=(0, 4), every=1, start=start)
    params, step = {"kernel": jnp.arange(1.0, 17.0).reshape(4, 4)}, updater(tx)
    state, counts = tx.init(params), []
    for _ in range(4):
        params, state = step(tiny.zeros_like(params), state, params)
        counts.append(tiny.kept(state)["kernel"])
    assert counts == [8 - round(4 * (1 - (1 - n / 4) ** 3)) for n in (1, 2, 3, 4)]
    assert mask_of_square(state) == [False] * 12 + [True] * 4


def mask_of_square(state: Any) -> list[bool]:
    return jaxprune.get_masks(state)["kernel"].ravel().tolist()


@pytest.mark.parametrize("method", [jaxprune.gradual_magnitude, jaxprune.straight_through])
def test_a_start_may_be_a_function_of_the_first_update(method: Any) -> None:
    """It sees the first gradient and the weights that were loaded after `init`."""

    def positive(signals: Signals) -> Any:
        return {"kernel": signals.grads["kernel"] * signals.dense["kernel"] > 0}

    tx = method(optax.sgd(0.0), sparsity=0.0, ramp=(9, 9), start=positive)
    state, params, grads = tx.init(row(-1.0, -1.0, -1.0)), row(1.0, 2.0, 3.0), row(1.0, -1.0, 1.0)
    assert mask_of(state) == [True] * 3
    params, state = updater(tx)(grads, state, params)
    assert mask_of(state) == [True, False, True]
    assert params["kernel"][0].tolist() == [1.0, 0.0, 3.0]


# ------------------------------------------------------------------------------- changes of masks


@functools.partial(jax.jit, static_argnums=3)
def change(values: Any, mask: Any, count: Any, candidates: Candidates) -> Any:
    update = once(lambda s: {"w": s.dense["w"]}, count, candidates)
    chosen, nan = changed(update, Signals(jnp.int32(1), {"w": values}, {"w": mask}))
    return chosen["w"], nan


@given(st.integers(0, 2**32 - 1), st.integers(0, 13))
@pytest.mark.parametrize("candidates", Candidates)
@example(0, 0)
@example(0, 13)
def test_a_change_chooses_among_its_candidates(candidates: Any, seed: int, count: int) -> None:
    """KEPT only drops, PRUNED only grows, whatever the count; scores of others may be NaN."""
    rng = np.random.default_rng(seed)
    values, mask = rng.normal(size=12).astype("f4"), rng.random(12) < 0.5
    among = {"all": mask | True, "kept": mask, "pruned": ~mask}[candidates.value]
    values[~among] = np.nan
    places = count - mask.sum() if candidates is Candidates.PRUNED else count
    ranked = [i for i in np.argsort(-values, kind="stable") if among[i]][: max(places, 0)]
    expected = mask.copy() if candidates is Candidates.PRUNED else np.zeros(12, bool)
    expected[ranked] = True
    chosen, failed = change(jnp.asarray(values), jnp.asarray(mask), jnp.int32(count), candidates)
    np.testing.assert_array_equal(chosen, expected)
    assert not failed


def drop_and_grow(grads: Any) -> tuple[Any, Any]:
    """Drops two of four by |w|, then grows three by |g|, in one refresh."""
    drop = once(scores.magnitude, 2, Candidates.KEPT)
    grow = once(scores.gradient, 5, Candidates.PRUNED)
    start = {"kernel": jnp.array([[True] * 4 + [False] * 4])}
    tx = jaxprune.prune(optax.sgd(0.1), [drop, grow], views.hard, start=start)
    params = row(4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    return updater(tx)(row(*grads), tx.init(params), params)


def test_changes_of_one_step_happen_one_after_another() -> None:
    """What the first drops, the second may grow again; grown entries start at their update."""
    params, state = drop_and_grow([0.0, 0.0, 9.0, 1.0, 8.0, 2.0, 3.0, -7.0])
    assert mask_of(state) == [True, True, True, False, True, False, False, True]
    wanted = [4.0, 3.0, 2.0 - 0.9, 0.0, -0.8, 0.0, 0.0, 0.7]
    np.testing.assert_allclose(params["kernel"][0], wanted, rtol=1e-6)


def test_a_nan_in_any_score_skips_them_all() -> None:
    _, state = drop_and_grow([0.0, 0.0, 9.0, 1.0, np.nan, 2.0, 3.0, -7.0])
    assert mask_of(state) == [True] * 4 + [False] * 4
    assert int(state.prune_skipped) == 1


def test_a_nan_where_no_score_is_read_skips_nothing() -> None:
    _, state = drop_and_grow([np.nan, 0.0, 9.0, 1.0, 8.0, 2.0, 3.0, -7.0])
    assert mask_of(state) == [True, True, True, False, True, False, False, True]
    assert int(state.prune_skipped) == 0


# -------------------------------------------------------------------------------- which leaves, how


def test_where_replaces_the_default_rule() -> None:
    params = {"embedding": jnp.ones((4, 4)), "body": {"kernel": jnp.ones((4, 4))}}
    kept = {}
    for where in ("embedding", ["bed", "body"], lambda path, leaf: path == "embedding"):
        tx = jaxprune.gradual_magnitude(None, sparsity=0.5, ramp=(0, 4), where=where)
        kept[str(where)[:9]] = [*tiny.kept(tx.init(params))]
    assert [*kept.values()] == [["embedding"], ["body/kernel", "embedding"], ["embedding"]]


def test_an_override_is_reached_beside_the_others() -> None:
    tx = jaxprune.gradual_magnitude(
        None, sparsity=0.5, ramp=(0, 1), distribution="global", overrides={"head": 0.9}
    )
    params = tiny.params()
    params, state = updater(tx)(tiny.zeros_like(params), tx.init(params), params)
    assert tiny.kept(state) == {"body/kernel": 32, "head/kernel": 4}  # 36 of 72


def test_the_output_axis_can_be_given() -> None:
    """The guard remembers one bool a unit; by default the last axis counts the outputs."""
    axis = {"body": 0}
    tx: Any = jaxprune.straight_through(None, sparsity=0.5, ramp=(0, 1), output_axis=axis)
    alive = tx.init(tiny.params()).prune_memory["alive"]
    assert {path: a.shape for path, a in alive.items()} == {
        "body/kernel": (4, 1),
        "head/kernel": (1, 5),
    }


def test_complex_leaves_are_ranked_by_their_modulus() -> None:
    params = {"kernel": jnp.array([[3 + 4j, -4.5 + 0j, 1 + 0j, 0 - 4.9j]], jnp.complex64)}
    tx = jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=0.5, ramp=(0, 1))
    found, state = updater(tx)(tiny.zeros_like(params), tx.init(params), params)
    assert mask_of(state) == [True, False, False, True]
    expected = np.asarray(params["kernel"]) * np.array([[1, 0, 0, 1]])
    np.testing.assert_array_equal(found["kernel"], expected)
    assert found["kernel"].dtype == jnp.complex64


def test_integers_scalars_and_empty_leaves_pass_untouched() -> None:
    params = {
        "kernel": jnp.arange(1.0, 5.0).reshape(2, 2),
        "count": jnp.ones((2, 2), jnp.int32),
        "switch": jnp.ones((2, 2), bool),
        "scalar": jnp.float32(3),
        "one": jnp.ones(1),
        "empty": jnp.zeros((0, 4)),
    }
    tx = jaxprune.straight_through(optax.identity(), sparsity=0.5, ramp=(0, 1))
    state = tx.init(params)
    assert [*tiny.kept(state)] == ["kernel"]
    updates, state = jax.jit(tx.update)(tiny.zeros_like(params), state, params)
    for path, update in updates.items():
        assert update.dtype == params[path].dtype
        assert path == "kernel" or not np.asarray(update).any()
    assert tiny.kept(state) == {"kernel": 2}


# ------------------------------------------------------------------------------------------- errors


def test_what_a_wrong_update_gets() -> None:
    tx = jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=0.5, ramp=(0, 4))
    params = tiny.params()
    state = tx.init(params)
    with pytest.raises(ValueError, match="`params` must be given to `update`, got None"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="`updates` must have the leaves of `params`, got no leaf"):
        tx.update({"body": params["body"]}, state, params)
    with pytest.raises(
        ValueError, match="`params` must have the leaves of `init`, got no leaf 'head/kernel'"
    ):
        renamed = {"body": params["body"], "heads": params["head"]}
        tx.update(renamed, state, renamed)
    with pytest.raises(ValueError, match=r"shape \(8, 5\) at 'head/kernel', as `init` had"):
        reshaped = {"body": params["body"], "head": {"kernel": jnp.ones((8, 6))}}
        tx.update(reshaped, state, reshaped)


@pytest.mark.parametrize(
    ("values", "params", "message"),
    [
        ({"start": {"kernel": EYE}}, {"kernels": jnp.ones((3, 3))}, "near paths are kernels"),
        ({"start": {"kernel": EYE}}, {"kernel": jnp.ones((3, 4))}, r"shape \(3, 4\) at 'kernel'"),
        ({"units": Entries("kernels")}, {"kernel": jnp.ones((3, 3))}, "did you mean 'kernel'"),
        (
            {"units": Entries(["kernel", "x"])},
            {"kernel": jnp.ones((3, 3))},
            "match at least one path",
        ),
        ({}, {"bias": jnp.ones(3)}, "have at least one prunable leaf.*'bias'"),
        (
            {"units": Entries(output_axis=2)},
            {"kernel": jnp.ones((3, 3))},
            r"lie in \[-2, 2\) for 'kernel'",
        ),
        (
            {"units": Entries(output_axis={"x": 0})},
            {"kernel": jnp.ones((3, 3))},
            "`output_axis` must match",
        ),
    ],
)
def test_what_wrong_values_get_at_init(values: Any, params: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jaxprune.prune(optax.sgd(0.1), [], views.hard, **values).init(params)


def test_an_inner_that_is_no_optimizer_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"`inner` must be an optax optimizer or None, got 0\.1"):
        jaxprune.prune(0.1, [], views.hard)


def test_a_score_that_reads_gradients_cannot_stand_last() -> None:
    tx = jaxprune.prune(None, [once(scores.saliency, 2)], views.hard)
    with pytest.raises(ValueError, match=r"`inner` must give scores .*: last in a chain"):
        tx.init(tiny.params())
