"""Digests of masks: equal where masks are, and a forgotten mean over replicas is told."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import theirs

import jaxprune


def digest_of(**masks: Any) -> tuple[int, ...]:
    masks = {name: jnp.asarray(mask, bool) for name, mask in masks.items()}
    params = jax.tree.map(lambda m: jnp.ones(m.shape), masks)
    state = jaxprune.static(theirs(optax.sgd(0.1)), masks=masks, where=".").init(params)
    return tuple(np.asarray(jaxprune.mask_digest(state)).tolist())


@settings(max_examples=20)
@given(st.integers(0, 2**12 - 1), st.integers(0, 2**12 - 1))
def test_digests_are_equal_where_masks_are_and_only_there(one: int, other: int) -> None:
    bits = [np.array([int(b) for b in f"{n:012b}"]).reshape(3, 4) for n in (one, other)]
    assert (digest_of(a=bits[0]) == digest_of(a=bits[1])) == (one == other)


def test_digests_tell_places_and_leaves_apart() -> None:
    kept, gone = np.ones((2, 4)), np.zeros((2, 4))
    found = [
        digest_of(a=kept, b=gone),
        digest_of(a=gone, b=kept),
        digest_of(a=kept, b=kept),
        *(digest_of(a=np.arange(8).reshape(2, 4) == k, b=kept) for k in range(8)),
    ]
    assert len(set(found)) == len(found)
    assert all(len(set(each)) == 2 for each in found)  # two numbers, not one twice


def replicated(mean: bool) -> Any:
    """The digests of four replicas after some updates with gradients of their own."""
    tx = jaxprune.rigl(theirs(optax.adam(0.1)), sparsity=0.75, stop=90, every=2)

    @functools.partial(jax.pmap, axis_name="replicas", devices=jax.devices()[:4])
    def step(params: Any, state: Any, push: Any) -> Any:
        grads = jax.tree.map(jnp.add, tiny.pull(params), push)
        if mean:
            grads = jax.lax.pmean(grads, "replicas")
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, jaxprune.mask_digest(state)

    params, digests = tiny.params(), None
    params, state = jax.tree.map(lambda x: jnp.stack([x] * 4), (params, tx.init(params)))
    for n in range(3):
        own = [tiny.normal(10 * n + replica) for replica in range(4)]
        push = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
        params, state, digests = jax.block_until_ready(step(params, state, push))
    return digests


@pytest.mark.several_devices
def test_a_forgotten_mean_over_replicas_is_told() -> None:
    jaxprune.check_replicas(replicated(mean=True))
    told = r"average the gradients before the update, .* got '[2-4] masks on 4 replicas'"
    with pytest.raises(ValueError, match=told):
        jaxprune.check_replicas(replicated(mean=False))


@pytest.mark.several_devices
def test_a_digest_is_the_same_however_masks_lie() -> None:
    """On Auto and Explicit meshes, and no mask is gathered for it."""
    mask = np.random.default_rng(0).random((64, 32)) < 0.3
    tx = jaxprune.static(theirs(optax.sgd(0.1)), masks={"a": jnp.asarray(mask)})
    state: Any = tx.init({"a": jnp.ones(mask.shape)})
    expected = np.asarray(jaxprune.mask_digest(state))
    for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
        with jax.set_mesh(mesh):
            placed = jax.device_put(state.prune_mask["a"], sharding)
            there = state._replace(prune_mask={"a": placed})
            compiled = jax.jit(jaxprune.mask_digest).lower(there).compile()
            np.testing.assert_array_equal(compiled(there), expected)
        assert "all-gather" not in str(compiled.as_text())
