"""Small networks of images, and what is known of them by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from networks import CONV, DENSE, Case, Networks, everywhere, normal, of_linen, of_nnx

NETWORKS = Networks()
IMAGES = normal(2, 8, 8, 3)
Norm = functools.partial(linen.BatchNorm, use_running_average=True)
Conv = functools.partial(linen.Conv, use_bias=False)


# ----------------------------------------------------------------------------------------- residual


class Basic(linen.Module):
    """Two convolutions and a shortcut."""

    features: int
    inner: int
    stride: int = 1

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        norm = functools.partial(linen.BatchNorm, use_running_average=not train)
        y = Conv(self.inner, (3, 3), strides=self.stride, name="first")(x)
        y = linen.relu(norm(name="norm_first")(y))
        y = norm(name="norm_second")(Conv(self.features, (3, 3), name="second")(y))
        if x.shape != y.shape:
            x = Conv(self.features, (1, 1), strides=self.stride, name="shortcut")(x)
            x = norm(name="norm_shortcut")(x)
        return linen.relu(x + y)


class ResNet(linen.Module):
    """A stem, two blocks and a head."""

    train: bool = False

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = Conv(6, (3, 3), name="stem")(x)
        x = linen.BatchNorm(use_running_average=not self.train, name="norm_stem")(x)
        x = Basic(6, 5, name="block_0")(linen.relu(x), self.train)
        x = Basic(8, 7, 2, name="block_1")(x, self.train)
        return linen.Dense(4, name="head")(x.mean((1, 2)))


BASIC_SUMS = {
    **everywhere(CONV, "stem", "block_0/first", "block_0/second", "block_1/first"),
    **everywhere(CONV, "block_1/second", "block_1/shortcut"),
    **everywhere(DENSE, "head"),
}
BASIC_GROUPS = {
    "block_0/first/kernel[3]": 5,
    "block_0/second/kernel[3]": 6,
    "block_1/first/kernel[3]": 7,
    "block_1/second/kernel[3]": 8,
}


@NETWORKS.add_rectified
def linen_resnet() -> Case:
    return Case(*of_linen(ResNet(), IMAGES), BASIC_SUMS, BASIC_GROUPS)


@NETWORKS.add_rectified
def linen_resnet_in_training() -> Case:
    _, params, args, also = of_linen(ResNet(), IMAGES)

    def fn(params: Any, also: Any, *args: Any) -> Any:
        variables = {"params": params, **also}
        return ResNet(train=True).apply(variables, *args, mutable=["batch_stats"])[0]

    return Case(fn, params, args, also, BASIC_SUMS, BASIC_GROUPS)


class Bottleneck(linen.Module):
    """A narrow convolution between two of one pixel."""

    narrow: int
    middle: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        y = linen.relu(Norm()(Conv(self.narrow, (1, 1), name="reduce")(x)))
        y = linen.relu(Norm()(Conv(self.middle, (3, 3), name="middle")(y)))
        y = Norm()(Conv(10, (1, 1), name="expand")(y))
        if x.shape != y.shape:
            x = Norm()(Conv(10, (1, 1), name="shortcut")(x))
        return linen.relu(x + y)


@NETWORKS.add
def linen_bottleneck() -> Case:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.relu(Norm()(Conv(5, (3, 3), strides=2, name="stem")(x)))
            x = Bottleneck(6, 7, name="block_1")(Bottleneck(3, 4, name="block_0")(x))
            return linen.Dense(4, name="head")(x.mean((1, 2)))

    blocks = [f"block_{k}/{layer}" for k in (0, 1) for layer in ("reduce", "middle", "expand")]
    groups = {
        "block_0/reduce/kernel[3]": 3,
        "block_0/middle/kernel[3]": 4,
        "block_0/expand/kernel[3]": 10,
        "block_1/reduce/kernel[3]": 6,
        "block_1/middle/kernel[3]": 7,
        "stem/kernel[3]": 5,
    }
    sums = everywhere(CONV, *blocks, "block_0/shortcut", "stem") | everywhere(DENSE, "head")
    return Case(*of_linen(Network(), IMAGES), sums, groups)


class NnxBlock(nnx.Module):
    """Convolutions of given widths, each with a norm, and a shortcut."""

    def __init__(self, widths: tuple[int, ...], sizes: tuple[int, ...], rngs: nnx.Rngs):
        norm = functools.partial(nnx.BatchNorm, use_running_average=True, rngs=rngs)
        layers = zip(widths, widths[1:], sizes, strict=False)
        self.convs = nnx.List(
            nnx.Conv(a, b, (k, k), use_bias=False, rngs=rngs) for a, b, k in layers
        )
        self.norms = nnx.List(norm(b) for b in widths[1:])
        first, last = widths[0], widths[-1]
        self.shortcut = None if first == last else nnx.Conv(first, last, (1, 1), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = x
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(nnx.relu(y) if k else y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class NnxResNet(nnx.Module):
    """A stem, two blocks and a head."""

    def __init__(self, sizes: tuple[int, ...], *blocks: tuple[int, ...], rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, blocks[0][0], (3, 3), strides=2, rngs=rngs)
        self.blocks = nnx.List(NnxBlock(widths, sizes, rngs) for widths in blocks)
        self.head = nnx.Linear(blocks[-1][-1], 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


@NETWORKS.add_rectified
def nnx_resnet() -> Case:
    make = functools.partial(NnxResNet, (3, 3), (6, 5, 6), (6, 7, 8))
    parts = of_nnx(lambda rngs: make(rngs=rngs), IMAGES)
    convs = [f"blocks/{k}/convs/{n}" for k in (0, 1) for n in (0, 1)]
    sums = everywhere(CONV, *convs, "blocks/1/shortcut", "stem") | everywhere(DENSE, "head")
    groups = {f"{path}/kernel[3]": n for path, n in zip(convs, (5, 6, 7, 8), strict=True)}
    return Case(*parts, sums, groups)


@NETWORKS.add
def nnx_bottleneck() -> Case:
    make = functools.partial(NnxResNet, (1, 3, 1), (5, 3, 4, 10), (10, 6, 7, 10))
    parts = of_nnx(lambda rngs: make(rngs=rngs), IMAGES)
    convs = [f"blocks/{k}/convs/{n}" for k in (0, 1) for n in (0, 1, 2)]
    sums = everywhere(CONV, *convs, "blocks/0/shortcut", "stem") | everywhere(DENSE, "head")
    sizes = zip(convs[:5], (3, 4, 10, 6, 7), strict=True)  # the last writes where the third does
    groups = {f"{path}/kernel[3]": n for path, n in sizes} | {"stem/kernel[3]": 5}
    return Case(*parts, sums, groups)


class Before(linen.Module):
    """A residual block whose norms stand before its convolutions."""

    features: int
    inner: int
    stride: int = 1

    @linen.compact
    def __call__(self, x: Any) -> Any:
        y = linen.relu(Norm()(x))
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), strides=self.stride, name="shortcut")(y)
        y = Conv(self.inner, (3, 3), strides=self.stride, name="first")(y)
        return x + Conv(self.features, (3, 3), name="second")(linen.relu(Norm()(y)))


@NETWORKS.add_rectified
def linen_preactivation() -> Case:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = Before(6, 5, name="block_0")(Conv(6, (3, 3), name="stem")(x))
            x = Before(9, 7, 2, name="block_1")(x)
            return linen.Dense(4, name="head")(linen.relu(Norm()(x)).mean((1, 2)))

    groups = {
        "block_0/first/kernel[3]": 5,
        "block_0/second/kernel[3]": 6,
        "block_1/first/kernel[3]": 7,
        "block_1/second/kernel[3]": 9,
    }
    return Case(*of_linen(Network(), IMAGES), BASIC_SUMS, groups)


@NETWORKS.add_rectified
def padded_shortcut() -> Case:
    """A shortcut that is widened by zeros: four new channels, and six that are the old ones."""

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.relu(linen.Conv(6, (3, 3), name="stem")(x))
            wide = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
            y = linen.Conv(10, (3, 3), strides=2, name="body")(x)
            return linen.Dense(4, name="head")(linen.relu(wide + y).mean((1, 2)))

    groups = {"body/kernel[3]": 4, "body/kernel[3]#2": 6}
    sums = everywhere(CONV, "stem", "body") | everywhere(DENSE, "head")
    return Case(*of_linen(Network(), IMAGES), sums, groups)


# ----------------------------------------------------------------------------------- without blocks


@NETWORKS.add_rectified
def vgg() -> Case:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            for k, features in enumerate((5, 6)):
                x = linen.relu(linen.Conv(features, (3, 3), name=f"conv_{k}")(x))
                x = linen.max_pool(x, (2, 2), (2, 2))
            x = linen.relu(linen.Dense(7, name="hidden")(x.reshape(x.shape[0], -1)))
            return linen.Dense(4, name="head")(x)

    groups = {"conv_0/kernel[3]": 5, "conv_1/kernel[3]": 6, "hidden/kernel[1]": 7}
    sums = everywhere(CONV, "conv_0", "conv_1") | everywhere(DENSE, "hidden", "head")
    return Case(*of_linen(Network(), IMAGES), sums, groups)


@NETWORKS.add
def mobilenet() -> Case:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = Conv(6, (3, 3), strides=2, name="stem")(x)
            y = linen.relu6(Norm()(Conv(10, (1, 1), name="expand")(x)))
            y = Conv(10, (3, 3), feature_group_count=10, name="depthwise")(y)
            y = linen.relu6(Norm()(y))
            gate = linen.relu(linen.Dense(3, name="squeeze")(y.mean((1, 2))))
            y = y * linen.sigmoid(linen.Dense(10, name="excite")(gate))[:, None, None]
            x = x + Norm()(Conv(6, (1, 1), name="project")(y))
            return linen.Dense(4, name="head")(x.mean((1, 2)))

    groups = {"depthwise/kernel[3]": 10, "project/kernel[3]": 6, "squeeze/kernel[1]": 3}
    sums = everywhere(CONV, "stem", "expand", "depthwise", "project")
    sums |= everywhere(DENSE, "squeeze", "excite", "head")
    return Case(*of_linen(Network(), IMAGES), sums, groups)


@NETWORKS.add_rectified
def densenet() -> Case:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = Conv(5, (3, 3), name="stem")(x)
            for k, features in enumerate((3, 4)):
                y = Conv(features, (3, 3), name=f"grow_{k}")(linen.relu(Norm()(x)))
                x = jnp.concatenate([x, y], -1)
            return linen.Dense(4, name="head")(linen.relu(Norm()(x)).mean((1, 2)))

    groups = {"grow_0/kernel[3]": 3, "grow_1/kernel[3]": 4, "stem/kernel[3]": 5}
    sums = everywhere(CONV, "stem", "grow_0", "grow_1") | everywhere(DENSE, "head")
    return Case(*of_linen(Network(), IMAGES), sums, groups)


class UNet(linen.Module):
    """Down, up, and a skip that is concatenated."""

    transposed: bool

    @linen.compact
    def __call__(self, x: Any) -> Any:
        skip = linen.relu(linen.Conv(5, (3, 3), name="down_0")(x))
        x = linen.relu(linen.Conv(6, (3, 3), strides=2, name="down_1")(skip))
        if self.transposed:
            x = linen.ConvTranspose(4, (2, 2), strides=(2, 2), name="up")(x)
        else:
            x = jax.image.resize(x, (*skip.shape[:3], x.shape[-1]), "bilinear")
        x = linen.Conv(7, (3, 3), name="merge")(jnp.concatenate([skip, x], -1))
        return linen.Conv(2, (1, 1), name="head")(linen.relu(x))


UNET_GROUPS = {"down_0/kernel[3]": 5, "down_1/kernel[3]": 6, "merge/kernel[3]": 7}


@NETWORKS.add_rectified
def unet_resized() -> Case:
    sums = everywhere(CONV, "down_0", "down_1", "merge", "head")
    return Case(*of_linen(UNet(transposed=False), IMAGES), sums, UNET_GROUPS)


@NETWORKS.add
def unet_transposed() -> Case:
    sums = everywhere(CONV, "down_0", "down_1", "up", "merge", "head")
    groups = UNET_GROUPS | {"up/kernel[3]": 4}
    return Case(*of_linen(UNet(transposed=True), IMAGES), sums, groups)


@NETWORKS.add_rectified
def decoder() -> Case:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.relu(linen.Dense(2 * 2 * 6, name="first")(x)).reshape(-1, 2, 2, 6)
            x = linen.relu(linen.ConvTranspose(5, (3, 3), strides=(2, 2), name="up_0")(x))
            return linen.ConvTranspose(3, (3, 3), strides=(2, 2), name="up_1")(x)

    groups = {"first/kernel[1]": 6, "up_0/kernel[3]": 5}
    sums = everywhere(DENSE, "first") | everywhere(CONV, "up_0", "up_1")
    return Case(*of_linen(Network(), normal(2, 7)), sums, groups)


# -------------------------------------------------------------------------- channels that are mixed


@NETWORKS.add_rectified
def resnext() -> Case:
    """Groups of a convolution go as a whole, with all their inputs and outputs."""

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.relu(Norm()(Conv(6, (1, 1), name="reduce")(x)))
            x = Conv(12, (3, 3), feature_group_count=3, name="grouped")(x)
            x = linen.relu(Conv(5, (1, 1), name="expand")(linen.relu(Norm()(x))))
            return linen.Dense(4, name="head")(x.mean((1, 2)))

    groups = {"expand/kernel[3]": 5, "grouped/kernel[3]": 3}
    sums = everywhere(CONV, "reduce", "grouped", "expand") | everywhere(DENSE, "head")
    return Case(*of_linen(Network(), IMAGES), sums, groups)


@NETWORKS.add_rectified
def channel_shuffle() -> Case:
    """A grid of channels that is turned over loses rows and columns."""

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.relu(linen.Conv(12, (3, 3), strides=2, name="first")(x))
            x = x.reshape(*x.shape[:3], 3, 4).swapaxes(3, 4).reshape(x.shape)
            x = linen.relu(linen.Conv(7, (3, 3), name="second")(x))
            return linen.Dense(4, name="head")(x.mean((1, 2)))

    groups = {"first/kernel[3]": 3, "first/kernel[3]#2": 4, "second/kernel[3]": 7}
    sums = everywhere(CONV, "first", "second") | everywhere(DENSE, "head")
    return Case(*of_linen(Network(), IMAGES), sums, groups)
