"""How many stay in the end, known beforehand."""

from typing import Any

from jaxprune.units import Layers


def at_end(keep: Any, layers: Layers) -> dict[tuple[str, ...], int] | None:
    """How many units a word keeps in the end, by the sites that share a number.

    Args:
      keep: one of this room, or any function like them.
      layers: the layers of the units.

    Returns:
      ``{(site, ...): number}``; None where nothing tells.

    Examples:
      >>> from jaxprune import keep
      >>> from jaxprune.units import Layers
      >>> keep.at_end(keep.n_of_m(2, 4), Layers({"kernel": (8, 3)}, {}))
      {('kernel',): 12}
    """
    return keep.at_end(layers) if hasattr(keep, "at_end") else None
