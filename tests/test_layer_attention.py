"""Layer attention (ASWL) against NumPy: attention, ratio, penalty, decay, and where it sits."""

import re
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import Loop, masks_of, theirs

import jaxprune
from jaxprune import trees
from jaxprune.masks.counting import floor_of_product
from jaxprune.types import Signals

RATE, MOMENTUM, DECAY, OF_ATTENTION = 0.05, 0.9, 0.1, 0.01
KERNELS = ("body/kernel", "head/kernel")


def method(inner: Any = None, **values: Any) -> Any:
    given = {"sparsity": 0.9, "ramp": None, "attention_init": 0.5}
    given["learner"] = optax.sgd(OF_ATTENTION)
    return jaxprune.layer_attention(theirs(inner or optax.sgd(RATE)), **(given | values))


def applied(params: Any, updates: Any) -> Any:
    return optax.apply_updates(params, updates)


def learner_of(tx: Any) -> Any:
    return tx.init(tiny.params()).prune_spec.parts.learner


def test_the_penalty_and_its_slope() -> None:
    mask = {"a": jnp.ones((10, 10), bool), "b": jnp.ones((10, 30), bool)}
    learner = learner_of(method(sparsity=1.0, gamma=5.0))
    learned = {"a": jnp.float32(0.5), "b": jnp.float32(0.5)}

    def penalty(learned: Any) -> Any:
        return learner.penalty(Signals(jnp.int32(7), {}, mask, learned=learned))

    value, slopes = jax.value_and_grad(penalty)(learned)
    assert (float(value), float(slopes["a"]), float(slopes["b"])) == (5 * 0.25, 1.25, 3.75)
    assert float(penalty({"a": jnp.float32(1), "b": jnp.float32(1)})) == 5.0  # nothing is pruned


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("a", [0.01, 0.02, 0.5])
def test_the_slope_of_the_penalty_is_that_without_the_bounds(alpha: float, a: float) -> None:
    mask, gamma, target = {"a": jnp.ones((10, 10), bool)}, 3.0, 0.25
    learner = learner_of(method(sparsity=1 - target, alpha=alpha, gamma=gamma))

    def penalty(a: Any) -> Any:
        return learner.penalty(Signals(jnp.int32(0), {}, mask, learned={"a": a}))

    value, slope = jax.value_and_grad(penalty)(jnp.float32(a))
    density = 1 - min((1 - a) ** alpha, 0.99)
    wanted = gamma * 2 * (density - target) * alpha * (1 - a) ** (alpha - 1)
    np.testing.assert_allclose(value, gamma * (density - target) ** 2, rtol=1e-5)
    np.testing.assert_allclose(slope, wanted, rtol=1e-4)


def test_the_target_falls_from_one_along_a_cubic() -> None:
    mask = {"a": jnp.ones((10, 10), bool)}
    learner = learner_of(method(sparsity=0.8, ramp=(2, 10), gamma=1.0))

    def target(age: int) -> float:
        signals = Signals(jnp.int32(age), {}, mask, learned={"a": jnp.float32(1)})
        return 1 - float(learner.penalty(signals)) ** 0.5  # the density is 1

    wanted = [1 - 0.8 * (1 - (1 - np.clip((t - 2) / 8, 0, 1)) ** 3) for t in range(13)]
    np.testing.assert_allclose([target(t) for t in range(13)], wanted, atol=1e-6)


def test_shares_are_counted_in_integers() -> None:
    rng = np.random.default_rng(0)
    small = rng.random(200) * 10.0 ** -rng.integers(0, 12, 200)
    edges = [0, 0.99, 0.5, 1e-45, 1e-38, 2.0**-31, 1 - 2.0**-24]
    shares = np.concatenate([rng.random(500), small, edges]).astype(np.float32)
    for number in (0, 1, 7, 4096, 2359296, 2**24 + 1, 2**31 - 1):
        exact = [int(Fraction(float(share)) * number) for share in shares]
        np.testing.assert_array_equal(floor_of_product(jnp.asarray(shares), number), exact)
    assert int(floor_of_product(jnp.float32(np.nan), 100)) == 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (40, 50)])
