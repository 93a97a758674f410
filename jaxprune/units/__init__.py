"""Units: what one decision of a mask is about, said once: an entry of a leaf, or a channel.

A mask is one bool a unit, by *site*: a leaf's path, or the name of a group of channels. Its
*support* is what it means for the parameters: one bool an entry, by path, of the leaf's rank and
broadcastable to it. Who ranks or counts uses masks; who multiplies, lands or verifies uses support.
"""

from collections.abc import Mapping
from typing import Any

from jaxprune.names import OutputAxis
from jaxprune.network import ChannelChoice, Network
from jaxprune.trees import Where
from jaxprune.types import wrong
from jaxprune.units.channels import Channels as Channels
from jaxprune.units.channels import Group as Group
from jaxprune.units.channels import Groups as Groups
from jaxprune.units.entries import Entries as Entries
from jaxprune.units.layers import Layers as Layers

Units = Entries | Channels
Stacked = Mapping[str, int] | None
"""``{pattern: axis}`` of leaves that stack layers."""


def units_of(signals: Any) -> Units:
    """The units of some signals; entries where nothing is said.

    Args:
      signals: the `Signals` that a part looks at.

    Returns:
      Their units.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.types import Signals
      >>> from jaxprune.units import units_of
      >>> units_of(Signals(jnp.int32(0), {}, {})).members({"kernel": jnp.ones(2, bool)})
      ['kernel']
    """
    return Entries() if signals.units is None else signals.units


def units_for(
    where: Where | None = None,
    exclude: Where | None = None,
    output_axis: OutputAxis = None,
    stacked: Stacked = None,
    channels: Groups | None = None,
    multiple_of: int = 1,
    network: Network | None = None,
) -> Units:
    """The units that a method's arguments mean.

    Args:
      where: which leaves are pruned; replaces the default rule.
      exclude: which of them are not.
      output_axis: the axes of a leaf that count its outputs, where the rule by names is wrong.
      stacked: ``{pattern: axis}`` of leaves that stack layers.
      channels: ``{name: Group}``, or what ``channels`` of a traced network returned, in place of
        all of these.
      multiple_of: leaves that do not sum a multiple of so many inputs are left out.
      network: what `trace` knows of the network, in place of what names suggest.

    Returns:
      Entries of the leaves that the rule prunes, or channels.

    Raises:
      ValueError: if channels are given beside any of the others.

    Examples:
      >>> from jaxprune.units import Group, units_for
      >>> hidden = Group(8, {"first/kernel": 1, "first/bias": 0, "second/kernel": 0})
      >>> [*units_for(channels={"hidden": hidden}).groups]
      ['hidden']
    """
    if channels is None:
        return Entries(where, exclude, output_axis, stacked, multiple_of, network)
    given = {"where": where, "exclude": exclude, "output_axis": output_axis, "stacked": stacked}
    given["network"] = network
    for name, value in given.items():
        if value is not None:
            expected = "be None beside `channels`, which name their leaves"
            raise ValueError(wrong(name, expected, value))
    if isinstance(channels, Network):
        hint = "with its `round_to`, `where` and `cost`, if you like"
        raise ValueError(wrong("channels", "be network.channels(...)", "a network", hint))
    if isinstance(channels, ChannelChoice):
        groups = {group.name: group for group in channels.groups}
        return Channels(groups, channels.steps, channels.min_keep, channels.score, channels.cost)
    return Channels(channels)
