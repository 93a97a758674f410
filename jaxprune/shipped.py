"""Networks that params and a state stand for: as the loss sees it, as one would ship it."""

from collections.abc import Callable
from typing import Any

import jax

from jaxprune import trees
from jaxprune.state import seen_by, signals_of, weights_and_states
from jaxprune.types import wrong
from jaxprune.views import masked


def view_params(params: Any, opt_state: Any) -> Any:
    """The network as the state says it is: the view of the dense weights, or of the params.

    Equal to ``params`` from the first update on; before it, an exact step 0.

    Args:
      params: the params that the optimizer trains.
      opt_state: its state.

    Returns:
      A tree like ``params``, in its types.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> print(jaxprune.view_params(params, tx.init(params))["kernel"])
      [[1. 0.]
       [0. 1.]]
    """
    weights, states = weights_and_states(params, opt_state)
    for state in states:
        weights |= seen_by(state, weights)
    return trees.from_paths(params, weights)


def active_params(params: Any, opt_state: Any) -> Any:
    """The network one would ship at this moment, also while a method explores.

    Args:
      params: the params that the optimizer trains.
      opt_state: its state.

    Returns:
      A tree like ``params``, exactly 0 off the masks.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> params = {"kernel": jnp.full((2, 2), 3.0)}
      >>> print(jaxprune.active_params(params, tx.init(params))["kernel"])
      [[3. 0.]
       [0. 3.]]
    """
    weights, states = weights_and_states(params, opt_state)
    for state in states:
        weights |= seen_by(state, weights, shipped=True)
    return project(trees.from_paths(params, weights), opt_state)


def project(tree: Any, opt_state: Any) -> Any:
    """Any tree shaped like the params with the masks applied: an average of weights, a gradient.

    Args:
      tree: arrays at the paths of the params; paths without a mask pass untouched.
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      The tree with exactly +0.0 off the masks.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> state = tx.init({"kernel": jnp.ones((2, 2))})
      >>> average = {"kernel": jnp.full((2, 2), 0.5)}
      >>> print(jaxprune.project(average, state)["kernel"])
      [[0.5 0. ]
       [0.  0.5]]
    """
    leaves, states = weights_and_states(tree, opt_state, "tree")
    for state in states:
        masks, units = trees.by_path(state.prune_mask), state.prune_spec.parts.units
        leaves = {**leaves, **masked(leaves, units.support(masks, leaves))}
    return trees.from_paths(tree, leaves)


def eval_params(params: Any, opt_state: Any, f: Callable[[Any, Any], Any]) -> Any:
    """The network to evaluate for optimizers that train one point and ship another.

    Schedule-free optimizers train y and ship x, an average: ``f`` makes x of their state, and the
    view makes the pruned network of x.

    Args:
      params: the params that the optimizer trains.
      opt_state: its state, with one pruning state.
      f: ``f(inner_state, dense) -> tree``, the optimizer's own evaluation function.

    Returns:
      What ``f`` returns, through the view.

    Raises:
      ValueError: if ``opt_state`` does not hold exactly one pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> inner = optax.contrib.schedule_free_sgd(0.1)
      >>> tx = jaxprune.static(inner, masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> shipped = jaxprune.eval_params(
      ...     params, tx.init(params), optax.contrib.schedule_free_eval_params
      ... )
      >>> print(shipped["kernel"])
      [[1. 0.]
       [0. 1.]]

    References:
      Defazio et al., The Road Less Scheduled, 2024, https://arxiv.org/abs/2405.15682.
    """
    weights, states = weights_and_states(params, opt_state)
    if len(states) != 1:
        raise ValueError(wrong("opt_state", "hold one jaxprune method", len(states)))
    state = states[0]
    dense = trees.from_paths(params, signals_of(state, weights).dense)
    result = f(jax.tree.map(trees.unbox, state.prune_inner, is_leaf=trees.is_box), dense)
    leaves = trees.by_path(result)
    signals = signals_of(state, leaves)
    signals = signals._replace(dense={**signals.dense, **leaves})
    seen = state.prune_spec.parts.view.apply(signals)
    return trees.from_paths(result, {**leaves, **seen})
