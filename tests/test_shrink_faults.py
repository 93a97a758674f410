"""What could go wrong in silence: it is right, or refused, or reported as not exact."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune

pytestmark = pytest.mark.usefixtures("standard_promotion")

RNG = np.random.default_rng(0)
PARAMS = {
    name: jnp.asarray(RNG.normal(size=shape), jnp.float32)
    for name, shape in {"w": (4, 8), "v": (8, 3)}.items()
}
X = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)


def windowed(h: Any, start: float, reduce: Any, window: Any, padding: Any, **spread: Any) -> Any:
    return lax.reduce_window(h, start, reduce, window, (1, 1), padding, **spread)


NOT_PADDED = ((0, 0), (0, 0))
FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "rows of a number": lambda h, v: jnp.pad(h, ((1, 0), (0, 0)), constant_values=2.0).sum(-1),
    "rows that are not there": lambda h, v: h.at[jnp.array([1, 9, 2])]
    .get(mode="fill", fill_value=5.0)
    .sum(-1),
    "places of the highest": lambda h, v: lax.top_k(h.T, 3)[1].astype(jnp.float32).sum(0),
    "divided by what varies": lambda h, v: (h / h.std(0)) @ v,
    "whitened": lambda h, v: ((h - h.mean(0)) / jnp.sqrt(h.var(0))) @ v,
    "not finite, by channel": lambda h, v: lax.conv_general_dilated(
        (1 / h)[:, None], jnp.ones((1, 1, 8)), (1,), "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=8,
    ).sum((1, 2)),
    "shifted by padding": lambda h, v: windowed(h, 0.0, lax.add, (1, 1), ((0, 0), (1, -1))) @ v,
    "windows between rows": lambda h, v: jnp.maximum(
        windowed(h, -jnp.inf, lax.max, (1, 1), NOT_PADDED, base_dilation=(2, 1)), -1.0
    ).sum(-1),
    "windows beside rows": lambda h, v: jnp.maximum(
        windowed(h[:2], -jnp.inf, lax.max, (2, 1), ((1, 1), (0, 0)), window_dilation=(3, 1)), -1.0
    ).sum(-1),
    "bits as an axis": lambda h, v: h @ v
    + lax.bitcast_convert_type(h, jnp.uint8).sum((1, 2)).astype(jnp.float32)[:, None],
    "two in one window": lambda h, v: lax.reduce_window(
        (h, h), (0.0, 0.0), lambda a, b: (a[0] + b[0], a[1] + b[1]), (1, 1), (1, 1), "VALID"
    )[1] @ v,
    "divided by what is 0 with it": lambda h, v: (h / (jnp.exp(h) - 1)) @ v,
    "the logarithm of what is 0 with it": lambda h, v: jnp.log(jnp.exp(jnp.abs(h)) - 1) @ v,
    "divided by how many are not 0": lambda h, v: (h / (h != 0).sum(0)) @ v,
    "divided by what may be 0 with it": lambda h, v: (
        h / jnp.where(jnp.arange(5.0)[:, None] > 2, h * h, 1.0)
    ) @ v,
    "standardised, away from 0": lambda h, v: (
        (jax.nn.softplus(h) - jax.nn.softplus(h).mean(0)) / jax.nn.softplus(h).std(0)
    ) @ v,
    "divided by a range": lambda h, v: (h / (jnp.exp(h).max(0) - jnp.exp(h).min(0))) @ v,
    "divided by a mean less 1": lambda h, v: (h / (jnp.exp(h).mean(0) - 1)) @ v,
    "divided by a sum less 5": lambda h, v: (h / (jnp.exp(h).sum(0) - 5)) @ v,
    "divided by one of two, less 1": lambda h, v: (
        h / (jnp.where(jnp.arange(5.0)[:, None] > 2, jnp.exp(h), 2.0) - 1)
    ) @ v,
    "times inf": lambda h, v: (h * jnp.inf) @ v,
    "nan where it is 0": lambda h, v: jnp.where(h != 0, h, jnp.nan) @ v,
    "1 where it is 0": lambda h, v: jnp.cos(h) @ v,
    "elu by hand": lambda h, v: jnp.where(h > 0, h, jnp.exp(h) - 1) @ v,
    "logarithm where there is one": lambda h, v: jnp.where(h > 0, jnp.log(h), 0.0) @ v,
    "sigmoid around 0": lambda h, v: (jax.nn.sigmoid(h) - 0.5) @ v,
    "row by row": lambda h, v: jnp.zeros_like(h).at[2].set(h[1]).at[0].add(h[2]) @ v,
    "rows of a number of one's own": lambda h, v: h.at[2].set(1.0) @ v,
    "rows by segment": lambda h, v: (
        jax.ops.segment_sum(h[jnp.array([0, 1, 1, 3])], jnp.array([0, 0, 2, 1]), 3) @ v
    ),
    "rows multiplied": lambda h, v: h.at[jnp.array([1, 1])].multiply(h[:2]) @ v,
    "one column": lambda h, v: h.at[:, 3].set(2.0) @ v,
    "columns where": lambda h, v: h.at[:, jnp.array([5, 2])].add(h[:, :2]) @ v,
    "whole": lambda h, v: jax.nn.relu(h) @ v,
}  # fmt: skip


EXACT = (
    *("row by row", "rows by segment", "rows multiplied"),
    *("elu by hand", "logarithm where there is one", "sigmoid around 0", "whole"),
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_cut_is_the_masked_network_or_refused(name: str) -> None:
    def fn(params: Any, x: Any) -> Any:
        return FUNCTIONS[name](x @ params["w"], params["v"])

    net = jaxprune.trace(fn, PARAMS, X)
    for group in [group for group in net.groups if not group.inexact]:
        for mask in (np.arange(group.size) % 2 == 0, np.zeros(group.size, bool)):
            small = jaxprune.shrink(net, PARAMS, {group.name: mask})
            try:
                found = small.fn(small.params, X)
            except ValueError as refused:
                assert "must" in str(refused)
                continue
            wanted = fn(small.restore(small.params), X)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    if name in EXACT:
        assert [(group.size, group.inexact) for group in net.groups] == [(8, ())]


BACKWARD: dict[str, Callable[[Any, Any], Any]] = {
    "softmax": lambda x, g: g * jax.nn.softmax(x),
    "argmax": lambda x, g: g * (1.0 + jnp.argmax(x, -1, keepdims=True)),
    "mean": lambda x, g: g - g.mean(-1, keepdims=True),
    "sorted": lambda x, g: g * jnp.sort(x, -1),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_derivatives_that_read_across_channels_are_refused(name: str) -> None:
    """The values are right; the gradients would not be."""

    @jax.custom_vjp
    def act(x: Any) -> Any:
        return x

    act.defvjp(lambda x: (x, x), lambda x, g: (BACKWARD[name](x, g),))

    def fn(params: Any, x: Any) -> Any:
        return act(x @ params["w"]) @ params["v"]

    net = jaxprune.trace(fn, PARAMS, X)
    small = jaxprune.shrink(net, PARAMS, {"w[1]": np.arange(8) < 4})
    np.testing.assert_allclose(
        small.fn(small.params, X), fn(small.restore(small.params), X), rtol=1e-5
    )
    with pytest.raises(ValueError, match="`fn` must have derivatives that"):
        jax.grad(lambda params: small.fn(params, X).sum())(small.params)


def test_two_sums_that_miss_something_do_not_excuse_each_other() -> None:
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 4)), "c": jnp.ones((3, 1))}
    params["d"] = jnp.ones((4, 1))

    def exact(p: Any, x: Any) -> Any:
        return x @ p["a"] @ p["c"] + x @ p["b"] @ p["d"]

    def outer(p: Any, x: Any) -> Any:
        both = jnp.exp((x @ p["a"])[:, :, None] * (x @ p["b"])[:, None, :])
        return exact(p, x) + both.sum((1, 2))[:, None]

    net = jaxprune.trace(exact, params, jnp.ones((2, 2)))
    masks = {group.name: np.zeros(group.size, bool) for group in net.groups}
    small = jaxprune.shrink(net, params, masks)
    with pytest.raises(ValueError, match="`fn` must sum only zeros over channels"):
        small.bind(outer)(small.params, jnp.ones((2, 2)))


def test_equal_constants_of_other_types_are_other_programs() -> None:
    def fn(params: Any, x: Any, flag: Any) -> Any:
        return x @ params["w"] @ params["v"] * (10.0 if flag is True else 1.0)

    net = jaxprune.trace(fn, PARAMS, X, 1)
    small = jaxprune.shrink(net, PARAMS, {"w[1]": np.arange(8) < 4})
    once, ten = small.fn(small.params, X, 1), small.fn(small.params, X, True)
    np.testing.assert_allclose(ten, 10 * once, rtol=1e-5)


def test_what_is_removable_by_its_values_is_cut() -> None:
    """Though removed channels in general would divide 0 by 0."""

    def fn(params: Any, x: Any) -> Any:
        norms = jnp.linalg.norm(params["w"], axis=0)
        return x @ (params["w"] / norms * params["g"]) @ params["v"]

    params = {**PARAMS, "g": jnp.ones(8), "v": PARAMS["v"].at[jnp.array([1, 5])].set(0)}
    net = jaxprune.trace(fn, params, X)
    found = jaxprune.removable_units(net, params)
    ((name, mask),) = found.items()
    small = jaxprune.shrink(net, params, found)
    assert name and small.params["v"].shape[0] == int(mask.sum())
    np.testing.assert_allclose(small.fn(small.params, X), fn(params, X), rtol=1e-5)
