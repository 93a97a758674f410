"""Small ResNet on 16x16 glyphs, under a random mask that never changes, 90 % sparse.

Paper: ERK densities of Evci et al., 2020, https://arxiv.org/abs/1911.11134.
Command: python -m experiments.train --workdir runs/glyph_resnet_glyphs_static
    --config experiments/configs/glyph_resnet_glyphs_static.py
Hardware and time: GLYTIME
Expect: EXPECT
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.glyphs_resnet("static", sparsity=0.9)
