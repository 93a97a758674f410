"""What the configurations that prune channels share."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.configs import cifar, common

CHANNELS = {
    "round_to": 4,
    "min_keep": 4,
    "residual": "tied",
    "score": "l2",
    "cost": "parameters",
}
"""The choice of channels: ``cost`` is what a sparsity is a share of, "" channels; or "FLOPs", or
"latency", measured on this machine."""


CUT_STEPS = ("filter_attention", "prune_and_grow", "static")
"""Methods whose channels change so seldom that training on cut networks is worth compiling them."""

_PERIODS = {"attention_steps": 50, "every": 16}

GROWING_CHANNELS = {
    "explore_steps": 5,
    "warmup": 0.1,
    "swap_fraction": (0.1, 0.02),
    "importance": "taylor",
    "ranking": "global",
}
"""What prune and grow has otherwise where it grows channels."""


def glyphs_resnet_channels(name: str, **values: Any) -> ConfigDict:
    """The small ResNet on 16x16 glyphs, of which channels are pruned.

    Args:
      name: the method.
      **values: values of the method.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import channels
      >>> channels.glyphs_resnet_channels("filter_attention").channels.cost
      'parameters'
    """
    return _of_channels(common.glyphs_resnet(name), values)


def glyphs_deep_resnet_channels(depth: int, name: str, **values: Any) -> ConfigDict:
    """ResNet-20 or -56 on 32x32 glyphs, of which channels are pruned: 1,280 updates of 64 images.

    Args:
      depth: 20 or 56.
      name: the method.
      **values: values of the method.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import channels
      >>> channels.glyphs_deep_resnet_channels(20, "slimming").data.size
      32
    """
    config: Any = ConfigDict(common.glyphs_resnet(name).to_dict())
    config.data.size, config.model = 32, ConfigDict({"name": "resnet", "depth": depth})
    config.optimizer.learning_rate = 0.1  # at 0.3 it does not begin to learn
    return _of_channels(config, values)


def cifar_resnet_channels(depth: int, name: str, **values: Any) -> ConfigDict:
    """ResNet-20 or -56 on CIFAR-10, of which channels are pruned: 300 epochs.

    Args:
      depth: 20 or 56.
      name: the method.
      **values: values of the method.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import channels
      >>> channels.cifar_resnet_channels(56, "filter_attention").method.begin
      0.5
    """
    config: Any = ConfigDict(cifar.resnet(depth, name).to_dict())
    longer = {
        name: round(config.steps / 1280 * n) for name, n in _PERIODS.items()
    }  # than on glyphs
    longer |= {"measure_steps": 150, "improve_steps": 150, "explore_steps": 40}
    longer = {name: n for name, n in longer.items() if name in config.method}
    return _of_channels(config, {**longer, **values})


def _of_channels(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    found: Any = ConfigDict(config.to_dict())
    found.channels, found.cut_steps = ConfigDict(CHANNELS), found.method.name in CUT_STEPS
    usual: dict[str, Any] = GROWING_CHANNELS if found.method.name == "prune_and_grow" else {}
    if "sparsity" in found.method:
        usual = {"sparsity": 0.5, **usual}
    found.method.lock().update({**usual, **values})
    return found.lock()
