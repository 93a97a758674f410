"""What an optimizer state says of a run: pruned or dense, how sparse, in which phase.

Methods are told apart by these answers, not by their names.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from jaxprune import trees


def placed(tx: optax.GradientTransformation, params: Any) -> Any:
    """The state that a transformation begins with, by shape, and where each array of it lies.

    Args:
      tx: the transformation.
      params: by shape and sharding.

    Returns:
      A tree like ``tx.init(params)``, of `jax.ShapeDtypeStruct`.
    """
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(tx.init, params),
        jaxprune.state_shardings(tx, params),
    )


def is_pruned(opt_state: Any) -> bool:
    """Whether the optimizer state holds that of a pruning method.

    Args:
      opt_state: the optimizer state.

    Returns:
      True, or False for a dense run.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from experiments import states
      >>> states.is_pruned(optax.sgd(0.1).init(jnp.ones(2)))
      False
    """
    return optax.tree.get(opt_state, "prune_count") is not None


def dense_phases(opt_state: Any, steps: int) -> list[tuple[int, int]]:
    """When a run trains more of the network than its masks keep.

    Args:
      opt_state: the optimizer state of the run, at any moment.
      steps: length of the run in updates.

    Returns:
      ``(begin, end)`` of each such phase, in updates completed.

    Examples:
      >>> import jax.numpy as jnp, jaxprune, optax
      >>> from experiments import states
      >>> lengths = {"measure_steps": 1, "improve_steps": 1, "explore_steps": 2, "stop": 4}
      >>> tx = jaxprune.prune_and_grow(optax.sgd(0.1), sparsity=0.5, **lengths)
      >>> states.dense_phases(tx.init({"kernel": jnp.ones((2, 2))}), steps=9)
      [(2, 4)]
    """
    if not is_pruned(opt_state):
        return []

    def at(count: jax.Array) -> jax.Array:
        return jaxprune.sees_dense(optax.tree.set(opt_state, prune_count=count))

    dense = np.asarray(jax.vmap(at)(jnp.arange(steps, dtype=jnp.int32)))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], dense, [False]])))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def sparsity(opt_state: Any) -> float:
    """The sparsity the masks say, 0 for a dense run.

    Args:
      opt_state: the optimizer state.

    Returns:
      A share in [0, 1].
    """
    return float(jaxprune.sparsity_of(opt_state)) if is_pruned(opt_state) else 0.0


def densities(opt_state: Any) -> dict[str, float]:
    """The share of the weights that each layer keeps.

    Args:
      opt_state: the optimizer state.

    Returns:
      ``{path: share}``, empty for a dense run.
    """
    if not is_pruned(opt_state):
        return {}
    masks = trees.by_path(jaxprune.get_masks(opt_state))
    found = jax.device_get({path: jnp.mean(m, dtype=jnp.float32) for path, m in masks.items()})
    return {path: float(share) for path, share in found.items()}


def learned(opt_state: Any) -> dict[str, float]:
    """What a method has learned of each layer, and how dense the layer is.

    Args:
      opt_state: the optimizer state.

    Returns:
      ``learned/<path>`` and ``density/<path>`` where one number is learned of each layer; else
      nothing.
    """
    numbers = optax.tree.get(opt_state, "prune_learned") or {}
    numbers = {p: float(x) for p, x in numbers.items() if getattr(x, "size", 0) == 1}
    if not numbers:
        return {}
    found = {f"learned/{path}": x for path, x in numbers.items()}
    return found | {f"density/{path}": x for path, x in densities(opt_state).items()}
