"""What learns thresholds or scores, against NumPy: soft thresholds (STR) and movement pruning."""

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import Loop, masks_of, scheduled, theirs

import jaxprune
from jaxprune import trees
from jaxprune.types import Signals, View

RATE, MOMENTUM, DECAY, OF_LEARNED, PENALTY = 0.05, 0.9, 0.1, 0.5, 0.2
KERNELS = ("body/kernel", "head/kernel")


def decayed() -> Any:
    """Momentum, with weight decay as a part of the gradient."""
    return optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=MOMENTUM))


def soft(inner: Any = None, **values: Any) -> Any:
    given = {"learner": optax.sgd(OF_LEARNED), "threshold_init": -1.5, "decay": PENALTY}
    return jaxprune.soft_threshold(theirs(inner or optax.sgd(RATE)), **(given | values))


def moving(inner: Any = None, **values: Any) -> Any:
    given = {"sparsity": 0.7, "ramp": (0, 4), "every": 2}
    return jaxprune.movement(theirs(inner or optax.sgd(RATE)), **(given | values))


def arrays(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in trees.by_path(tree).items()}


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


def run(tx: Any, steps: int) -> Any:
    """The params and states of each update on gradients that nothing depends on."""
    params, step = tiny.params(), tiny.updater(tx)
    state = tx.init(params)
    for n in range(steps):
        params, state = step(tiny.normal(n + 2), state, params)
        yield params, state


# ------------------------------------------------------------------------------ soft thresholds


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def soft_oracle(steps: int) -> Any:
    w, s = arrays(tiny.params()), dict.fromkeys(KERNELS, -1.5)
    momentum = {path: np.zeros_like(x) for path, x in w.items()}
    kept = {path: np.ones(w[path].shape, bool) for path in KERNELS}
    for n in range(steps):
        g = arrays(tiny.normal(n + 2))
        for path in w:
            of_w = np.where(kept[path], g[path], 0) if path in kept else g[path]
            of_s = 0
            if path in kept:
                t = sigmoid(s[path])
                of_s = -(g[path] * np.sign(w[path]))[kept[path]].sum() * t * (1 - t)
            momentum[path] = MOMENTUM * momentum[path] + of_w + DECAY * w[path]
            w[path] = w[path] - RATE * momentum[path]
            if path in kept:
                s[path] -= OF_LEARNED * (of_s + PENALTY * s[path])
                kept[path] = np.abs(w[path]) > sigmoid(s[path])
    shrunk = {p: np.sign(w[p]) * np.maximum(np.abs(w[p]) - sigmoid(s[p]), 0) for p in KERNELS}
    return w, s, kept, {**w, **shrunk}


def test_soft_thresholds_weights_and_decay_are_those_of_numpy() -> None:
    counts, s = [], {}
    for n, (params, state) in enumerate(run(soft(decayed()), 6), start=1):
        w, s, kept, seen = soft_oracle(n)
        learned, dense = jaxprune.get_learned(state), arrays(state.prune_dense)
        for path in KERNELS:
            close(learned[path], s[path])
            close(dense[path], w[path])
            np.testing.assert_array_equal(masks_of(state)[path], kept[path])
        for path, leaf in arrays(params).items():
            close(leaf, seen[path])
        counts.append(tiny.kept(state))
    assert all(0 < counts[-1][path] < tiny.size(path) for path in KERNELS)
    assert s["body/kernel"] != s["head/kernel"]
    rises = [b[path] > a[path] for a, b in itertools.pairwise(counts) for path in KERNELS]
    assert any(rises), "no weight came back"


def test_the_penalty_draws_thresholds_up_and_its_slope_is_decay_times_s() -> None:
    learner = soft(decay=0.5).init(tiny.params()).prune_spec.parts.learner
    learned = {"a": jnp.float32(-4), "b": jnp.full((3, 1, 1), -2.0)}

    def penalty(learned: Any) -> Any:
        return learner.penalty(Signals(jnp.int32(7), {}, {}, learned=learned))

    value, slopes = jax.value_and_grad(penalty)(learned)
    assert float(value) == 0.25 * (16 + 3 * 4)
    assert (float(slopes["a"]), slopes["b"].ravel().tolist()) == (-2.0, [-1.0] * 3)


