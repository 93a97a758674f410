"""MLP on the 8x8 digits of scikit-learn, trained by sparse evolution (SET), 90 % sparse.

Paper: Mocanu et al., 2018, https://arxiv.org/abs/1707.04780.
Command: python -m experiments.train --workdir runs/mlp_digits_sparse_evolution
    --config experiments/configs/mlp_digits_sparse_evolution.py
Hardware and time: 15 to 30 s on two shared CPU cores, compilation included.
Expect: 95.7 +- 0.9 % test accuracy (five seeds, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.digits_mlp("sparse_evolution", sparsity=0.9)
