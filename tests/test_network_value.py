"""A network as a value: static, printed, through JSON; what has no rule, and rules of one's own."""

import json
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from test_network import IMAGES, ResNet, facts, of_linen, shapes_of

import jaxprune
from jaxprune.network import Leaf
from jaxprune.network.walk import unknown

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_a_network_is_static_and_goes_through_json() -> None:
    net, again = (of_linen(ResNet(), IMAGES) for _ in range(2))
    assert net == again
    assert hash(net) == hash(again)
    assert jaxprune.network_from_json(net.to_json()) == net
    json.loads(net.to_json())
    lines = str(net).splitlines()
    for row in [leaf.path for leaf in net.leaves] + [group.name for group in net.groups]:
        assert any(line.startswith(f"{row} ") for line in lines)


def test_shapes_are_all_that_is_read() -> None:
    def fn(params: Any, x: Any) -> Any:
        return x @ params["w"]

    params = {"w": jnp.ones((3, 2))}
    net = jaxprune.trace(fn, shapes_of(params), jax.ShapeDtypeStruct((1, 3), jnp.float32))
    assert net == jaxprune.trace(fn, params, np.ones((1, 3), "f4"))
    assert net.leaves[0]._replace(lines=(), pinned=()) == Leaf(
        "w", (3, 2), "contracted", (0,), (1,), flops=2.0 * 3 * 2
    )
    data, output = net.leaves[0].pinned
    assert (data.axis, data.number) == (0, 3)
    assert data.why.startswith("dot_general at test_network_value.py:")
    assert output == (1, 2, "an output of the network")


def test_what_has_no_rule_is_named_with_its_line_and_everything_else_is_known() -> None:
    def fn(params: Any, x: Any) -> Any:
        return jnp.fft.fft(x @ params["a"]).real @ params["b"]

    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 4))}
    net = jaxprune.trace(fn, params, jnp.ones((2, 3)))
    assert facts(net) == dict.fromkeys("ab", ("contracted", (0,), (1,)))
    (unknown,) = net.unknown
    assert unknown.startswith("fft at test_network_value.py:")
    assert "without a rule: fft at test_network_value.py" in str(net)


def test_leaves_that_are_not_there_and_params_without_arrays_are_refused() -> None:
    net = jaxprune.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"`params` must have the leaves .* got 'v': near .* w"):
        net.leaf("v")
    with pytest.raises(ValueError, match="`params` must hold an array"):
        jaxprune.trace(lambda p, x: x, {}, jnp.ones(3))


def test_what_is_no_array_passes() -> None:
    def fn(params: Any, x: Any, act: Any) -> Any:
        return {"out": act(x @ params["w"] * params["scale"]), "name": "head", "none": None}

    params = {"w": jnp.ones((3, 2)), "scale": 2.0, "act": jnp.tanh}
    net = jaxprune.trace(fn, params, jnp.ones((1, 3)), jnp.tanh)
    assert facts(net) == {"w": ("contracted", (0,), (1,))}


def test_random_numbers_and_keys_are_data() -> None:
    class Dropped(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(2)(linen.Dropout(0.5, deterministic=False)(linen.Dense(4)(x)))

    x, key = jnp.ones((1, 3)), jax.random.key(1)
    params = Dropped().init({"params": key, "dropout": key}, x)["params"]

    def fn(params: Any, x: Any, key: Any) -> Any:
        return Dropped().apply({"params": params}, x, rngs={"dropout": key})

    net = jaxprune.trace(fn, params, x, key)
    assert net.unknown == ()
    assert net.leaf("Dense_1/kernel").use == net.leaf("Dense_0/kernel").use == "contracted"


def test_a_primitive_of_the_users_own_is_known_once_it_has_a_rule() -> None:
    mine = jex.core.Primitive("mine_of_the_test")
    mine.def_abstract_eval(lambda x: x)

    def fn(params: Any, x: Any) -> Any:
        return mine.bind(x @ params["w"] + params["b"]) * params["s"]

    params = {"w": jnp.ones((3, 2)), "b": jnp.ones((1, 2)), "s": jnp.ones((1, 2))}
    args = fn, params, jnp.ones((1, 3))
    assert jaxprune.trace(*args).unknown[0].startswith("mine_of_the_test at test_network_value.py")
    jaxprune.register_rule(mine, "elementwise")
    assert jaxprune.trace(*args).unknown == ()
    with pytest.raises(ValueError, match="`rule` must be 'elementwise' or a function, got 'other'"):
        jaxprune.register_rule(mine, "other")
    with pytest.raises(TypeError, match="`primitive` must be a primitive or the name of one"):
        jaxprune.register_rule(3, "elementwise")
    jaxprune.register_rule("mine_of_the_test", unknown)
    assert len(jaxprune.trace(*args).unknown) == 1
