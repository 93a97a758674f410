"""The refresh: masks, memory and counters change together, inside one conditional, where due.

What the conditional takes in are buffers that exist anyway, and masks and scalars come out; `keep`
is its false branch, which XLA then leaves in place. Where a method grows, the slots of the inner
optimizer go through it too, and where its view settles, the dense weights; both in place.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import slots
from jaxprune.masks.ranking import chosen, largest
from jaxprune.numbers import is_traced
from jaxprune.scores import gradient, magnitude
from jaxprune.selection import Points, Ranked, any_nan, count_true
from jaxprune.state import PRNG, Parts
from jaxprune.trees import by_path, is_complex, known
from jaxprune.types import REST, Candidates, Counts, Leaves, MaskUpdate, Signals

Cuts = tuple[Points | tuple[()], ...]
"""Where the last search of each change ended, if it starts warm; as in the state."""

Counters = tuple[jax.Array, jax.Array, jax.Array]
"""Drift, skipped and revived, as in the state."""


def refresh(
    parts: Parts,
    signals: Signals,
    age: jax.Array,
    params: Leaves,
    counters: Counters,
    inner: Any,
    cuts: Cuts,
) -> tuple[Signals, Counters, Any, Cuts]:
    """Masks, memory, counters and slots after an update; all are held unless a change is due.

    Args:
      parts: the parts of the method.
      signals: what the scores see: weights of before or after the update.
      age: the updates completed, this one included: what schedules read.
      params: the params as they came in, by path, to be searched for drift.
      counters: drift, skipped and revived so far.
      inner: the state of the inner optimizer.
      cuts: where the last searches ended.

    Returns:
      The signals at that age with masks, memory and settled weights renewed; the counters; the
      inner state, in which entries that begin to grow start anew; and where searches ended.
    """
    whens = [update.when(age) for update in parts.mask_updates]
    due = functools.reduce(jnp.logical_or, whens, age == 1)
    if parts.grows and parts.phases is not None:  # a phase may let pruned entries move
        due |= parts.phases(age).step == 0
    settle = parts.view.settle
    held = signals.memory if _renews(parts) else {}
    before, signals = signals._replace(step=age - 1), signals._replace(step=age)

    def change() -> tuple:
        mask, memory, new_counters, begin, grown, new_cuts = _change(
            parts, before, signals, params, counters, whens, cuts
        )
        after = signals._replace(mask=mask, memory=memory or signals.memory)
        dense = {} if settle is None else dict(settle(after, grown))
        new_inner = slots.restarted(inner, begin, mask, params)
        return mask, memory, new_counters, dense, new_inner, new_cuts

    def keep() -> tuple:
        dense = {} if settle is None else {path: signals.dense[path] for path in signals.mask}
        return dict(signals.mask), held, counters, dense, inner, cuts

    mask, memory, counters, dense, inner, cuts = _if(due, change, keep)
    signals = signals._replace(mask=mask, dense={**signals.dense, **dense})
    return signals._replace(memory=memory or signals.memory), counters, inner, cuts


def _renews(parts: Parts) -> bool:
    """Whether there is a memory that a refresh renews."""
    return parts.memory is not None and parts.memory.at == "refresh"


def _if(due: jax.Array, change: Callable[[], Any], keep: Callable[[], Any]) -> Any:
    """One of two; outside jit a conditional would be compiled anew in every step."""
    if is_traced(due):
        return jax.lax.cond(due, change, keep)
    return change() if due else keep()


def _change(
    parts: Parts,
    before: Signals,
    signals: Signals,
    params: Leaves,
    counters: Counters,
    whens: list[jax.Array],
    cuts: Cuts,
) -> tuple[dict[str, jax.Array], Any, Counters, Leaves, Leaves, Cuts]:
    drift, skipped, revived = counters
    first, old = signals.step == 1, signals.mask
    key = jax.random.fold_in(jax.random.wrap_key_data(signals.key, impl=PRNG), signals.step)
    signals = signals._replace(key=jax.random.key_data(key))
    began = started(parts, signals)
    old = {
        path: jnp.where(first, began[path], m) if path in began else m for path, m in old.items()
    }
    signals, failed = signals._replace(mask=old), any_nan(jax.tree.leaves(signals.learned))
    ended = []
    for due, update, near in zip(whens, parts.mask_updates, cuts, strict=True):
        new, failure, near = _if_due(due, update, readable(parts, signals), near)
        failed |= failure
        signals = signals._replace(mask=new)
        ended.append(near)
    mask = {path: jnp.where(failed, old[path], m) for path, m in signals.mask.items()}
    begin = _beginning(parts, before, signals._replace(mask=mask)) if parts.grows else {}
    grown = {path: m & ~before.mask[path] for path, m in mask.items()} if parts.view.settle else {}
    begin, grown = jax.lax.optimization_barrier((begin, grown))
    none = jnp.zeros((), jnp.int32)
    looked = ~first & _looked_at(parts, signals.step)
    odd = _if(looked, lambda: _written(params, hidden(parts, before)), lambda: none)
    # Shifted, no count is negative. But all reading of the old masks has to be done before they
    # are overwritten: where nothing says so, XLA copies them, in every step.
    counts = jnp.stack([odd, *map(count_true, [*begin.values(), *grown.values()])])
    read = jnp.all(jax.lax.shift_right_logical(counts, jnp.ones_like(counts)) >= 0)
    mask = {path: jnp.where(read, m, before.mask[path]) for path, m in mask.items()}
    memory = signals.memory if _renews(parts) else {}
    if parts.memory and memory:
        new = parts.memory.update(signals._replace(mask=mask))
        memory = jax.tree.map(lambda a, b: jnp.where(failed, a, b.astype(a.dtype)), memory, new)
    revived = _if(first, lambda: _kept_zeros(params, mask), lambda: revived)
    counters = drift + odd, skipped + failed.astype(jnp.int32), revived
    return mask, memory, counters, begin, grown, tuple(ended)


def started(parts: Parts, signals: Signals) -> dict[str, jax.Array]:
    """The first masks, where a function gives them."""
    start: Any = parts.start
    if not callable(start):
        return {}
    masks = by_path(start(signals))
    for path in masks:
        known(path, signals.mask, "start", "return masks of prunable leaves")
    return masks


def readable(parts: Parts, signals: Signals) -> Signals:
    """What scores may read: beside a copy they rank new weights, and the gradient is of the old."""
    return signals._replace(grads={}) if parts.view.copy else signals


def _if_due(
    due: jax.Array, update: MaskUpdate, signals: Signals, near: Points | tuple[()]
) -> tuple[dict[str, jax.Array], jax.Array, Points | tuple[()]]:
    """Masks, whether a score is NaN, and where the search ended, changed if due."""
    held = dict(signals.mask), jnp.zeros((), bool), near
    if not update.warm_start:
        return _if(due, lambda: (*changed(update, signals)[:2], near), lambda: held)
    # Due nearly always, so it is computed in any case: the choice is then made in the kernel that
    # writes the masks, where a conditional would write them once more.
    new = changed(update, signals, near)
    return jax.tree.map(lambda new, old: jnp.where(due, new, old), new, held)


def changed(
    update: MaskUpdate, signals: Signals, near: Points | tuple[()] = ()
) -> tuple[dict[str, jax.Array], jax.Array, Points | tuple[()]]:
    """The masks after one change, and whether a score was NaN at a candidate.

    Args:
      update: the change.
      signals: what its score sees.
      near: where the last search ended; none where the change does not start warm.

    Returns:
      ``({path: mask}, failed, points)``, the latter where this search ended.
    """
    mask = signals.mask
    choice = {
        Candidates.ALL: dict.fromkeys(mask),
        Candidates.KEPT: mask,
        Candidates.PRUNED: {path: ~m for path, m in mask.items()},
    }[update.candidates]
    ranked = {path: Ranked(*score, choice[path]) for path, score in _scored(update, signals)}
    counts = update.count(signals)
    if update.candidates is Candidates.PRUNED:
        counts = _missing(counts, mask)
    if ranks_in_place(update):
        options = getattr(update.select, "keywords", {})
        masks, ended, failed = chosen(ranked, counts, **options, near=near or None)
    else:
        scores = {path: score.written() for path, score in ranked.items()}
        masks, ended = dict(update.select(scores, counts)), ()
        failed = any_nan(list(ranked.values()))
    if update.candidates is Candidates.PRUNED:
        masks = {path: masks[path] | m for path, m in mask.items()}
    if update.candidates is Candidates.KEPT and not ranks_in_place(update):
        masks = {path: masks[path] & m for path, m in mask.items()}
    return masks, failed, ended


def ranks_in_place(update: MaskUpdate) -> bool:
    """Whether scores are ranked by `masks.largest`, which writes none of them."""
    return getattr(update.select, "func", update.select) is largest


def _scored(update: MaskUpdate, signals: Signals) -> list[tuple[str, tuple[jax.Array, bool]]]:
    """Scores by path, and whether their magnitude ranks: |w| and |g| are never written out."""
    read: Mapping[Any, Leaves] = {magnitude: signals.dense, gradient: signals.grads}
    of_sizes = read.get(update.score)
    if not of_sizes or any(is_complex(of_sizes[path]) for path in signals.mask):
        scores = update.score(signals)
        return [(path, (scores[path], False)) for path in signals.mask]
    return [(path, (of_sizes[path], True)) for path in signals.mask]


def _missing(counts: Counts, mask: Leaves) -> Counts:
    """How many entries are to grow, so that as many as counted are kept."""
    if not isinstance(counts, Mapping):
        return jnp.maximum(counts - sum(count_true(m) for m in mask.values()), 0)

    def kept(path: str) -> jax.Array:
        if not jnp.ndim(counts.get(path, 0)):
            return count_true(mask[path])
        together = [axis for axis, n in enumerate(jnp.shape(counts[path])) if n == 1]
        return jnp.sum(mask[path], axis=together, keepdims=True, dtype=jnp.int32)

    rest = sum(kept(path) for path in mask if path not in counts)
    return {p: jnp.maximum(c - (rest if p == REST else kept(p)), 0) for p, c in counts.items()}


def _beginning(parts: Parts, before: Signals, after: Signals) -> dict[str, jax.Array]:
    """Pruned entries that begin to move: grown ones, or all those that a phase lets move."""
    moved, moves = moving(parts, before), moving(parts, after)
    return {path: moves[path] & ~moved[path] & ~m for path, m in before.mask.items()}


def moving(parts: Parts, signals: Signals) -> dict[str, jax.Array]:
    """Which prunable entries the update moves."""
    if parts.view.update_scale is None:
        every = parts.view.copy
        return {path: jnp.ones_like(m) if every else m for path, m in signals.mask.items()}
    factors = parts.view.update_scale(signals)
    return {
        path: jnp.broadcast_to(jnp.asarray(factors.get(path, True)).astype(bool), m.shape)
        for path, m in signals.mask.items()
    }


def hidden(parts: Parts, signals: Signals) -> dict[str, jax.Array]:
    """The entries of which the view makes 0: of ones, too."""
    if not parts.view.copy:
        return {path: ~m for path, m in signals.mask.items()}
    ones = {path: jnp.ones_like(signals.dense[path]) for path in signals.mask}
    seen = parts.view.apply(signals._replace(dense={**signals.dense, **ones}))
    return {path: seen[path] == 0 for path in signals.mask}


def _looked_at(parts: Parts, age: jax.Array) -> jax.Array:
    """Whether this refresh searches the params for drift.

    Always if the update before changed no mask, else in every 16th, and in the second update.
    """
    before = [update.when(age - 1) for update in parts.mask_updates]
    return ~functools.reduce(jnp.logical_or, before, jnp.zeros((), bool)) | (age % 16 == 2)


def _written(params: Leaves, hidden: Leaves) -> jax.Array:
    """How many entries are not 0 where the network seen has 0: something else wrote them."""
    counts = [count_true((params[path] != 0) & h) for path, h in hidden.items()]
    return jnp.sum(jnp.stack(counts), dtype=jnp.int32)


def _kept_zeros(params: Leaves, mask: Leaves) -> jax.Array:
    """How many zeros the masks keep beside others: they may grow again, if they were pruned."""
    total = jnp.zeros((), jnp.int32)
    for path, m in mask.items():
        zeros = count_true((params[path] == 0) & m)
        total += jnp.where(zeros == count_true(m), 0, zeros)
    return total
