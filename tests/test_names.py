"""Which leaves are pruned by their names, by `where` and by `exclude`."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxprune import names


def leaves_of(*paths: str, shape: tuple[int, ...] = (4, 4)) -> dict[str, Any]:
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path in paths}


# Paths as they are found in networks of each library.
PRUNED = {
    "bare": [
        "",
        "kernel",
        "weight",
        "w",
        "0/1",
        "W1",
        "wq",
        "fc_w",
        "a",
        "layers/3",
        "queries/weight",
        "cls_head/weight",
    ],
    "linen": [
        "Conv_0/kernel",
        "ConvTranspose_1/kernel",
        "Dense_0/kernel",
        "MultiHeadDotProductAttention_0/query/kernel",
        "OptimizedLSTMCell_0/hi/kernel",
        "GRUCell_0/in/kernel",
        "layer_instance/kernel",
        "normalizer_free/kernel",
        "NormFreeConv_0/kernel",
        "pre_norm_mlp/kernel",
        "upscale/kernel",
        "downscale_conv/kernel",
        "embed_dim_proj/kernel",
        "bias_net/kernel",
        "AdaLayerNorm_0/Dense_0/kernel",
        "adaptive_norm_proj/kernel",
    ],
    "nnx": ["cell/dense_i/kernel", "blocks/0/attn/out/kernel", "lora_linear/kernel"],
    "equinox": [
        "layers/0/weight",
        "cell/weight_ih",
        "cell/weight_hh",
        "attention/query_proj/weight",
        "patch_embed/linear/weight",
        "patch_embed/weight",
        "layer/weight",
    ],
    "haiku": ["mlp/~/linear_0/w", "conv2_d_1/w", "transformer/h0_attn/query/w", "gru/w_h"],
    "vit": [
        "patch_embedding/kernel",
        "patch_embed/proj/kernel",
        "embeddings/patch_embeddings/projection/kernel",
        "MlpBlock_0/Dense_1/kernel",
        "encoderblock_0/MlpBlock_3/Dense_0/kernel",
        "token_mixing/Dense_0/kernel",
        "token_mixer/weight",
        "MAPHead_0/MlpBlock_0/Dense_0/kernel",
        "pre_logits/kernel",
        "conv_stem/kernel",
    ],
    "swin": [
        "layers/0/downsample/reduction/kernel",
        "blocks/0/attn/relative_position_bias_mlp/fc/weight",
        "layer/0/continuous_position_bias_mlp/0/weight",
    ],
    "t5": [
        "encoder/block/0/layer/0/SelfAttention/q/kernel",
        "decoder/layers_0/mlp/wi_0/kernel",
        "decoder/logits_dense/kernel",
        "lm_head/kernel",
    ],
    "bert": [
        "bert/encoder/layer/0/attention/self/query/kernel",
        "encoder.layer.0.attention.output.dense.weight",
        "cls/predictions/transform/dense/kernel",
        "pooler/dense/kernel",
        "electra/embeddings_project/kernel",
        "albert/encoder/embedding_hidden_mapping_in/kernel",
    ],
    "gpt": [
        "transformer/h/0/attn/c_attn/kernel",
        "h/3/mlp/c_proj/weight",
        "gpt_neox/embed_out/weight",
        "score/kernel",
    ],
    "llama": [
        "model/layers/0/self_attn/q_proj/kernel",
        "model/layers/0/mlp/down_proj/weight",
        "layers/attention/wq",
        "layers/feed_forward/w2",
        "output/weight",
        "unembed/weight",
    ],
    "gemma": [
        "layer_0/attn/attn_vec_einsum/w",
        "layer_0/attn/q_einsum/w",
        "layer_0/attn/kv_einsum/w",
        "layer_0/mlp/gating_einsum",
        "layer_0/mlp/linear",
        "embedder/mm_input_projection/w",
    ],
    "mamba": [
        "layers/0/mixer/in_proj/kernel",
        "layers/0/mixer/conv1d/conv/kernel",
        "layers/0/mixer/x_proj/weight",
        "layers/0/mixer/dt_proj/weight",
    ],
    "whisper": ["model/encoder/conv1/kernel", "decoder/blocks/0/cross_attn/query/weight"],
    "speech": [
        "wav2vec2/encoder/pos_conv_embed/conv/weight_v",
        "feature_projection/projection/kernel",
    ],
    "diffusion": [
        "time_embedding/linear_1/kernel",
        "time_embed/0/weight",
        "t_embedder/mlp/0/weight",
        "down_blocks_0/resnets_0/time_emb_proj/kernel",
        "adaLN_modulation/1/weight",
    ],
}
UNPRUNED = {
    "bias": [
        "attention/query/bias",
        "BIAS",
        "b",
        "linear/b",
        "multi_head_attention/query/b",
        "cell/bias_ih",
        "cell/bias_hh_l0_reverse",
        "cell/bias_n",
        "in_proj_bias",
        "recurrent_bias",
        "gru/b_hh",
        "attn/bq",
        "fc_b",
        "mlp/b1",
        "mixer/dt_bias",
        "relpos/q_bias",
        "relative_position_bias_table",
        "r_w_bias",
        "final_logits_bias",
        "layer_norm/offset",
        "LayerNorm/beta",
        "encoder.layer.0.output.dense.bias",
    ],
    "scale": [
        "LayerNorm_0/scale",
        "_query_norm/scale",
        "Dense_0/kernel/scale",
        "logit_scale",
        "attn/per_dim_scale",
        "layer_scale",
        "LayerScale_0/gamma",
        "blocks/0/gamma_1",
        "layer_scale1/lambda1",
        "convnext/layer_scale_parameter",
        "conv/weight_g",
        "g",
        "mixer/gain",
    ],
    "norm": [
        "BatchNorm_0/kernel",
        "layer_norm/weight",
        "input_layernorm/weight",
        "post_attention_layernorm/w",
        "embeddings.LayerNorm.weight",
        "word_embeddings_layernorm/weight",
        "ln_1/w",
        "ln_f/weight",
        "ln_cross/weight",
        "norm1/weight",
        "norms/2/weight",
        "norm_f/weight",
        "q_norm/weight",
        "layers/attn_norm",
        "RMSNorm_0/weight",
        "bn2/weight",
    ],
    "constant": [
        "mixer/A_log",
        "A_log",
        "mixer/D",
        "D",
        "s4/log_dt",
        "s5/Lambda_re",
        "lru/nu_log",
        "rglru/a_param",
        "att/time_decay",
        "cell/initial_state",
    ],
    "embedding": [
        "cls",
        "cls_token",
        "class_embedding",
        "dist_token",
        "mask_token",
        "register_tokens",
        "query_tokens",
        "MAPHead_0/probe",
        "perceiver/latents",
        "prompt/soft_prompt",
        "pos_embed",
        "pos_embed_window",
        "patch_pos_embed",
        "pos_embedding",
        "posembed_input/pos_embedding",
        "positional_embedding",
        "positional_encoding",
        "attn/rel_pos_h",
        "pe",
        "relpos_bias/rel_embedding",
        "encoder/block/0/relative_attention_bias/embedding",
        "relative_attention_bias/weight",
        "wte/weight",
        "wte",
        "wpe/embedding",
        "embed_tokens/weight",
        "embed_tokens_per_layer/weight",
        "tok_embeddings/weight",
        "tok_embeddings",
        "embed_positions/weight",
        "embed_positions/embedding",
        "embeddings/token_type_embeddings/weight",
        "embeddings.position_embeddings.weight",
        "shared/embedding",
        "shared/weight",
        "embedding_layer/weight",
        "src_embed/0/lut/weight",
        "Embed_0/embedding",
        "embed/embeddings",
        "backbone/embedder/embedding",
        "embeddings/0/weight",
        "embedding/weight",
        "token_embedder/embedding",
        "TokenEmbed_0/embedding",
        "pos_embed/w",
        "embedder/input_embedding",
        "gpt_neox/embed_in/weight",
        "y_embedder/embedding_table/weight",
        "label_emb/weight",
        "quantizer/codebook",
        "quantizer/codevectors",
        "masked_spec_embed",
        "query_embed/weight",
        "decoder/mask_tokens/weight",
    ],
    "adapter": [
        "lora_a",
        "lora_b",
        "lora/lora_a",
        "lora_A/kernel",
        "q_proj/lora_B/default/weight",
        "attn/q_einsum/lora/a",
        "attn/q_einsum/lora/b",
        "w_lora_a",
        "LoRA_0/w_a",
        "LoRALayer_0/A",
        "query/kernel/a",
        "adapter/down_proj/kernel",
        "output_adapters/0/kernel",
        "ia3_l",
    ],
}


@pytest.mark.parametrize("library", PRUNED)
def test_weights_that_meet_data_are_pruned(library: str) -> None:
    for path in PRUNED[library]:
        assert names.pruning_reasons(leaves_of(path)) == {path: ""}


@pytest.mark.parametrize("kind", UNPRUNED)
def test_biases_scales_tables_and_adapters_are_left_alone(kind: str) -> None:
    for path in UNPRUNED[kind]:
        for spelled in (path, path.upper()):
            assert names.pruning_reasons(leaves_of(spelled)) == {spelled: kind}


@pytest.mark.parametrize("path", ["embedding/kernel", "embedding/weight", "pos_net/conv/weight"])
def test_a_patch_convolution_is_no_table(path: str) -> None:
    assert names.prunable(leaves_of(path, shape=(4, 4, 3, 64))) == [path]


@pytest.mark.parametrize("path", ["pos_embedding", "cls", "query/bias", "attn/rel_pos_bias"])
def test_tokens_and_biases_of_many_axes_are_none_the_less(path: str) -> None:
    assert names.prunable(leaves_of(path, shape=(1, 2, 3, 4))) == []


def test_letters_beside_their_neighbours_are_no_biases() -> None:
    assert names.prunable(leaves_of("a", "b", "c", "d")) == ["a", "b", "c", "d"]
    assert names.prunable(leaves_of("x/a", "y/b", "w", "b")) == ["x/a", "w"]
    assert names.prunable(leaves_of("lora/a", "lora/b")) == []


def test_only_floating_leaves_with_entries_are_pruned_whatever_where_says() -> None:
    leaves = {
        "int": jnp.ones((2, 2), jnp.int32),
        "bool": jnp.ones((2, 2), bool),
        "empty": jnp.ones((0, 2)),
        "half": jnp.ones((2, 2), jnp.bfloat16),
        "complex": jnp.ones((2, 2), jnp.complex64),
        "vector": jnp.ones(3),
        "function": jax.nn.relu,
    }
    assert names.prunable(leaves) == ["half", "complex"]
    assert names.prunable(leaves, ".") == ["half", "complex", "vector"]
    assert names.prunable(leaves, lambda path, leaf: leaf.ndim == 1) == ["vector"]
    assert names.prunable(leaves, exclude=lambda path, leaf: leaf.dtype == jnp.bfloat16) == [
        "complex"
    ]
    reasons = names.pruning_reasons(leaves, exclude="int")
    assert reasons["int"] == "not floating"
    assert reasons["vector"] == "fewer than two dimensions"


LEAVES = leaves_of("body/kernel", "head/kernel", "head/bias", "embed/embedding")


@pytest.mark.parametrize(
    ("where", "exclude", "pruned"),
    [
        (None, None, ["body/kernel", "head/kernel"]),
        (None, "head", ["body/kernel"]),
        (None, ["head", "body"], []),
        (None, lambda path, leaf: path.startswith("body"), ["head/kernel"]),
        ("head", None, ["head/kernel", "head/bias"]),
        ("head", "bias", ["head/kernel"]),
        (["head", "embed"], ("bias", "head/k"), ["embed/embedding"]),
        (lambda path, leaf: "e" in path, "^embed", ["body/kernel", "head/kernel", "head/bias"]),
    ],
)
def test_an_exclusion_stands_beside_either_rule(where: Any, exclude: Any, pruned: Any) -> None:
    assert names.prunable(LEAVES, where, exclude) == pruned


def test_every_leaf_has_its_reason() -> None:
    assert names.pruning_reasons(LEAVES, exclude="head/k") == {
        "body/kernel": "",
        "head/kernel": "left out by `exclude`",
        "head/bias": "bias",
        "embed/embedding": "embedding",
    }
    assert names.pruning_reasons(LEAVES, "body|head", "bias") == {
        "body/kernel": "",
        "head/kernel": "",
        "head/bias": "left out by `exclude`",
        "embed/embedding": "left out by `where`",
    }


@pytest.mark.parametrize("argument", ["where", "exclude"])
def test_a_wrong_choice_is_refused_by_its_name(argument: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must match at least one path, got 'haed'"):
        names.pruning_reasons(LEAVES, **{argument: ["body", "haed"]})
    with pytest.raises(TypeError, match=f"`{argument}` must be regexes or a function"):
        names.pruning_reasons(LEAVES, **{argument: 3})
