"""ResNet-32 on CIFAR-10, 300 epochs, 90 % sparse.

Paper: Back, Ahn and Kim, 2023, https://arxiv.org/abs/2306.05056; the schedule is that of the same
    last author's preceding code: 300 epochs, ramp to 225, masks frozen at 250. Other methods run
    under it too, with the values of `common.py`.
Data: CIFAR-10 as array_record files in TFDS's data directory; the README says how to prepare them.
Command: python -m experiments.train --workdir runs/resnet32
    --config experiments/configs/resnet32_cifar10.py:magnitude_attention
Hardware and time: a GPU; not measured here.
Expect: not measured here.
"""

from ml_collections import ConfigDict

from experiments.configs import cifar


def get_config(method: str = "") -> ConfigDict:
    return cifar.resnet(32, method)
