"""Networks in Linen; all take images and a static `train`, and end in a layer named `classifier`.

Convolutions are named ``conv...`` and norms ``norm...``, so that ``where="conv"`` means what the
recipes prune: every convolution, the first included, but no classifier.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models_imagenet import BottleneckResNet, VisionTransformer

_he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_Conv = functools.partial(nn.Conv, use_bias=False, padding="SAME", kernel_init=_he)


def _norm(name: str, train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name)


def _conv(width: int, size: int, stride: int, name: str) -> nn.Conv:
    return _Conv(width, (size, size), strides=(stride, stride), name=name)


class MLP(nn.Module):
    """Dense layers with ReLU between them.

    Attributes:
      classes: number of classes.
      widths: width of each hidden layer.
    """

    classes: int
    widths: Sequence[int] = (128, 64)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, classes]` of images `[batch, ...]`."""
        del train
        x = x.reshape(x.shape[0], -1)
        for index, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, kernel_init=_he, name=f"dense_{index}")(x))
        return nn.Dense(self.classes, name="classifier")(x)


class CNN(nn.Module):
    """Convolutions of stride 2 with batch norm, then the mean over positions.

    Attributes:
      classes: number of classes.
      widths: filters of each convolution.
    """

    classes: int
    widths: Sequence[int] = (16, 32, 64)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, classes]` of images `[batch, height, width, channels]`."""
        for index, width in enumerate(self.widths):
            x = _conv(width, 3, 2, f"conv_{index}")(x)
            x = nn.relu(_norm(f"norm_{index}", train)(x))
        return nn.Dense(self.classes, name="classifier")(x.mean(axis=(1, 2)))


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a skip connection.

    Where the shape changes, the skip takes every second position and fills up with zero channels
    (option A of He et al.), so that it has no weights.

    Attributes:
      width: filters of both convolutions.
      stride: stride of the first.
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Features `[batch, height / stride, width / stride, self.width]`."""
        y = _conv(self.width, 3, self.stride, "conv_0")(x)
        y = nn.relu(_norm("norm_0", train)(y))
        y = _norm("norm_1", train)(_conv(self.width, 3, 1, "conv_1")(y))
        skip = x
        for axis in (1, 2):  # not by indexing, which is a look-up where a size is symbolic
            skip = jax.lax.slice_in_dim(skip, 0, None, self.stride, axis)
        missing = self.width - x.shape[-1]
        skip = jnp.pad(skip, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
        return nn.relu(y + skip)


class GlyphResNet(nn.Module):
    """A small ResNet for 16 to 32 pixels: 63,616 weights in its convolutions at 40 filters.

    Attributes:
      classes: number of classes.
      stem: filters of the first convolution, 4x4 at stride 2.
      width: filters of all others, 3x3; the first of them has stride 2.
      blocks: number of residual blocks.
    """

    classes: int
    stem: int = 16
    width: int = 40
    blocks: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, classes]` of images `[batch, height, width, channels]`."""
        x = nn.relu(_norm("norm_stem", train)(_conv(self.stem, 4, 2, "conv_stem")(x)))
        x = nn.relu(_norm("norm_down", train)(_conv(self.width, 3, 2, "conv_down")(x)))
        for index in range(self.blocks):
            x = Block(self.width, name=f"block_{index}")(x, train)
        return nn.Dense(self.classes, name="classifier")(x.mean(axis=(1, 2)))


class ResNet(nn.Module):
    """ResNet in its CIFAR form, of depth 6 n + 2: 20, 32, 56.

    References: He et al., Deep Residual Learning for Image Recognition, 2015,
    https://arxiv.org/abs/1512.03385, section 4.2.

    Attributes:
      classes: number of classes.
      depth: number of layers with weights.
    """

    classes: int
    depth: int = 20

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, classes]` of images `[batch, height, width, channels]`."""
        x = nn.relu(_norm("norm_stem", train)(_conv(16, 3, 1, "conv_stem")(x)))
        for stage, width in enumerate((16, 32, 64)):
            for index in range((self.depth - 2) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                x = Block(width, stride, name=f"stage_{stage}_block_{index}")(x, train)
        return nn.Dense(self.classes, name="classifier")(x.mean(axis=(1, 2)))


class WideBlock(nn.Module):
    """Norm, ReLU and convolution, twice, with a skip connection that projects where it must.

    Attributes:
      width: filters of both convolutions.
      stride: stride of the first.
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Features `[batch, height / stride, width / stride, self.width]`."""
        y = nn.relu(_norm("norm_0", train)(x))
        changes = x.shape[-1] != self.width or self.stride != 1
        skip = _conv(self.width, 1, self.stride, "conv_skip")(y) if changes else x
        y = _conv(self.width, 3, self.stride, "conv_0")(y)
        y = nn.relu(_norm("norm_1", train)(y))
        return skip + _conv(self.width, 3, 1, "conv_1")(y)


class WideResNet(nn.Module):
    """Wide ResNet of depth 6 n + 4, such as WRN-28-2.

    References: Zagoruyko and Komodakis, Wide Residual Networks, 2016,
    https://arxiv.org/abs/1605.07146.

    Attributes:
      classes: number of classes.
      depth: number of layers with weights.
      widen: factor on 16, 32 and 64 filters.
    """

    classes: int
    depth: int = 28
    widen: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, classes]` of images `[batch, height, width, channels]`."""
        x = _conv(16, 3, 1, "conv_stem")(x)
        for stage, width in enumerate((16, 32, 64)):
            for index in range((self.depth - 4) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"stage_{stage}_block_{index}"
                x = WideBlock(width * self.widen, stride, name=name)(x, train)
        x = nn.relu(_norm("norm_last", train)(x))
        return nn.Dense(self.classes, name="classifier")(x.mean(axis=(1, 2)))


MODELS = {
    "mlp": MLP,
    "cnn": CNN,
    "glyph_resnet": GlyphResNet,
    "resnet": ResNet,
    "wide_resnet": WideResNet,
    "resnet50": BottleneckResNet,
    "vit": VisionTransformer,
}


def build(config: Any, classes: int) -> nn.Module:
    """The network a config names.

    Args:
      config: ``name``, a key of `MODELS`, and the attributes of that module.
      classes: number of classes.

    Returns:
      A Linen module, called with images ``[batch, height, width, channels]`` and ``train``.

    Raises:
      ValueError: if there is no model of that name.

    Examples:
      >>> from experiments import models
      >>> models.build({"name": "resnet", "depth": 32}, classes=10).depth
      32
    """
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
    name = options.pop("name")
    if name not in MODELS:
        raise ValueError(f"`model.name` must be one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name](classes=classes, **options)
