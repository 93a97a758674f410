"""WRN-28-2 on CIFAR-10, 200 epochs, 90 % sparse.

Paper: Back, Ahn and Kim, 2023, https://arxiv.org/abs/2306.05056; the schedule is that of the same
    last author's preceding code: 200 epochs, ramp to 120; masks frozen at 5/6 of training (ours).
    Other methods run under it too, with the values of `common.py`.
Data: CIFAR-10 as array_record files in TFDS's data directory; the README says how to prepare them.
Command: python -m experiments.train --workdir runs/wrn28_2
    --config experiments/configs/wrn28_2_cifar10.py:magnitude_attention
Hardware and time: a GPU; not measured here.
Expect: not measured here.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import cifar


def get_config(method: str = "") -> ConfigDict:
    config: Any = cifar.wide_resnet(method)
    if "ramp" in config.method:
        config.method.ramp = (0.0, 0.6)
    return config
