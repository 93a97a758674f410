"""MLP on the 8x8 digits of scikit-learn, pruned by magnitude attention, 90 % sparse.

Paper: Back, Ahn and Kim, 2023, https://arxiv.org/abs/2306.05056.
Command: python -m experiments.train --workdir runs/mlp_digits_magnitude_attention
    --config experiments/configs/mlp_digits_magnitude_attention.py
Hardware and time: 15 to 30 s on two shared CPU cores, compilation included.
Expect: 97.5 +- 0.3 % test accuracy (five seeds, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.digits_mlp("magnitude_attention", sparsity=0.9)
