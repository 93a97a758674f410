"""ResNet-20 on 32x32 glyphs, half of whose parameters, FLOPs or time goes with its channels.

Command: python -m experiments.train --config
    experiments/configs/resnet20_glyphs_channels.py:filter_attention --workdir runs/resnet20_paam;
    the method stands after the colon. ``--config.channels.cost=latency`` makes the sparsity a share
    of the time of a forward pass, measured on this machine into the work directory.
Papers: Babaiee et al., 2022, https://arxiv.org/abs/2210.11114 (filter_attention); Sun et al., 2025,
    https://arxiv.org/abs/2502.03658 (prune_and_grow).
Hardware and time: 2 CPU cores; 6 minutes each, of prune_and_grow nearly half compiling. The
    work directory ends with ``cut.jax_export``, ``cut.safetensors`` and ``channels.png``.
Expect: measured, one seed: filter_attention 96.8 % with 135,382 of 272,814 parameters,
    56.3 instead of 72.6 ms for 100 images; prune_and_grow under latency 95.2 %, 33.2 instead of
    69.5 ms.
"""

from ml_collections import ConfigDict

from experiments.configs import channels


def get_config(method: str = "") -> ConfigDict:
    return channels.glyphs_deep_resnet_channels(20, method)