def test_the_slopes_of_a_soft_threshold_are_those_of_its_formula() -> None:
    """By autodiff of the paper's formula, away from the thresholds."""
    view = soft().init(tiny.params()).prune_spec.parts.view
    w = jnp.array([[-2.0, -0.1, 0.3], [0.05, -0.7, 1.0]])
    mask = jnp.abs(w) > jax.nn.sigmoid(-1.5)

    def ours(w: Any, s: Any) -> Any:
        signals = Signals(jnp.int32(3), {"w": w}, {"w": mask}, learned={"w": s})
        return view.apply(signals)["w"]

    def theirs(w: Any, s: Any) -> Any:
        return jnp.sign(w) * jax.nn.relu(jnp.abs(w) - jax.nn.sigmoid(s))

    s, g = jnp.float32(-1.5), jnp.array([[1.0, 2.0, 3.0], [5.0, 7.0, 11.0]])
    for found, wanted in zip(jax.vjp(ours, w, s)[1](g), jax.vjp(theirs, w, s)[1](g), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    tiny.same_bits(ours(w, s) == 0, ~mask)
    of_w, of_s = jax.vjp(ours, w, s)[1](jnp.where(mask, g, jnp.nan))
    np.testing.assert_allclose(of_s, jax.vjp(theirs, w, s)[1](g)[1], rtol=1e-6)
    np.testing.assert_array_equal(of_w, jnp.where(mask, g, 0))


def test_with_a_threshold_of_exactly_zero_it_is_the_plain_optimizer_and_s_only_decays() -> None:
    params = others = tiny.params()
    tx, bare = soft(decayed(), threshold_init=-3200.0), theirs(decayed())
    step, plain = tiny.updater(tx), tiny.updater(bare)
    state, slots = tx.init(params), bare.init(others)
    for n in range(4):
        params, state = step(tiny.normal(n), state, params)
        others, slots = plain(tiny.normal(n), slots, others)
    tiny.close(params, others)
    assert float(jaxprune.sparsity_of(state)) == 0
    for s in jaxprune.get_learned(state).values():
        np.testing.assert_allclose(s, -3200 * (1 - OF_LEARNED * PENALTY) ** 4, rtol=1e-6)


def test_a_layer_can_be_emptied_and_the_summary_says_so() -> None:
    params = {"small": {"kernel": jnp.full((3, 4), 0.01)}, "large": {"kernel": jnp.ones((3, 4))}}
    tx = soft(threshold_init=-2.0)
    params, state = tiny.updater(tx)(tiny.zeros_like(params), tx.init(params), params)
    summary = jaxprune.summarize(params, state)
    assert summary.collapsed == ("small/kernel",)
    assert "layer collapse: nothing is kept of small/kernel" in str(summary)


def test_edited_params_are_adopted_with_their_threshold_added() -> None:
    *_, (params, state) = run(soft(), 3)
    edited = jax.tree.map(lambda p: 2 * p, params)
    again = jaxprune.rebase(edited, state)
    jaxprune.verify(edited, again)
    masks, dense = masks_of(state), arrays(again.prune_dense)
    for path, t in {p: sigmoid(s) for p, s in jaxprune.get_learned(state).items()}.items():
        seen = arrays(edited)[path]
        close(dense[path][masks[path]], (seen + np.sign(seen) * t)[masks[path]])
        before = arrays(state.prune_dense)[path]
        tiny.same_bits(dense[path][~masks[path]], before[~masks[path]])


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_of_a_stack_have_thresholds_of_their_own(axis: int) -> None:
    rng = np.random.default_rng(0)
    kernels, pulls = rng.normal(size=(2, 3, 4, 5)) * np.array([1, 0.3, 3]).reshape(1, 3, 1, 1)
    shape = tuple(3 if n == axis else 1 for n in range(3))

    def both(x: Any) -> Any:
        x = jnp.asarray(x, jnp.float32)
        return {"kernel": jnp.moveaxis(x, 0, axis)}, {f"layer{i}/kernel": x[i] for i in range(3)}

    (stack, apart), (grads, parts) = both(kernels), both(pulls)
    one, other = soft(decayed(), stacked={"kernel": axis}), soft(decayed())
    a, b = one.init(stack), other.init(apart)
    for _ in range(3):
        stack, a = tiny.updater(one)(grads, a, stack)
        apart, b = tiny.updater(other)(parts, b, apart)
    learned = jaxprune.get_learned(a)["kernel"]
    assert learned.shape == shape
    np.testing.assert_allclose(learned.ravel(), [*jaxprune.get_learned(b).values()], rtol=1e-5)
    assert len(set(learned.ravel().tolist())) == 3
    for i, (path, mask) in enumerate(masks_of(b).items()):
        np.testing.assert_array_equal(np.moveaxis(masks_of(a)["kernel"], axis, 0)[i], mask)
        close(np.moveaxis(np.asarray(stack["kernel"]), axis, 0)[i], apart[path])


def test_complex_weights_shrink_towards_zero() -> None:
    w = jnp.array([[3 + 4j, 0.1j], [-1, 0]], jnp.complex64)
    tx = soft(threshold_init=-1.0986123, learner=optax.sgd(0.0))
    params, state = tiny.updater(tx)({"k": jnp.zeros_like(w)}, tx.init({"k": w}), {"k": w})
    close(params["k"], np.array([[(3 + 4j) * 4.75 / 5, 0], [-0.75, 0]]))
    assert masks_of(state)["k"].tolist() == [[True, False], [True, False]]


# ------------------------------------------------------------------------------ movement pruning


def movement_oracle(steps: int, rate: float) -> Any:
    w = arrays(tiny.params())
    scores = {path: np.zeros_like(w[path]) for path in KERNELS}
    kept = {path: np.ones(w[path].shape, bool) for path in KERNELS}
    for n in range(1, steps + 1):
        g = arrays(tiny.normal(n + 1))
        for path in KERNELS:
            scores[path] = scores[path] - rate * w[path] * g[path]
        for path in w:
            moves = kept.get(path, np.bool_(True))
            w[path] = np.where(moves, w[path] - RATE * (g[path] + DECAY * w[path]), w[path])
        if n % 2 == 0:
            order = np.argsort(-np.concatenate([scores[p].ravel() for p in KERNELS]), kind="stable")
            flat = np.zeros(72, bool)
            flat[order[: scheduled(72, 22, n, 4, 2)]] = True
            kept = {"body/kernel": flat[:32].reshape(4, 8), "head/kernel": flat[32:].reshape(8, 5)}
    return w, scores, kept


@pytest.mark.parametrize("rate", [1.0, 0.03125])
def test_scores_add_up_minus_w_g_and_rank_at_any_rate(rate: float) -> None:
    """Of pruned weights too, with the value they have kept."""
    back = 0
    before = {path: np.ones(1, bool) for path in KERNELS}
    inner = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE))
    tx = moving(inner, learner=optax.sgd(rate))
    for n, (params, state) in enumerate(run(tx, 8), start=1):
        w, scores, kept = movement_oracle(n, rate)
        dense, masks = arrays(state.prune_dense), masks_of(state)
        for path in KERNELS:
            close(jaxprune.get_learned(state)[path], scores[path])
            close(dense[path], w[path])
            np.testing.assert_array_equal(masks[path], kept[path])
            close(arrays(params)[path], np.where(kept[path], w[path], 0))
            back += int((masks[path] & ~before[path]).sum())
        before = masks
    assert back > 0, "no weight came back"


