"""The products of networks with their parameters, counted in traced programs."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental.custom_partitioning import custom_partitioning

from experiments import models, models_equinox, models_nnx
from jaxprune import flops, names, trees, views


def shaped(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def counted(fn: Any, *shapes: tuple[int, ...], inputs: tuple[int, ...] = (5, 4)) -> Any:
    """The operations of `fn` with weights "0", "1", ... of these shapes on one array."""
    params = {str(place): shaped(*shape) for place, shape in enumerate(shapes)}
    return flops.forward_flops(fn, params, shaped(*inputs))


def test_products_and_convolutions_count_two_for_each_multiply_add() -> None:
    def network(p: Any, x: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, p["0"], (2, 2), "SAME", dimension_numbers=layout, feature_group_count=2
        )
        return jnp.einsum("bhwc,ck->bhwk", x + p["2"].reshape(1, 1, 1, 8), p["1"])

    found = counted(network, (3, 3, 2, 8), (8, 5), (8,), inputs=(6, 10, 10, 4))
    positions = 6 * 5 * 5
    assert found == {"0": 2 * positions * 8 * (3 * 3 * 2), "1": 2 * positions * 8 * 5}


def conv(x: jax.Array, kernel: jax.Array, **values: Any) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout, **values
    )


POSITIONS = 2 * 6 * 6  # of two images

CONVOLUTIONS: dict[str, tuple[Any, tuple[int, ...], float]] = {
    "plain": (lambda x, k: conv(x[0], k), (3, 3, 4, 8), POSITIONS * 8 * 36),
    "many inputs": (jax.vmap(conv, (0, None)), (3, 3, 4, 8), 3 * POSITIONS * 8 * 36),
    "many kernels": (
        lambda x, k: jax.vmap(conv, (None, 0))(x[0], k),
        (3, 3, 3, 4, 8),
        3 * POSITIONS * 8 * 36,
    ),
    "each its own": (jax.vmap(conv), (3, 3, 3, 4, 8), 3 * POSITIONS * 8 * 36),
    "depthwise": (
        lambda x, k: conv(x[0], k, feature_group_count=4),
        (3, 3, 1, 8),
        POSITIONS * 8 * 9,
    ),
    "many depthwise": (
        jax.vmap(lambda x, k: conv(x, k, feature_group_count=4)),
        (3, 3, 3, 1, 8),
        3 * POSITIONS * 8 * 9,
    ),
    "groups of the batch": (
        lambda x, k: conv(x[0], k, batch_group_count=2),
        (3, 3, 4, 8),
        POSITIONS / 2 * 8 * 36,
    ),
    "dilated": (lambda x, k: conv(x[0], k, rhs_dilation=(2, 2)), (3, 3, 4, 8), POSITIONS * 8 * 36),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_grouped_and_batched_convolutions_are_counted_as_by_hand(name: str) -> None:
    network, shape, multiply_adds = CONVOLUTIONS[name]
    found = counted(lambda p, x: network(x, p["0"]), shape, inputs=(3, 2, 6, 6, 4))
    assert found == {"0": 2 * multiply_adds}


def test_rows_that_meet_one_matrix_of_a_stack_each_are_counted_once() -> None:
    def experts(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(x, p["0"], jnp.array([2, 0, 3]))

    assert counted(experts, (3, 4, 7)) == {"0": 2 * 5 * 4 * 7}


def test_a_transposed_convolution_counts_its_inputs() -> None:
    """Each of 4 inputs meets each of 3 taps once; the zeros between them are no work."""

    def network(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv_transpose(
            x, p["0"], (2,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
        )

    assert counted(network, (3, 5, 7), inputs=(1, 4, 5)) == {"0": 2 * 4 * 3 * 5 * 7}


ONCE = 2.0 * 5 * 4 * 4  # (5, 4) @ (4, 4)
MESH = jax.make_mesh((1,), ("all",), (jax.sharding.AxisType.Auto,))
WHOLE = jax.sharding.PartitionSpec()

PROGRAMS: dict[str, tuple[Any, float]] = {
    "plain": (lambda w, x: x @ w, 1),
    "twice": (lambda w, x: x @ w @ w, 2),
    "transposed": (lambda w, x: x @ w.T, 1),
    "in another type": (lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), 1),
    "scaled and cut": (lambda w, x: x @ jnp.where(True, 0.5 * w, 0.0), 1),
    "scaled by data": (lambda w, x: x @ (w * x[0, 0]), 1),
    "standardized": (lambda w, x: x @ ((w - w.mean()) / jnp.std(w, axis=0, keepdims=True)), 1),
    "left of the product": (lambda w, x: w @ x.T, 1),
    "no product": (lambda w, x: x + w[:1], 0),
    "a sum with data": (lambda w, x: (x[:4] + w) @ jnp.ones((4, 4)), 0),
    "a look-up": (lambda w, x: w[x[:, 0].astype(jnp.int32)] @ jnp.ones((4, 4)), 0),
    "jit": (lambda w, x: jax.jit(lambda v: x @ v)(w), 1),
    "remat": (lambda w, x: jax.checkpoint(lambda v: x @ v)(w), 1),
    "vmap": (lambda w, x: jax.vmap(lambda row: row @ w)(x), 1),
    "relu between": (lambda w, x: jax.nn.relu(x @ w) @ w, 2),
    "through": (lambda w, x: x @ views.through(w, 2 * w), 1),
    "repeated": (lambda w, x: jax.lax.fori_loop(0, 7, lambda _, y: y @ w, x), 7),
    "carried along": (
        lambda w, x: jax.lax.scan(lambda c, _: ((c[0] @ c[1], c[1]), None), (x, w), length=3)[0][0],
        3,
    ),
    "carried once": (
        lambda w, x: jax.lax.scan(lambda c, _: (c @ x[:4], None), w, length=3)[0],
        0,
    ),
    "replaced in turn": (
        lambda w, x: jax.lax.scan(
            lambda c, _: ((c[1], x[:4]), c[0] @ jnp.ones((4, 4))), (w, w), length=3
        )[1],
        0,
    ),
    "while": (lambda w, x: jax.lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y @ w, x), 1),
    "dearest branch": (
        lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda v: x @ v @ v, lambda v: x @ v, w),
        2,
    ),
    "dearest of three": (
        lambda w, x: jax.lax.switch(1, [lambda v: x, lambda v: x @ v, lambda v: x @ v @ v], w),
        2,
    ),
    "chosen or zero": (
        lambda w, x: x @ jax.lax.cond(x[0, 0] > 0, lambda: w, lambda: jnp.zeros((4, 4))),
        1,
    ),
    "chosen or data": (lambda w, x: x @ jax.lax.cond(x[0, 0] > 0, lambda: w, lambda: x[:4]), 0),
    "entries chosen by data": (lambda w, x: x @ jnp.where(x[:4] > 0, w, 0.0), 1),
    "entries replaced by data": (lambda w, x: x @ jnp.where(x[:4] > 0, w, x[:4]), 0),
    "kept apart": (lambda w, x: jnp.matmul(*jax.lax.optimization_barrier((x, w))), 1),
    "reduced by a function": (
        lambda w, x: x @ (w * jax.lax.reduce(x[:4], 1.0, lambda a, b: a * b, (1,)).reshape(1, 4)),
        0,
    ),
    "named": (lambda w, x: jax.lax.composite(product, "a.product")(w, x), 1),
    "by platform": (
        lambda w, x: jax.lax.platform_dependent(w, cpu=lambda v: x @ v, default=lambda v: x),
        1,
    ),
    "mapped in batches": (lambda w, x: jax.lax.map(lambda row: row @ w, x, batch_size=2), 1),
    "remat of jit of remat": (
        lambda w, x: jax.checkpoint(jax.jit(jax.checkpoint(lambda v: x @ v)))(w),
        1,
    ),
    "a gradient inside": (
        lambda w, x: jax.grad(
            lambda y: jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), y, length=3)[0].sum()
        )(x),
        6,
    ),
    "in shard_map": (
        lambda w, x: jax.shard_map(
            lambda v, y: y @ v, mesh=MESH, in_specs=(WHOLE, WHOLE), out_specs=WHOLE
        )(w, x),
        1,
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_weight_is_followed_to_its_products(name: str) -> None:
    network, times = PROGRAMS[name]
    found = counted(lambda p, x: network(p["0"], x), (4, 4))
    assert found == ({"0": times * ONCE} if times else {})


def product(w: jax.Array, x: jax.Array) -> jax.Array:
    return x @ w


def with_jvp() -> Any:
    function = jax.custom_jvp(product)
    function.defjvp(lambda values, tangents: (function(*values), function(*tangents)))
    return function


def with_vjp() -> Any:
    function = jax.custom_vjp(product)
    function.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: (kept[1].T @ g, g @ kept[0].T))
    return function


def with_vmap() -> Any:
    function = jax.custom_batching.custom_vmap(product)
    function.def_vmap(lambda size, batched, w, x: (x @ w, True))
    return function


def with_partitioning() -> Any:
    function = custom_partitioning(product)
    function.def_partition(lambda *_: None, lambda *_: None, sharding_rule="i j, k i -> k j")
    return function


def with_transpose() -> Any:
    return lambda w, x: jax.custom_derivatives.linear_call(
        lambda x, w: x @ w, lambda w, g: g @ w.T, x, w
    )


CUSTOM = [with_jvp, with_vjp, with_vmap, with_partitioning, with_transpose]


@pytest.mark.parametrize("custom", CUSTOM)
def test_the_weights_of_functions_with_rules_of_their_own_are_found(custom: Any) -> None:
    function = custom()
    assert counted(lambda p, x: function(p["0"], x), (4, 4)) == {"0": ONCE}

    def scanned(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, w: (function(w, c), None), x, p["0"])[0]

    assert counted(scanned, (3, 4, 4)) == {"0": 3 * ONCE}


# --------------------------------------------------------------------------------------- loops


def test_a_stack_of_kernels_counts_each_of_its_slices() -> None:
    def scanned(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, p["0"])[0]

    def unrolled(p: Any, x: jax.Array) -> jax.Array:
        for layer in range(3):
            x = jnp.tanh(x @ p["0"][layer])
        return x

    def indexed(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 3, lambda i, y: jnp.tanh(y @ p["0"][i]), x)

    for network in (scanned, unrolled, indexed):
        assert counted(network, (3, 4, 4)) == {"0": 3 * ONCE}


def test_a_product_of_two_weights_counts_for_both() -> None:
    found = counted(lambda p, x: x @ (p["0"] @ p["1"]), (4, 2), (2, 4))
    low_rank = 2 * 4 * 2 * 4
    assert found == {"0": low_rank + ONCE, "1": low_rank}


def test_static_arguments_are_passed_on() -> None:
    def network(p: Any, x: jax.Array, *, deep: bool = True) -> jax.Array:
        return x @ p["w"] @ p["w"] if deep else x @ p["w"]

    found = flops.forward_flops(
        lambda p, x, deep: network(p, x, deep=deep), {"w": shaped(4, 4)}, shaped(5, 4), False
    )
    assert found == {"w": ONCE}


@pytest.mark.usefixtures("standard_promotion")
def test_linen_nnx_and_equinox_networks_count_alike() -> None:
    linen = models.MLP(classes=10)
    images = shaped(3, 8, 8, 1)
    params = jax.eval_shape(
        lambda: linen.init(jax.random.key(0), jnp.zeros((3, 8, 8, 1)), train=False)
    )
    sizes = {"dense_0": 64 * 128, "dense_1": 128 * 64, "classifier": 64 * 10}
    found = flops.forward_flops(
        lambda p, x: linen.apply({"params": p}, x, train=False), params["params"], images
    )
    assert found == {f"{name}/kernel": 6.0 * size for name, size in sizes.items()}

    model = nnx.eval_shape(lambda: models_nnx.MLP(64, 10, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model, nnx.Param)
    found = flops.forward_flops(lambda p, x: nnx.merge(graph, p)(x), state, images)
    assert sorted(found.values()) == sorted(6.0 * size for size in sizes.values())
    assert [*found] == names.prunable(trees.by_path(state))

    equinox = eqx.filter_eval_shape(models_equinox.MLP, 64, 10, key=jax.random.key(0))
    found = flops.forward_flops(lambda p, x: jax.vmap(p)(x), equinox, shaped(3, 64))
    assert sorted(found.values()) == sorted(6.0 * size for size in sizes.values())
    assert [*found] == names.prunable(trees.by_path(equinox))


@pytest.mark.usefixtures("standard_promotion")
def test_scanned_and_rematerialized_modules_count_every_layer() -> None:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
            return nn.relu(nn.Dense(4)(x)), None

    stack = nn.scan(
        nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=6
    )
    model: Any = stack()
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((5, 4)), None))[
        "params"
    ]
    found = flops.forward_flops(
        lambda p, x: model.apply({"params": p}, x, None), params, shaped(5, 4)
    )
    assert found == {"Dense_0/kernel": 6 * ONCE}


@pytest.mark.usefixtures("standard_promotion")
def test_a_convolutional_network_counts_its_positions() -> None:
    model = models.CNN(classes=10)
    images = shaped(2, 16, 16, 3)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((2, 16, 16, 3)), train=False)
    )
    found = flops.forward_flops(
        lambda p, rest, x: model.apply({**rest, "params": p}, x, train=False),
        variables["params"],
        {"batch_stats": variables["batch_stats"]},
        images,
    )
    positions = {"conv_0": 64, "conv_1": 16, "conv_2": 4, "classifier": 1}
    shapes = trees.by_path(variables["params"])
    kernels = {name: f"{name}/kernel" for name in positions}
    assert found == {
        path: 2.0 * 2 * positions[name] * shapes[path].size for name, path in kernels.items()
    }
