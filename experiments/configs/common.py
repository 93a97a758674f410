"""What the configurations share: one base, one function a recipe, one table of methods' values."""

from typing import Any

from ml_collections import ConfigDict

_RAMP = {"sparsity": 0.9, "ramp": (0.0, 0.75), "every": 16, "distribution": "global"}
_ERK = {"sparsity": 0.9, "distribution": "erk", "seed": 0}
_DROP_AND_GROW = {**_ERK, "stop": 0.75, "every": 32, "drop_fraction": 0.3}

METHODS = {
    "dense": {},
    "magnitude_attention": {
        **_RAMP,
        "exploit_at": 5 / 6,
        "strength": 1.0,
        "masked": "floor",
        "forward": True,
        "attention_on": "gradient",
        "dead_units": "hold",
    },
    "straight_through": {**_RAMP, "dead_units": "hold"},
    "gradual_magnitude": _RAMP,
    "static": _ERK,
    "prune_and_grow": {
        **_ERK,
        "stop": 0.75,
        "measure_steps": 20,
        "improve_steps": 20,
        "explore_steps": 20,
        "swap_fraction": (0.3, 0.05),
        "importance": "magnitude",
        "ranking": "leaf",
        "reactivate_from": "recent",
        "grow_from": "explored",
        "freeze_kept": True,
        "freeze_rest": False,
    },
    "rigl": _DROP_AND_GROW,
    "sparse_evolution": _DROP_AND_GROW,
    "layer_attention": {
        "sparsity": 0.9,
        "target_anneal": (0.0, 0.75),
        "learner_rate": 0.01,
        "alpha": 1.0,
        "gamma": 20.0,
        "attention_init": 0.99,
        "site": "layer",
    },
    "soft_threshold": {"learner_rate": 0.1, "threshold_init": -8.0, "decay": 0.001},
    "movement": {**_RAMP, "learner_rate": 1.0},
}
"""The values of each method; ``ramp``, ``exploit_at``, ``stop`` and ``target_anneal`` are shares of
the training, periods are in updates. Methods that end in masks of their own choice rank over the
whole network, and those that start sparse share ERK densities, so that a comparison shows the
method and not the budget of layers; layer attention learns its own."""


def method(name: str, **values: Any) -> ConfigDict:
    """The config of a method.

    Args:
      name: a key of `METHODS`.
      **values: what differs from the values there; an unknown one is refused.

    Returns:
      ``name`` and all values, locked.

    Raises:
      ValueError: if there is no method of that name.
      KeyError: if the method has no such value.

    Examples:
      >>> from experiments.configs import common
      >>> common.method("magnitude_attention", strength=0.0).strength
      0.0

    References:
      original.
    """
    if name not in METHODS:
        raise ValueError(f"`name` must be one of {', '.join(METHODS)}, got {name!r}")
    config = ConfigDict({"name": name, **METHODS[name]}).lock()
    config.update(values)
    return config


def _base(chosen: ConfigDict, **values: Any) -> ConfigDict:
    common = {
        "seed": 0,
        "train_split": "train",
        "test_split": "test",
        "augment": False,
        "where": "",  # empty: the default rule of jaxprune
        "method": chosen,
        "log_every": 20,
        "evaluate_every": 100,
        "checkpoint_every": 100,
        "tensorboard": False,
    }
    return ConfigDict(common | values).lock()


def _sgd(rate: float, decay: float, **values: Any) -> dict[str, Any]:
    schedule = {"warmup": 0.0, "drops": (), "drop_factor": 0.1} | values
    return {
        "name": "sgd",
        "learning_rate": rate,
        "momentum": 0.9,
        "weight_decay": decay,
        **schedule,
    }


def digits_mlp(name: str, **values: Any) -> ConfigDict:
    """The MLP on the 8x8 digits: seconds a run.

    Args:
      name: the method.
      **values: values of the method.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import common
      >>> common.digits_mlp("dense").model.name
      'mlp'

    References:
      original.
    """
    return _base(
        method(name, **values),
        data={"name": "digits", "data_dir": ""},
        model={"name": "mlp", "widths": (60, 30)},
        batch_size=64,
        steps=800,
        optimizer=_sgd(0.1, 5e-4),
    )


def glyphs_resnet(name: str, **values: Any) -> ConfigDict:
    """The small ResNet on 16x16 glyphs: 1,280 updates of 64 images.

    Args:
      name: the method.
      **values: values of the method.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import common
      >>> common.glyphs_resnet("straight_through", sparsity=0.95).method.sparsity
      0.95

    References:
      original.
    """
    return _base(
        method(name, **values),
        data={
            "name": "glyphs",
            "data_dir": "",
            "size": 16,
            "difficulty": 1.0,
            "seed": 0,
            "train": 32_000,
            "validation": 6_000,
            "test": 10_000,
        },
        model={"name": "glyph_resnet", "stem": 16, "width": 40, "blocks": 2},
        where="conv",
        batch_size=64,
        steps=1280,
        optimizer=_sgd(0.3, 5e-4),
        evaluate_every=320,
        checkpoint_every=320,
    )


def cifar_resnet(depth: int, name: str, **values: Any) -> ConfigDict:
    """ResNet-20, -32 or -56 on CIFAR-10: 300 epochs, the ramp's end at 225.

    Args:
      depth: 20, 32 or 56.
      name: the method.
      **values: values of the method.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import common
      >>> common.cifar_resnet(56, "dense").model.depth
      56

    References:
      Back, Ahn and Kim, Magnitude Attention-based Dynamic Pruning, 2023,
      https://arxiv.org/abs/2306.05056 (schedule as in the same last author's preceding code).
    """
    drops = {"warmup": 5 / 300, "drops": (150 / 300, 225 / 300)}
    return _cifar(
        method(name, **values),
        model={"name": "resnet", "depth": depth},
        steps=300 * _STEPS_PER_EPOCH,
        optimizer=_sgd(0.2, 1e-4, **drops),
    )


def cifar_wide_resnet(name: str, **values: Any) -> ConfigDict:
    """WRN-28-2 on CIFAR-10: 200 epochs, the ramp's end at 120.

    Args:
      name: the method.
      **values: values of the method.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import common
      >>> common.cifar_wide_resnet("dense").model.widen
      2

    References:
      Back, Ahn and Kim, Magnitude Attention-based Dynamic Pruning, 2023,
      https://arxiv.org/abs/2306.05056 (schedule as in the same last author's preceding code).
    """
    drops = {"drops": (60 / 200, 120 / 200, 160 / 200), "drop_factor": 0.2}
    return _cifar(
        method(name, **values),
        model={"name": "wide_resnet", "depth": 28, "widen": 2},
        steps=200 * _STEPS_PER_EPOCH,
        optimizer=_sgd(0.1, 5e-4, **drops),
    )


_STEPS_PER_EPOCH = 50_000 // 128


def _cifar(chosen: ConfigDict, **values: Any) -> ConfigDict:
    return _base(
        chosen,
        data={"name": "cifar10", "data_dir": ""},
        where="conv",
        batch_size=128,
        augment=True,
        evaluate_every=5 * _STEPS_PER_EPOCH,
        checkpoint_every=5 * _STEPS_PER_EPOCH,
        log_every=_STEPS_PER_EPOCH,
        **values,
    )
