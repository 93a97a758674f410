"""The learner's part of an update: what a method learns beside the weights takes a step, too."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.types import Learner, Signals


def learned_step(
    learner: Learner, signals: Signals, grads: Any, slots: Any, **extra: Any
) -> tuple[Any, Any]:
    """What is learned after one step of its own optimizer.

    Args:
      learner: how it is learned.
      signals: what the network that the loss saw was made of.
      grads: the gradient of the loss with respect to what is learned.
      slots: the state of the learner's optimizer.
      **extra: what the update was given beside gradients and params.

    Returns:
      What is learned, and the optimizer's state; both as they were where it is not its turn.
    """
    learned = signals.learned

    def step() -> tuple[Any, Any]:
        total = grads
        if learner.penalty is not None:
            penalty = learner.penalty
            more = jax.grad(lambda x: penalty(signals._replace(learned=x)))(learned)
            total = optax.tree.add(grads, more)
        optimizer = optax.with_extra_args_support(learner.optimizer)
        moves, new_slots = optimizer.update(total, slots, learned, **extra)
        new = optax.apply_updates(learned, moves)
        return (new if learner.project is None else learner.project(new)), new_slots

    if learner.alternate is None:
        return step()
    return jax.lax.cond(learner.alternate(signals.step)[1], step, lambda: (learned, slots))


def in_turn(
    learner: Learner | None, step: jax.Array, move: Callable[[], tuple[Any, Any]], slots: Any
) -> tuple[Any, Any]:
    """The weights' moves and the state of their optimizer; no moves where it is not their turn.

    Args:
      learner: says whose turn it is, where there is one.
      step: the age of the network.
      move: computes the moves and the new state.
      slots: the state as it is.

    Returns:
      ``(moves, state)``.
    """
    if learner is None or learner.alternate is None:
        return move()

    def hold() -> tuple[Any, Any]:
        moves, _ = jax.eval_shape(move)
        return jax.tree.map(jnp.zeros_like, moves), slots

    return jax.lax.cond(learner.alternate(step)[0], move, hold)
