"""Checks of params against the state: is this the network it says, and by the same rules."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.state import PruneState, seen_by, signals_of, states_of, unboxed
from jaxprune.types import Leaves, wrong


def rebase(params: Any, opt_state: Any) -> Any:
    """Adopts params that were edited between steps, and clears the count of drift.

    A method with a dense copy holds the truth in its state and would undo an edit (clipping, a
    swapped-in average, restored weights): its dense weights become those whose view the params are.
    Entries that were not edited, which are their view within rounding, keep theirs bit for bit.

    Args:
      params: the params as they are to be.
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      The new optimizer state, in the same containers.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.straight_through(optax.sgd(0.0), sparsity=0.5, ramp=(0, 9))
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> edited = {"kernel": jnp.full((2, 2), 5.0)}
      >>> state = jaxprune.rebase(edited, state)
      >>> jaxprune.verify(edited, state)

    References:
      original.
    """
    states_of(opt_state)  # the errors of a state without a method, or with nested ones
    weights = trees.by_path(params)

    def adopt(node: Any) -> Any:
        if not isinstance(node, PruneState):
            return node
        dense = _adopted(unboxed(node), weights)
        drift = trees.rebox(node.prune_drift, jnp.zeros((), jnp.int32))
        return node._replace(
            prune_dense=trees.map_with_path(lambda p, w: dense.get(p, w), node.prune_dense),
            prune_drift=drift,
        )

    opt_state = getattr(opt_state, "opt_state", opt_state)
    return jax.tree.map(adopt, opt_state, is_leaf=lambda node: isinstance(node, PruneState))


def _adopted(state: PruneState, weights: Leaves) -> dict[str, jax.Array]:
    """Dense weights of which the params are the view; unedited entries as they were."""
    copies = trees.by_path(state.prune_dense)
    seen, view = seen_by(state, weights), state.prune_spec.parts.view
    given = {path: weights[path].astype(copy.dtype) for path, copy in copies.items()}
    dense = given
    if view.inverse is not None:
        signals = signals_of(state, weights)
        dense = {**given, **view.inverse(signals._replace(dense={**signals.dense, **given}))}
    return {
        path: jnp.where(_equal(weights[path], seen[path]), copy, dense[path])
        for path, copy in copies.items()
    }


def verify(params: Any, opt_state: Any) -> None:
    """Checks that the params are the pruned network the state says they are.

    Pruned entries must be exactly 0; where the state holds a dense copy, kept entries must be its
    view within a few units in the last place; and no refresh may have met entries off the mask that
    something else wrote. Runs outside jit.

    Args:
      params: the params that the optimizer trains.
      opt_state: its state.

    Raises:
      ValueError: naming the path of the first leaf that is off, or the drift.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> jaxprune.verify(optax.apply_updates(params, updates), state)
      >>> jaxprune.verify(params, state)
      Traceback (most recent call last):
      ...
      ValueError: `params` must be 0 where pruned, got 2 other entries at 'kernel': ...

    References:
      original.
    """
    weights = trees.by_path(params)
    for state in states_of(opt_state):
        if int(state.prune_count):
            _verify(state, weights)


def _verify(state: PruneState, weights: Leaves) -> None:
    remedy = "`rebase(params, opt_state)` adopts an edit; nothing may change updates after a method"
    masks = trees.by_path(state.prune_mask)
    seen = seen_by(state, weights)
    for path, mask in masks.items():
        pruned = seen[path] == 0 if state.prune_spec.parts.view.copy else ~mask
        off = int(jnp.sum((weights[path] != 0) & ~mask & pruned))
        if off:
            came = f"{off} other entries at '{path}'"
            raise ValueError(f"`params` must be 0 where pruned, got {came}: {remedy}")
    for path, dense in trees.by_path(state.prune_dense).items():
        if not _is_view(weights[path], seen[path], dense):
            expected = "be the view of the dense weights"
            raise ValueError(f"`params` must {expected}, got others at '{path}': {remedy}")
    if int(state.prune_drift):
        came = f"{int(state.prune_drift)} entries that something else wrote"
        raise ValueError(f"`params` must stay 0 where pruned, got {came}: {remedy}")


def _is_view(params: jax.Array, seen: jax.Array, dense: jax.Array) -> bool:
    """Whether a leaf is its view, as updates land on it.

    An update lands within a unit in the last place of the old entry or the new, whichever is
    larger. The old one is not known any more: most were no larger than the dense weight is, but an
    entry that has just crossed 0 was, and no entry was much larger than the largest is.
    """
    sizes = jnp.maximum(jnp.abs(seen), jnp.abs(dense).astype(jnp.abs(seen).dtype))
    largest = jnp.max(jnp.where(jnp.isfinite(sizes), sizes, 0), initial=0)
    off, unit = jnp.abs(params - seen), 2 * _unit(seen)
    landed = _equal(params, seen) | (off <= unit * largest)
    close = jnp.sum((_equal(params, seen) | (off <= unit * sizes)) & (seen != 0))
    return bool(jnp.all(landed) & (2 * close >= jnp.sum(seen != 0)))


def _equal(a: jax.Array, b: jax.Array) -> jax.Array:
    """Equal within two units in the last place; NaN equal to NaN."""
    bound = 2 * _unit(a) * jnp.maximum(jnp.abs(a), jnp.abs(b))
    return (jnp.abs(a - b) <= bound) | (a == b) | (jnp.isnan(a) & jnp.isnan(b))


def _unit(array: jax.Array) -> jax.Array:
    return jnp.asarray(jnp.finfo(array.dtype).eps, array.real.dtype)


def describe(opt_state: Any) -> dict[str, Any]:
    """The method and its values as JSON, to keep beside a checkpoint.

    Args:
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      ``{"method": name, argument: value, ...}``; of several methods side by side,
      ``{"methods": [...]}``.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=0.5, ramp=(0, 9))
      >>> jaxprune.describe(tx.init({"kernel": jnp.ones((2, 2))}))["ramp"]
      [0, 9]

    References:
      original.
    """
    described = [state.prune_spec.describe() for state in states_of(opt_state)]
    return described[0] if len(described) == 1 else {"methods": described}


def check(saved: dict[str, Any], opt_state: Any) -> None:
    """Refuses to go on from a checkpoint that was trained by other rules.

    Args:
      saved: what `describe` gave when the checkpoint was written.
      opt_state: a state of the transformation to go on with.

    Raises:
      ValueError: naming the first value that differs.
      TypeError: if ``saved`` is no description.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> def state(s):
      ...     tx = jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=s, ramp=(0, 9))
      ...     return tx.init(params)
      >>> jaxprune.check(jaxprune.describe(state(0.5)), state(0.5))
      >>> jaxprune.check(jaxprune.describe(state(0.5)), state(0.9))
      Traceback (most recent call last):
      ...
      ValueError: `opt_state` must go on by the saved rules, got sparsity=0.9 where 0.5 was saved

    References:
      original.
    """
    if not isinstance(saved, Mapping):
        raise TypeError(wrong("saved", "be what `describe` returned", type(saved)))
    now = json.loads(json.dumps(describe(opt_state)))
    saved = json.loads(json.dumps(saved))
    for name in [*saved, *(name for name in now if name not in saved)]:
        before, after = saved.get(name, "nothing"), now.get(name, "nothing")
        if json.dumps(before) != json.dumps(after):
            came = f"{name}={after!r} where {before!r} was saved"
            raise ValueError(f"`opt_state` must go on by the saved rules, got {came}")
