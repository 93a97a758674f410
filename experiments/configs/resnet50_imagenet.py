"""ResNet-50 v1.5 on ImageNet, any method, 90 % sparse or half of the FLOPs: 100 epochs.

Papers: those of the methods; Goyal et al., 2017, https://arxiv.org/abs/1706.02677, for the recipe:
    0.1 for 256 images, in proportion to the batch, five epochs of warm-up, decay 1e-4, not of norms
    and biases. Ours: a warm-up from 0, one cosine, labels smoothed by 0.1, the methods' values.
Data: ImageNet as array_record files in TFDS's data directory; the README says how to prepare them.
Command: python -m experiments.train --workdir a folder that all hosts see
    --config experiments/configs/resnet50_imagenet.py:magnitude_attention
    --config.method.sparsity=0.9 --config.batch_size=4096 --distributed auto
Hardware and time: any number of devices, all along the data by default; not measured here.
Expect: not measured here. What papers report for a ResNet-50, under recipes of their own:
    prune_and_grow 74.3 at 90 % (ERK, 100 epochs; RigL beside it 73.0), 77.0 at 80 %;
    prune_and_grow_n_of_m 77.5 (2:4); prune_and_grow_channels 74.6 at 30 % of the latency;
    filter_attention +1.06 over dense with 51.1 % pruned. Of the other methods none is quoted.
"""

from ml_collections import ConfigDict

from experiments.configs import common, imagenet


def get_config(method: str = "") -> ConfigDict:
    return imagenet.recipe(
        method,
        epochs=100,
        model={"name": "resnet50", "stages": (3, 4, 6, 3), "width": 64, "dtype": "bfloat16"},
        optimizer=common.sgd(0.1, 1e-4, warmup=0.05, warmup_from=0.0, decayed="kernel"),
    )
