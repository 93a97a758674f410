"""ResNet-56 on CIFAR-10, pruned by layer attention (ASWL), 90 % sparse as a target.

Paper: He, Shi and Dong, 2021, https://arxiv.org/abs/2111.02399. From the authors' code: the
    learning rate falls tenfold after 32,000 and 48,000 updates, and the classifier is pruned, too.
    Ours: the end after 64,000, the rate 0.1, the decay, gamma and the annealed target.
Data: CIFAR-10 as array_record files in TFDS's data directory (see `experiments.data.load`).
Command: python -m experiments.train --workdir runs/resnet56_cifar10_layer_attention
    --config experiments/configs/resnet56_cifar10_layer_attention.py
Hardware and time: a GPU; not measured here.
Expect: not measured here.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config() -> ConfigDict:
    config = common.cifar_resnet(56, "layer_attention", sparsity=0.9)
    config.where = ""
    config.steps = 64_000
    config.update({"optimizer": {"learning_rate": 0.1, "drops": (0.5, 0.75), "drop_factor": 0.1}})
    return config
