"""Networks for images of 224 pixels, in Linen: a ResNet of bottlenecks and a vision transformer.

They compute in ``dtype`` and keep their params in float32. As in `models`, convolutions are named
``conv...`` and norms ``norm...``, and the last layer is the ``classifier``.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_dense = nn.initializers.truncated_normal(0.02)


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 with batch norm, and a skip that projects where it must.

    Attributes:
      width: filters of the first two; the last has four times as many.
      stride: stride of the 3x3 convolution (version 1.5), and of the projection.
      dtype: what is computed in.
    """

    width: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Features `[batch, height / stride, width / stride, 4 self.width]`."""
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_he, dtype=self.dtype)
        norm = functools.partial(_norm, train, self.dtype)
        y = nn.relu(norm("norm_0")(conv(self.width, (1, 1), name="conv_0")(x)))
        strides = (self.stride, self.stride)
        y = conv(self.width, (3, 3), strides=strides, padding=1, name="conv_1")(y)
        y = conv(4 * self.width, (1, 1), name="conv_2")(nn.relu(norm("norm_1")(y)))
        y, skip = norm("norm_2")(y), x
        if x.shape[-1] != 4 * self.width or self.stride != 1:
            skip = conv(4 * self.width, (1, 1), strides=strides, name="conv_skip")(x)
            skip = norm("norm_skip")(skip)
        return nn.relu(y + skip)


class BottleneckResNet(nn.Module):
    """ResNet-50 v1.5: the stride of a bottleneck is in its 3x3 convolution.

    References: He et al., Deep Residual Learning for Image Recognition, 2015,
    https://arxiv.org/abs/1512.03385, section 4.1; Goyal et al., 2017,
    https://arxiv.org/abs/1706.02677, section 5.1, for the stride.

    Attributes:
      classes: number of classes.
      stages: bottlenecks of each stage.
      width: filters of the first stage; each later one has twice as many.
      dtype: what is computed in.
    """

    classes: int
    stages: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, classes]`, float32, of images `[batch, height, width, channels]`."""
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_he, dtype=self.dtype)
        x = conv(self.width, (7, 7), strides=(2, 2), padding=3, name="conv_stem")(x)
        x = nn.relu(_norm(train, self.dtype, "norm_stem")(x))
        around: Any = ((1, 1), (1, 1))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=around)
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"stage_{stage}_block_{index}"
                x = Bottleneck(self.width * 2**stage, stride, self.dtype, name=name)(x, train)
        x = x.mean(axis=(1, 2)).astype(jnp.float32)
        return nn.Dense(self.classes, name="classifier")(x)


class EncoderBlock(nn.Module):
    """Self-attention and an MLP, each after a layer norm and beside a skip connection.

    Attributes:
      heads: of the attention.
      dtype: what is computed in.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens `[batch, tokens, width]`."""
        width = x.shape[-1]
        y = nn.LayerNorm(dtype=self.dtype, name="norm_0")(x)
        attention = nn.MultiHeadDotProductAttention(
            self.heads, dtype=self.dtype, kernel_init=_dense, name="attention"
        )
        x = x + attention(y)
        y = nn.LayerNorm(dtype=self.dtype, name="norm_1")(x)
        y = nn.Dense(4 * width, dtype=self.dtype, kernel_init=_dense, name="mlp_0")(y)
        return x + nn.Dense(width, dtype=self.dtype, kernel_init=_dense, name="mlp_1")(nn.gelu(y))


class VisionTransformer(nn.Module):
    """ViT-S/16, with the mean over patches in place of a class token.

    References: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021,
    https://arxiv.org/abs/2010.11929; Beyer et al., Better plain ViT baselines, 2022,
    https://arxiv.org/abs/2205.01580, for the mean.

    Attributes:
      classes: number of classes.
      patch: pixels of a patch's edge.
      width: of a token.
      depth: number of blocks.
      heads: of each attention.
      dtype: what is computed in.
    """

    classes: int
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, classes]`, float32, of images `[batch, height, width, channels]`."""
        del train
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, strides=size, dtype=self.dtype, name="conv_stem")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        shape = (1, x.shape[1], self.width)
        x = x + self.param("position", _dense, shape).astype(x.dtype)
        for index in range(self.depth):
            x = EncoderBlock(self.heads, self.dtype, name=f"block_{index}")(x)
        x = nn.LayerNorm(dtype=self.dtype, name="norm_last")(x).mean(axis=1)
        return nn.Dense(self.classes, name="classifier")(x.astype(jnp.float32))


def _norm(train: bool, dtype: Any, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )
