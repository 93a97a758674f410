"""Methods that prune channels on several devices: the same masks as on one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_channels_traced import METHODS, TARGETS, trained
from test_shrink import IMAGES, apply, traced

import jaxprune

pytestmark = [pytest.mark.usefixtures("standard_promotion"), pytest.mark.several_devices]

STEPS = 7

NAMES = ("prune_and_grow, after a warm-up", "filter_attention")


@functools.cache
def on_one(name: str) -> tuple[Any, list[Any]]:
    """The method, and its masks after each update on one device."""
    net, params, stats = traced()
    tx = METHODS[name](net.channels(round_to=1, cost="parameters"))
    return tx, [tiny.masks_of(state) for _, state in trained(tx, params, stats, STEPS)[1:]]


def same_masks(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name], mask)


def rows(leaf: jax.Array) -> P:
    """The last axis over the devices, where it is shared out evenly."""
    return P(*[None] * (leaf.ndim - 1), "x") if leaf.ndim and leaf.shape[-1] % 4 == 0 else P()


@pytest.mark.parametrize(
    ("kind", "name"),
    [(AxisType.Auto, NAMES[1]), (AxisType.Explicit, NAMES[0]), (AxisType.Explicit, NAMES[1])],
)
def test_sharded_params_give_the_same_masks(kind: AxisType, name: str) -> None:
    """Filters, gates and the statistics of a filter's norm are shared out along the channels."""
    (tx, expected), (_, params, stats) = on_one(name), traced()
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,), devices=jax.devices()[:4])
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, rows(leaf)), params)
    params, whole = jax.device_put(params, shardings), NamedSharding(mesh, P())

    def loss(params: Any) -> Any:
        if kind == AxisType.Explicit:  # what computes with whole params says so
            params = jax.tree.map(lambda p: jax.sharding.reshard(p, whole), params)
        return jnp.mean((apply(params, stats, IMAGES) - TARGETS) ** 2)

    with jax.set_mesh(mesh):
        states = jaxprune.state_shardings(tx, params)
        state = jax.jit(tx.init, out_shardings=states)(params)

        @functools.partial(jax.jit, out_shardings=(shardings, states))
        def step(params: Any, state: Any) -> Any:
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        for masks in expected:
            params, state = step(params, state)
            same_masks(tiny.masks_of(state), masks)
        jaxprune.verify(params, state)


@pytest.mark.parametrize("name", NAMES)
def test_replicas_with_data_of_their_own_keep_the_same_channels(name: str) -> None:
    (tx, expected), (_, params, stats) = on_one(name), traced()
    devices = jax.devices()[: len(IMAGES)]

    @functools.partial(jax.pmap, axis_name="replicas", devices=devices)
    def step(params: Any, state: Any, image: Any, target: Any) -> Any:
        grads = jax.grad(lambda p: jnp.mean((apply(p, stats, image) - target) ** 2))(params)
        updates, state = tx.update(jax.lax.pmean(grads, "replicas"), state, params)
        return optax.apply_updates(params, updates), state

    params, state = jax.tree.map(lambda x: jnp.stack([x] * len(devices)), (params, tx.init(params)))
    for masks in expected:
        params, state = step(params, state, IMAGES[:, None], TARGETS[:, None])
        first, *others = [tiny.part((params, state), n) for n in range(len(devices))]
        same_masks(tiny.masks_of(first[1]), masks)
        for other in others:
            tiny.same_bits(other, first)
