"""What the configurations that prune channels share."""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import common

CHANNELS = {
    "round_to": 4,
    "min_keep": 4,
    "residual": "tied",
    "score": "l2",
    "cost": "parameters",
}
"""The choice of channels: ``cost`` is what a sparsity is a share of, "" channels; or "FLOPs", or
"latency", measured on this machine."""


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
    return _of_channels(common.glyphs_resnet(name, **values), name)


def glyphs_resnet20_channels(name: str, **values: Any) -> ConfigDict:
    """ResNet-20 on 32x32 glyphs, of which channels are pruned.

    Args:
      name: the method.
      **values: values of the method.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import channels
      >>> channels.glyphs_resnet20_channels("slimming").data.size
      32
    """
    config: Any = ConfigDict(common.glyphs_resnet(name, **values).to_dict())
    config.data.size, config.model = 32, ConfigDict({"name": "resnet", "depth": 20})
    config.cut_steps = True
    return _of_channels(config, name)


def _of_channels(config: ConfigDict, name: str) -> ConfigDict:
    found: Any = ConfigDict(config.to_dict())
    found.channels = ConfigDict(CHANNELS)
    if name == "prune_and_grow":
        found.method.update(GROWING_CHANNELS)
    return found.lock()