def test_a_layer_is_never_emptied(shape: tuple[int, ...]) -> None:
    params = {"kernel": jax.random.normal(jax.random.key(0), shape)}
    tx = method(attention_init=0.01, learner=optax.set_to_zero())
    _, state = jax.jit(tx.update)(tiny.zeros_like(params), tx.init(params), params)
    size = params["kernel"].size
    pruned = int(Fraction(float(np.float32(0.99))) * size)
    assert tiny.kept(state) == {"kernel": size - pruned}
    assert size - pruned >= 1


def oracle(steps: int, grads: Any, gamma: float, target: float) -> Any:
    """Several updates in NumPy: sgd with momentum and decay, attentions by plain sgd."""
    w = {path: np.asarray(x) for path, x in trees.by_path(tiny.params()).items()}
    a = dict.fromkeys(KERNELS, np.float32(0.5))
    m = {path: np.ones(w[path].shape, bool) for path in KERNELS}
    momentum = {path: np.zeros_like(x) for path, x in w.items()}
    total = sum(m[path].size for path in KERNELS)
    for n in range(steps):
        g = {path: np.asarray(x) for path, x in trees.by_path(grads(n)).items()}
        density = sum(float(a[path]) * m[path].size for path in KERNELS) / total  # alpha is 1
        slopes = {
            path: (g[path] * m[path] * w[path]).sum()
            + 2 * gamma * (density - target) * m[path].size / total
            for path in KERNELS
        }
        slopes["body/kernel"] += (g["body/bias"] * w["body/bias"]).sum()
        of_dense = {path: a[path] * g[path] for path in KERNELS}
        of_dense["body/bias"] = a["body/kernel"] * g["body/bias"]
        for path, x in w.items():
            decayed = x * m[path] if path in m else x
            momentum[path] = MOMENTUM * momentum[path] + of_dense[path] + DECAY * decayed
            w[path] = x - RATE * momentum[path]
        for path in KERNELS:
            a[path] = np.float32(np.clip(a[path] - OF_ATTENTION * slopes[path], 0.01, 1))
            pruned = int(Fraction(float(np.float32(1) - a[path])) * m[path].size)
            order = np.argsort(-np.abs(w[path]).ravel(), kind="stable")
            m[path] = np.zeros(m[path].size, bool)
            m[path][order[: order.size - pruned]] = True
            m[path] = m[path].reshape(w[path].shape)
    seen = {path: a[path] * m[path] * w[path] for path in KERNELS}
    return w, a, m, {**seen, "body/bias": a["body/kernel"] * w["body/bias"]}


def test_several_updates_are_those_of_numpy() -> None:
    inner = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=MOMENTUM))
    tx, params = method(inner, gamma=3.0), tiny.params()
    state, step = tx.init(params), jax.jit(tx.update)
    for n in range(6):
        updates, state = step(tiny.normal(n), state, params)
        params = applied(params, updates)
        w, a, m, seen = oracle(n + 1, tiny.normal, gamma=3.0, target=0.1)
        learned = jaxprune.get_learned(state)
        for path in KERNELS:
            np.testing.assert_allclose(learned[path], a[path], rtol=1e-5)
            np.testing.assert_array_equal(masks_of(state)[path], m[path])
        for path, x in trees.by_path(params).items():
            np.testing.assert_allclose(state.prune_dense[path.split("/")[0]][path.split("/")[1]],
                                       w[path], rtol=1e-4, atol=1e-6)  # fmt: skip
            np.testing.assert_allclose(x, seen[path], rtol=1e-4, atol=1e-6)
    ends = {float(x) for x in jaxprune.get_learned(state).values()}
    assert len(ends) == 2  # the layers went ways of their own


