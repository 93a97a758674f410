"""The four methods against small NumPy formulas, and what is theirs alone."""

import functools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import Loop, theirs

import jaxprune
from jaxprune import trees
from jaxprune.methods import magnitude_attention

RATE, MOMENTUM = 0.1, 0.9
SIZE, STEPS, EXPLOIT = 72, 8, 6


def kernels(tree: Any) -> np.ndarray:
    """The pruned entries of a tree, one after another."""
    parts = tree["body"]["kernel"], tree["head"]["kernel"]
    return np.concatenate([np.asarray(part).ravel() for part in parts])


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def living(mask: np.ndarray) -> np.ndarray:
    """Whether the output unit (last axis) of each entry has a kept weight."""
    body, head = mask[:32].reshape(4, 8), mask[32:].reshape(8, 5)
    return np.concatenate([np.tile(part.any(0), (len(part), 1)).ravel() for part in (body, head)])


def tops(w: np.ndarray) -> np.ndarray:
    return np.repeat([np.abs(w[:32]).max(), np.abs(w[32:]).max()], [32, 40])


class Oracle:
    """Magnitude attention under SGD with momentum, as papers and docstring define it.

    ``z=None`` with ``exploit=None`` is straight-through: no attention, no end.
    """

    def __init__(
        self,
        z: float | None = 1.0,
        exploit: float = EXPLOIT,
        masked: str = "floor",
        forward: bool = True,
        on: str = "gradient",
        guard: bool = True,
        sparsity: float = 0.7,
    ):
        self.z, self.exploit, self.masked, self.forward = z, exploit, masked, forward
        self.on, self.guard, self.sparsity = on, guard, sparsity
        self.w = kernels(tiny.params())
        self.mask = self.alive = np.ones(SIZE, bool)
        self.top, self.floor = tops(self.w), 1.0
        self.trace = np.zeros(SIZE)

    def attention(self) -> np.ndarray:
        if self.z is None:
            return np.ones(SIZE)
        return self.floor + (1 - self.floor) * np.minimum(np.abs(self.w) / self.top, 1)

    def factor(self) -> np.ndarray:
        a = self.attention()
        lower = a if self.masked == "own" else np.full(SIZE, self.floor)
        return np.where(self.mask, a, np.where(self.alive | (not self.guard), lower, 0.0))

    def seen(self) -> np.ndarray:
        return np.where(self.mask, (self.attention() if self.forward else 1.0) * self.w, 0.0)

    def update(self, g: np.ndarray, n: int) -> None:
        """Update n, which the gradient at age n - 1 brings."""
        factor, moves = self.factor(), self.mask | (n - 1 < self.exploit)
        pulled = np.where(moves, factor * g if self.on == "gradient" else (factor != 0) * g, 0.0)
        self.trace = pulled + MOMENTUM * self.trace
        scale = factor if self.on == "update" else 1.0
        self.w = np.where(moves, self.w - RATE * scale * self.trace, self.w)
        if n <= self.exploit and (n % 2 == 0 or n in (4, self.exploit)):
            target = round(SIZE * (1 - self.sparsity))
            kept = tiny.scheduled(SIZE, target, n, 4, 2)
            self.mask = highest(np.abs(self.w), kept)
            self.alive, self.top = living(self.mask), tops(self.w)
            if self.z is not None:
                now = self.sparsity * (1 - (1 - min(n / 4, 1)) ** 3)
                self.floor = max((1 - now) ** self.z, 1e-3)


def follow(method: Any, oracle: Oracle, steps: int = STEPS, **values: Any) -> list[Any]:
    """Trains a method beside its oracle; both see the same dense gradients."""
    inner = theirs(optax.sgd(RATE, momentum=MOMENTUM))
    tx = method(inner, sparsity=oracle.sparsity, ramp=(0, 4), every=2, **values)
    step = Loop(tx, compiler_options=tiny.quick())
    params, states = tiny.params(), []
    state = step.tx.init(params)
    for n in range(1, steps + 1):
        push = tiny.normal(n)
        oracle.update(kernels(push), n)
        params, state = step(params, state, 0.0, push)
        np.testing.assert_array_equal(kernels(jaxprune.get_masks(state)), oracle.mask)
        np.testing.assert_allclose(kernels(state.prune_dense), oracle.w, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(kernels(params), oracle.seen(), rtol=2e-5, atol=1e-6)
        states.append(tiny.saved(state))
    assert step.traces == 1
    return states


@pytest.mark.parametrize(
    ("values", "formula"),
    [
        ({}, {}),
        ({"strength": 0.0}, {"z": 0.0}),
        ({"strength": jnp.inf}, {"z": np.inf}),
        ({"masked": "own"}, {"masked": "own"}),
        ({"forward": False}, {"forward": False}),
        ({"attention_on": "update"}, {"on": "update"}),
        ({"dead_units": "move"}, {"guard": False}),
        ({"attention_on": "update", "masked": "own", "dead_units": "move", "forward": False},
         {"on": "update", "masked": "own", "guard": False, "forward": False}),
    ],
)  # fmt: skip
def test_magnitude_attention_is_its_formula(values: dict, formula: dict) -> None:
    oracle = Oracle(sparsity=0.9, **formula)
    follow(jaxprune.magnitude_attention, oracle, stop=EXPLOIT, **values)
    assert not oracle.alive.all(), "no unit died: the guard was not seen"


@pytest.mark.parametrize("dead_units", ["hold", "move"])
def test_straight_through_is_its_formula(dead_units: str) -> None:
    oracle = Oracle(None, np.inf, guard=dead_units == "hold", sparsity=0.9)
    follow(jaxprune.straight_through, oracle, dead_units=dead_units)
    assert not oracle.alive.all(), "no unit died: the guard was not seen"


def test_attention_of_strength_0_is_straight_through_until_it_freezes() -> None:
    """Both without the guard; masks exactly, weights closely."""
    values = {"dead_units": "move"}
    ours = follow(
        jaxprune.magnitude_attention, Oracle(0.0, guard=False), EXPLOIT,
        stop=EXPLOIT, strength=0.0, **values,
    )  # fmt: skip
    theirs = follow(jaxprune.straight_through, Oracle(None, np.inf, guard=False), EXPLOIT, **values)
    for a, b in zip(ours, theirs, strict=True):
        tiny.same_bits(a.prune_mask, b.prune_mask)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7),
            a.prune_dense,
            b.prune_dense,
        )


