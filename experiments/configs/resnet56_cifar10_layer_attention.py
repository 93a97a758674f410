"""ResNet-56 on CIFAR-10, pruned by layer attention (ASWL), 90 % sparse as a target.

Paper: He, Shi and Dong, 2021, https://arxiv.org/abs/2111.02399; the schedule of the weights is that
    of the other configs of this network: 300 epochs.
Data: CIFAR-10 as array_record files in TFDS's data directory (see `experiments.data.load`).
Command: python -m experiments.train --workdir runs/resnet56_cifar10_layer_attention
    --config experiments/configs/resnet56_cifar10_layer_attention.py
Hardware and time: a GPU; not measured here.
Expect: not measured here.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    return common.cifar_resnet(56, "layer_attention", sparsity=0.9)