def test_masks_may_be_chosen_in_every_third_update_alone() -> None:
    """And in the first; attentions are learned in between, too."""
    tx, params = method(optax.sgd(1.0), every=3, gamma=3.0), tiny.params()
    state, step, changes, before = tx.init(params), tiny.updater(tx), [], None
    for n in range(1, 9):
        old = tiny.saved(jaxprune.get_learned(state))
        params, state = step(tiny.normal(n), state, params)
        learned, masks = jaxprune.get_learned(state), masks_of(state)
        assert all(learned[path] != old[path] for path in KERNELS)
        if n in (1, 3, 6):
            for path, w in trees.by_path(state.prune_dense).items():
                if path in KERNELS:
                    size = np.abs(np.asarray(w)).ravel()
                    pruned = int(Fraction(float(np.float32(1) - learned[path])) * size.size)
                    largest = np.argsort(-size, kind="stable")[: size.size - pruned]
                    assert np.flatnonzero(masks[path].ravel()).tolist() == sorted(largest)
        if before is None or any((masks[path] != before[path]).any() for path in KERNELS):
            changes.append(n)
        before = {path: mask.copy() for path, mask in masks.items()}
        jaxprune.verify(params, state)
    assert changes == [1, 3, 6]
    assert jaxprune.plan(tx, params).steps[:3] == (1, 3, 6)


def test_gamma_is_20_where_nothing_is_said() -> None:
    mask = {"a": jnp.ones((10, 10), bool)}
    signals = Signals(jnp.int32(7), {}, mask, learned={"a": jnp.float32(1)})
    assert float(learner_of(method(sparsity=1.0)).penalty(signals)) == 20


def test_a_masked_weight_has_the_task_gradient_and_no_decay() -> None:
    tx = method(optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE)))
    params = tiny.params()
    updates, state = tx.update(tiny.zeros_like(params), tx.init(params), params)
    params, masked = applied(params, updates), ~masks_of(state)["body/kernel"]
    before = np.asarray(state.prune_dense["body"]["kernel"])
    a = float(jaxprune.get_learned(state)["body/kernel"])
    ones = jax.tree.map(jnp.ones_like, params)
    _, state = tx.update(ones, state, params)
    after = np.asarray(state.prune_dense["body"]["kernel"])
    np.testing.assert_allclose((after - before)[masked], -RATE * a, rtol=1e-4)
    kept = before[~masked]
    np.testing.assert_allclose((after - before)[~masked], -RATE * (a + DECAY * kept), rtol=1e-3)


def test_without_penalty_at_full_attention_at_rest_it_is_dense_training() -> None:
    bare = theirs(optax.adamw(0.05, weight_decay=0.1))
    frozen = {"learner": optax.set_to_zero(), "attention_init": 1.0, "gamma": 0.0}
    tx, a, b = method(bare, **frozen), tiny.params(), tiny.params()
    state, slots = tx.init(a), bare.init(b)
    for n in range(5):
        updates, state = tx.update(tiny.normal(n), state, a)
        others, slots = bare.update(tiny.normal(n), slots, b)
        a, b = applied(a, updates), applied(b, others)
    tiny.close(a, b)
    assert float(jaxprune.sparsity_of(state)) == 0


def test_the_network_scales_its_layers_outputs() -> None:
    """Kernel and bias times a is the output times a."""
    params = tiny.params()
    tx = method(optax.sgd(0.0), learner=optax.set_to_zero(), attention_init=0.5)
    updates, state = tx.update(tiny.zeros_like(params), tx.init(params), params)
    seen, x = applied(params, updates), jnp.ones((1, 4))
    sparse = np.asarray(params["body"]["kernel"]) * masks_of(state)["body/kernel"]
    output = 0.5 * (x @ sparse + params["body"]["bias"][None])
    np.testing.assert_allclose(
        x @ seen["body"]["kernel"] + seen["body"]["bias"][None], output, rtol=1e-6
    )


