"""Small ResNet on 16x16 glyphs, pruned by straight-through magnitude (DPF), 90 % sparse.

Paper: Lin et al., 2020, https://arxiv.org/abs/2006.07253.
Command: python -m experiments.train --workdir runs/glyph_resnet_glyphs_straight_through
    --config experiments/configs/glyph_resnet_glyphs_straight_through.py
Hardware and time: 25 to 35 s on two shared CPU cores, compilation included; the
    images are rendered once, in 10 s.
Expect: 82.1 % test accuracy (one seed, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.glyphs_resnet("straight_through", sparsity=0.9)
