"""What the configurations for CIFAR-10 share."""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import common


def resnet(depth: int, name: str, **values: Any) -> ConfigDict:
    """ResNet-20, -32 or -56 on CIFAR-10: 300 epochs, the ramp's end at 225.

    Args:
      depth: 20, 32 or 56.
      name: the method.
      **values: values of the method.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import cifar
      >>> cifar.resnet(56, "dense").model.depth
      56

    References:
      Back, Ahn and Kim, Magnitude Attention-based Dynamic Pruning, 2023,
      https://arxiv.org/abs/2306.05056 (schedule as in the same last author's preceding code).
    """
    drops = {"warmup": 5 / 300, "drops": (150 / 300, 225 / 300)}
    return _cifar(
        common.method(name, **values),
        model={"name": "resnet", "depth": depth},
        steps=300 * _STEPS_PER_EPOCH,
        optimizer=common.sgd(0.2, 1e-4, **drops),
    )


def wide_resnet(name: str, **values: Any) -> ConfigDict:
    """WRN-28-2 on CIFAR-10: 200 epochs, the ramp's end at 120.

    Args:
      name: the method.
      **values: values of the method.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import cifar
      >>> cifar.wide_resnet("dense").model.widen
      2

    References:
      Back, Ahn and Kim, Magnitude Attention-based Dynamic Pruning, 2023,
      https://arxiv.org/abs/2306.05056 (schedule as in the same last author's preceding code).
    """
    drops = {"drops": (60 / 200, 120 / 200, 160 / 200), "drop_factor": 0.2}
    return _cifar(
        common.method(name, **values),
        model={"name": "wide_resnet", "depth": 28, "widen": 2},
        steps=200 * _STEPS_PER_EPOCH,
        optimizer=common.sgd(0.1, 5e-4, **drops),
    )


_STEPS_PER_EPOCH = 50_000 // 128


def _cifar(chosen: ConfigDict, **values: Any) -> ConfigDict:
    return common.base(
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
