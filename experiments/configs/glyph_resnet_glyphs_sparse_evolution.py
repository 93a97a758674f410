"""Small ResNet on 16x16 glyphs, trained by sparse evolution (SET), 90 % sparse.

Paper: Mocanu et al., 2018, https://arxiv.org/abs/1707.04780.
Command: python -m experiments.train --workdir runs/glyph_resnet_glyphs_sparse_evolution
    --config experiments/configs/glyph_resnet_glyphs_sparse_evolution.py
Hardware and time: 25 to 60 s on two shared CPU cores, compilation included; the
    images are rendered once, in 10 s.
Expect: 73.6 +- 1.8 % test accuracy (five seeds, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.glyphs_resnet("sparse_evolution", sparsity=0.9)
