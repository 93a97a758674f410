"""Small ResNet on 16x16 glyphs, pruned by gradual magnitude, 90 % sparse.

Paper: Zhu and Gupta, 2017, https://arxiv.org/abs/1710.01878.
Command: python -m experiments.train --workdir runs/glyph_resnet_glyphs_gradual_magnitude
    --config experiments/configs/glyph_resnet_glyphs_gradual_magnitude.py
Hardware and time: 25 to 35 s on two shared CPU cores, compilation included; the
    images are rendered once, in 10 s.
Expect: 80.2 % test accuracy (one seed, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.glyphs_resnet("gradual_magnitude", sparsity=0.9)
