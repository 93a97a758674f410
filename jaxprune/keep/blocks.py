"""Whole blocks of entries in place of entries."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from jaxprune.keep.ends import at_end
from jaxprune.masks.patterns import block_means, block_shape, spread_blocks
from jaxprune.types import Chosen, Keep, Leaves, Ranked, Scores, Signals, wrong
from jaxprune.units import Layers, units_of


def in_blocks(keep: Keep, shape: Sequence[int] | None) -> Keep:
    """What another word keeps, decided about whole blocks by the mean of their scores.

    A budget then counts blocks, of which those at the far ends of a leaf may be ragged.

    Args:
      keep: the other word.
      shape: of a block; a shorter one than a leaf's means its last axes. None leaves the other word
        as it is.

    Returns:
      The word.

    Raises:
      TypeError: if ``shape`` is not made of integers.
      ValueError: if one of them is below 1; at a call if a leaf has fewer axes than ``shape``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import keep
      >>> from jaxprune.types import Ranked, Signals
      >>> scores = {"a": Ranked(jnp.array([[1.0, 2.0, 9.0], [3.0, 4.0, 0.0]]))}
      >>> s = Signals(jnp.int32(1), {}, {"a": jnp.ones((2, 3), bool)})
      >>> keep.in_blocks(keep.largest(2), (1, 2))(scores, s, {}).masks["a"].tolist()
      [[False, False, True], [True, True, False]]
    """
    if shape is None:
        return keep
    if not isinstance(shape, Sequence):
        raise TypeError(wrong("block", "be a tuple of integers", shape))
    return _InBlocks(keep, block_shape("", (0,) * len(shape), shape, "block"))


@dataclasses.dataclass(frozen=True)
class _InBlocks:
    """What `in_blocks` gives for blocks of a shape."""

    keep: Keep
    shape: tuple[int, ...]

    @property
    def budget(self) -> Any:
        """The budget of the other word, if it has one."""
        return getattr(self.keep, "budget", None)

    def __call__(self, scores: Scores, s: Signals, kept: Leaves) -> Chosen:
        """The masks after a change."""
        extents = self._extents(units_of(s).layers(s.mask))

        def one_each(masks: Leaves) -> dict[str, jax.Array]:  # all entries of a block are alike
            return {path: _firsts(masks[path], extents[path]) for path in masks}

        chosen = one_each({path: x.mask for path, x in scores.items() if x.mask is not None})
        means = {
            path: Ranked(
                block_means(x.scores, extents[path]), mask=chosen.get(path), pruned=x.pruned
            )
            for path, x in scores.items()
        }
        found = self.keep(means, s._replace(mask=one_each(s.mask)), one_each(kept))
        spread = {p: spread_blocks(m, extents[p], s.mask[p]) for p, m in found.masks.items()}
        return Chosen(spread, found.nan)

    def at_end(self, layers: Layers) -> dict[tuple[str, ...], int] | None:
        """What `at_end` gives; None where blocks are ragged."""
        grids, sizes = {}, set()
        for path, extents in self._extents(layers).items():
            shape = layers.whole[path]
            if any(n % extent for n, extent in zip(shape, extents, strict=True)):
                return None
            grids[path] = tuple(n // extent for n, extent in zip(shape, extents, strict=True))
            sizes.add(math.prod(extents))
        counts = at_end(self.keep, layers._replace(whole=grids))
        return counts and {sites: n * max(sizes) for sites, n in counts.items()}

    def _extents(self, layers: Layers) -> dict[str, tuple[int, ...]]:
        """A block's extent along every axis of each site; of a stack it lies in one layer."""
        found = {}
        for path in layers.whole:
            stack = layers.axes.get(path)
            extents = block_shape(path, layers.shape(path), self.shape, "block")
            found[path] = extents if stack is None else (*extents[:stack], 1, *extents[stack:])
        return found


def _firsts(x: jax.Array, extents: tuple[int, ...]) -> jax.Array:
    """The first entry of each block."""
    return x[tuple(slice(None, None, extent) for extent in extents)]