class Network(nn.Module):
    """A convolution with a norm after it, and a classifier without."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(6, (3, 3), use_bias=False, name="conv_0")(x)
        x = nn.BatchNorm(use_running_average=False, name="norm_0")(x)
        return nn.Dense(4, name="classifier")(nn.relu(x).mean(axis=(1, 2)))


def slopes_of_attentions() -> dict[str, float]:
    """The gradient of a loss alone with respect to the attentions, after some updates."""
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 3))
    variables: Any = Network().init(jax.random.key(1), x)
    params = variables["params"]

    def loss(params: Any) -> Any:
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, _ = Network().apply(given, x, mutable=["batch_stats"])
        return jnp.mean((logits - jnp.arange(4.0)[None]) ** 2)

    keep = optax.trace(decay=0.0)  # its slots are the gradients it got
    still = optax.chain(keep, optax.set_to_zero())
    tx = method(optax.sgd(0.05), gamma=0.0, learner=still)
    state, step = tx.init(params), jax.jit(tx.update)
    for _ in range(3):
        updates, state = step(jax.grad(loss)(params), state, params)
        params = applied(params, updates)
    return {path: abs(float(x)) for path, x in state.prune_learner[0].trace.items()}


def test_a_norm_takes_the_gradient_of_an_attention_away() -> None:
    slopes = slopes_of_attentions()
    assert slopes["conv_0/kernel"] < 1e-4 * slopes["classifier/kernel"]


def test_slices_of_a_stack_have_attentions_of_their_own() -> None:
    """A stacked leaf with its stacked bias, beside the same layers apart."""
    rng = np.random.default_rng(0)
    kernels, biases = rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 5))
    stack = {"layers": {"kernel": jnp.float32(kernels), "bias": jnp.float32(biases)}}
    apart = {f"layer{i}": {"kernel": jnp.float32(kernels[i]), "bias": jnp.float32(biases[i])}
             for i in range(3)}  # fmt: skip
    one, other = method(gamma=3.0, stacked={"layers/kernel": 0}), method(gamma=3.0)
    a, b = one.init(stack), other.init(apart)
    for n in range(4):
        g = np.random.default_rng(n + 1)
        of_kernels, of_biases = g.normal(size=(3, 4, 5)), g.normal(size=(3, 5))
        grads = {"layers": {"kernel": jnp.float32(of_kernels), "bias": jnp.float32(of_biases)}}
        parts = {f"layer{i}": {"kernel": jnp.float32(of_kernels[i]),
                               "bias": jnp.float32(of_biases[i])} for i in range(3)}  # fmt: skip
        updates, a = one.update(grads, a, stack)
        stack = applied(stack, updates)
        updates, b = other.update(parts, b, apart)
        apart = applied(apart, updates)
    learned = jaxprune.get_learned(a)["layers/kernel"]
    assert learned.shape == (3, 1, 1)
    for i in range(3):
        alone = jaxprune.get_learned(b)[f"layer{i}/kernel"]
        np.testing.assert_allclose(learned[i, 0, 0], alone, rtol=1e-5)
        np.testing.assert_array_equal(
            masks_of(a)["layers/kernel"][i], masks_of(b)[f"layer{i}/kernel"]
        )
        for leaf in ("kernel", "bias"):
            np.testing.assert_allclose(
                stack["layers"][leaf][i], apart[f"layer{i}"][leaf], rtol=1e-5, atol=1e-7
            )


def test_a_stack_of_one_layer_is_a_layer() -> None:
    params = {"layers": {"kernel": jnp.ones((4, 1, 5)), "bias": jnp.ones((1, 5))}}
    tx = method(stacked={"layers/kernel": 1}, learner=optax.sgd(1.0), gamma=0.0)
    grads = jax.tree.map(lambda p: 0.01 * p, params)
    updates, state = tx.update(grads, tx.init(params), params)
    learned = jaxprune.get_learned(state)["layers/kernel"]
    assert learned.shape == (1, 1, 1)
    np.testing.assert_allclose(learned, 0.5 - 0.25, rtol=1e-5)  # 20 weights and 5 biases
    assert applied(params, updates)["layers"]["bias"].shape == (1, 5)


def test_a_stack_whose_bias_is_stacked_otherwise_is_refused() -> None:
    params = {"layers": {"kernel": jnp.ones((4, 3, 5)), "bias": jnp.ones((3, 5))}}
    with pytest.raises(ValueError, match=r"'layers/bias'.*stacked along axis 1 as its kernel is"):
        method(stacked={"layers/kernel": 1}).init(params)


def test_attentions_stay_within_their_bounds() -> None:
    params = tiny.params()
    for pull, end in ((-1e6, 1.0), (1e6, 0.01)):
        tx = method(learner=optax.sgd(1.0), gamma=0.0)
        grads = jax.tree.map(lambda p, pull=pull: pull * p, params)
        _, state = tx.update(grads, tx.init(params), params)
        assert {float(x) for x in jaxprune.get_learned(state).values()} == {np.float32(end)}


@pytest.mark.parametrize("attention", [0.01, 0.1, 1.0])
def test_however_far_a_layer_shrinks_at_once_its_params_are_its_view(attention: float) -> None:
    tx = method(attention_init=attention, learner=optax.set_to_zero())
    params, state = tiny.params(), tx.init(tiny.params())
    for _ in range(2):
        updates, state = tx.update(tiny.zeros_like(params), state, params)
        params = applied(params, updates)
        jaxprune.verify(params, state)
    with pytest.raises(ValueError, match="must be the view of the dense weights"):
        jaxprune.verify({**params, "head": slightly_off(params["head"])}, state)


def slightly_off(tree: Any) -> Any:
    return jax.tree.map(lambda x: x * 1.001, tree)


def test_below_one_an_alpha_keeps_attentions_off_one() -> None:
    tx = method(learner=optax.sgd(1.0), alpha=0.5)
    params = tiny.params()
    grads = jax.tree.map(lambda p: -1e6 * p, params)
    _, state = tx.update(grads, tx.init(params), params)
    assert all(0.99 < float(x) < 1 for x in jaxprune.get_learned(state).values())


def test_nan_attentions_change_no_mask_and_are_counted() -> None:
    loop, params = Loop(method(), compiler_options=tiny.quick()), tiny.params()
    state = loop.tx.init(params)
    params, state = loop(params, state)
    before = tiny.saved(jaxprune.get_masks(state))
    nan = {path: x * jnp.nan for path, x in jaxprune.get_learned(state).items()}
    params, state = loop(params, state._replace(prune_learned=nan))
    tiny.same_bits(tiny.saved(jaxprune.get_masks(state)), before)
    assert int(state.prune_skipped) == 1
    for path, mask in masks_of(state).items():
        module, name = path.split("/")
        assert not tiny.bits(params[module][name])[~mask].any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention_init": 0.0}, "`attention_init` must lie in [0.01, 1], got 0.0"),
        ({"attention_init": 1.0, "alpha": 0.5}, "`attention_init` must be below 1 where `alpha`"),
        ({"alpha": 0.0}, "`alpha` must be above 0, got 0.0"),
        ({"gamma": -1.0}, "`gamma` must be at least 0, got -1.0"),
        ({"sparsity": 1.5}, "`sparsity` must lie in [0, 1], got 1.5"),
        ({"ramp": (4, 2)}, "`ramp` must begin at 0 or later"),
        ({"every": 0}, "`every` must be at least 1, got 0"),
    ],
)
def test_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        method(**values).init(tiny.params())


def test_it_needs_optimizers() -> None:
    with pytest.raises(TypeError, match="`learner` must be an optax optimizer"):
        method(learner=0.1)
    with pytest.raises(ValueError, match=r"`inner` must be an optimizer.*last in a chain"):
        jaxprune.layer_attention(None, sparsity=0.9, learner=optax.sgd(0.1), ramp=None)