def test_gradual_magnitude_is_its_formula() -> None:
    """Masks rank the weights before the update, kept ones only; pruned momentum runs on."""
    w, mask, trace = kernels(tiny.params()), np.ones(SIZE, bool), np.zeros(SIZE)
    inner = theirs(optax.sgd(RATE, momentum=MOMENTUM))
    tx = jaxprune.gradual_magnitude(
        inner, sparsity=0.7, ramp=(0, 4), every=2, distribution="global"
    )
    step, params, state = tiny.updater(tx), tiny.params(), tx.init(tiny.params())
    for n in range(1, 7):
        push = tiny.normal(n)
        if n in (2, 4):
            scores = np.where(mask, np.abs(w), -1.0)
            mask = highest(scores, tiny.scheduled(SIZE, 22, n, 4, 2))
        trace = np.where(mask, kernels(push), 0) + MOMENTUM * trace
        w = np.where(mask, w - RATE * trace, 0.0)
        params, state = step(push, state, params)
        np.testing.assert_array_equal(kernels(jaxprune.get_masks(state)), mask)
        np.testing.assert_allclose(kernels(params), w, rtol=2e-5, atol=1e-6)


def test_masked_weights_do_not_move_a_bit_in_exploitation() -> None:
    """Under momentum and weight decay; while exploring they do move."""
    inner = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(RATE, momentum=MOMENTUM))
    for on in ("gradient", "update"):
        tx = jaxprune.magnitude_attention(
            theirs(inner), sparsity=0.7, ramp=(0, 2), every=1, stop=3, attention_on=on,
            dead_units="move",
        )  # fmt: skip
        step, params = tiny.updater(tx), tiny.params()
        state, trail = tx.init(params), []
        for n in range(1, 7):
            params, state = step(tiny.normal(n), state, params)
            trail.append((kernels(state.prune_dense), kernels(state.prune_mask), state))
        (_, _, _), (before, _, _), (frozen, mask, last) = trail[:3]
        assert (before[~mask] != frozen[~mask]).all()
        for dense, now, later in trail[3:]:
            np.testing.assert_array_equal(now, mask)
            np.testing.assert_array_equal(tiny.bits(dense[~mask]), tiny.bits(frozen[~mask]))
            assert (dense[mask] != frozen[mask]).all()
            tiny.same_bits(later.prune_memory, last.prune_memory)


@hypothesis.given(
    st.integers(0, 2**32 - 1),
    st.floats(2**-9, 1, width=32),
    st.sampled_from([1e-20, 1e-3, 1.0, 3e4]),
)
def test_attention_is_even_scale_free_and_between_the_floor_and_1(
    seed: int, floor: float, scale: float
) -> None:
    w = np.random.default_rng(seed).normal(size=64).astype("f4")
    a = attention(w, w, floor)
    assert (a >= np.float32(floor)).all()
    assert (a <= 1).all()
    assert a[np.abs(w).argmax()] >= 1 - np.float32(2**-23)
    np.testing.assert_array_equal(attention(-w, w, floor), a)
    np.testing.assert_allclose(attention(np.float32(scale) * w, scale * w, floor), a, rtol=1e-5)
    order = np.argsort(np.abs(w))
    assert (np.diff(a[order]) >= 0).all()
    np.testing.assert_array_equal(attention(w, w, 1.0), np.ones(64, "f4"))  # while it is dense
    np.testing.assert_array_equal(attention(0 * w, 0 * w, floor), np.ones(64, "f4"))
    assert (attention(2 * w, w, floor) <= 1).all()  # weights that outgrew the maximum of a refresh


