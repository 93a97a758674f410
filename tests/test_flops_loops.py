"""Operations inside loops and conditions, counted by hand on every version of jax."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxprune import flops

ONCE = 2.0 * 5 * 4 * 4  # (5, 4) @ (4, 4)


def shaped(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def counted(fn: Any, *shapes: tuple[int, ...], inputs: tuple[int, ...] = (5, 4)) -> Any:
    """The operations of `fn` with weights "0", "1", ... of these shapes on one array."""
    params = {str(place): shaped(*shape) for place, shape in enumerate(shapes)}
    return flops.forward_flops(fn, params, shaped(*inputs))


def of_every_kind(p: Any, x: jax.Array) -> Any:
    """Two constants, two carries, two stacks, two outputs, of several ranks."""

    def body(carry: Any, slices: Any) -> Any:
        (count, y, z), (number, a, b) = carry, slices
        return (count + number, y @ p["0"] @ a, z @ p["1"] + count), (count, y @ b)

    start = (jnp.zeros(()), x, x)
    return jax.lax.scan(body, start, (jnp.arange(3.0), p["2"], p["3"]))


def nested(p: Any, x: jax.Array) -> Any:
    """Two groups of three layers, with a matrix for all layers of a group and one for all."""

    def group(y: jax.Array, weights: Any) -> Any:
        layers, shared = weights
        return jax.lax.scan(lambda c, w: (c @ w @ shared @ p["2"], None), y, layers)

    return jax.lax.scan(group, x, (p["0"], p["1"]))


def carried_and_swapped(p: Any, x: jax.Array) -> Any:
    """Two matrices by turns: what may be either belongs to the larger leaf, here the stack."""

    def body(carry: Any, _: None) -> Any:
        y, a, b = carry
        return (y @ a, b, a), None

    return jax.lax.scan(body, (x, p["0"], p["1"][0]), length=3)


def added_up(p: Any, x: jax.Array) -> Any:
    """A sum of matrices is made of leaves alone, though it begins with zeros."""
    total, _ = jax.lax.scan(lambda c, w: (c + w, None), jnp.zeros((4, 4)), p["0"])
    return x @ total


def with_conditions(p: Any, x: jax.Array) -> Any:
    """The condition and the body of a `while_loop` have constants and carries of their own."""

    def goes_on(carry: Any) -> jax.Array:
        return (carry[0] < 7) & (carry[1][0, 0] < p["1"][0, 0])

    def body(carry: Any) -> Any:
        return carry[0] + 1, carry[1] @ carry[2] @ p["0"], carry[2]

    return jax.lax.while_loop(goes_on, body, (0, x, p["2"]))


LOOPS: dict[str, tuple[Any, list[tuple[int, ...]], dict[str, float]]] = {
    "of every kind": (
        of_every_kind,
        [(4, 4), (4, 4), (3, 4, 4), (3, 4, 4)],
        {"0": 3, "1": 3, "2": 3, "3": 3},
    ),
    "nested": (nested, [(2, 3, 4, 4), (2, 4, 4), (4, 4)], {"0": 6, "1": 6, "2": 6}),
    "in reverse": (
        lambda p, x: jax.lax.scan(lambda c, w: (c @ w, c), x, p["0"], reverse=True, unroll=2),
        [(3, 4, 4)],
        {"0": 3},
    ),
    "of a given length": (
        lambda p, x: jax.lax.scan(lambda c, _: (c @ p["0"] @ c.T @ c, c), x, length=7),
        [(4, 4)],
        {"0": 7},
    ),
    "of length none": (
        lambda p, x: x @ p["1"] + jax.lax.scan(lambda c, _: (c @ p["0"], None), x, length=0)[0],
        [(4, 4), (4, 4)],
        {"1": 1},
    ),
    "with an empty constant": (
        lambda p, x: jax.lax.scan(lambda c, w: (c @ w + c[:, :0] @ p["1"], None), x, p["0"]),
        [(3, 4, 4), (0, 4)],
        {"0": 3},
    ),
    "carried and swapped": (carried_and_swapped, [(4, 4), (2, 4, 4)], {"1": 3}),
    "added up": (added_up, [(3, 4, 4)], {"0": 1}),
    "weights come out": (
        lambda p, x: x @ jax.lax.scan(lambda c, w: (c, 2 * w), x, p["0"])[1][2],
        [(3, 4, 4)],
        {"0": 1},
    ),
    "while": (with_conditions, [(4, 4), (4, 4), (4, 4)], {"0": 1, "2": 1}),
    "while a truth": (
        lambda p, x: jax.lax.while_loop(lambda on: on, lambda _: (x @ p["0"]).sum() > 0, True),
        [(4, 4)],
        {"0": 1},
    ),
    "each row in a scan": (
        lambda p, x: jax.vmap(
            lambda row: jax.lax.scan(lambda c, w: (c @ w @ p["1"], c), row, p["0"])
        )(x),
        [(3, 4, 4), (4, 4)],
        {"0": 3, "1": 3},
    ),
    "each row in a scan of its own": (
        lambda p, x: jax.vmap(
            lambda row, stack: jax.lax.scan(lambda c, w: (c @ w, c), row, stack), (0, 1)
        )(x, p["0"]),
        [(3, 5, 4, 4)],
        {"0": 3},
    ),
    "each row in a while": (
        lambda p, x: jax.vmap(
            lambda row: jax.lax.while_loop(
                lambda c: c[0][0] < 1, lambda c: (c[0] @ c[1] @ p["1"], c[1]), (row, p["0"])
            )
        )(x),
        [(4, 4), (4, 4)],
        {"0": 1, "1": 1},
    ),
    "each row in both branches": (
        lambda p, x: jax.vmap(
            lambda row: jax.lax.cond(
                row[0] > 0, lambda: row @ p["0"] @ p["0"], lambda: row @ p["0"]
            )
        )(x),
        [(4, 4)],
        {"0": 3},
    ),
    "one row of two matrices": (
        lambda p, x: x @ jax.lax.cond(x[0, 0] > 0, lambda: p["0"], lambda: p["1"][0]),
        [(4, 4), (2, 4, 4)],
        {"1": 1},
    ),
    "rematerialized": (
        lambda p, x: jax.checkpoint(
            lambda x, w: jax.lax.scan(jax.checkpoint(lambda c, v: (c @ v, None)), x, w)
        )(x, p["0"]),
        [(3, 4, 4)],
        {"0": 3},
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_counted_as_by_hand(name: str) -> None:
    network, shapes, times = LOOPS[name]
    assert counted(network, *shapes) == {path: n * ONCE for path, n in times.items()}