@pytest.mark.parametrize(
    "inner", [decayed(), optax.adamw(0.05, weight_decay=0.1)], ids=["momentum", "adamw"]
)
def test_pruned_weights_stand_still_and_come_back_as_they_were(inner: Any) -> None:
    old, masks, back = arrays(tiny.params()), {}, 0
    for params, state in run(moving(inner), 10):
        dense, now = arrays(state.prune_dense), masks_of(state)
        for path, mask in masks.items():  # those of the network that the gradient was of
            tiny.same_bits(dense[path][~mask], old[path][~mask])
            assert (dense[path][mask] != old[path][mask]).all()
            returned = now[path] & ~mask
            close(arrays(params)[path][returned], old[path][returned])
            back += int(returned.sum())
        old, masks = dense, now
    assert back > 0, "no weight came back"


def test_a_small_weight_that_grows_is_kept_over_a_large_one_that_shrinks() -> None:
    params, target = {"kernel": jnp.array([[0.1, 1.0]])}, jnp.array([[0.6, 0.5]])
    masks = {}
    for method in (jaxprune.movement, jaxprune.gradual_magnitude):
        tx, seen = method(theirs(optax.sgd(0.05)), sparsity=0.5, ramp=(0, 3), every=3), params
        step, state = tiny.updater(tx), tx.init(params)
        for _ in range(3):
            seen, state = step({"kernel": seen["kernel"] - target}, state, seen)
        masks[method.__name__] = masks_of(state)["kernel"].tolist()
    assert masks == {"movement": [[True, False]], "gradual_magnitude": [[False, True]]}


