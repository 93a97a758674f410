"""The refresh: masks, memory and counters change together, inside one conditional, where due.

What the conditional takes in are buffers that exist anyway, and masks and scalars come out; `keep`
is its false branch, which XLA then leaves in place.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.masks import largest
from jaxprune.schedules.numbers import is_traced
from jaxprune.scores import magnitude
from jaxprune.selection import Ranked, any_nan, count_true
from jaxprune.state import PRNG, Parts
from jaxprune.trees import by_path, is_complex, known
from jaxprune.types import REST, Candidates, Counts, Leaves, MaskUpdate, Signals

Counters = tuple[jax.Array, jax.Array, jax.Array]
"""Drift, skipped and revived, as in the state."""


def refresh(
    parts: Parts, signals: Signals, age: jax.Array, params: Leaves, counters: Counters
) -> tuple[Signals, Counters]:
    """Masks, memory and counters after an update; all are held unless a change is due.

    Args:
      parts: the parts of the method.
      signals: what the scores see: weights of before or after the update.
      age: the updates completed, this one included: what schedules read.
      params: the params as they came in, by path, to be searched for drift.
      counters: drift, skipped and revived so far.

    Returns:
      The signals at that age with masks and memory renewed, and the counters.
    """
    signals = signals._replace(step=age)
    whens = [update.when(age) for update in parts.mask_updates]
    due = functools.reduce(jnp.logical_or, whens, age == 1)

    def change() -> tuple:
        return _change(parts, signals, params, counters, whens)

    def keep() -> tuple:
        return dict(signals.mask), signals.memory, counters

    if is_traced(due):
        mask, memory, counters = jax.lax.cond(due, change, keep)
    else:  # outside jit a conditional would be compiled anew in every step
        mask, memory, counters = change() if due else keep()
    return signals._replace(mask=mask, memory=memory), counters


def _change(
    parts: Parts, signals: Signals, params: Leaves, counters: Counters, whens: list[jax.Array]
) -> tuple:
    drift, skipped, revived = counters
    first, old = signals.step == 1, signals.mask
    odd = _odd_entries(params, old, first)
    key = jax.random.fold_in(jax.random.wrap_key_data(signals.key, impl=PRNG), signals.step)
    signals = signals._replace(key=jax.random.key_data(key))
    began = started(parts, signals)
    old = {
        path: jnp.where(first, began[path], m) if path in began else m for path, m in old.items()
    }
    signals, failed = signals._replace(mask=old), jnp.zeros((), bool)
    for due, update in zip(whens, parts.mask_updates, strict=True):
        chosen, failure = changed(update, readable(parts, signals))
        failed |= due & failure
        # The count is never negative. But it has to be done before the old masks are overwritten:
        # where nothing says so, XLA copies them, in every step.
        due &= odd >= 0
        new = {path: jnp.where(due, chosen[path], m) for path, m in signals.mask.items()}
        signals = signals._replace(mask=new)
    mask = {path: jnp.where(failed, old[path], m) for path, m in signals.mask.items()}
    memory = signals.memory
    if parts.memory:
        new = parts.memory.update(signals._replace(mask=mask))
        memory = jax.tree.map(lambda a, b: jnp.where(failed, a, b.astype(a.dtype)), memory, new)
    drift += jnp.where(first, 0, odd)
    skipped += failed.astype(jnp.int32)
    return mask, memory, (drift, skipped, jnp.where(first, odd, revived))


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


def changed(update: MaskUpdate, signals: Signals) -> tuple[dict[str, jax.Array], jax.Array]:
    """The masks after one change, and whether a score was NaN at a candidate.

    Args:
      update: the change.
      signals: what its score sees.

    Returns:
      ``({path: mask}, failed)``.
    """
    mask = signals.mask
    choice = {
        Candidates.ALL: dict.fromkeys(mask),
        Candidates.KEPT: mask,
        Candidates.PRUNED: {path: ~m for path, m in mask.items()},
    }[update.candidates]
    ranked = {path: Ranked(*score, choice[path]) for path, score in _scored(update, signals)}
    by_key = getattr(update.select, "func", update.select) is largest
    scores = ranked if by_key else {path: score.written() for path, score in ranked.items()}
    counts = update.count(signals)
    if update.candidates is Candidates.PRUNED:
        counts = _missing(counts, mask)
    chosen = dict(update.select(scores, counts))
    if update.candidates is Candidates.PRUNED:
        chosen = {path: chosen[path] | m for path, m in mask.items()}
    if update.candidates is Candidates.KEPT:
        chosen = {path: chosen[path] & m for path, m in mask.items()}
    return chosen, any_nan(list(ranked.values()))


def _scored(update: MaskUpdate, signals: Signals) -> list[tuple[str, tuple[jax.Array, bool]]]:
    """Scores by path, and whether it is their magnitude that ranks: |w| is never written out."""
    if update.score is not magnitude:
        scores = update.score(signals)
        return [(path, (scores[path], False)) for path in signals.mask]
    weights = {path: signals.dense[path] for path in signals.mask}
    return [
        (path, (jnp.abs(w), False) if is_complex(w) else (w, True)) for path, w in weights.items()
    ]


def _missing(counts: Counts, mask: Leaves) -> Counts:
    """How many entries are to grow, so that as many as counted are kept."""
    kept = {path: jnp.sum(m, dtype=jnp.int32) for path, m in mask.items()}
    if not isinstance(counts, Mapping):
        return jnp.maximum(counts - sum(kept.values()), 0)
    rest = sum(k for path, k in kept.items() if path not in counts)
    return {p: jnp.maximum(c - (rest if p == REST else kept[p]), 0) for p, c in counts.items()}


def _odd_entries(params: Leaves, mask: Leaves, first: jax.Array) -> jax.Array:
    """Entries that a pruned network should not have: one count, of two kinds.

    On the first update the zeros that are kept, in a leaf that has others: they may grow again.
    Later what is not 0 where it is pruned: something else wrote it.
    """
    total = jnp.zeros((), jnp.int32)
    for path, m in mask.items():
        p = params[path]
        odd = jnp.where(first, (p == 0) & m, (p != 0) & ~m)
        count = count_true(odd)
        total += jnp.where(first & (count == p.size), 0, count)
    return total
