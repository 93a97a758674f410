"""What cutting channels buys, and what tracing a network costs.

    python -m experiments.bench_cut

Speed-ups are of jitted forward passes, dense and cut side by side in one process, beside the ratio
of their operations. Widths are rounded to multiples of 8, or not at all. `make bench` prints these
rows, too.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from tqdm import tqdm

import jaxprune
from experiments import bench, flops, models

Made = tuple[Callable[..., Any], Any, Any, Any]
"""``fn(params, also, x)``, params, also, x; without also ``fn(params, x)``."""


class ResNet18(nn.Module):
    """ResNet-18 in the form for small images, with shortcuts that have no weights."""

    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        x = nn.relu(nn.Conv(self.width, (3, 3), use_bias=False, name="stem")(x))
        for times in (1, 2, 4, 8):
            for block in range(2):
                stride = 2 if times > 1 and not block else 1
                x = models.Block(times * self.width, stride)(x, train=False)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class ViT(nn.Module):
    """ViT-B/16."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        x = nn.Conv(768, (16, 16), strides=16, name="embedding")(x).reshape(x.shape[0], -1, 768)
        x += self.param("pos_embedding", nn.initializers.normal(), (1, x.shape[1], 768))
        for _ in range(12):
            y = nn.LayerNorm()(x)
            x += nn.MultiHeadDotProductAttention(12)(y, y)
            x += nn.Dense(768)(nn.gelu(nn.Dense(3072)(nn.LayerNorm()(x))))
        return nn.Dense(1000, name="head")(nn.LayerNorm()(x).mean(1))


class Layer(nn.Module):
    """A layer of a GPT, as `scan` wants it."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """The next activations."""
        y, mask = nn.LayerNorm()(x), nn.make_causal_mask(x[..., 0])
        x += nn.MultiHeadDotProductAttention(16)(y, y, mask=mask)
        return x + nn.Dense(1024)(nn.gelu(nn.Dense(4096)(nn.LayerNorm()(x)))), None


class GPT(nn.Module):
    """24 scanned layers of width 1,024, with a tied table."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of the next tokens."""
        table = nn.Embed(32_000, 1024)
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=24)
        return table.attend(nn.LayerNorm()(layers()(table(tokens), None)[0]))


def resnet18() -> Made:
    """ResNet-18 on 8 images of 32 x 32."""
    x = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))
    variables = ResNet18().init(jax.random.key(0), x)
    params = variables.pop("params")

    def fn(params: Any, also: Any, x: jax.Array) -> Any:
        return ResNet18().apply({"params": params, **also}, x)

    return fn, params, variables, x


def resnet50() -> Made:
    """The products of a ResNet-50 on one image of 224 x 224."""
    params = bench.normal_params(bench.resnet50_shapes())
    return flops.resnet50, params, None, jax.random.normal(jax.random.key(1), (1, 224, 224, 3))


def mlp() -> Made:
    """An MLP of three layers of 1,024 on 64 inputs."""
    shapes = {"0": (784, 1024), "1": (1024, 1024), "2": (1024, 1024), "3": (1024, 10)}
    params = {
        name: jax.random.normal(jax.random.key(k), shape) / 30
        for k, (name, shape) in enumerate(shapes.items())
    }

    def fn(params: Any, x: jax.Array) -> jax.Array:
        for name in ("0", "1", "2"):
            x = jax.nn.relu(x @ params[name])
        return x @ params["3"]

    return fn, params, None, jax.random.normal(jax.random.key(9), (64, 784))


CASES: Mapping[str, Callable[[], Made]] = {
    "ResNet-18 (32 x 32)": resnet18,
    "ResNet-50 (224 x 224)": resnet50,
    "MLP of 1,024": mlp,
}


def cut_rows() -> list[bench.Row]:
    """Speed-ups of cut networks beside the ratio of their operations."""
    rows = []
    for name, make in CASES.items():
        fn, params, also, x = make()
        rest = (x,) if also is None else (also, x)
        net = jaxprune.trace(fn, params, x, also=also)
        scores = jaxprune.pool_scores(net, jax.tree.map(jnp.square, params))
        for density, round_to in ((0.5, 8), (0.7, 8), (0.7, 1)):
            masks = jaxprune.select_units(scores, density, round_to=round_to)
            small = jaxprune.shrink(net, params, masks, also=also)
            cut = (x,) if also is None else (small.also, x)
            left = jaxprune.trace(small.fn, small.params, x, also=small.also)
            operations = _operations(net) / _operations(left)
            dense, less = jax.jit(fn), jax.jit(small.fn)
            taken = bench.seconds(
                {
                    "dense": lambda f=dense, args=(params, *rest): f(*args),
                    "cut": lambda f=less, args=(small.params, *cut): f(*args),
                }
            )
            what = f"{name}, {density:.0%} of the channels, widths in {round_to}s: speed-up"
            reach = f">= {0.9 * operations:.2f}, 0.9 of the FLOPs' {operations:.2f}"
            rows.append(bench.row(what, taken["dense"] / taken["cut"], reach))
    return rows


def native_rows() -> list[bench.Row]:
    """A cut ResNet-18 beside one that was built at half the width: what a cut can reach here."""
    fn, params, also, x = resnet18()
    net = jaxprune.trace(fn, params, x, also=also)
    scores = jaxprune.pool_scores(net, jax.tree.map(jnp.square, params))
    small = jaxprune.shrink(net, params, jaxprune.select_units(scores, 0.5), also=also)
    half = ResNet18(width=32)
    variables = half.init(jax.random.key(0), x)
    built, cut = jax.jit(half.apply), jax.jit(small.fn)
    taken = bench.seconds(
        {
            "built": lambda: built(variables, x),
            "cut": lambda: cut(small.params, small.also, x),
        }
    )
    what = "ResNet-18 (32 x 32), cut by half / built at half the width"
    return [bench.row(what, taken["cut"] / taken["built"], "<= 1.03")]


def _operations(net: jaxprune.Network) -> float:
    return sum(leaf.flops for leaf in net.leaves)


def trace_rows() -> list[bench.Row]:
    """Seconds that tracing takes from shapes alone, the second time."""
    image, tokens = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32), jnp.zeros((1, 1024), int)
    rows = []
    for name, module, x, most in (
        ("ViT-B", ViT(), image, 2),
        ("GPT of 24 scanned layers", GPT(), tokens, 3),
    ):
        params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        fn = lambda params, x, module=module: module.apply({"params": params}, x)  # noqa: E731
        rows.append((f"tracing a {name}, s", f"{_seconds(fn, params, x):.1f}", f"<= {most}"))
    shapes, _ = flops.layers()
    rows.append(
        ("tracing a ResNet-50, s", f"{_seconds(flops.resnet50, shapes, image):.1f}", "<= 3")
    )
    return rows


def _seconds(fn: Callable[..., Any], params: Any, x: Any) -> float:
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        jaxprune.trace(fn, params, x)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken[1:]))


def main() -> None:
    """Prints the rows."""
    sections = (cut_rows, native_rows, trace_rows)
    bench.show([each for section in tqdm(sections, unit="section") for each in section()])


if __name__ == "__main__":
    main()
