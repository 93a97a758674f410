"""ResNet-20 on CIFAR-10, pruned by magnitude attention, 90 % sparse.

Paper: Back, Ahn and Kim, 2023, https://arxiv.org/abs/2306.05056; the schedule is that of the same
    last author's preceding code: 300 epochs, ramp to 225, masks frozen at 250.
Data: CIFAR-10 as array_record files in TFDS's data directory (see `experiments.data.load`).
Command: python -m experiments.train --workdir runs/resnet20_cifar10_magnitude_attention
    --config experiments/configs/resnet20_cifar10_magnitude_attention.py
Hardware and time: a GPU; not measured here.
Expect: not measured here.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.cifar_resnet(20, "magnitude_attention", sparsity=0.9)
