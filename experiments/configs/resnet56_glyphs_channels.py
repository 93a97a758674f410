"""ResNet-56 on 32x32 glyphs, half of whose parameters, FLOPs or time goes with its channels.

Command: python -m experiments.train --workdir runs/resnet56_paam
    --config experiments/configs/resnet56_glyphs_channels.py:filter_attention
Papers: Babaiee et al., 2022, https://arxiv.org/abs/2210.11114 (filter_attention); Sun et al., 2025,
    https://arxiv.org/abs/2502.03658 (prune_and_grow).
Hardware and time: not measured here.
Expect: not measured here.
"""

from ml_collections import ConfigDict

from experiments.configs import channels


def get_config(method: str = "") -> ConfigDict:
    return channels.glyphs_deep_resnet_channels(56, method)
