"""Fences change no bit, inside and outside of jit, and masks cut exactly by bits."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import export

from jaxprune import fences

HARD = [1.5, -2.0, np.nan, np.inf, -np.inf, -0.0, 3.0, 1e-40]
MASK = np.array([True, False, False, False, True, False, True, True])
DTYPES = ["float32", "bfloat16", "float16", "complex64", "int32", "uint8", "bool"]


def arrays(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    found = {name: jnp.asarray(rng.integers(0, 2, (3, 4))).astype(name) for name in DTYPES}
    return found | {
        "hard": jnp.array(HARD, "f4"),
        "empty": jnp.zeros((0, 3)),
        "one": jnp.float32(-0.0),
    }


def raw(x: Any) -> bytes:
    return np.asarray(x).tobytes()


def same(found: Any, expected: Any) -> None:
    assert sorted(found) == sorted(expected)
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape
        assert raw(found[name]) == raw(x), name


WRITTEN = {
    "nothing": {},
    "empty": jnp.zeros((0,)),
    "narrow": jnp.ones(3, jnp.bfloat16),
    "hard": [jnp.array(HARD[::-1], "f4"), jnp.array([-1, 2], "int32")],
    "nan": jnp.array([np.nan]),
    "all bits": jnp.array([-1], "int32"),
    "scalar": jnp.float32(-np.inf),
}


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_what_is_read_before_stays_bit_for_bit(written: Any, transform: Any) -> None:
    """Whatever was computed: the comparison holds for NaN, too, and for all bits set."""
    same(transform(fences.read_before)(written, arrays()), arrays())


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_a_flag_known_after_others_is_that_flag(written: Any, transform: Any) -> None:
    for flag in (True, False):
        found = transform(fences.known_after)(jnp.asarray(flag), written)
        assert found.dtype == bool and found.shape == () and bool(found) is flag


@pytest.mark.parametrize("read", [[], {"a": jnp.ones((2, 3), bool)}, [jnp.zeros(0, bool)]])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_what_is_overwritten_after_is_the_new_bit_for_bit(read: Any, transform: Any) -> None:
    same(transform(fences.overwritten_after)(read, arrays(0), arrays(1)), arrays(0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_computed_once_is_it_bit_for_bit(dtype: str) -> None:
    """Through a choice that always falls on it, whatever is in it; what is known stays itself."""
    for values in (HARD, [np.nan], [-np.inf, -0.0], [0.0]):
        x = jnp.array(values, dtype)
        assert fences.once(x) is x
        assert raw(jax.jit(fences.once)(x)) == raw(x)
    assert "cond" in str(jax.make_jaxpr(fences.once)(jnp.ones(3, dtype)))
    assert fences.once(jnp.zeros((0, 2))).shape == (0, 2)


def test_what_is_exported_for_other_devices_has_no_fence() -> None:
    """Whoever lowers on a CPU for a TPU gets the program that a TPU would have traced."""

    def ordered(x: Any) -> Any:
        return fences.read_before(x + 1, {"x": x})["x"]

    x = jax.ShapeDtypeStruct((4,), jnp.float32)
    shifts = {
        platforms: "shift_right"
        in export.export(jax.jit(ordered), platforms=platforms)(x).mlir_module()
        for platforms in (("cpu",), ("tpu",), ("cuda",), ("tpu", "cuda"))
    }
    assert shifts == {("cpu",): True, ("tpu",): False, ("cuda",): False, ("tpu", "cuda"): False}
    compiled = str(jax.jit(ordered).lower(x).compile().as_text())
    assert "conditional" not in compiled  # nothing is decided when it runs


def test_what_follows_a_choice_stays_behind_it() -> None:
    """XLA for a TPU would compute it in both branches, and write it to memory."""

    def chosen(flag: Any, x: jax.Array) -> jax.Array:
        return -fences.either(flag, lambda: x + 1, lambda: x)

    for flag in (True, False):
        outcome = -1 - np.arange(4.0) if flag else -np.arange(4.0)
        for choose in (chosen, jax.jit(chosen)):
            np.testing.assert_array_equal(choose(jnp.asarray(flag), jnp.arange(4.0)), outcome)
        known = export.export(jax.jit(functools.partial(chosen, flag)), platforms=["tpu"])
        assert "case" not in known(jnp.arange(4.0)).mlir_module()  # outside of jit, no branch
    for platform, barriers in (("tpu", ["optimization_barrier"]), ("cpu", []), ("cuda", [])):
        text = export.export(jax.jit(chosen), platforms=[platform])(True, jnp.arange(4.0))
        order = re.findall(r"stablehlo\.(add|optimization_barrier|negate)", text.mlir_module())
        assert order == ["add", *barriers, "negate"]


@pytest.mark.several_devices
def test_fences_change_nothing_beside_other_devices() -> None:
    same(jax.jit(fences.read_before)(WRITTEN, arrays()), arrays())
    assert not jax.jit(fences.known_after)(jnp.asarray(False), WRITTEN)
    same(jax.jit(fences.overwritten_after)([jnp.ones(8, bool)], arrays(0), arrays(1)), arrays(0))


def test_a_fence_makes_an_order_that_the_program_shows() -> None:
    """What is fenced depends on what was computed; else XLA is free to copy."""

    def text(function: Any) -> str:
        return str(jax.make_jaxpr(function)(jnp.ones(4), jnp.ones(4)))

    assert "select_n" in text(lambda w, x: fences.read_before(w, {"x": x}))
    assert "and" in text(lambda w, x: fences.known_after(jnp.asarray(True), w))
    after = text(lambda w, x: fences.overwritten_after([w > 0], {"x": x > 1}, {"x": x > 2}))
    assert "optimization_barrier" in after and "select_n" in after


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_a_cut_leaves_positive_zeros_and_the_kept_bits(dtype: str, transform: Any) -> None:
    x = jnp.asarray(np.array(HARD, "f4"), dtype)
    found = transform(fences.cut)(x, jnp.asarray(MASK))
    assert found.dtype == x.dtype
    assert not tiny.bits(found)[~MASK].any()
    np.testing.assert_array_equal(tiny.bits(found)[MASK], tiny.bits(x)[MASK])


def test_every_number_of_eight_bits_is_cut_to_zero_or_kept() -> None:
    for dtype in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz"):
        codes = jnp.arange(256, dtype=jnp.uint8)
        x = jax.lax.bitcast_convert_type(codes, jnp.dtype(dtype))
        for keep in (True, False):
            found = fences.cut(x, jnp.full(256, keep))
            back = jax.lax.bitcast_convert_type(found, jnp.uint8)
            np.testing.assert_array_equal(back, codes if keep else jnp.zeros_like(codes))


def test_numbers_of_four_bits_are_cut_too() -> None:
    x = jnp.asarray([0.5, -0.5, 6.0, -6.0, -0.0, 1.0, -1.5, 4.0], jnp.float4_e2m1fn)
    found = jax.jit(fences.cut)(x, jnp.asarray(MASK))
    assert found.dtype == x.dtype
    expected = np.where(MASK, np.asarray(x, "f4"), np.float32(0))
    assert raw(np.asarray(found, "f4")) == raw(expected)


def test_complex_numbers_are_cut_in_both_parts() -> None:
    x = jnp.array([1 + 2j, jnp.nan - 1j, complex(-0.0, np.inf), 3j], jnp.complex64)
    mask = jnp.array([True, False, False, True])
    found = jax.jit(fences.cut)(x, mask)
    assert raw(found) == raw(np.array([1 + 2j, 0, 0, 3j], np.complex64))


@pytest.mark.parametrize("shape", [(1, 4), (3, 1), (1, 1), (3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_a_mask_may_be_one_along_axes(shape: tuple[int, int], dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(3, 4)).astype(dtype), rng.random(shape) < 0.5
    expected = np.where(mask, x, np.zeros((), dtype))
    np.testing.assert_array_equal(fences.cut(jnp.asarray(x), jnp.asarray(mask)), expected)
