"""ResNet-56 on CIFAR-10, half of whose parameters, FLOPs or time goes with its channels.

Papers: Babaiee et al., 2022, https://arxiv.org/abs/2210.11114 (filter_attention); Sun et al., 2025,
    https://arxiv.org/abs/2502.03658 (prune_and_grow).
    The abstract reports +1.02 % accuracy of a ResNet-56 with 52.3 % fewer parameters; schedule,
    sizes and choices here are our reading.
Data: CIFAR-10 as array_record files in TFDS's data directory; the README says how to prepare them.
Command: python -m experiments.train --workdir runs/resnet56_channels
    --config experiments/configs/resnet56_cifar10_channels.py:filter_attention
Hardware and time: a GPU; not measured here.
Expect: not measured here.
"""

from ml_collections import ConfigDict

from experiments.configs import channels


def get_config(method: str = "") -> ConfigDict:
    return channels.cifar_resnet_channels(56, method)
