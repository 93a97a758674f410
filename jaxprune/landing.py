"""Where an update lands: the emitted updates after which the params are the pruned network."""

import jax
import jax.numpy as jnp

from jaxprune.trees import cast
from jaxprune.types import Leaves


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
        moves[path] = jnp.where(factor.astype(bool), product, 0)
    return moves


def on_masks(params: Leaves, moves: Leaves, mask: Leaves) -> dict[str, jax.Array]:
    """Updates that move kept entries and put pruned ones on exactly +0.0 (p + -p).

    Args:
      params: as they came in, by path.
      moves: updates by path.
      mask: masks of the leaves that are pruned.

    Returns:
      Updates in the types of the params.
    """
    emitted = {path: cast(moves[path], p.dtype) for path, p in params.items()}
    for path, m in mask.items():
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
        emitted[path] = target.astype(params[path].dtype) - params[path]
    return emitted
