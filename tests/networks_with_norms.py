"""Small networks of images that differ in their norms, and what is known of them by hand."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen
from networks import (
    CONV,
    DENSE,
    EQUINOX_CONV,
    EQUINOX_DENSE,
    Case,
    Networks,
    everywhere,
    normal,
    of_equinox,
    of_linen,
)

NETWORKS = Networks()
IMAGES = normal(2, 8, 8, 3)


class Normed(linen.Module):
    """A convolution and a norm of its channels."""

    norm: Any

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.relu(self.norm()(linen.Conv(8, (3, 3), name="body")(x)))
        return linen.Dense(4, name="head")(x.mean((1, 2)))


NORMED_SUMS = everywhere(CONV, "body") | everywhere(DENSE, "head")


@NETWORKS.add_rectified
def linen_group_norm() -> Case:
    """Moments are sums of 0 over what is gone: groups can go, and a place of each."""
    parts = of_linen(Normed(functools.partial(linen.GroupNorm, 2)), IMAGES)
    groups = {"body/kernel[3]": 2, "body/kernel[3]#2": 4}
    return Case(*parts, NORMED_SUMS, groups)


@NETWORKS.add_rectified
def linen_instance_norm() -> Case:
    parts = of_linen(Normed(linen.InstanceNorm), IMAGES)
    return Case(*parts, NORMED_SUMS, {"body/kernel[3]": 8})


class EquinoxNetwork(eqx.Module):
    """Two convolutions, a norm between them, and a head that reads all pixels."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm | None
    head: eqx.nn.Linear

    def __init__(self, normed: bool, key: Any):
        self.first = eqx.nn.Conv2d(3, 8, 3, stride=2, key=key)
        self.second = eqx.nn.Conv2d(8, 5, 3, key=key)
        self.norm = eqx.nn.GroupNorm(2, 8) if normed else None
        self.head = eqx.nn.Linear(5, 4, key=key)

    def __call__(self, x: Any) -> Any:
        x = self.first(x)
        x = jax.nn.relu(x if self.norm is None else self.norm(x))
        return self.head(jax.nn.relu(self.second(x)).ravel())


EQUINOX_SUMS = {
    "first/weight": EQUINOX_CONV,
    "second/weight": EQUINOX_CONV,
    "head/weight": EQUINOX_DENSE,
}


@NETWORKS.add_rectified
def equinox_convolutions() -> Case:
    parts = of_equinox(functools.partial(EquinoxNetwork, False), normal(2, 3, 8, 8)[..., :7, :7])
    groups = {"first/weight[0]": 8, "second/weight[0]": 5}
    return Case(*parts, EQUINOX_SUMS, groups)


@NETWORKS.add_rectified
def equinox_group_norm() -> Case:
    """A group can go, but no place of each: deviations from a mean are squared."""
    parts = of_equinox(functools.partial(EquinoxNetwork, True), normal(2, 3, 8, 8)[..., :7, :7])
    groups = {"first/weight[0]": 2, "second/weight[0]": 5}
    inexact = {"first/weight[0]#2": (4, {"reduce_sum along axis 2"})}
    return Case(*parts, EQUINOX_SUMS, groups, inexact)


# ------------------------------------------------------------------------------------- transformers


class Vit(linen.Module):
    """Patches, a token for the class, one block of attention and one of two layers, and a head."""

    norm: Any

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.Conv(10, (4, 4), strides=4, name="patches")(x).reshape(x.shape[0], -1, 10)
        token = self.param("token", linen.initializers.zeros, (1, 1, 10))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], 1)
        x = x + self.param("positions", linen.initializers.zeros, (1, x.shape[1], 10))
        y = self.norm(name="norm_0")(x)
        x = x + linen.MultiHeadDotProductAttention(3, qkv_features=12, name="attention")(y, y)
        y = linen.gelu(linen.Dense(14, name="up")(self.norm(name="norm_1")(x)))
        x = x + linen.Dense(10, name="down")(y)
        return linen.Dense(5, name="head")(self.norm(name="norm_2")(x)[:, 0])


VIT_SUMS = {
    **everywhere(CONV, "patches"),
    **everywhere(DENSE, "up", "down", "head"),
    **everywhere(((0,), (1, 2)), "attention/query", "attention/key", "attention/value"),
    **everywhere(((0, 1), (2,)), "attention/out"),
}
VIT_GROUPS = {
    "attention/key/kernel[1]": 3,
    "attention/key/kernel[2]": 4,
    "attention/value/kernel[2]": 4,
    "up/kernel[1]": 14,
}


@NETWORKS.add
def vit_layer_norm() -> Case:
    parts = of_linen(Vit(linen.LayerNorm), IMAGES)
    return Case(*parts, VIT_SUMS, VIT_GROUPS | {"attention/out/kernel[2]": 10})


@NETWORKS.add
def vit_rms_norm() -> Case:
    parts = of_linen(Vit(linen.RMSNorm), IMAGES)
    return Case(*parts, VIT_SUMS, VIT_GROUPS | {"attention/out/kernel[2]": 10})


@NETWORKS.add
def vit_two_passes() -> Case:
    """Deviations from the mean are squared, also those of channels that are gone."""
    parts = of_linen(Vit(functools.partial(linen.LayerNorm, use_fast_variance=False)), IMAGES)
    inexact = {"attention/out/kernel[2]": (10, {"reduce_sum along axis 2"})}
    return Case(*parts, VIT_SUMS, VIT_GROUPS, inexact)
