"""What `docs/scale.md` says of every method, and how compiled programs are read for it."""

import math
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import scale

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "scale.md"
SHAPES = {"body/kernel": (64, 128), "body/bias": (128,), "head/kernel": (128, 32)}


def size(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("method", scale.METHODS)
def test_a_state_has_the_bytes_that_the_page_says(method: str) -> None:
    params = {path: jax.ShapeDtypeStruct(s, jnp.float32) for path, s in SHAPES.items()}
    inner = optax.adamw(1e-3)
    found, bare = (jax.eval_shape(tx.init, params) for tx in (scale.METHODS[method](inner), inner))
    pruned = sum(math.prod(s) for s in SHAPES.values() if len(s) == 2)
    said = re.search(rf"^\| `{re.escape(method)}` \| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert said is not None
    assert (size(found) - size(bare)) // pruned == int(said[1])


@pytest.mark.several_devices
@pytest.mark.parametrize("sharded", [True, False])
def test_a_program_on_a_mesh_is_read_for_what_it_moves(sharded: bool) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    params = scale.placed(scale.Network(SHAPES, sharded, {}), mesh)
    inner = optax.adamw(1e-3)
    bare = scale.costs(inner, params)
    found = scale.costs(scale.METHODS["gradual_magnitude"](inner), params)
    own = [math.prod(x.sharding.shard_shape(x.shape)) for x in params.values()]
    assert own == ([1024, 128, 512] if sharded else [8192, 128, 4096])
    assert found.arguments - bare.arguments == pytest.approx((own[0] + own[2]) / sum(own), abs=0.1)
    assert bare.collectives == 0 and bare.written == bare.changed
    assert bare.arguments == pytest.approx(16, abs=0.1) and bare.written >= 12
    assert found.changed > found.written >= 12
    assert (found.collectives > 0) == sharded
    assert found.largest <= 4 * 15 * 2  # the thresholds of a pass, for two leaves


@pytest.mark.several_devices
@pytest.mark.parametrize("method", ["prune_and_grow", "layer_attention", "movement", "sr_ste"])
def test_no_message_is_as_large_as_a_shard(method: str) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    params = scale.placed(scale.Network(SHAPES, True, {}), mesh)
    found = scale.costs(scale.METHODS[method](optax.sgd(0.1, momentum=0.9)), params)
    assert found.largest <= 4 * 15 * 2


def test_a_search_reads_as_often_as_it_has_to() -> None:
    """A mask is written once more; random weights are easy, and equal ones are not."""
    assert 1 < scale.passes(scale.Network(SHAPES, False, {}), together=True) < 20
    assert scale.size_of("(f32[2,3]{1,0:T(8,128)S(1)}, s8[], bf16[0]{0})") == 25
    assert np.isfinite(scale.passes(scale.Network(SHAPES, False, {}), together=False))
