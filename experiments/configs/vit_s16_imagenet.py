"""ViT-S/16 on ImageNet, any method but slimming: 90 % sparse, or half of the FLOPs: 90 epochs.

Channels are the hidden units of the MLPs; no norm follows them, so that slimming has no scales.

Papers: those of the methods; Beyer, Zhai and Kolesnikov, 2022, https://arxiv.org/abs/2205.01580,
    for AdamW, the warm-up of 10,000 updates of 1,024 images, the cosine and the mean over patches.
    Ours: labels smoothed by 0.1 in place of their augmentations, the values of the methods.
Data: ImageNet as array_record files in TFDS's data directory; the README says how to prepare them.
Command: python -m experiments.train --workdir a folder that all hosts see
    --config experiments/configs/vit_s16_imagenet.py:gradual_magnitude --distributed auto
Hardware and time: any number of devices, all along the data by default; not measured here.
Expect: not measured here, and no paper of these methods reports this network.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import common, imagenet


def get_config(method: str = "") -> ConfigDict:
    config: Any = imagenet.recipe(
        method,
        epochs=90,
        model={"name": "vit", "patch": 16, "width": 384, "depth": 12, "heads": 6}
        | {"dtype": "bfloat16"},
        optimizer=common.sgd(2.5e-4, 0.1, warmup=0.09, warmup_from=0.0, decayed="kernel")
        | {"name": "adamw"},
    )
    if config.channels:  # hidden units; heads are few, and streams are what layer norms sum over
        with config.unlocked():
            config.channels.update({"where": "mlp_0", "residual": "internal"})
    return config
