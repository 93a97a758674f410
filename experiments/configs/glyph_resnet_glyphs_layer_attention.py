"""Small ResNet on 16x16 glyphs, pruned by layer attention (ASWL), 90 % sparse as a target.

Paper: He, Shi and Dong, 2021, https://arxiv.org/abs/2111.02399.
Command: python -m experiments.train --workdir runs/glyph_resnet_glyphs_layer_attention
    --config experiments/configs/glyph_resnet_glyphs_layer_attention.py
Hardware and time: a CPU; not measured yet.
Expect: 81.6 +- 1.1 % test accuracy at a density of 0.100 (five seeds, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.glyphs_resnet("layer_attention", sparsity=0.9)
