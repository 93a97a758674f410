"""Which axes of a leaf count its outputs, and which are contracted."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given
from hypothesis import strategies as st

from jaxprune import names, trees

# Shapes in which no two axes are alike, and the axes that count outputs; None is not told.
OUTPUTS = {
    "Dense_0/kernel": ((3, 5), (1,)),
    "linear/w": ((3, 5), (1,)),
    "": ((3, 5), (1,)),
    "hf/kernel": ((3, 5), (1,)),
    "cell/dense_i/kernel": ((3, 15), (1,)),
    "recurrent_kernel": ((3, 15), (1,)),
    "SelfAttention/q/kernel": ((3, 5), (1,)),
    "attention/self/query/kernel": ((3, 5), (1,)),
    "attn/out_proj/kernel": ((3, 5), (1,)),
    "mlp/linear": ((3, 5), (1,)),
    "lora/lora_a": ((3, 2), (1,)),
    "layers/0/weight": ((5, 3), (0,)),
    "cell/weight_ih": ((24, 3), (0,)),
    "rnn/weight_hh_l0": ((24, 3), (0,)),
    "attn/in_proj_weight": ((24, 3), (0,)),
    "encoder.layer.0.attention.self.query.weight": ((5, 3), (0,)),
    "lora_A/default/weight": ((2, 3), (0,)),
    # convolutions
    "Conv_0/kernel": ((3, 3, 2, 5), (3,)),
    "conv1/kernel": ((3, 2, 5), (2,)),
    "conv1d/conv/kernel": ((3, 2, 5), (2,)),
    "convs/1/kernel": ((3, 2, 5), (2,)),
    "DepthwiseConv_0/kernel": ((3, 3, 1, 5), (3,)),
    "conv3/kernel": ((3, 3, 3, 2, 5), (4,)),
    "stem/kernel": ((3, 3, 2, 5), (3,)),
    "embedding/kernel": ((4, 4, 3, 64), (3,)),
    "patch_embed/proj/kernel": ((4, 4, 3, 64), (3,)),
    "attention/Conv_0/kernel": ((3, 3, 2, 5), (3,)),
    "cell/hh/kernel": ((3, 3, 2, 20), (3,)),
    "Conv3x3_0/kernel": ((3, 2, 5), (2,)),
    "conv2_d/w": ((3, 3, 2, 5), (3,)),
    "conv/weight": ((5, 2, 3, 3), (0,)),
    "layers/1/weight": ((5, 2, 3, 3), (0,)),
    "conv1d/weight": ((5, 1, 3), (0,)),
    "pos_conv_embed/conv/weight_v": ((5, 2, 3), (0,)),
    # attention by heads
    "query/kernel": ((16, 4, 8), (1, 2)),
    "MultiHeadDotProductAttention_0/key/kernel": ((16, 4, 8), (1, 2)),
    "blocks/0/attn/value/kernel": ((16, 4, 8), (1, 2)),
    "self_attn/q_proj/kernel": ((16, 4, 8), (1, 2)),
    "out/kernel": ((4, 6, 16), (2,)),
    "self_attn/o_proj/kernel": ((4, 6, 16), (2,)),
    "attention_output/kernel": ((4, 6, 16), (2,)),
    "attn/qkv/kernel": ((16, 3, 4, 8), (1, 2, 3)),
    # nothing to say
    "temperature": ((), ()),
    "bias": ((3,), None),
    "query/bias": ((4, 8), None),
    "LayerNorm_0/scale": ((4, 8), None),
    "embed/embedding": ((9, 4), None),
    "mixer/A_log": ((9, 4), None),
    # the name does not tell
    "mlp/wi/kernel": ((16, 2, 32), None),
    "wi/kernel": ((16, 2, 3, 32), None),
    "layers/Dense_0/kernel": ((7, 3, 5), None),
    "DenseGeneral_0/kernel": ((3, 2, 4, 5), None),
    "layers/weight": ((7, 5, 3), None),
    "cells/weight_ih": ((7, 24, 3), None),
    "layers/query/kernel": ((7, 16, 4, 8), None),
    "layers/attention/out/kernel": ((7, 4, 8, 16), None),
    "layers/qkv/kernel": ((7, 16, 12, 8), None),
    "qkv/kernel": ((16, 12, 8), None),
    "Einsum_0/kernel": ((2, 3, 4, 5), None),
    "q_einsum/w": ((4, 16, 8), None),
    "kv_einsum/w": ((2, 4, 16, 8), None),
    "gating_einsum": ((2, 32, 16), None),
    "moe/experts/w1": ((6, 16, 32), None),
    "moe/experts/dense/kernel": ((7, 6, 16, 32), None),
    "ConvTranspose_0/kernel": ((3, 3, 2, 5), None),
    "conv2_d_transpose/w": ((3, 3, 5, 2), None),
    "ConvLocal_0/kernel": ((6, 6, 18, 5), None),
    "h/0/attn/c_attn/kernel": ((15, 5), None),
    "h/0/mlp/c_fc/kernel": ((20, 5), None),
    "h/0/mlp/c_proj/weight": ((5, 20), None),
}


def test_names_tell_outputs_or_nothing() -> None:
    for path, (shape, axes) in OUTPUTS.items():
        leaves = {path: np.ones(shape)}
        assert names.output_axes(leaves) == {path: axes}
        rest = names.contraction_axes(leaves)[path]
        assert (rest is None) == (axes is None)
        assert rest is None or sorted([*(axes or ()), *rest]) == [*range(len(shape))]


def pruned_of(make: Any) -> dict[str, Any]:
    leaves = trees.by_path(eqx.filter_eval_shape(make))
    return {p: leaves[p] for p in names.prunable(leaves)}


KEY = jax.random.key(0)
ONES = {n: jnp.ones((1,) * (n - 1) + (6,)) for n in (2, 3, 4)}


def linen_params(module: Any, *inputs: Any) -> Any:
    return module.init(KEY, *inputs)["params"]


ATTENTION = {
    "linen": lambda: linen_params(
        linen.MultiHeadDotProductAttention(4, qkv_features=12, out_features=7), ONES[3]
    ),
    "nnx": lambda: nnx.state(
        nnx.MultiHeadAttention(4, 6, 12, 7, decode=False, rngs=nnx.Rngs(0)), nnx.Param
    ),
}


@pytest.mark.parametrize("library", ATTENTION)
def test_attention_of_flax_has_heads(library: str) -> None:
    leaves = pruned_of(ATTENTION[library])
    outputs = dict.fromkeys(leaves, (1, 2)) | {"out/kernel": (2,)}
    inputs = dict.fromkeys(leaves, (0,)) | {"out/kernel": (0, 1)}
    assert len(leaves) == 4
    assert names.output_axes(leaves) == outputs
    assert names.contraction_axes(leaves) == inputs


LAYERS = {
    "linen lstm": (lambda: linen_params(linen.LSTMCell(5), (jnp.ones((1, 5)),) * 2, ONES[2]), 0),
    "linen gru": (lambda: linen_params(linen.GRUCell(5), jnp.ones((1, 5)), ONES[2]), 0),
    "linen conv": (lambda: linen_params(linen.Conv(5, (3, 3)), ONES[4]), 2),
    "nnx lstm": (lambda: nnx.state(nnx.OptimizedLSTMCell(6, 5, rngs=nnx.Rngs(0)), nnx.Param), 0),
    "nnx gru": (lambda: nnx.state(nnx.GRUCell(6, 5, rngs=nnx.Rngs(0)), nnx.Param), 0),
    "nnx lora": (lambda: nnx.state(nnx.LoRALinear(6, 5, lora_rank=2, rngs=nnx.Rngs(0))), 0),
    "equinox mlp": (lambda: eqx.nn.MLP(6, 5, 4, 2, key=KEY), 1),
    "equinox conv": (lambda: eqx.nn.Conv2d(6, 5, 3, key=KEY), 1),
    "equinox lstm": (lambda: eqx.nn.LSTMCell(6, 5, key=KEY), 1),
    "equinox gru": (lambda: eqx.nn.GRUCell(6, 5, key=KEY), 1),
    "equinox attention": (lambda: eqx.nn.MultiheadAttention(2, 6, key=KEY), 1),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_groups_of_a_layer_lie_along_its_inputs(layer: str) -> None:
    make, axis = LAYERS[layer]
    leaves = pruned_of(make)
    assert leaves
    assert all(leaf.ndim >= 2 for leaf in leaves.values())
    for path, axes in names.contraction_axes(leaves).items():
        assert axes is not None
        assert axes[-1] == axis, path


def test_an_attention_beside_a_bare_kernel_is_read() -> None:
    leaves = {"0/kernel": np.ones((2, 3, 4)), "kernel": np.ones((2, 3, 4))}
    leaves["query/kernel"] = np.ones((16, 4, 8))
    assert [*names.output_axes(leaves).values()] == [None, None, (1, 2)]


def test_stacked_projections_are_not_taken_for_heads() -> None:
    stacked = {"attn/q_proj/kernel": (3, 16, 32), "attn/o_proj/kernel": (3, 32, 16)}
    by_heads = {"attn/q_proj/kernel": (16, 4, 8), "attn/o_proj/kernel": (4, 8, 16)}
    grouped = by_heads | {"attn/k_proj/kernel": (16, 2, 8)}

    def outputs(shapes: dict[str, Any]) -> list[Any]:
        return [*names.output_axes({p: np.ones(s) for p, s in shapes.items()}).values()]

    assert outputs(stacked | {"attn/k_proj/kernel": (3, 16, 32)}) == [None] * 3
    assert outputs(grouped) == [(1, 2), (2,), (1, 2)]
    other = {"block/out/kernel": (7, 8, 16)}
    assert outputs(by_heads | other) == [(1, 2), (2,), (2,)]


def test_contractions_go_on_from_the_axis_beside_the_outputs() -> None:
    def along(shape: tuple[int, ...], *outputs: int) -> Any:
        return names.contraction_axes({"x": np.ones(shape)}, outputs)["x"]

    assert along((3, 3, 2, 5), 3) == (0, 1, 2)
    assert along((5, 2, 3, 3), 0) == (2, 3, 1)
    assert along((4, 8, 16), 2) == (0, 1)
    assert along((16, 4, 8), 1, 2) == (0,)
    assert along((16, 3, 5, 8), 1, 2, 3) == (0,)
    assert along((3, 3, 5, 64), 2) == (0, 1, 3)  # of two neighbours the longer
    assert along((64, 5, 3, 3), 1) == (2, 3, 0)
    assert along((4, 16, 8), 0, 2) == (1,)
    assert along((2, 3)) == (0, 1)
    assert along((7,), 0) == ()
    assert along((7,)) == (0,)
    assert names.contraction_axes({"x": np.ones(7), "y": np.ones(())}) == {"x": None, "y": ()}


@given(st.data())
def test_given_axes_are_counted_from_the_first_and_sorted(data: Any) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=5)))
    ndim = len(shape)
    axes = data.draw(st.sets(st.integers(0, ndim - 1), min_size=1, max_size=ndim - 1))
    said = tuple(a - ndim * data.draw(st.booleans()) for a in data.draw(st.permutations([*axes])))
    leaf = {"x": np.ones(shape)}
    assert names.output_axes(leaf, said) == {"x": tuple(sorted(axes))}
    rest = names.contraction_axes(leaf, said)["x"]
    assert rest is not None
    assert sorted(rest) == sorted({*range(ndim)} - axes)
    assert rest[-1] + 1 in axes or rest[-1] - 1 in axes


def test_axes_given_by_pattern_leave_the_rule_to_the_others() -> None:
    leaves = {
        "query/kernel": np.ones((16, 2, 8)),
        "fused/kernel": np.ones((16, 2, 8)),
        "head/kernel": np.ones((4, 4)),
        "head/weight": np.ones((4, 4)),
        "bias": np.ones(3),
    }
    assert names.output_axes(leaves, {"fused": (-1, 1), "d/kernel": 0, "k": 1}) == {
        "query/kernel": (1,),
        "fused/kernel": (1, 2),
        "head/kernel": (0,),
        "head/weight": (0,),
        "bias": None,
    }
    assert names.output_axes({"head/weight": np.ones((3, 4)), "bias": np.ones(3)}, -1) == {
        "head/weight": (1,),
        "bias": (0,),
    }


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (2, ValueError, r"lie in \[-2, 2\) for 'kernel', got 2"),
        ((0, -3), ValueError, r"lie in \[-2, 2\) for 'kernel', got \(0, -3\)"),
        ({"kern": 4}, ValueError, r"lie in \[-2, 2\) for 'kernel', got 4"),
        ((1, -1), ValueError, r"name each axis of 'kernel' once, got \(1, -1\)"),
        ((0, 1), ValueError, r"leave an axis of 'kernel' for its inputs, got \(0, 1\)"),
        ({"x": 0}, ValueError, "match at least one path, got 'x'"),
        ("1", TypeError, "be an axis or a tuple of axes, got '1'"),
        (1.0, TypeError, "be an axis or a tuple of axes, got 1.0"),
        (True, TypeError, "be an axis or a tuple of axes, got True"),
        ({"kernel": [1]}, TypeError, r"be an axis or a tuple of axes, got \[1\]"),
        ({"kernel": None}, TypeError, "be an axis or a tuple of axes, got None"),
    ],
)
def test_wrong_axes_are_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"`output_axis` must {message}"):
        names.output_axes({"kernel": np.ones((4, 4))}, given)


@pytest.mark.parametrize(
    "shapes",
    [
        {f"attention/self/{name}/kernel": (12, 16, 16) for name in ("query", "key", "value")}
        | {"attention/output/dense/kernel": (12, 16, 16)},
        {f"attn/{name}/kernel": (12, 16, 16) for name in ("q", "k", "v", "proj")},
        {"mlp/out/kernel": (64, 12, 32)},
    ],
)
def test_stacked_matrices_are_not_taken_for_heads(shapes: Any) -> None:
    leaves = {path: np.ones(shape) for path, shape in shapes.items()}
    assert not {*names.output_axes(leaves).values()} - {None}
