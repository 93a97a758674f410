"""Small ResNet on 16x16 glyphs, trained by RigL, 90 % sparse.

Paper: Evci et al., 2020, https://arxiv.org/abs/1911.11134.
Command: python -m experiments.train --workdir runs/glyph_resnet_glyphs_rigl
    --config experiments/configs/glyph_resnet_glyphs_rigl.py
Hardware and time: 25 to 60 s on two shared CPU cores, compilation included; the
    images are rendered once, in 10 s.
Expect: 74.8 +- 1.9 % test accuracy (five seeds, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.glyphs_resnet("rigl", sparsity=0.9)
