"""What the configurations for ImageNet share: the recipe, and every method under it."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from experiments.configs import channels, common

IMAGES = 1_281_167
"""In the training split."""

_CHANNELS = channels.CHANNELS | {"round_to": 16, "min_keep": 16, "cost": "FLOPs"}
_GROWS = {"measure_steps": 150, "improve_steps": 150}

VARIANTS: dict[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    **{name: (name, {}, {}) for name in common.METHODS},
    "prune_and_grow": ("prune_and_grow", {**_GROWS, "explore_steps": 150}, {}),
    "prune_and_grow_n_of_m": (
        "prune_and_grow",
        {**_GROWS, "explore_steps": 150, "n_of_m": (2, 4), "unfit": "skip", "sparsity": None},
        {},
    ),
    "prune_and_grow_channels": (
        "prune_and_grow",
        {"sparsity": 0.5, **channels.GROWING_CHANNELS, **_GROWS, "explore_steps": 40},
        _CHANNELS,
    ),
    "filter_attention": ("filter_attention", {"attention_steps": 1000}, _CHANNELS),
    "slimming": ("slimming", {}, _CHANNELS),
}
"""What may follow the colon: a method, its values, and the choice of channels if it prunes those.
N of M is 2:4 along the contraction; the first layer, which reads 147 values, stays dense there."""

_EVERY = 100
"""Updates between refreshes, as RigL's authors have it."""


def recipe(name: str, epochs: int, **values: Any) -> ConfigDict:
    """Training on 224 pixels in bfloat16, over float32 params, with all devices along the data.

    The learning rate follows the batch size, and so does the number of updates.

    Args:
      name: a key of `VARIANTS`.
      epochs: length of the training.
      **values: ``model``; ``optimizer``, with the rate for 256 images; what differs.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import resnet50_imagenet
      >>> config = resnet50_imagenet.get_config("rigl")
      >>> config.steps, round(config.optimizer.learning_rate, 3)
      (125113, 0.4)
      >>> config.batch_size = 4096
      >>> config.steps, round(config.optimizer.learning_rate, 3)
      (31278, 1.6)
    """
    method, options, of_channels = common.named(VARIANTS, name)
    batch_size = FieldReference(1024)
    optimizer = values.pop("optimizer")
    rate = batch_size.to_float() * (optimizer.pop("learning_rate") / 256)
    found: Any = common.base(
        common.method(method),
        data={"name": "imagenet2012", "data_dir": "", "crop": 224, "workers": 8},
        test_split="validation",
        augment=True,
        label_smoothing=0.1,
        batch_size=batch_size,
        steps=epochs * IMAGES // batch_size,
        optimizer={**optimizer, "learning_rate": rate},
        mesh={"data": -1, "fsdp": 1, "tensor": 1, "mode": "auto"},
        channels=of_channels,
        log_every=100,
        evaluate_every=5000,
        checkpoint_every=1000,
        **values,
    )
    with found.unlocked():
        if "every" in found.method:
            found.method.every = _EVERY
        for key, value in options.items():
            if value is None:
                del found.method[key]
            else:
                found.method[key] = value
    return found
