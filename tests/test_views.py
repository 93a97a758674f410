"""Views: exact zeros forward, the right derivative backward, and units that live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxprune import views
from jaxprune.types import Signals
from jaxprune.units import Entries

HARD = np.array([1.5, -2.0, np.nan, np.inf, -np.inf, -0.0, 3.0, 1e-40], "f4")
MASK = np.array([True, False, False, False, True, False, True, True])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_hard_mask_leaves_positive_zeros_and_cuts_the_gradient(dtype: str) -> None:
    """Also of NaN and infinities, forward and backward."""
    w, m = jnp.asarray(HARD, dtype), jnp.asarray(MASK)
    seen, vjp = jax.vjp(lambda w: views.masked({"w": w}, {"w": m})["w"], w)
    assert not tiny.bits(seen)[~MASK].any()
    np.testing.assert_array_equal(tiny.bits(seen)[MASK], tiny.bits(w)[MASK])
    (pulled,) = vjp(jnp.where(m, w, jnp.asarray(jnp.nan, dtype)))
    np.testing.assert_array_equal(np.asarray(pulled, "f4"), np.where(MASK, np.asarray(w, "f4"), 0))


def test_complex_leaves_are_cut_too() -> None:
    w, m = jnp.array([1 + 2j, jnp.nan - 1j, 3j], jnp.complex64), jnp.array([True, False, True])
    np.testing.assert_array_equal(views.masked({"w": w}, {"w": m})["w"], [1 + 2j, 0, 3j])


def test_through_is_one_value_with_the_derivative_of_another() -> None:
    value, x = jnp.array([jnp.inf, -0.0, 2.0]), jnp.array([jnp.nan, jnp.inf, 3.0])
    out, vjp = jax.vjp(lambda value, x: views.through(value, 5 * x), value, x)
    np.testing.assert_array_equal(tiny.bits(out), tiny.bits(value))
    of_value, of_x = vjp(jnp.ones(3))
    assert (of_value.tolist(), of_x.tolist()) == ([0.0] * 3, [5.0] * 3)
    tangent = jax.jvp(views.through, (value, x), (jnp.ones(3), 2 * jnp.ones(3)))[1]
    assert tangent.tolist() == [2.0] * 3


def test_a_guard_remembers_which_units_live_beside_what_names_do_not_tell() -> None:
    mask = {"kernel": jnp.array([[True, False], [True, False]]), "table": jnp.ones((2, 2, 2), bool)}
    memory = views.guarded()
    assert memory.at == "refresh"
    for read in (memory.init, memory.update):
        found = read(Signals(jnp.int32(0), {}, mask))
        assert {path: x.tolist() for path, x in found["alive"].items()} == {
            "kernel": [[True, False]]
        }


def test_a_guard_counts_by_the_units_of_its_method() -> None:
    mask = {"a": jnp.asarray(np.random.default_rng(0).random((2, 3, 4)) < 0.3)}
    s = Signals(jnp.int32(0), {}, mask, units=Entries(stacked={"a": 0}, output_axis=0))
    found = views.guarded().init(s)["alive"]["a"]
    np.testing.assert_array_equal(found, np.asarray(mask["a"]).any(2, keepdims=True))
