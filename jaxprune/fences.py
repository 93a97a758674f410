"""What XLA has to be told, lest it copies parameters: the order of readers and writers.

On a CPU an array that a step donates is overwritten in place only where XLA can see that all who
read it have done so before. It does not look for such an order; where none follows from the data,
it copies the array, in every step. A *fence* makes one follow: what overwrites depends on one
number of what was read, through a comparison that always holds and that XLA cannot see through.
Three are needed:

- `read_before`: new weights are written over the old ones after something else has read these;
- `known_after`: a conditional that writes new masks over the old ones begins after the weights
  that were computed from the old ones;
- `overwritten_after`: inside it, new masks are written after all that compares them with the old.

For a TPU XLA looks for an order itself: `read_before` is nothing there, and `known_after` a
barrier. But it moves operations that follow a conditional into its branches, and then both write
what these compute, 4 bytes an entry where a mask has 1: behind `either` they stay where they are.

And masks cut by bits (`cut`): exact, whatever stood there, and faster than a select.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.numbers import is_traced
from jaxprune.selection.counting import count_true


def either(flag: jax.Array, change: Callable[[], Any], keep: Callable[[], Any]) -> Any:
    """One of two trees; nothing that is computed from it moves into the branches.

    Args:
      flag: a bool scalar. One that is known is no branch: outside jit a conditional would be
        compiled anew in every step.
      change: returns the tree if it is True.
      keep: if it is False; what it passes on as it is, XLA leaves in place.

    Returns:
      What the one returned.
    """
    if not is_traced(flag):
        return change() if flag else keep()
    return _together_on_tpu(lax.cond(flag, change, keep))


def once(x: jax.Array) -> jax.Array:
    """An array as it is, computed once: all who read it read the same bits.

    XLA computes a small array again for each of its readers, and a sum perhaps in another order.
    Of scores that are ranked, one bit more than when they were counted is one too many kept.
    """
    if not is_traced(x) or not x.size or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{jnp.finfo(x.dtype).bits}"))
    # Shifted, no number is the largest, which XLA does not know; a barrier XLA:CPU takes away.
    known = jnp.max(bits >> bits.dtype.type(1)) < bits.dtype.type(np.iinfo(bits.dtype).max)
    return lax.cond(known, lambda: x, lambda: jnp.zeros_like(x))


def read_before(written: Any, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Arrays as they are, but not to be overwritten until others have been computed from them.

    Args:
      written: a tree of what is computed from them.
      arrays: ``{path: array}``.

    Returns:
      The arrays, for whoever overwrites them to read.
    """
    done = _computed(written)
    if done is None:
        return dict(arrays)
    return {path: jnp.where(done, x, jnp.zeros_like(x)) for path, x in arrays.items()}


def known_after(flag: jax.Array, computed: Any) -> jax.Array:
    """A flag as it is, but not known until some arrays are: a branch on it runs after them.

    Args:
      flag: a bool scalar.
      computed: a tree of arrays.

    Returns:
      The flag.
    """
    done = _computed(computed)
    return _together_on_tpu((flag, computed))[0] if done is None else flag & done


def _together_on_tpu(tree: Any) -> Any:
    """Arrays as they are; for a TPU none of them is there before all are.

    Behind such a barrier XLA:CPU has let sharded programs wait for each other for ever.
    """
    return lax.platform_dependent(tree, tpu=lax.optimization_barrier, default=lambda tree: tree)


def _computed(arrays: Any) -> jax.Array | None:
    """True, which XLA does not know before the arrays are there; None where nobody has to know."""
    leaves = [x for x in jax.tree.leaves(arrays) if x.size and x.dtype.itemsize == 4]
    if not leaves or jax.default_backend() != "cpu" or jax.device_count() != 1:
        return None
    first = [lax.slice(leaf.reshape(-1), (0,), (1,))[0] for leaf in leaves]
    bits = jnp.stack([lax.bitcast_convert_type(x, jnp.uint32) for x in first])
    return lax.platform_dependent(  # what is exported for other devices needs none
        bits,
        cpu=lambda bits: jnp.sum(bits >> np.uint32(16), dtype=jnp.int32) >= 0,
        default=lambda bits: jnp.ones((), bool),
    )


def overwritten_after(read: Any, new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """New arrays, not to take the place of old ones until others have been computed from those.

    Args:
      read: a tree of bool arrays, computed from the old ones and used later.
      new: ``{path: array}`` that take their place.
      old: what they replace.

    Returns:
      The new arrays.
    """
    read = lax.optimization_barrier(jax.tree.leaves(read))
    if not read:
        return dict(new)
    counts = jnp.stack([count_true(x) for x in read])
    # Shifted, no count is negative, which XLA does not know.
    done = jnp.all(lax.shift_right_logical(counts, jnp.ones_like(counts)) >= 0)
    return {path: jnp.where(done, x, old[path]) for path, x in new.items()}


def cut(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The array where the mask is True, and exactly +0.0 elsewhere, whatever stood there.

    ``bits(x) & -mask``: one integer operation, which NaN and infinities pass as well; not
    differentiable. The mask has the rank of the array, and may be 1 along axes.
    """
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return lax.complex(cut(x.real, mask), cut(x.imag, mask))
    unsigned = jnp.dtype(f"uint{jnp.finfo(x.dtype).bits}")
    bits = lax.bitcast_convert_type(x, unsigned)
    return lax.bitcast_convert_type(bits & -mask.astype(unsigned), x.dtype)
