"""Small ResNet of 63,616 prunable weights on 16x16 glyphs, 1,280 updates, 90 % sparse.

Command: python -m experiments.train --config experiments/configs/glyph_resnet_glyphs.py:rigl
    --workdir runs/glyph_resnet_glyphs_rigl; the method stands after the colon.
Hardware and time: 25 to 60 s on two shared CPU cores, compilation included; the images are
    rendered once, in 10 s.
Papers: see `mlp_digits.py`.
Expect: final test accuracy in percent, mean and standard deviation of five seeds:
    dense                87.1 +- 0.2
    magnitude_attention  83.3 +- 0.4
    straight_through     81.9 +- 0.7
    gradual_magnitude    80.3 +- 0.6
    static               71.5 +- 2.1
    prune_and_grow       73.5 +- 2.0
    rigl                 74.8 +- 1.9
    sparse_evolution     73.6 +- 1.8
    layer_attention      81.6 +- 1.1   (at a density of 0.100)
    movement             78.7 +- 0.4   (three seeds)
    soft_threshold       not measured
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(method: str = "") -> ConfigDict:
    return common.glyphs_resnet(method)