def test_equal_scores_go_to_the_lower_index() -> None:
    params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    tx = moving(sparsity=0.5, ramp=(0, 1))
    _, state = tiny.updater(tx)(tiny.zeros_like(params), tx.init(params), params)
    assert masks_of(state)["kernel"].tolist() == [[True, True], [False, False]]


def test_a_nan_gradient_of_a_pruned_weight_stays_in_its_score() -> None:
    loop, params = Loop(moving(), compiler_options=tiny.quick()), tiny.params()
    state = loop.tx.init(params)
    for _ in range(4):
        params, state = loop(params, state)
    before = {path: mask.copy() for path, mask in masks_of(state).items()}
    push = tiny.zeros_like(params)
    row, column = np.argwhere(~before["body/kernel"])[0]
    push["body"]["kernel"] = push["body"]["kernel"].at[row, column].set(jnp.nan)
    params, state = loop(params, state, push=push)
    for _ in range(3):
        params, state = loop(params, state)
    learned = jaxprune.get_learned(state)
    assert [int(np.isnan(x).sum()) for x in learned.values()] == [1, 0]
    assert int(state.prune_skipped) == 2  # after updates 6 and 8
    tiny.same_bits(masks_of(state), before)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold_init": 0.01}, "`threshold_init` must be finite and below 0, got 0.01: it is"),
        ({"threshold_init": -np.inf}, "`threshold_init` must be finite and below 0, got -inf"),
        ({"threshold_init": np.nan}, "`threshold_init` must be finite and below 0, got nan"),
        ({"decay": -1.0}, "`decay` must be 0 or more, got -1.0"),
        ({"decay": np.nan}, "`decay` must be 0 or more, got nan"),
        ({"stacked": {"tail": 0}}, "`stacked` must match"),
    ],
)
def test_errors_of_soft_thresholds(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        soft(**values).init(tiny.params())


def test_what_learns_needs_optimizers() -> None:
    with pytest.raises(TypeError, match="`learner` must be an optax optimizer, got 0"):
        soft(learner=0.1)
    with pytest.raises(TypeError, match="`learner` must be an optax optimizer, got None"):
        moving(learner=None)
    with pytest.raises(ValueError, match=r"`inner` must be an optimizer.*last in a chain"):
        jaxprune.movement(None, sparsity=0.5, ramp=(0, 4))
    with pytest.raises(ValueError, match=r"`inner` must be an optimizer.*last in a chain"):
        jaxprune.soft_threshold(None, learner=optax.sgd(0.1), threshold_init=-9.0, decay=0.1)


def test_what_is_learned_may_be_any_tree() -> None:
    learner = jaxprune.Learner(lambda s: (jnp.ones(()), jnp.zeros(2)), optax.sgd(0.1))
    view = View(lambda s: {p: s.learned[0] * s.dense[p] for p in s.mask})
    tx = jaxprune.prune(optax.sgd(0.1), [], view, learner=learner)
    one, zeros = jaxprune.get_learned(tx.init({"kernel": jnp.ones((2, 2))}))
    assert (float(one), zeros.shape) == (1.0, (2,))
