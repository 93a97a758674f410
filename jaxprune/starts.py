"""The masks that training begins with: whole, as given, drawn by chance, or told by a function.

Those that shapes and a key determine are drawn in `init`, so that they are true before the first
update and no step compiles a draw; a function of the first update's signals is asked in it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.spec import Parts
from jaxprune.types import Keep, Leaves, Ranked, Signals, wrong


class AtRandom(NamedTuple):
    """Masks drawn by chance, from shapes and the seed alone.

    Attributes:
      keep: how many units stay, a word of `jaxprune.keep`.
    """

    keep: Keep

    def drawn(self, s: Signals) -> dict[str, jax.Array]:
        """The masks."""
        chance = {site: Ranked(trees.uniform_like(s.key, site, m)) for site, m in s.mask.items()}
        return dict(self.keep(chance, s, {}).masks)


Start = Any | AtRandom | Callable[[Signals], Leaves] | None
"""Masks by path, `AtRandom`, a function of the first update's `Signals`, or None: all kept."""


def first_masks(parts: Parts, leaves: Leaves, key: jax.Array) -> dict[str, jax.Array]:
    """The masks before the first update; a site that is missing in what is given stays whole.

    Args:
      parts: the parts of the method.
      leaves: the params by path.
      key: raw key data.

    Returns:
      ``{site: mask}`` for what is pruned.

    Raises:
      ValueError: if no leaf is prunable, or what is given has an unknown path, another shape, or
        the mask of no prunable leaf.
    """
    start, whole = parts.start, parts.units.whole(leaves)
    if isinstance(start, AtRandom):
        shapes = {p: jax.ShapeDtypeStruct(x.shape, x.dtype) for p, x in leaves.items()}
        return start.drawn(Signals(jnp.int32(0), shapes, whole, key=key, units=parts.units))
    if start is None or callable(start):
        return whole
    given, sites = trees.by_path(start), parts.units.sites(leaves)
    for site, mask in given.items():
        trees.known(site, sites, parts.start_named, "have only paths of the params")
        if jnp.shape(mask) != sites[site].shape:
            expected = f"have the shape {sites[site].shape} at '{site}'"
            raise ValueError(wrong(parts.start_named, expected, jnp.shape(mask)))
    if not any(site in given for site in whole):
        expected = "have the mask of at least one prunable leaf"
        raise ValueError(wrong(parts.start_named, expected, [*given]))
    return {site: m & given[site].astype(bool) for site, m in whole.items() if site in given}


def started(parts: Parts, s: Signals) -> dict[str, jax.Array]:
    """The first masks, where a function of the first update's signals gives them."""
    if isinstance(parts.start, AtRandom) or not callable(parts.start):
        return {}
    masks = trees.by_path(parts.start(s))
    for site in masks:
        trees.known(site, s.mask, parts.start_named, "return masks of prunable leaves")
    return masks
