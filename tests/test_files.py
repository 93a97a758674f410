"""Sparse files: bit for bit, near the entropy, plain safetensors, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import tiny
from hypothesis import given
from hypothesis import strategies as st

import jaxprune
from jaxprune import files


def sparse(density: float, shape: tuple[int, ...] = (400, 500), dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    return jnp.asarray(np.where(rng.random(shape) < density, rng.normal(size=shape), 0), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("density", [0.1, 0.05, 0.02])
def test_a_file_is_near_the_entropy_of_its_masks(density: float, dtype: Any, tmp_path: Any) -> None:
    kernel, file = sparse(density, (1000, 2000), dtype), tmp_path / "net.safetensors"
    jaxprune.save_sparse(file, {"kernel": kernel})
    kept = int((kernel != 0).sum())
    share = kept / kernel.size
    bits = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    values = kept * kernel.dtype.itemsize
    masks = file.stat().st_size - values
    assert masks <= 1.05 * bits * kernel.size / 8, "of the masks alone, header and all"
    tiny.same_bits(jaxprune.load_sparse(file)["kernel"], kernel)


@given(st.lists(st.integers(0, 3000), unique=True), st.integers(0, 700))
def test_places_come_back(places: list[int], offset: int) -> None:
    given = np.array(sorted(places), int) + offset
    np.testing.assert_array_equal(files._unpacked(files._packed(given)), given)


def test_a_pattern_takes_almost_nothing(tmp_path: Path) -> None:
    kernel, file = jnp.zeros((400, 500)).at[:, ::10].set(1.0), tmp_path / "net.safetensors"
    jaxprune.save_sparse(file, {"kernel": kernel})
    assert file.stat().st_size < 4 * 400 * 50 + 1000


def test_every_leaf_comes_back_bit_for_bit_in_any_containers(tmp_path: Path) -> None:
    odd = jnp.zeros(40).at[jnp.array([3, 4])].set(jnp.array([-0.0, jnp.nan]))
    params = {
        "body": {"kernel": sparse(0.1, (20, 30)), "bias": jnp.arange(3.0), "whole": sparse(1.0)},
        "odd": odd,
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.float32(2),
        "steps": jnp.int32(7),
        "bits": jnp.zeros(100, bool).at[5].set(True),
        "nothing": jnp.zeros((30, 30)),
        "list": [jnp.ones(2), sparse(0.02, (50, 4), jnp.float16)],
    }
    jaxprune.save_sparse(tmp_path / "net", params)
    tiny.same_bits(jaxprune.load_sparse(tmp_path / "net", like=params), params)
    nested = jaxprune.load_sparse(tmp_path / "net")
    tiny.same_bits(nested["body"], params["body"])
    tiny.same_bits(nested["list"]["1"], params["list"][1])
    jaxprune.save_sparse(tmp_path / "net", params["odd"])  # replaces the file
    tiny.same_bits(jaxprune.load_sparse(tmp_path / "net"), odd)
    assert [each.name for each in tmp_path.iterdir()] == ["net"]


def test_anybody_reads_the_file(tmp_path: Path) -> None:
    kernel, file = sparse(0.1), tmp_path / "net.safetensors"
    jaxprune.save_sparse(file, {"kernel": kernel, "bias": jnp.ones(3)}, plan='{"kept": []}')
    with safetensors.safe_open(file, framework="numpy") as opened:
        assert set(opened.keys()) == {"kernel.values", "kernel.places", "bias"}
        np.testing.assert_array_equal(opened.get_tensor("bias"), np.ones(3))
        np.testing.assert_array_equal(opened.get_tensor("kernel.values"), kernel[kernel != 0])
        header = opened.metadata()
    assert json.loads(header["sparse"]) == {"kernel": [400, 500]}
    assert jaxprune.load_plan(file) == header["plan"] == '{"kept": []}'


def test_what_is_no_whole_file_of_ours_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net"
    with pytest.raises(FileNotFoundError, match="`path` must be a file"):
        jaxprune.load_sparse(file)
    with pytest.raises(ValueError, match="`params` must hold an array"):
        jaxprune.save_sparse(file, {})
    jaxprune.save_sparse(file, {"kernel": sparse(0.1)})
    with pytest.raises(ValueError, match=r"`path` must have a leaf of shape \(3,\) at 'bias'"):
        jaxprune.load_sparse(file, like={"kernel": sparse(0.1), "bias": jnp.ones(3)})
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="`path` must be a whole safetensors file"):
        jaxprune.load_sparse(file)
    from safetensors.numpy import save_file

    save_file({"kernel": np.ones(3)}, file)
    with pytest.raises(ValueError, match="`path` must be what `save_sparse` wrote"):
        jaxprune.load_plan(file)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "net"
    jaxprune.save_sparse(file, {"kernel": jnp.ones(3)})
    with pytest.raises(ValueError, match="types that safetensors has"):
        jaxprune.save_sparse(file, {"kernel": jnp.ones(3, jnp.int4)})
    tiny.same_bits(jaxprune.load_sparse(file)["kernel"], jnp.ones(3))
    assert [each.name for each in tmp_path.iterdir()] == ["net"]


def test_paths_and_types_that_a_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    zeros = sparse(0.01)
    for params in ({"a/b": jnp.ones(2), "a": {"b": zeros}}, {"a": zeros, "a.values": jnp.ones(3)}):
        with pytest.raises(ValueError, match="`params` must have paths of their own"):
            jaxprune.save_sparse(tmp_path / "net", params)
    for dtype in (jnp.float8_e4m3fn, jnp.int4):
        with pytest.raises(ValueError, match="`params` must have types that safetensors has at 'k"):
            jaxprune.save_sparse(tmp_path / "net", {"kernel": jnp.ones(3, dtype)})
    wide = np.array([0.1, 0.2])
    jaxprune.save_sparse(tmp_path / "net", {"wide": wide})
    found = jaxprune.load_sparse(tmp_path / "net")["wide"]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, wide)
