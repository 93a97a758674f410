"""Methods on scanned layers: each slice trains as a layer of its own."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from stacks import LENGTH, equal_by_slice, slices_of, stacked_tree

import jaxprune
from jaxprune.types import Signals


def taught(tx, params, target, steps):
    """Masks and params of each update on ``|p - target|^2``."""
    step, state = tiny.updater(tx), tx.init(params)
    for _ in range(steps):
        grads = jax.tree.map(lambda p, t: p - t, params, target)
        params, state = step(grads, state, params)
        yield params, jaxprune.get_masks(state)


METHODS = {
    "gradual_magnitude": dict(sparsity=0.7, ramp=(0, 5), every=2),
    "straight_through": dict(sparsity=0.8, ramp=(0, 5), every=2, distribution="erk"),
    "magnitude_attention": dict(sparsity=0.8, ramp=(0, 5), every=2, distribution="uniform"),
    "rigl": dict(sparsity=0.7, every=2, stop=7, start="given"),
    "prune_and_grow": dict(
        sparsity=0.7, stop=6, measure_steps=1, improve_steps=1, explore_steps=1, start="magnitude"
    ),
}


@pytest.mark.parametrize(("name", "axis"), [*zip(METHODS, [0, 1, 0, 1, 0], strict=True)])
def test_methods_treat_slices_as_layers_apart(name, axis):
    rng = np.random.default_rng(4)

    def leaf(shape):
        # Layers of different scale: ranked together they would have other masks.
        return jnp.asarray(rng.standard_normal(shape) * rng.choice([0.1, 1, 10]), jnp.float32)

    together, apart = stacked_tree(axis, leaf)
    target, targets = stacked_tree(axis, leaf)
    values, stacked, whole = METHODS[name], {"wide|deep": axis}, {}
    first = [jaxprune.prune_once(together, 0.7, distribution="erk", stacked=stacked)[1]]
    first.append(jaxprune.prune_once(apart, 0.7, distribution="erk")[1])
    equal_by_slice(*first, axis)
    if values.get("start") == "given":
        whole, values = {"start": first[1]}, {**values, "start": first[0]}
    method = getattr(jaxprune, name)
    tx = method(optax.sgd(0.2, 0.9), **values, stacked=stacked)
    masks: Any = None
    runs = zip(
        taught(tx, together, target, 8),
        taught(method(optax.sgd(0.2, 0.9), **{**values, **whole}), apart, targets, 8),
        strict=True,
    )
    for (got, masks), (right, right_masks) in runs:
        equal_by_slice(masks, right_masks, axis)
        equal_by_slice(
            got, right, axis, lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        )
    kept = [part.sum() for part in slices_of(masks["wide"]["kernel"], axis)]
    assert 0 < max(kept) < 6 * 20


@pytest.mark.parametrize("axis", [0, 1])
def test_rigl_gives_the_known_answer_in_each_slice(axis):
    mask = np.array([[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0, 0]])
    size = np.array([[0.1, 0.2, 0.3, 0.4, 0, 0, 0, 0], [0, 0, 0, 0, 4, 3, 2, 1.0], [1.0] + [0] * 7])
    grad = np.array(
        [[0, 0, 0, 0, 0.5, 0.9, 0.1, 0.2], [50, 90, 10, 20, 0, 0, 0, 0], [0, 0, 9, 0, 0, 0, 0, 0]]
    )
    right = [[0, 0, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]

    def placed(x, dtype):
        return {"w": jnp.stack([*jnp.asarray(x, dtype)], axis)}

    params, grads = placed(size, jnp.float32), placed(grad, jnp.float32)
    tx = jaxprune.rigl(
        optax.sgd(0.0),
        every=1,
        stop=10**6,
        drop_fraction=0.5,
        start=placed(mask, bool),
        stacked={"w": axis},
    )
    _, state = tiny.updater(tx)(grads, tx.init(params), params)
    np.testing.assert_array_equal(
        np.moveaxis(np.asarray(jaxprune.get_masks(state)["w"]), axis, 0), np.array(right, bool)
    )


def test_groups_are_swapped_in_each_slice():
    kernel = jnp.asarray(np.random.default_rng(5).standard_normal((LENGTH, 8, 4)), jnp.float32)
    tx = jaxprune.prune_and_grow(
        optax.sgd(0.1),
        stop=6,
        measure_steps=1,
        improve_steps=1,
        explore_steps=1,
        n_of_m=(2, 4),
        stacked={"kernel": 0},
    )
    runs = taught(tx, {"kernel": kernel}, {"kernel": -kernel}, 6)
    for n, (_, masks) in enumerate(runs, start=1):
        kept = [int(part.sum()) for part in slices_of(masks["kernel"], 0)]
        # omega is 0.3 and 0.05: 4 of 16 and none
        assert kept == [{1: 12, 2: 12}.get(n, 16)] * LENGTH


class Block(nn.Module):
    """A layer as a scan runs it."""

    @nn.compact
    def __call__(self, x, _):
        wide = nn.Dense(10)(x)
        return x + jnp.tanh(nn.Dense(6)(wide)), None


class Network(nn.Module):
    """Scanned layers and a head."""

    axis: int

    @nn.compact
    def __call__(self, x):
        scanned = nn.scan(
            Block, variable_axes={"params": self.axis}, split_rngs={"params": True}, length=LENGTH
        )
        x, _ = scanned(name="layers")(x, None)
        return nn.Dense(2)(x)


SCANNED = {
    "rigl": dict(sparsity=0.8, every=2, stop=7),
    "prune_and_grow": dict(sparsity=0.8, stop=6, measure_steps=1, improve_steps=1, explore_steps=1),
    "magnitude_attention": dict(sparsity=0.8, ramp=(0, 6), every=2, distribution="uniform"),
}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", SCANNED)
def test_a_scanned_network_has_its_count_in_each_slice(name, axis, standard_promotion):
    network, data = Network(axis), jnp.asarray(np.random.default_rng(6).normal(size=(7, 6)))
    params = network.init(jax.random.key(0), data)
    tx = getattr(jaxprune, name)(optax.adam(0.01), **SCANNED[name], stacked={"layers": axis})
    assert jaxprune.plan(tx, params).total == LENGTH * 2 * 60 + 12

    def loss(params):
        out: Any = network.apply(params, data)
        return jnp.mean(jnp.square(out - 1))

    @functools.partial(jax.jit, compiler_options=tiny.quick())
    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    budget = state.prune_spec.parts.mask_updates[-1].keep.budget
    path = "params/layers/Dense_0/kernel"
    seen, masks = set(), {}
    for n in range(1, 9):
        params, state = step(params, state)
        masks = tiny.masks_of(state)
        due = n - n % 2 if name == "magnitude_attention" else n
        units = state.prune_spec.parts.units
        counts = budget(Signals(jnp.int32(due), {}, masks, units=units))
        for leaf in (path, path.replace("_0", "_1")):
            kept = [part.sum() for part in slices_of(masks[leaf], axis)]
            seen.add(tuple(kept))
            if name != "prune_and_grow" or n % 3 == 0 or n > 6:
                assert kept == counts[leaf,].ravel().tolist(), f"{leaf} after update {n}"
            assert max(kept) - min(kept) <= (name != "magnitude_attention")  # ERK's remainders
    assert all(0 < kept < 60 for kept in seen.pop())
    summary = jaxprune.summarize(params, state)
    assert (summary.drift, summary.skipped) == (0, 0)
    assert summary.kept == sum(mask.sum() for mask in masks.values())
    if name == "magnitude_attention":
        top = state.prune_memory["top"][path]
        assert top.shape == ((LENGTH, 1, 1) if axis == 0 else (1, LENGTH, 1))
        assert len(set(top.ravel().tolist())) == LENGTH
        assert state.prune_memory["alive"][path].shape == (
            (LENGTH, 1, 10) if axis == 0 else (1, LENGTH, 10)
        )


def test_the_plan_counts_a_stack_in_one_row():
    params = {"layers": {"kernel": jnp.ones((5, 5, 5))}, "head": {"kernel": jnp.ones((5, 5))}}
    tx = jaxprune.gradual_magnitude(
        optax.sgd(0.1), sparsity=0.9, ramp=(0, 4), stacked={"layers": 0}
    )
    plan = jaxprune.plan(tx, params)
    rows = {leaf.path: leaf.kept_end for leaf in plan.leaves}
    assert rows == {"layers/kernel": 5 * 2, "head/kernel": 2}  # each slice rounds 2.5 to even
    assert plan.kept == 12
    assert "layers/kernel" in str(plan)


LATER = {
    "sparse_evolution": dict(sparsity=0.6, every=2, stop=7),
    "granet": dict(sparsity=0.6, ramp=(0, 4), every=2, distribution="uniform"),
    "movement": dict(sparsity=0.6, ramp=(0, 4), every=2, distribution="uniform"),
    "acdc": dict(
        sparsity=0.6, begin=1, sparse_steps=2, dense_steps=1, stop=5, distribution="uniform"
    ),
    "snip": dict(sparsity=0.6, distribution="uniform"),
    "static": dict(sparsity=0.6, distribution="uniform"),
}


@pytest.mark.parametrize("name", LATER)
def test_every_method_with_counts_has_them_by_slice(name):
    # Ranked together the smaller slice would keep next to nothing.
    rng = np.random.default_rng(7)
    scale = np.array([1, 0.01]).reshape(1, 2, 1)
    kernel = jnp.asarray(scale * rng.standard_normal((3, 2, 10)), jnp.float32)
    tx = getattr(jaxprune, name)(optax.sgd(0.01), **LATER[name], stacked={"kernel": 1})
    *_, (_, masks) = taught(tx, {"kernel": kernel}, {"kernel": -kernel}, 6)
    assert [int(part.sum()) for part in slices_of(masks["kernel"], 1)] == [12, 12]
