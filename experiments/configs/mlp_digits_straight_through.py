"""MLP on the 8x8 digits of scikit-learn, pruned by straight-through magnitude (DPF), 90 % sparse.

Paper: Lin et al., 2020, https://arxiv.org/abs/2006.07253.
Command: python -m experiments.train --workdir runs/mlp_digits_straight_through
    --config experiments/configs/mlp_digits_straight_through.py
Hardware and time: 15 to 30 s on two shared CPU cores, compilation included.
Expect: 96.8 +- 1.7 % test accuracy (five seeds, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.digits_mlp("straight_through", sparsity=0.9)
