"""Masks by chance: exact numbers, keys, paths and fairness."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from samples import densities, seeds, tree

from jaxprune import masks
from jaxprune.trees import uniform_like


@given(seeds, densities)
@settings(max_examples=20)
def test_random_keeps_exactly_its_number(seed, density):
    masked = masks.random(jax.random.key(seed), tree(0), density)
    for path, leaf in tree(0).items():
        assert masked[path].shape == leaf.shape
        assert int(masked[path].sum()) == oracle.kept(leaf.size, density)


def test_random_takes_typed_and_raw_keys():
    leaves = tree(0)
    typed = masks.random(jax.random.key(7), leaves, 0.5)
    raw = masks.random(jax.random.key_data(jax.random.key(7)), leaves, 0.5)
    jax.tree.map(np.testing.assert_array_equal, typed, raw)
    other = masks.random(jax.random.key(8), leaves, 0.5)
    assert (np.asarray(typed["leaf2"]) != np.asarray(other["leaf2"])).any()


def test_random_depends_on_the_path_and_on_nothing_else():
    one = masks.random(jax.random.key(7), {"a": jnp.zeros(64), "b": jnp.zeros(64)}, 0.5)
    two = masks.random(jax.random.key(7), {"b": jax.ShapeDtypeStruct((64,), "bfloat16")}, 0.5)
    assert (np.asarray(one["a"]) != np.asarray(one["b"])).any()
    np.testing.assert_array_equal(one["b"], two["b"])
    key = jax.random.fold_in(jax.random.key(7), zlib.crc32(b"a"))
    chance = jax.random.uniform(key, (64,), jnp.float32)
    np.testing.assert_array_equal(one["a"], masks.topk(chance, 0.5))


def test_random_is_fair():
    kept = [masks.random(jax.random.key(i), jnp.zeros(64), 0.25) for i in range(300)]
    share = np.mean(kept, axis=0)
    assert share.shape == (64,)
    assert (np.abs(share - 0.25) < 0.1).all()


@pytest.mark.several_devices
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_chance_is_drawn_where_leaves_lie(axis_type):
    """A device needs memory for its own part, and finds the numbers of one device."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    place = NamedSharding(mesh, P(None, "x"))
    leaf = jax.device_put(jnp.zeros((128, 800)), place)
    draw = jax.jit(lambda key, leaf: uniform_like(key, "a", leaf), out_shardings=place)
    with jax.set_mesh(mesh):
        lowered = draw.lower(jax.random.key(3), leaf)
        compiled = lowered.compile(compiler_options=tiny.fused())
        found = compiled(jax.random.key(3), leaf)
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= 16 * leaf.size / 8 + 2**16
    np.testing.assert_array_equal(found, uniform_like(jax.random.key(3), "a", np.zeros(leaf.shape)))
