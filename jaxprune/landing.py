"""Where an update lands: the emitted updates after which the params are the pruned network."""

import jax
import jax.numpy as jnp

from jaxprune.trees import cast
from jaxprune.types import Leaves


def still(moves: jax.Array) -> jax.Array:
    """What moves nothing, not a bit: -0.0 is the neutral element of addition, +0.0 is not."""
    return -jnp.zeros_like(moves)


def scaled(moves: Leaves, factors: Leaves) -> dict[str, jax.Array]:
    """The optimizer's updates times the view's factors; exactly 0 where a factor is.

    Args:
      moves: updates by path.
      factors: bool or number, by path; one where a path is missing.

    Returns:
      Updates by path.
    """
    moves = dict(moves)
    for path, factor in factors.items():
        product = moves[path] * factor.astype(moves[path].dtype)
        moves[path] = jnp.where(factor.astype(bool), product, still(product))
    return moves


def on_support(params: Leaves, moves: Leaves, support: Leaves) -> dict[str, jax.Array]:
    """Updates that move kept entries and put pruned ones on exactly +0.0 (p + -p).

    Args:
      params: as they came in, by path.
      moves: updates by path.
      support: what is kept of the leaves that are pruned.

    Returns:
      Updates in the types of the params.
    """
    emitted = {path: cast(moves[path], p.dtype) for path, p in params.items()}
    for path, m in support.items():
        emitted[path] = jnp.where(m, emitted[path], -params[path])
    return emitted


def on_view(params: Leaves, moves: Leaves, seen: Leaves) -> dict[str, jax.Array]:
    """Updates that put the params on the view: exact where it is 0, within an ulp elsewhere.

    Args:
      params: as they came in, by path.
      moves: updates by path.
      seen: what the leaves that the view changes are to become.

    Returns:
      Updates in the types of the params.
    """
    emitted = {path: cast(moves[path], p.dtype) for path, p in params.items()}
    for path, target in seen.items():
        p, target = params[path], target.astype(params[path].dtype)
        # Of two zeros the difference is +0.0, by which a -0.0 would not stand still.
        emitted[path] = jnp.where((target == 0) & (p == 0), target, target - p)
    return emitted
