"""The scores of filter attention: the activation, the attention, and what has no gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxprune.methods import filter_attention as module

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_the_activation() -> None:
    z = jnp.concatenate([jnp.linspace(-20, 1, 999), jnp.linspace(1, 1e3, 999), jnp.zeros(1)])
    slope = jax.vmap(jax.grad(module.activated))(z)
    assert (module.activated(z) > 0).all() and (slope[1:] > 0).all()
    assert float(module.activated(jnp.zeros(()))) == 1.0
    for far in (-1e3, 1e3, -jnp.inf):
        assert jnp.isfinite(module.activated(jnp.float32(far)))
        assert jnp.isfinite(jax.grad(module.activated)(jnp.float32(far)))


def attention_network(fan: int, width: int = 6) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(3), 4)
    shapes = {"query": (fan, width), "key": (fan, width), "bias": (width,), "v": (width,)}
    found = {n: jax.random.normal(k, shapes[n]) for n, k in zip(shapes, keys, strict=True)}
    return found | {"u": jnp.float32(0.5)}


def test_attention_in_numpy_and_permuted() -> None:
    kernel = jax.random.normal(jax.random.key(0), (3, 2, 9))
    network = attention_network(6)
    rows = module.filter_rows(kernel, 2, np.arange(9), 9)
    x = np.abs(np.asarray(kernel, np.float64)).reshape(6, 9).T
    x = (x - x.mean()) / x.std()
    q, k = x @ np.asarray(network["query"]), x @ np.asarray(network["key"]) + network["bias"]
    h = np.tanh(q[:, None] + k[None]).mean(1)
    z = (h - h.mean(0)) @ np.asarray(network["v"]) + 0.5
    tiny.close(module.additive_attention(rows, network), z)
    order = np.random.default_rng(0).permutation(9)
    permuted = module.filter_rows(kernel[..., order], 2, np.arange(9), 9)
    tiny.close(module.additive_attention(permuted, network), z[order])
    many = jnp.tile(rows, (60, 1, 1))  # more filters than attend at once
    tiny.close(module.additive_attention(many, network), np.tile(z, 60))


def test_a_filter_may_have_several_indices() -> None:
    kernel = jnp.arange(24.0).reshape(2, 12)
    units = np.array([0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2, -1])
    rows = module.filter_rows(kernel, 1, units, 3)
    assert rows.shape == (3, 6)
    whole = np.stack([np.asarray(kernel)[:, units == k].T.ravel() for k in range(3)])
    tiny.close(rows, (whole - whole.mean()) / whole.std())


def test_no_gradient_reaches_the_weights_through_scores() -> None:
    kernel, network = jax.random.normal(jax.random.key(0), (6, 9)), attention_network(6)

    def total(kernel: Any) -> Any:
        return module.additive_attention(
            module.filter_rows(kernel, 1, np.arange(9), 9), network
        ).sum()

    assert not jax.grad(total)(kernel).any()
