"""Small ResNet on 16x16 glyphs, pruned by magnitude attention, 90 % sparse.

Paper: Back, Ahn and Kim, 2023, https://arxiv.org/abs/2306.05056.
Command: python -m experiments.train --workdir runs/glyph_resnet_glyphs_magnitude_attention
    --config experiments/configs/glyph_resnet_glyphs_magnitude_attention.py
Hardware and time: 25 to 35 s on two shared CPU cores, compilation included; the
    images are rendered once, in 10 s.
Expect: 83.6 % test accuracy (one seed, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.glyphs_resnet("magnitude_attention", sparsity=0.9)
