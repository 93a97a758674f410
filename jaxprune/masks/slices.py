"""The highest of each slice of a leaf that stacks layers: counts that are arrays."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.selection import keep_largest
from jaxprune.types import Ranked, wrong


def largest_of_slices(
    leaves: Mapping[str, Ranked], counts: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Keeps given numbers of the highest scores of each slice.

    Leaves that stack equally many slices are ranked by one program of a slice, so that compiling
    takes no longer for many slices than for one. The axis of the stack must not be sharded over
    devices: on an Auto mesh XLA would gather the slices, on an Explicit one JAX refuses.

    Args:
      leaves: ``{path: scores}``.
      counts: ``{path: integers}`` of the leaf's rank: along one axis as many as the leaf is long,
        1 along all others.

    Returns:
      ``{path: mask}``.

    Raises:
      ValueError: if counts have another shape.
    """
    axes = {path: _stack_axis(path, leaf, counts[path]) for path, leaf in leaves.items()}
    stacks: dict[int, list[str]] = {}
    for path, leaf in leaves.items():
        stacks.setdefault(leaf.values.shape[axes[path]], []).append(path)
    masks = {}
    for length, paths in stacks.items():
        numbers = [jnp.reshape(jnp.asarray(counts[path]), (length,)) for path in paths]
        found = _compiled(
            [leaves[path] for path in paths],
            jnp.stack(numbers, axis=1),
            axes=tuple(axes[path] for path in paths),
        )
        masks |= zip(paths, found, strict=True)
    return {path: masks[path] for path in leaves}


def _stack_axis(path: str, leaf: Ranked, count: Any) -> int:
    """The axis along which there are several counts."""
    shape, given = leaf.values.shape, jnp.shape(count)
    long = [axis for axis, n in enumerate(given) if n != 1]
    if len(given) != len(shape) or len(long) != 1 or given[long[0]] != shape[long[0]]:
        expected = f"be one number for '{path}', or {shape} on one axis and 1 on the others"
        raise ValueError(wrong("counts", expected, given))
    return long[0]


@functools.partial(jax.jit, static_argnames="axes", inline=True)
def _compiled(leaves: list[Ranked], counts: jax.Array, axes: tuple[int, ...]) -> list[jax.Array]:
    leaves = [leaf.of_arrays(lax.stop_gradient) for leaf in leaves]

    # One by one: a slice is all that is copied, and under `vmap` every conditional of the selection
    # would become a choice between two computed arrays.
    def keep(i: jax.Array) -> list[jax.Array]:
        slices = [_slice(leaf, axis, i) for leaf, axis in zip(leaves, axes, strict=True)]
        return keep_largest(slices, list(counts[i]), range(len(axes)))[0]

    masks = lax.map(keep, jnp.arange(len(counts)))
    return [jnp.moveaxis(mask, 0, axis) for mask, axis in zip(masks, axes, strict=True)]


def _slice(leaf: Ranked, axis: int, i: jax.Array) -> Ranked:
    return leaf.of_arrays(lambda x: lax.dynamic_index_in_dim(x, i, axis, keepdims=False))
