"""ResNet-20 on CIFAR-10, half of whose parameters, FLOPs or time goes with its channels.

Papers: Babaiee et al., 2022, https://arxiv.org/abs/2210.11114 (filter_attention); Sun et al., 2025,
    https://arxiv.org/abs/2502.03658 (prune_and_grow).
Data: CIFAR-10 as array_record files in TFDS's data directory; the README says how to prepare them.
Command: python -m experiments.train --workdir runs/resnet20_channels
    --config experiments/configs/resnet20_cifar10_channels.py:filter_attention
Hardware and time: a GPU; not measured here.
Expect: not measured here.
"""

from ml_collections import ConfigDict

from experiments.configs import channels


def get_config(method: str = "") -> ConfigDict:
    return channels.cifar_resnet_channels(20, method)
