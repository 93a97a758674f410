"""Small networks of vectors and tokens, and what is known of them by hand."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import lax
from networks import DENSE, Case, Networks, everywhere, normal, of_linen, of_nnx, plain

NETWORKS = Networks()
VECTORS = normal(2, 8)
TOKENS = jnp.arange(10).reshape(2, 5)


# ---------------------------------------------------------------------------------- loops and calls


class Layer(linen.Module):
    """A residual block for `linen.scan`."""

    @linen.compact
    def __call__(self, x: Any, _: Any) -> Any:
        y = linen.relu(linen.Dense(9, name="up")(linen.LayerNorm(name="norm")(x)))
        return x + linen.Dense(6, name="down")(y), None


class Scanned(linen.Module):
    """Three layers that are one."""

    axis: int
    again: bool = False

    @linen.compact
    def __call__(self, x: Any) -> Any:
        layers = linen.scan(
            linen.remat(Layer) if self.again else Layer,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = layers(name="layers")(linen.Dense(6, name="inner")(x), None)
        return linen.Dense(5, name="head")(x)


def scanned(module: Scanned) -> Case:
    stacked = ((1,), (2,)) if module.axis == 0 else ((0,), (2,))
    sums = everywhere(DENSE, "inner", "head") | {
        f"layers/{name}/kernel": stacked for name in ("up", "down")
    }
    groups = {"inner/kernel[1]": 6, "layers/up/kernel[2]": 9}
    return Case(*of_linen(module, VECTORS), sums, groups)


@NETWORKS.add_rectified
def scanned_along_the_first_axis() -> Case:
    return scanned(Scanned(0))


@NETWORKS.add_rectified
def scanned_along_the_second_axis() -> Case:
    return scanned(Scanned(1))


@NETWORKS.add_rectified
def scanned_and_rematerialized() -> Case:
    return scanned(Scanned(0, again=True))


@NETWORKS.add
def branches_and_loops() -> Case:
    def fn(params: Any, x: Any) -> Any:
        x = x @ params["first"]
        x = lax.cond(x.sum() > 0, jax.nn.relu, lambda x: -x, x)
        x = lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ params["again"]) + x, x)
        return x @ params["head"]

    params = plain(first=(8, 7), again=(7, 7), head=(7, 3))
    sums = {"first": DENSE, "again": DENSE, "head": DENSE}
    return Case(fn, params, (VECTORS,), None, sums, {"again[1]": 7})


@NETWORKS.add_rectified
def rematerialized() -> Case:
    @jax.checkpoint
    def block(params: Any, x: Any) -> Any:
        return jax.nn.relu(x @ params["up"]) @ params["down"]

    params = plain(up=(8, 9), down=(9, 6), head=(6, 3))
    sums = {"up": DENSE, "down": DENSE, "head": DENSE}
    groups = {"down[1]": 6, "up[1]": 9}
    return Case(
        lambda p, x: block(p, x) @ p["head"],
        *(params, (VECTORS,), None, sums, groups),
    )


@jax.custom_jvp
def leaning(x: Any, slope: Any) -> Any:
    """An activation with a forward rule that no function has."""
    return jnp.where(x > 0, x, slope * x)


@leaning.defjvp
def _(primals: Any, tangents: Any) -> Any:
    x, slope = primals
    return leaning(x, slope), jnp.where(x > 0, 1.5, 0.7) * tangents[0]


@jax.custom_vjp
def clipped(x: Any) -> Any:
    """An activation with a backward rule of its own, as of a straight-through estimator."""
    return jnp.clip(x, -1, 1)


clipped.defvjp(lambda x: (clipped(x), x), lambda x, g: (g * jnp.where(jnp.abs(x) < 2, 0.8, 0.0),))


def activated(activation: Any) -> Case:
    def fn(params: Any, x: Any) -> Any:
        x = activation(x @ params["first"] + params["first_bias"])
        return activation(x @ params["second"] + params["second_bias"]) @ params["head"]

    params = plain(first=(8, 7), first_bias=(7,), second=(7, 6), second_bias=(6,), head=(6, 3))
    sums = {"first": DENSE, "second": DENSE, "head": DENSE}
    groups = {"first[1]": 7, "second[1]": 6}
    return Case(fn, params, (VECTORS,), None, sums, groups)


@NETWORKS.add_rectified
def plain_function() -> Case:
    return activated(jax.nn.relu)


@NETWORKS.add_rectified
def own_forward_rule() -> Case:
    return activated(lambda x: leaning(x, 0.2))


@NETWORKS.add_rectified
def own_backward_rule() -> Case:
    return activated(clipped)


@NETWORKS.add_rectified
def dropout_in_training() -> Case:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any, key: Any) -> Any:
            x = linen.relu(linen.Dense(9, name="up")(x))
            x = linen.Dropout(0.3, deterministic=False)(x, rng=key)
            return linen.Dense(5, name="down")(x)

    parts = of_linen(Network(), VECTORS, jax.random.key(1))
    return Case(*parts, everywhere(DENSE, "up", "down"), {"up/kernel[1]": 9})


# ------------------------------------------------------------------------- tables, factors, experts


@NETWORKS.add_rectified
def tied_embedding() -> Case:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, tokens: Any) -> Any:
            embed = linen.Embed(11, 6, name="embed")
            x = embed(tokens)
            y = linen.relu(linen.Dense(9, name="up")(linen.RMSNorm(name="norm_0")(x)))
            return embed.attend(linen.RMSNorm(name="norm_1")(x + linen.Dense(6, name="down")(y)))

    groups = {"down/kernel[1]": 6, "up/kernel[1]": 9}
    return Case(*of_linen(Network(), TOKENS), everywhere(DENSE, "up", "down"), groups)


@NETWORKS.add_rectified
def low_rank() -> Case:
    """A layer and its low-rank update: outputs of both, and the rank of the update."""

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first = nnx.LoRALinear(8, 7, lora_rank=3, rngs=rngs)
            self.head = nnx.Linear(7, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.head(nnx.relu(self.first(x)))

    update = {"first/lora/lora_a": DENSE, "first/lora/lora_b": DENSE}
    groups = {"first/kernel[1]": 7, "first/lora/lora_a[1]": 3}
    sums = everywhere(DENSE, "first", "head") | update
    return Case(*of_nnx(Network, VECTORS), sums, groups)


@NETWORKS.add
def experts() -> Case:
    """Two of four experts are chosen: one can go, but not its place among those to choose from."""
    params = plain(inner=(8, 6), router=(6, 4), gate=(4, 6, 9), up=(4, 6, 9), down=(4, 9, 7))
    params |= plain(head=(7, 3))

    def fn(params: Any, x: Any) -> Any:
        x = x @ params["inner"]
        weights, chosen = lax.top_k(jax.nn.softmax(x @ params["router"]), 2)
        mixed = (jax.nn.one_hot(chosen, 4) * weights[..., None]).sum(-2)
        gate = jax.nn.silu(jnp.einsum("td,edf->tef", x, params["gate"]))
        x = gate * jnp.einsum("td,edf->tef", x, params["up"])
        return jnp.einsum("tef,efd,te->td", x, params["down"], mixed) @ params["head"]

    side = ((1,), (0, 2))
    sums = {"inner": DENSE, "router": DENSE, "gate": side, "up": side, "head": DENSE}
    sums |= {"down": ((0, 1), (2,))}
    groups = {"inner[1]": 6, "gate[0]": 4, "gate[2]": 9, "down[2]": 7}
    return Case(fn, params, (VECTORS,), None, sums, groups)


@NETWORKS.add_rectified
def weight_norm() -> Case:
    """A column of a weight has a length of its own, and 0 adds nothing to it."""

    def fn(params: Any, x: Any) -> Any:
        for name in ("first", "second"):
            w = params[name]
            w = w * params[f"{name}_scale"] / jnp.sqrt((w**2).sum(0) + 1e-12)
            x = jax.nn.relu(x @ w)
        return x @ params["head"]

    params = plain(first=(8, 7), first_scale=(7,), second=(7, 6), second_scale=(6,), head=(6, 3))
    sums = {"first": DENSE, "second": DENSE, "head": DENSE}
    groups = {"first[1]": 7, "second[1]": 6}
    return Case(fn, params, (VECTORS,), None, sums, groups)


@NETWORKS.add
def fourier() -> Case:
    """Channels that a transform mixes stay; those behind it go."""

    def fn(params: Any, x: Any) -> Any:
        x = jnp.fft.fft(x @ params["first"]).real
        return jax.nn.relu(x @ params["second"]) @ params["head"]

    params = plain(first=(8, 7), second=(7, 6), head=(6, 3))
    sums = {"first": DENSE, "second": DENSE, "head": DENSE}
    return Case(fn, params, (VECTORS,), None, sums, {"second[1]": 6}, unknown=("fft",))


@NETWORKS.add
def softmax_over_channels() -> Case:
    """A channel that is gone still counts for 1 in the sum of exponentials."""

    def fn(params: Any, x: Any) -> Any:
        return jax.nn.relu(jax.nn.softmax(x @ params["first"]) @ params["second"]) @ params["head"]

    params = plain(first=(8, 7), second=(7, 6), head=(6, 3))
    sums = {"first": DENSE, "second": DENSE, "head": DENSE}
    blamed = {"reduce_max along axis 1", "reduce_sum along axis 1"}
    return Case(fn, params, (VECTORS,), None, sums, {"second[1]": 6}, {"first[1]": (7, blamed)})
