"""What a traced network knows of its leaves: facts written by hand, framework by framework."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx
from jax import lax

import jaxprune
from jaxprune.network import Network

pytestmark = pytest.mark.usefixtures("standard_promotion")


def shapes_of(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def of_linen(module: linen.Module, *args: Any, **kwargs: Any) -> Network:
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
    params = variables.pop("params")
    if not variables:
        return jaxprune.trace(
            lambda p, *a: module.apply({"params": p}, *a, **kwargs), params, *args
        )

    def fn(params: Any, others: Any, *args: Any) -> Any:
        return module.apply({"params": params, **others}, *args, **kwargs)

    return jaxprune.trace(fn, params, *args, also=variables)


def of_nnx(module: Any, *args: Any) -> Network:
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return jaxprune.trace(lambda p, *a: nnx.merge(graph, p, rest)(*a), params, *args)


def of_equinox(module: Any, *args: Any) -> Network:
    params, static = eqx.partition(module, eqx.is_inexact_array)
    return jaxprune.trace(lambda p, *a: jax.vmap(eqx.combine(p, static))(*a), params, *args)


def facts(net: Network) -> dict[str, tuple[Any, ...]]:
    """Of each leaf what it is, and of a contracted one its axes and the norm behind it."""
    return {
        leaf.path: (leaf.use, leaf.contracted, leaf.outputs, *leaf.norm[:1])
        if leaf.use == "contracted"
        else (leaf.use,)
        for leaf in net.leaves
    }


# ------------------------------------------------------------------------------------ convolutions


class Block(linen.Module):
    """A residual block; the norm comes before or behind its convolutions."""

    before: bool

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        def norm(x: Any) -> Any:
            return linen.BatchNorm(use_running_average=not train)(x)

        y = x
        for _ in range(2):
            y = linen.relu(norm(y)) if self.before else y
            y = linen.Conv(x.shape[-1], (3, 3), use_bias=False)(y)
            y = y if self.before else linen.relu(norm(y))
        return x + y


class ResNet(linen.Module):
    """A stem, one block and a head."""

    before: bool = False

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = linen.Conv(8, (3, 3), name="stem")(x)
        x = Block(self.before)(x, train)
        return linen.Dense(5, name="head")(x.mean((1, 2)))


IMAGES = jnp.ones((2, 8, 8, 3))


@pytest.mark.parametrize("train", [False, True])
def test_a_norm_follows_the_convolutions_of_a_resnet(train: bool) -> None:
    if train:
        variables = jax.eval_shape(lambda: ResNet().init(jax.random.key(0), IMAGES))
        params = variables.pop("params")
        net = jaxprune.trace(
            lambda p, s, x: ResNet().apply(
                {"params": p, **s}, x, train=True, mutable=["batch_stats"]
            )[0],
            params,
            IMAGES,
            also=variables,
        )
    else:
        net = of_linen(ResNet(), IMAGES)
    block, sums = "Block_0/", (0, 1, 2)
    found = facts(net)
    assert found["stem/kernel"] == ("contracted", sums, (3,))
    assert net.leaf("stem/kernel").biases == ("stem/bias",)
    for k in (0, 1):
        norm = f"{block}BatchNorm_{k}/"
        assert found[f"{block}Conv_{k}/kernel"] == ("contracted", sums, (3,), f"{norm}scale")
        assert net.leaf(f"{block}Conv_{k}/kernel").norm == (f"{norm}scale", f"{norm}bias")
        assert net.leaf(f"{block}Conv_{k}/kernel").biases == ()
        assert found[f"{norm}scale"] == ("multiplied",)
        assert found[f"{norm}bias"] == ("added",)
    assert found["head/kernel"] == ("contracted", (0,), (1,))
    assert net.unknown == ()


def test_a_norm_before_a_convolution_is_not_its_own() -> None:
    """By name alone the first norm of a block looks like that of the stem before it."""
    net = of_linen(ResNet(before=True), IMAGES)
    assert net.leaf("stem/kernel").norm == ()  # its output is added to the block's, too
    assert net.leaf("Block_0/Conv_0/kernel").norm[0] == "Block_0/BatchNorm_1/scale"
    assert net.leaf("Block_0/Conv_1/kernel").norm == ()


def test_a_bias_before_a_norm_and_one_behind_it_are_told_apart() -> None:
    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.relu(linen.LayerNorm(name="norm")(linen.Dense(4, name="body")(x)))

    leaf = of_linen(Layer(), jnp.ones((2, 3))).leaf("body/kernel")
    assert (leaf.biases, leaf.norm) == (("body/bias",), ("norm/scale", "norm/bias"))


def test_kernels_of_every_layout_say_where_their_outputs_are() -> None:
    class Transposed(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.ConvTranspose(6, (2, 2), (2, 2), name="up")(x)
            x = linen.ConvTranspose(7, (2, 2), transpose_kernel=True, name="turned")(x)
            return linen.Conv(14, (3, 3), feature_group_count=7, name="grouped")(x)

    found = facts(of_linen(Transposed(), IMAGES))
    assert found["up/kernel"] == ("contracted", (0, 1, 2), (3,))
    assert found["turned/kernel"] == ("contracted", (0, 1, 3), (2,))
    assert found["grouped/kernel"] == ("contracted", (0, 1, 2), (3,))
    found = facts(of_equinox(eqx.nn.Conv2d(3, 6, 3, key=jax.random.key(0)), jnp.ones((2, 3, 8, 8))))
    assert found["weight"] == ("contracted", (2, 3, 1), (0,))


# --------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_heads_and_their_entries_are_outputs_of_an_attention(library: str) -> None:
    x = jnp.ones((2, 5, 16))
    if library == "linen":
        net = of_linen(linen.MultiHeadDotProductAttention(4), x)
    else:
        attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=nnx.Rngs(0))
        net = of_nnx(attention, x)
    for name in ("query", "key", "value"):
        leaf = net.leaf(f"{name}/kernel")
        assert (leaf.shape, leaf.contracted, leaf.outputs) == ((16, 4, 4), (0,), (1, 2))
    out = net.leaf("out/kernel")
    assert (out.shape, out.contracted, out.outputs) == ((4, 4, 16), (0, 1), (2,))


def test_einsums_say_what_no_name_does() -> None:
    params = {"qkv": jnp.ones((3, 4, 16, 8)), "mix": jnp.ones((6, 16, 2))}

    def fn(params: Any, x: Any) -> Any:
        q, k, v = jnp.einsum("btd,sndh->sbtnh", x, params["qkv"])
        return (q * k * v).sum(), jnp.einsum("btd,gdh->btgh", x, params["mix"])

    net = jaxprune.trace(fn, params, jnp.ones((2, 5, 16)))
    assert facts(net) == {
        "mix": ("contracted", (1,), (0, 2)),
        "qkv": ("contracted", (2,), (0, 1, 3)),
    }


def test_a_contraction_over_several_axes_is_in_the_order_of_memory() -> None:
    def fn(params: Any, x: Any) -> Any:
        return jnp.einsum("abc,ocb->ao", x, params["w"])

    net = jaxprune.trace(fn, {"w": jnp.ones((6, 3, 2))}, jnp.ones((4, 2, 3)))
    assert facts(net) == {"w": ("contracted", (1, 2), (0,))}


# ----------------------------------------------------------------------------- tables and factors


def test_tables_are_looked_up_and_tied_ones_are_both() -> None:
    tokens = jnp.zeros((2, 5), int)

    class Tied(linen.Module):
        tied: bool

        @linen.compact
        def __call__(self, tokens: Any) -> Any:
            embed = linen.Embed(9, 4, name="embed")
            x = linen.Dense(4, name="body")(embed(tokens))
            return embed.attend(x) if self.tied else x

    assert facts(of_linen(Tied(False), tokens))["embed/embedding"] == ("table",)
    assert facts(of_linen(Tied(True), tokens))["embed/embedding"] == ("tied",)
    hot = jaxprune.trace(
        lambda p, t: jax.nn.one_hot(t, 9) @ p["w"], {"w": jnp.ones((9, 4))}, tokens
    )
    assert facts(hot) == {"w": ("table",)}


def test_a_matrix_that_is_used_both_ways_is_tied() -> None:
    net = jaxprune.trace(
        lambda p, x: x @ p["w"] @ p["w"].T, {"w": jnp.ones((3, 2))}, jnp.ones((1, 3))
    )
    assert net.leaf("w").use == "tied"
    assert net.leaf("w").flops == 2 * (2 * 3 * 2)


def test_factors_of_a_weight_are_no_layers() -> None:
    params = {"w": jnp.ones((8, 6)), "a": jnp.ones((8, 2)), "b": jnp.ones((2, 6)), "g": jnp.ones(6)}

    def fn(params: Any, x: Any) -> Any:
        whole = params["w"] + params["a"] @ params["b"]
        return x @ (params["g"] * whole / jnp.linalg.norm(whole, axis=0))

    found = facts(jaxprune.trace(fn, params, jnp.ones((3, 8))))
    assert found["w"] == ("contracted", (0,), (1,))
    assert [found[name] for name in "abg"] == [("factor",)] * 3


def test_of_two_weights_that_meet_the_larger_is_the_layer() -> None:
    params = {"latents": jnp.ones((2, 8)), "q": jnp.ones((8, 8))}
    net = jaxprune.trace(lambda p, x: x @ (p["latents"] @ p["q"]).T, params, jnp.ones((3, 8)))
    assert net.leaf("latents").use == "factor"


# ---------------------------------------------------------------------------------- loops and calls


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("remat", [False, True])
def test_a_scanned_layer_is_stacked(axis: int, remat: bool) -> None:
    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x: Any, _: Any) -> Any:
            return x + linen.Dense(6, name="down")(linen.relu(linen.Dense(12, name="up")(x))), None

    class Scanned(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            layer = linen.remat(Layer) if remat else Layer
            layers = linen.scan(
                layer, variable_axes={"params": axis}, split_rngs={"params": True}, length=3
            )
            return layers(name="layers")(x, None)[0]

    net = of_linen(Scanned(), jnp.ones((2, 6)))
    up, down = net.leaf("layers/up/kernel"), net.leaf("layers/down/kernel")
    sums, outputs = ((1,), (2,)) if axis == 0 else ((0,), (2,))
    for leaf in (up, down):
        assert (leaf.use, leaf.contracted, leaf.outputs, leaf.stacked) == (
            *("contracted", sums, outputs),
            axis,
        )
        assert leaf.flops == 3 * 2 * 2 * 6 * 12
    assert up.biases == ("layers/up/bias",)


@pytest.mark.parametrize("cell", [eqx.nn.GRUCell, eqx.nn.LSTMCell])
def test_recurrent_cells_contract_their_last_axis(cell: Any) -> None:
    made = cell(5, 8, key=jax.random.key(0))
    params, static = eqx.partition(made, eqx.is_inexact_array)

    def fn(params: Any, xs: Any) -> Any:
        own = eqx.combine(params, static)
        zero = jnp.zeros(8)
        start = (zero, zero) if cell is eqx.nn.LSTMCell else zero
        return lax.scan(lambda carry, x: (own(x, carry), None), start, xs)[0]

    found = facts(jaxprune.trace(fn, params, jnp.ones((7, 5))))
    assert found["weight_ih"] == found["weight_hh"] == ("contracted", (1,), (0,))


def test_experts_and_ensembles_are_outputs_side_by_side() -> None:
    def fn(params: Any, x: Any) -> Any:
        return jnp.einsum("ebd,edf->ebf", x, params["experts"])

    (leaf,) = jaxprune.trace(fn, {"experts": jnp.ones((4, 6, 3))}, jnp.ones((4, 2, 6))).leaves
    assert (leaf.contracted, leaf.outputs, leaf.stacked) == ((1,), (0, 2), None)
    ensemble = jax.vmap(lambda p, x: x @ p["w"], in_axes=(0, None))
    (leaf,) = jaxprune.trace(ensemble, {"w": jnp.ones((4, 6, 3))}, jnp.ones((2, 6))).leaves
    assert (leaf.contracted, leaf.outputs) == ((1,), (0, 2))


def test_branches_count_the_dearest_and_custom_derivatives_are_walked() -> None:
    @jax.custom_vjp
    def act(x: Any) -> Any:
        return jnp.tanh(x)

    act.defvjp(lambda x: (act(x), x), lambda x, g: (g,))

    def fn(params: Any, x: Any) -> Any:
        x = act(jax.checkpoint(lambda w, x: x @ w)(params["a"], x))
        twice = lambda x: x @ params["b"] @ params["b"]  # noqa: E731
        x = lax.cond(x.sum() > 0, twice, lambda x: x @ params["b"], x)
        return lax.fori_loop(0, 3, lambda _, x: jax.nn.relu(x @ params["c"]), x)

    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 4)), "c": jnp.ones((4, 4))}
    net = jaxprune.trace(fn, params, jnp.ones((2, 3)))
    assert facts(net) == dict.fromkeys("abc", ("contracted", (0,), (1,)))
    assert net.leaf("b").flops == 2 * (2 * 2 * 4 * 4)
