"""MLP on the 8x8 digits of scikit-learn, trained by prune and grow (IEE), 90 % sparse.

Paper: Sun et al., 2025, https://arxiv.org/abs/2502.03658.
Command: python -m experiments.train --workdir runs/mlp_digits_prune_and_grow
    --config experiments/configs/mlp_digits_prune_and_grow.py
Hardware and time: 15 to 30 s on two shared CPU cores, compilation included.
Expect: 97.2 +- 0.6 % test accuracy (five seeds, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.digits_mlp("prune_and_grow", sparsity=0.9)
