"""ResNet-56 on CIFAR-10, 90 % sparse: 300 epochs, or 64,000 updates for layer attention.

Papers: Back, Ahn and Kim, 2023, https://arxiv.org/abs/2306.05056; the schedule is that of the same
    last author's preceding code: 300 epochs, ramp to 225, masks frozen at 250.
    For layer_attention He, Shi and Dong, 2021, https://arxiv.org/abs/2111.02399. From the authors'
    code: the learning rate falls tenfold after 32,000 and 48,000 updates, and the classifier is
    pruned, too. Ours: the end after 64,000, the rate 0.1, the decay, gamma and the annealed target.
    Other methods run under the first schedule too, with the values of `common.py`.
Data: CIFAR-10 as array_record files in TFDS's data directory; the README says how to prepare them.
Command: python -m experiments.train --workdir runs/resnet56
    --config experiments/configs/resnet56_cifar10.py:magnitude_attention
Hardware and time: a GPU; not measured here.
Expect: not measured here.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import cifar


def get_config(method: str = "") -> ConfigDict:
    config: Any = cifar.resnet(56, method)
    if method == "layer_attention":
        config.where, config.steps = "", 64_000
        config.optimizer.update({"learning_rate": 0.1, "drops": (0.5, 0.75), "drop_factor": 0.1})
    return config
