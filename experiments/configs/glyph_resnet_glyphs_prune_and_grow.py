"""Small ResNet on 16x16 glyphs, trained by prune and grow (IEE), 90 % sparse.

Paper: Sun et al., 2025, https://arxiv.org/abs/2502.03658.
Command: python -m experiments.train --workdir runs/glyph_resnet_glyphs_prune_and_grow
    --config experiments/configs/glyph_resnet_glyphs_prune_and_grow.py
Hardware and time: 25 to 60 s on two shared CPU cores, compilation included; the
    images are rendered once, in 10 s.
Expect: 73.5 +- 2.0 % test accuracy (five seeds, measured).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.glyphs_resnet("prune_and_grow", sparsity=0.9)
