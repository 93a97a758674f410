"""What a selection compiles to, in memory and in collectives, and what it gives where sharded."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune.selection import count_true, counts_of, keep_largest, largest_of, sum_of
from jaxprune.selection.counting import _counts_apart
from jaxprune.types import Ranked


def largest_array(text, operations):
    """Entries of the largest array in the results of some operations of a compiled program."""
    shapes = re.findall(rf"= (.*) (?:{operations})(?:-start)?\(", text)
    dims = [dims for shape in shapes for dims in re.findall(r"\[([\d,]*)\]", shape)]
    return max((math.prod(map(int, filter(None, d.split(",")))) for d in dims), default=0)


def compiled_selection(variant, specs=None):
    """A compiled selection of some 5 M scores, and their number; sharded where specs say it."""
    dtype = jnp.bfloat16 if variant == "bfloat16" else jnp.float32
    shapes = [(n, 1000) for n in (3000, 504, 80, 1000)]
    places = specs or [None] * 4
    leaves, chosen = (
        [jax.ShapeDtypeStruct(s, d, sharding=at) for s, at in zip(shapes, places, strict=True)]
        for d in (dtype, bool)
    )
    groups = list(range(4)) if variant == "layers" else [0] * 4

    def masks(leaves, chosen, k):
        ranked = [
            Ranked(x, variant != "signed", c if variant == "candidates" else None)
            for x, c in zip(leaves, chosen, strict=True)
        ]
        return keep_largest(ranked, [k] * (max(groups) + 1), groups)

    compiled = jax.jit(masks).lower(leaves, chosen, jnp.int32(5)).compile()
    return compiled, sum(map(math.prod, shapes))


@pytest.mark.parametrize("variant", ["magnitude", "signed", "candidates", "bfloat16", "layers"])
def test_temporaries_are_small(variant):
    compiled, size = compiled_selection(variant)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    assert memory.output_size_in_bytes >= size
    assert memory.temp_size_in_bytes <= 0.01 * size + 2**16  # and what small arrays need
    assert largest_array(text, "sort") <= 2**15  # a sample


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_each_platform_counts_in_its_own_way(platform):
    """XLA for a TPU writes operands of a reduction of several to memory; for a CPU that of one."""

    def counted(x):
        masks = keep_largest([Ranked(x, True)], [5], [0])[0]
        return masks, count_true(x > 0), sum_of(x), largest_of(x)

    exported = export.export(jax.jit(counted), platforms=[platform])
    text = exported(jax.ShapeDtypeStruct((8, 16), jnp.float32)).mlir_module()
    several = re.findall(r"stablehlo\.reduce\([^)]*\), \(", text)
    assert len(several) == (0 if platform == "tpu" else 4)  # in a pass, and one each
    assert len(re.findall(r"stablehlo\.reduce\(", text)) > len(several)


def test_counts_are_the_same_in_either_way():
    hits = [np.arange(6).reshape(2, 3) > limit for limit in (-1, 2, 5)]
    np.testing.assert_array_equal(counts_of([jnp.asarray(hit) for hit in hits]), [6, 3, 0])
    np.testing.assert_array_equal(_counts_apart([jnp.asarray(hit) for hit in hits]), [6, 3, 0])


SHARDED = {(16, 24): P("x", None), (8, 4, 10): P("x", "y"), (6, 32): P(None, "y"), (7,): P()}


def sharded_leaves(mesh, rng):
    leaves = [np.round(rng.standard_normal(shape) * 9).astype(np.float32) for shape in SHARDED]
    places = [NamedSharding(mesh, spec) for spec in SHARDED.values()]
    return leaves, [jax.device_put(x, place) for x, place in zip(leaves, places, strict=True)]


@pytest.mark.several_devices
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_leaves_are_not_gathered(axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    host, leaves = sharded_leaves(mesh, np.random.default_rng(4))
    groups = [0, 0, 1, 1]

    @jax.jit
    def masks(leaves, ks):
        chosen = [x > -5 for x in leaves]
        return keep_largest(
            [Ranked(x, True, c) for x, c in zip(leaves, chosen, strict=True)], list(ks), groups
        )[0]

    with jax.set_mesh(mesh):
        compiled = masks.lower(leaves, np.asarray([3, 5], np.int32)).compile()
        text = compiled.as_text()
        assert text is not None
        assert "all-reduce" in text
        assert not re.search("all-gather|all-to-all|collective-permute", text)
        for ks in ([0, 5], [77, 100], [311, 150], [9999, 1]):
            found = jax.block_until_ready(compiled(leaves, np.asarray(ks, np.int32)))
            expected = oracle.keep_largest(host, ks, groups, True, [x > -5 for x in host])
            for mask, leaf, right in zip(found, leaves, expected, strict=True):
                np.testing.assert_array_equal(mask, right)
                assert mask.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
SPLIT = [P("x", None), P("x", "y"), P(None, "y"), P(None, ("x", "y"))]


@pytest.mark.several_devices
@pytest.mark.parametrize(
    ("axis_type", "variant"),
    [
        (AxisType.Auto, "layers"),
        (AxisType.Auto, "candidates"),
        (AxisType.Explicit, "candidates"),
    ],
)
def test_sharded_leaves_cost_one_small_collective_each(axis_type, variant):
    """At most, in a pass, and no memory; XLA joins them, to three for these four leaves."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        compiled, size = compiled_selection(variant, [NamedSharding(mesh, s) for s in SPLIT])
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    assert memory.temp_size_in_bytes <= 0.01 * size
    in_a_pass = re.findall(rf" ({COLLECTIVES})(?:-start)?\(.*/while/body/", text)
    assert 1 <= len(in_a_pass) <= len(SPLIT)
    assert largest_array(text, COLLECTIVES) <= 15  # the thresholds of a pass


@pytest.mark.several_devices
def test_replicas_under_pmap_and_shard_map_select_alone():
    rng = np.random.default_rng(5)
    xs = np.round(rng.standard_normal((8, 30, 40)) * 9).astype(np.float32)
    ks = np.arange(8, dtype=np.int32) * 170
    expected = [oracle.keep_largest([x], [k], [0])[0] for x, k in zip(xs, ks, strict=True)]

    def mask(x, k):
        return keep_largest([x], [k], [0])[0][0]

    np.testing.assert_array_equal(jax.block_until_ready(jax.pmap(mask)(xs, ks)), expected)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda x, k: mask(x[0], k[0])[None], mesh=mesh, in_specs=P("x"), out_specs=P("x")
    )
    np.testing.assert_array_equal(jax.block_until_ready(jax.jit(mapped)(xs, ks)), expected)
