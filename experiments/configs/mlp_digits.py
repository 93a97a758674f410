"""MLP of 5,940 weights on the 8x8 digits of scikit-learn, 800 updates, 90 % sparse.

Command: python -m experiments.train --config experiments/configs/mlp_digits.py:rigl
    --workdir runs/mlp_digits_rigl; the method stands after the colon.
Hardware and time: 15 to 30 s on two shared CPU cores, compilation included.
Papers: beside the methods below.
Expect: final test accuracy in percent, mean and standard deviation of five seeds:
    dense                98.4 +- 0.4
    magnitude_attention  97.5 +- 0.3   Back, Ahn and Kim, 2023, https://arxiv.org/abs/2306.05056
    straight_through     96.8 +- 1.7   Lin et al., 2020, https://arxiv.org/abs/2006.07253
    gradual_magnitude    97.2 +- 0.5   Zhu and Gupta, 2017, https://arxiv.org/abs/1710.01878
    static               93.1 +- 1.7   ERK densities of Evci et al., 2020, https://arxiv.org/abs/1911.11134
    prune_and_grow       97.2 +- 0.6   Sun et al., 2025, https://arxiv.org/abs/2502.03658
    rigl                 96.6 +- 0.4   Evci et al., 2020, https://arxiv.org/abs/1911.11134
    sparse_evolution     95.7 +- 0.9   Mocanu et al., 2018, https://arxiv.org/abs/1707.04780
    layer_attention      97.8 +- 0.3   He, Shi and Dong, 2021, https://arxiv.org/abs/2111.02399
                         (at a density of 0.207: the loss holds attentions up)
    soft_threshold       not measured  Kusupati et al., 2020, https://arxiv.org/abs/2002.03231
    movement             not measured  Sanh et al., 2020, https://arxiv.org/abs/2005.07683
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(method: str = "") -> ConfigDict:
    return common.digits_mlp(method)
