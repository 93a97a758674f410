"""MLP on the 8x8 digits of scikit-learn, pruned by gradual magnitude, 90 % sparse.

Paper: Zhu and Gupta, 2017, https://arxiv.org/abs/1710.01878.
Command: python -m experiments.train --workdir runs/mlp_digits_gradual_magnitude
    --config experiments/configs/mlp_digits_gradual_magnitude.py
Hardware and time: 15 to 30 s on two shared CPU cores, compilation included.
Expect: 97.2 +- 0.5 % test accuracy (five seeds, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.digits_mlp("gradual_magnitude", sparsity=0.9)
