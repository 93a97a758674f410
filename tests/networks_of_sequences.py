"""Small networks of sequences, and what is known of them by hand."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen
from jax import lax
from networks import (
    DENSE,
    EQUINOX_DENSE,
    Case,
    Networks,
    everywhere,
    normal,
    of_equinox,
    of_linen,
    plain,
)

NETWORKS = Networks()
VECTORS = normal(2, 8)
SEQUENCES = normal(2, 5, 8)


# ---------------------------------------------------------------------------------------- attention


class Packed(linen.Module):
    """Queries, keys and values of two heads of one layer."""

    form: str

    @linen.compact
    def __call__(self, x: Any) -> Any:
        made = linen.Dense(18, name="qkv")(linen.Dense(10, name="inner")(x))
        if self.form == "reshaped":
            q, k, v = (made.reshape(2, 5, 3, 2, 3)[:, :, n] for n in range(3))
        elif self.form == "split":
            q, k, v = (part.reshape(2, 5, 2, 3) for part in jnp.split(made, 3, -1))
        else:
            q, k, v = jnp.split(made.reshape(2, 5, 2, 9), 3, -1)
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        x = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return linen.Dense(4, name="out")(x.reshape(2, 5, 6))


PACKED_SUMS = everywhere(DENSE, "inner", "qkv", "out")
PACKED_GROUPS = {"inner/kernel[1]": 10, "qkv/kernel[1]": 2, "qkv/kernel[1]#2": 3}


@NETWORKS.add
def packed_and_reshaped() -> Case:
    """Entries of a head are one axis for queries, keys and values: they go together."""
    return Case(*of_linen(Packed("reshaped"), SEQUENCES), PACKED_SUMS, PACKED_GROUPS)


@NETWORKS.add
def packed_and_split() -> Case:
    """Entries of values go apart from those of queries and keys."""
    groups = PACKED_GROUPS | {"qkv/kernel[1]#3": 3}
    return Case(*of_linen(Packed("split"), SEQUENCES), PACKED_SUMS, groups)


@NETWORKS.add
def packed_by_heads() -> Case:
    groups = PACKED_GROUPS | {"qkv/kernel[1]#3": 3}
    return Case(*of_linen(Packed("heads"), SEQUENCES), PACKED_SUMS, groups)


def rotated(x: Any) -> Any:
    """Rotary positions: the halves of a head are pairs."""
    half = x.shape[-1] // 2
    angles = jnp.outer(jnp.arange(x.shape[1]), 10.0 ** -(jnp.arange(half) / half))
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


@NETWORKS.add
def grouped_queries() -> Case:
    """Six heads of queries read two of keys and values; rotated entries go in pairs."""

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.Dense(10, name="inner")(x)
            layer = functools.partial(linen.DenseGeneral, use_bias=False)
            q, k = layer((6, 8), name="q")(x), layer((2, 8), name="k")(x)
            v = layer((2, 8), name="v")(x)
            x = jax.nn.dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
            return linen.DenseGeneral(5, axis=(-2, -1), name="out")(x)

    heads = ((0,), (1, 2))
    sums = everywhere(DENSE, "inner") | {f"{name}/kernel": heads for name in "qkv"}
    sums |= {"out/kernel": ((0, 1), (2,))}
    groups = {
        "inner/kernel[1]": 10,
        "k/kernel[1]": 2,
        "k/kernel[2]": 4,
        "q/kernel[1]": 3,
        "v/kernel[2]": 8,
    }
    return Case(*of_linen(Network(), SEQUENCES), sums, groups)


@NETWORKS.add
def gemma() -> Case:
    """Keys and values share a leaf, and so their entries; so do a gate and what it opens."""
    params = plain(
        inner=(8, 10), q=(6, 10, 4), kv=(2, 2, 10, 4), out=(6, 4, 10), gate=(2, 7, 10), down=(7, 10)
    )
    params |= plain(head=(10, 5))

    def fn(params: Any, x: Any) -> Any:
        x = x @ params["inner"]
        q = jnp.einsum("btd,ndh->btnh", x, params["q"]).reshape(2, 5, 2, 3, 4)
        k, v = jnp.einsum("bsd,ckdh->cbskh", x, params["kv"])
        weights = jax.nn.softmax(jnp.einsum("btkgh,bskh->bkgts", q, k))
        y = jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(2, 5, 6, 4)
        x = x + jnp.einsum("btnh,nhd->btd", y, params["out"])
        gate, y = jnp.einsum("btd,cfd->cbtf", x, params["gate"])
        return (x + (jax.nn.gelu(gate) * y) @ params["down"]) @ params["head"]

    sums = {
        "inner": DENSE,
        "q": ((1,), (0, 2)),
        "kv": ((2,), (0, 1, 3)),
        "out": ((0, 1), (2,)),
        "gate": ((2,), (0, 1)),
        "down": DENSE,
        "head": DENSE,
    }
    groups = {"kv[1]": 2, "q[0]": 3, "kv[3]": 4, "down[1]": 10, "gate[1]": 7}
    return Case(fn, params, (SEQUENCES,), None, sums, groups)


@NETWORKS.add
def gated_linear_unit() -> Case:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(5, name="down")(linen.glu(linen.Dense(14, name="up")(x)))

    return Case(*of_linen(Network(), VECTORS), everywhere(DENSE, "up", "down"), {"up/kernel[1]": 7})


# ---------------------------------------------------------------------------------------- recurrent


class Recurrent(linen.Module):
    """A cell that is run over time, and a head."""

    cell: Any

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(3, name="head")(linen.RNN(self.cell(7, name="cell"))(x)[:, -1])


@NETWORKS.add
def linen_gru() -> Case:
    sums = everywhere(
        DENSE, "head", *(f"cell/{gate}" for gate in ("ir", "iz", "in", "hr", "hz", "hn"))
    )
    return Case(*of_linen(Recurrent(linen.GRUCell), SEQUENCES), sums, {"cell/hn/kernel[1]": 7})


@NETWORKS.add
def linen_lstm() -> Case:
    sums = everywhere(DENSE, "head", *(f"cell/{at}{gate}" for at in "ih" for gate in "ifgo"))
    return Case(*of_linen(Recurrent(linen.LSTMCell), SEQUENCES), sums, {"cell/hf/kernel[1]": 7})


class EquinoxRecurrent(eqx.Module):
    """A cell that is scanned over time, and a head."""

    cell: Any
    head: eqx.nn.Linear

    def __init__(self, cell: Any, key: Any):
        self.cell, self.head = cell(8, 7, key=key), eqx.nn.Linear(7, 3, key=key)

    def __call__(self, x: Any) -> Any:
        zero = jnp.zeros(7)
        start = (zero, zero) if isinstance(self.cell, eqx.nn.LSTMCell) else zero
        last, _ = lax.scan(lambda carry, x: (self.cell(x, carry), None), start, x)
        return self.head(last[0] if isinstance(last, tuple) else last)


RECURRENT_SUMS = {f"cell/weight_{at}": EQUINOX_DENSE for at in ("ih", "hh")}
RECURRENT_SUMS |= {"head/weight": EQUINOX_DENSE}


@NETWORKS.add
def equinox_gru() -> Case:
    parts = of_equinox(functools.partial(EquinoxRecurrent, eqx.nn.GRUCell), SEQUENCES)
    return Case(*parts, RECURRENT_SUMS, {"cell/weight_ih[0]": 7})


@NETWORKS.add
def equinox_lstm() -> Case:
    parts = of_equinox(functools.partial(EquinoxRecurrent, eqx.nn.LSTMCell), SEQUENCES)
    return Case(*parts, RECURRENT_SUMS, {"cell/weight_ih[0]": 7})
