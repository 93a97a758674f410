"""Small ResNet on 16x16 glyphs, trained densely.

Paper: no pruning: what the others are compared with.
Command: python -m experiments.train --workdir runs/glyph_resnet_glyphs_dense
    --config experiments/configs/glyph_resnet_glyphs_dense.py
Hardware and time: 25 to 35 s on two shared CPU cores, compilation included; the
    images are rendered once, in 10 s.
Expect: 87.5 % test accuracy (one seed, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.glyphs_resnet("dense")
