"""Costs of a method's steps and of the network it ships, as fractions of the dense ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.refresh import changed, hidden, moving, readable
from jaxprune.schedules import Timeline
from jaxprune.schedules.numbers import is_traced
from jaxprune.selection import count_true
from jaxprune.state import Parts, PruneState, states_of
from jaxprune.types import Candidates, Signals, wrong

Flops = Mapping[str, float]


def step_cost(opt_state: Any, flops: Flops) -> jax.Array:
    """Operations of the coming training step, as a fraction of those of a dense step.

    ``sum_l f_l (2 seen_l + moving_l) / (3 sum_l f_l)``: the forward pass and the gradient of the
    inputs use the share of weights that the network seen has, the gradient of the weights the share
    of weights that move. It is dense on a step whose masks change by gradients of pruned weights,
    as RigL's do; and on every step under a memory of every step that reads gradients and by which
    pruned weights may be chosen. Only of a method with a dense copy, whose pruned weights have a
    time of their own to move, such a memory is taken to need the gradients of what moves.

    Args:
      opt_state: an optimizer state that holds a pruning state; before the first update its masks
        are those given by ``start``, else all kept.
      flops: what `forward_flops` returned; leaves without a mask count as dense.

    Returns:
      A float32 scalar; works under jit.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state, ``flops`` has paths that the params have
        not, or no operations.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> from jaxprune import flops
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> state = tx.init({"kernel": jnp.ones((2, 2)), "head": jnp.ones((2, 2))})
      >>> print(flops.step_cost(state, {"kernel": 8.0, "head": 8.0}))
      0.75

    References:
      Evci et al., Rigging the Lottery, 2020, https://arxiv.org/abs/1911.11134, appendix on FLOPs;
      the rule for methods whose forward pass and gradient have different entries is our reading.
    """
    states = states_of(opt_state)
    return _cost(states, flops, lambda state, when: when(state.prune_count + 1))


def inference_cost(opt_state: Any, flops: Flops) -> jax.Array:
    """Operations of the pruned network, as a fraction of those of the dense one.

    ``sum_l f_l density_l / sum_l f_l``.

    Args:
      opt_state: an optimizer state that holds a pruning state.
      flops: what `forward_flops` returned; leaves without a mask count as dense.

    Returns:
      A float32 scalar; works under jit.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state, ``flops`` has paths that the params have
        not, or no operations.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> from jaxprune import flops
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> state = tx.init({"kernel": jnp.ones((2, 2)), "head": jnp.ones((2, 2))})
      >>> print(flops.inference_cost(state, {"kernel": 24.0, "head": 8.0}))
      0.625

    References:
      Evci et al., Rigging the Lottery, 2020, https://arxiv.org/abs/1911.11134, appendix on FLOPs.
    """
    states = states_of(opt_state)
    density = [{p: _share(m) for p, m in trees.by_path(s.prune_mask).items()} for s in states]
    return _weighted(states, flops, density)


def stage_costs(opt_state: Any, flops: Flops) -> dict[str, float]:
    """Training cost in each phase of a method, under the masks of now.

    Args:
      opt_state: an optimizer state that holds a pruning state.
      flops: what `forward_flops` returned.

    Returns:
      ``{name of the phase: fraction of a dense step}`` at an ordinary step, the first of the phase;
      and under ``"mask step"`` that of a step now that changes masks, if it costs more. Of phases
      that are not a `Timeline` only the present one is known.

    Raises:
      ValueError: as `step_cost`.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> from jaxprune import flops
      >>> tx = jaxprune.prune_and_grow(optax.sgd(0.1), sparsity=0.5, stop=900)
      >>> params = {"kernel": jnp.ones((4, 2))}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> costs = flops.stage_costs(state, {"kernel": 16.0})
      >>> {name: round(cost, 3) for name, cost in costs.items()}
      {'measure': 0.5, 'improve': 0.5, 'explore': 0.833, 'train': 0.5}

    References:
      original.
    """
    states = states_of(opt_state)
    costs = {
        name: float(_cost([s._replace(prune_count=at) for s in states], flops, _never))
        for name, at in _first_steps(states[0]).items()
    }
    ordinary, changing = (float(_cost(states, flops, due)) for due in (_never, _always))
    return costs | ({"mask step": changing} if changing > ordinary else {})


def _never(*_: Any) -> jax.Array:
    return jnp.zeros((), bool)


def _always(*_: Any) -> jax.Array:
    return jnp.ones((), bool)


def _first_steps(state: PruneState) -> dict[str, jax.Array]:
    """The step at which each phase begins for the first time."""
    phases, count = state.prune_spec.parts.phases, state.prune_count
    if phases is None:
        return {"train": count}
    if not isinstance(phases, Timeline):
        return {phases(count).name: count}
    lengths = [length for _, length in phases.parts]
    begins = np.cumsum([0, *(length or 0 for length in lengths[:-1])])
    first: dict[str, jax.Array] = {}
    for (name, length), begin in zip(phases.parts, begins, strict=True):
        if length != 0:
            first.setdefault(name, jnp.int32(begin))
    return first


def _cost(
    states: Sequence[PruneState], flops: Flops, due: Callable[[PruneState, Any], jax.Array]
) -> jax.Array:
    """What `step_cost` says, at a step at which those mask updates happen."""
    shares = []
    for state in states:
        parts, signals = state.prune_spec.parts, _signals(state)
        seen = {path: 1 - _share(h) for path, h in hidden(parts, signals).items()}
        moves = {path: _share(m) for path, m in moving(parts, signals).items()}
        dense = jnp.full((), _remembers_pruned(parts, signals))
        for update in parts.mask_updates:
            if _chooses_pruned_by(update, parts, signals, "grads"):
                dense |= due(state, update.when)
        moves = {path: jnp.where(dense, 1, m) for path, m in moves.items()}
        shares.append({path: (2 * seen[path] + moves[path]) / 3 for path in seen})
    return _weighted(states, flops, shares)


def _signals(state: PruneState) -> Signals:
    """What a view needs to tell zeros: the values of weights, where there is no copy, do not."""
    masks = trees.by_path(state.prune_mask)
    one = np.ones((), np.float32)  # in numpy, where a tree of them takes no memory
    ones = {path: np.broadcast_to(one, m.shape) for path, m in masks.items()}
    dense = ones | trees.by_path(state.prune_dense)
    return Signals(
        state.prune_count, dense, masks, dense, memory=state.prune_memory, key=state.prune_key
    )


def _remembers_pruned(parts: Parts, signals: Signals) -> bool:
    """Whether every step needs the gradients of weights that are pruned and do not move."""
    memory = parts.memory
    if memory is None or memory.at != "step" or parts.view.copy:
        return False
    return _needs(memory.update, signals, "grads") and any(
        _chooses_pruned_by(update, parts, signals, "memory") for update in parts.mask_updates
    )


def _chooses_pruned_by(update: Any, parts: Parts, signals: Signals, what: str) -> bool:
    """Whether a mask update may keep a pruned weight because of its gradient, or its memory."""
    if update.candidates is Candidates.KEPT:
        return False
    return _needs(lambda s: changed(update, readable(parts, s)), signals, what)


def _needs(function: Callable[[Signals], Any], signals: Signals, what: str) -> bool:
    """Whether a function works with a field of the signals, and fails without: nothing is run."""

    def works(given: Signals) -> bool:
        try:
            jax.eval_shape(function, given)
        except (ValueError, KeyError):
            return False
        return True

    return not works(signals._replace(**{what: {}})) and works(signals)


def _share(entries: jax.Array) -> jax.Array:
    return count_true(entries).astype(jnp.float32) / entries.size


def _weighted(
    states: Sequence[PruneState], flops: Flops, shares: Sequence[Mapping[str, jax.Array]]
) -> jax.Array:
    """Shares of leaves, weighted by their operations; leaves without a share count as a whole."""
    total = sum(flops.values())
    if not is_traced(total) and not total > 0:
        raise ValueError(wrong("flops", "have an operation", dict(flops)))
    paths = {path for state in states for path in trees.all_paths(state.prune_mask)}
    for path in flops:
        trees.known(path, paths, "flops", "have only paths of the params")
    saved = jnp.zeros((), jnp.float32)
    for path, share in {p: x for each in shares for p, x in each.items()}.items():
        saved += (1 - share) * (flops.get(path, 0.0) / total)
    return 1 - saved
