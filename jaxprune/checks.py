"""Checks of params against the state: is this the network it says, and by the same rules."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.starts import AtRandom
from jaxprune.state import (
    PruneState,
    check_apart,
    check_single,
    is_state,
    seen_by,
    signals_of,
    states_of,
    unboxed,
    weights_and_states,
)
from jaxprune.types import Leaves, wrong


def rebase(params: Any, opt_state: Any) -> Any:
    """Adopts params that were edited between steps.

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
    """
    weights, _ = weights_and_states(params, opt_state)

    def adopt(node: Any) -> Any:
        if not is_state(node):
            return node
        dense = _adopted(unboxed(node), weights)
        adopted = trees.map_with_path(lambda p, w: dense.get(p, w), node.prune_dense)
        return node._replace(prune_dense=adopted)

    opt_state = getattr(opt_state, "opt_state", opt_state)
    return jax.tree.map(adopt, opt_state, is_leaf=is_state)


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
    view within a few units in the last place. Beside a state that has had no update params must not
    have been pruned, as far as that can be told. Runs outside jit.

    Args:
      params: the params that the optimizer trains.
      opt_state: its state.

    Raises:
      ValueError: naming the path of the first leaf that is off; or if the state is that of other
        params, or of several networks.

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
    """
    weights, states = weights_and_states(params, opt_state)
    check_single(states)
    check_apart(states)
    for state in states:
        if int(state.prune_count):
            _verify(state, weights)
        else:
            _check_fresh(state, weights)


def _check_fresh(state: PruneState, weights: Leaves) -> None:
    """Refuses params that have been pruned, beside a state that has had no update."""
    start = state.prune_spec.parts.start
    s = signals_of(state, weights)
    support = s.support
    zeros = {path: weights[path] == 0 for path in support}
    others = [path for path in zeros if not bool(jnp.all(zeros[path]))]
    pruned = sum(int(jnp.sum(~support[path] & zeros[path])) for path in others)
    kept = sum(int(jnp.sum(support[path] & zeros[path])) for path in others)
    off = sum(int(jnp.sum(~support[path] & ~zeros[path])) for path in others)
    as_drawn = isinstance(start, AtRandom) and pruned and not off
    if as_drawn or (start is None and kept):
        came = f"one before its first update, beside params with {pruned + kept} zeros"
        hint = "a network that is sparse already is told by `start`" if kept else ""
        raise ValueError(wrong("opt_state", "be what the last `update` returned", came, hint))


def written_off(state: PruneState, weights: Leaves) -> dict[str, int]:
    """How many entries of each leaf are not 0 though the network seen has 0 there.

    Args:
      state: a state after its first update, unboxed.
      weights: the params by path.

    Returns:
      ``{path: number}`` for the leaves that are pruned.
    """
    seen, support = seen_by(state, weights), signals_of(state, weights).support
    return {
        path: int(jnp.sum((weights[path] != 0) & ~kept & (seen[path] == 0)))
        for path, kept in support.items()
    }


def _verify(state: PruneState, weights: Leaves) -> None:
    remedy = "`rebase(params, opt_state)` adopts an edit; nothing may change updates after a method"
    for path, off in written_off(state, weights).items():
        if off:
            came = f"{off} other entries at '{path}'"
            raise ValueError(f"`params` must be 0 where pruned, got {came}: {remedy}")
    seen = seen_by(state, weights)
    for path, dense in trees.by_path(state.prune_dense).items():
        if not _is_view(weights[path], seen[path], dense):
            expected = "be the view of the dense weights"
            raise ValueError(f"`params` must {expected}, got others at '{path}': {remedy}")


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
    """
    described = [state.prune_spec.describe() for state in states_of(opt_state)]
    return described[0] if len(described) == 1 else {"methods": described}


def check_rules(saved: dict[str, Any], opt_state: Any) -> None:
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
      >>> jaxprune.check_rules(jaxprune.describe(state(0.5)), state(0.5))
      >>> jaxprune.check_rules(jaxprune.describe(state(0.5)), state(0.9))
      Traceback (most recent call last):
      ...
      ValueError: `opt_state` must go on by the saved rules, got sparsity=0.9 where 0.5 was saved
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
