"""MLP on the 8x8 digits of scikit-learn, pruned by layer attention (ASWL), 90 % sparse as a target.

Paper: He, Shi and Dong, 2021, https://arxiv.org/abs/2111.02399.
Command: python -m experiments.train --workdir runs/mlp_digits_layer_attention
    --config experiments/configs/mlp_digits_layer_attention.py
Hardware and time: a CPU; not measured yet.
Expect: 97.8 +- 0.3 % test accuracy at a density of 0.207: the loss holds attentions up (five
    seeds, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.digits_mlp("layer_attention", sparsity=0.9)