def attention(w: np.ndarray, at_refresh: np.ndarray, floor: float) -> np.ndarray:
    return np.asarray(_attention(*(np.asarray(x, np.float32) for x in (w, at_refresh, floor))))


@jax.jit
def _attention(w: jax.Array, at_refresh: jax.Array, floor: jax.Array) -> jax.Array:
    top = magnitude_attention.largest_magnitude(at_refresh)
    return floor + (1 - floor) * magnitude_attention.share_of_maximum(w, top)


@pytest.mark.parametrize(
    ("inner", "values", "message"),
    [
        (optax.sgd(0.1), {"stop": 3}, "`stop` must not come before the ramp's end, 4"),
        (None, {"attention_on": "gradient"}, "`attention_on` must be 'update'.*got 'gradient'"),
        (optax.sgd(0.1), {"attention_on": "both"}, "`attention_on` must be 'gradient' or 'update'"),
        (optax.sgd(0.1), {"masked": "top"}, "`masked` must be 'floor' or 'own', got 'top'"),
        (optax.sgd(0.1), {"dead_units": "kill"}, "`dead_units` must be 'hold' or 'move'"),
    ],
)
def test_what_a_wrong_magnitude_attention_gets(inner: Any, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jaxprune.magnitude_attention(inner, **({"sparsity": 0.5, "ramp": (0, 4)} | values))


def test_given_masks_never_change() -> None:
    masks = {"head": {"kernel": np.arange(40).reshape(8, 5) % 3 == 0}}
    tx = jaxprune.static(theirs(optax.adamw(0.05)), masks=masks, where="head")
    step, params, state = tiny.updater(tx), tiny.params(), tx.init(tiny.params())
    for n in range(3):
        params, state = step(tiny.normal(n), state, params)
        np.testing.assert_array_equal(state.prune_mask["head"]["kernel"], masks["head"]["kernel"])
        tiny.on_support(params, state)
    with pytest.raises(ValueError, match="`masks` must be given, or else `sparsity`"):
        jaxprune.static(None)
    with pytest.raises(ValueError, match="`masks` must be given, or else `sparsity`"):
        jaxprune.static(None, masks=masks, sparsity=0.5)


def test_random_masks_are_drawn_once_and_by_seed() -> None:
    drawn = []
    for seed in (0, 0, 1):
        tx = jaxprune.static(optax.sgd(0.1), sparsity=0.5, seed=seed, distribution="uniform")
        step, params, state = tiny.updater(tx), tiny.params(), tx.init(tiny.params())
        for n in range(2):
            params, state = step(tiny.normal(n), state, params)
            drawn.append(kernels(state.prune_mask))
    np.testing.assert_array_equal(drawn, [*[drawn[0]] * 4, *[drawn[4]] * 2])
    assert (drawn[0] != drawn[4]).any()
    assert drawn[0][:32].sum() == 16
    assert drawn[0][32:].sum() == 20


@pytest.mark.parametrize("distribution", ["global", "uniform"])
def test_prune_once_is_its_formula(distribution: Any) -> None:
    params, w = tiny.params(), kernels(tiny.params())
    prune = functools.partial(jaxprune.prune_once, params, 0.7, distribution=distribution)
    pruned, masks = jax.jit(prune, compiler_options=tiny.quick())()
    by_leaf = np.concatenate([highest(np.abs(w[:32]), 10), highest(np.abs(w[32:]), 12)])
    expected = highest(np.abs(w), 22) if distribution == "global" else by_leaf
    np.testing.assert_array_equal(kernels(masks), expected)
    np.testing.assert_array_equal(tiny.bits(kernels(pruned)), tiny.bits(np.where(expected, w, 0)))
    tiny.same_bits(pruned["body"]["bias"], params["body"]["bias"])
    assert trees.is_hole(masks["body"]["bias"])


def test_prune_once_takes_where_overrides_and_floors() -> None:
    params = {"a": jnp.full((4, 5), 1e-3), "b": jnp.arange(1.0, 21.0).reshape(4, 5)}
    assert counts(params, 0.5) == {"a": 0, "b": 20}
    assert counts(params, 0.5, min_density=0.1) == {"a": 2, "b": 18}
    assert counts(params, 0.5, overrides={"b": 0.9}) == {"a": 18, "b": 2}
    assert counts(params, 0.5, where="b") == {"b": 10}
    with pytest.raises(ValueError, match="prunable leaf"):
        jaxprune.prune_once({"bias": jnp.ones(3)}, 0.5)
    with pytest.raises(ValueError, match=r"did you mean 0\.9"):
        jaxprune.prune_once(params, 90)


def counts(params: Any, sparsity: float, **values: Any) -> dict[str, int]:
    prune = jax.jit(
        lambda: jaxprune.prune_once(params, sparsity, **values), compiler_options=tiny.quick()
    )
    return {path: int(mask.sum()) for path, mask in trees.by_path(prune()[1]).items()}
