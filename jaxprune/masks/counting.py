"""What every mask function does first: read the scores, and count how many of them stay."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.schedules.numbers import checked_share, decimal, is_traced
from jaxprune.trees import Tree, by_path
from jaxprune.types import Count, Leaves, wrong

Density = Any
"""A number, or a tree of numbers."""


def arrays(scores: Tree) -> dict[str, jax.Array]:
    """The leaves by path, as floating arrays in the order of the scores."""
    return {path: _floating(jnp.asarray(leaf)) for path, leaf in by_path(scores).items()}


def _floating(scores: jax.Array) -> jax.Array:
    """Floating scores as they are, integers widened to float32 as far as that is exact."""
    if scores.dtype == bool or (
        jnp.issubdtype(scores.dtype, jnp.integer) and scores.dtype.itemsize <= 2
    ):
        return scores.astype(jnp.float32)
    if scores.dtype != jnp.int32:
        return scores
    # float32 has no room for 32-bit integers, but there are enough floats: the i-th one above 0.
    size = jnp.minimum(jnp.abs(scores), int(np.float32(np.inf).view(np.int32)))
    floats = lax.bitcast_convert_type(size, jnp.float32)
    return jnp.where(scores < 0, -floats, floats)


def sizes_of(leaves: Leaves) -> dict[str, int]:
    """How many entries each leaf has."""
    return {path: leaf.size for path, leaf in leaves.items()}


def counts_of(sizes: Mapping[str, int], density: Density) -> dict[str, Count]:
    """How many each leaf keeps, by its own density or the one for all."""
    given = by_path(density)
    if list(given) == [""]:
        return {path: count_of("density", size, given[""]) for path, size in sizes.items()}
    for path in sizes:
        if path not in given:
            raise ValueError(wrong("density", f"have a number for '{path}'", list(given)))
    return {path: count_of(f"density['{path}']", size, given[path]) for path, size in sizes.items()}


def count_of(argument: str, size: int, density: Any) -> Any:
    """round(density * size), half to even: an integer, or int32 where the density is traced."""
    density = checked_share(argument, density, whole=True)
    if not is_traced(density):
        return round(size * decimal(density))
    kept = jnp.round(jnp.asarray(density, jnp.float32) * size).astype(jnp.int32)
    return jnp.clip(kept, 0, size)
