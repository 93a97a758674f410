"""The refresh: all that `Held` names changes together, inside one conditional, where it is due.

What the conditional takes in are buffers that exist anyway; `keep` is its false branch, which XLA
then leaves in place.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import slots
from jaxprune.fences import either, known_after, overwritten_after
from jaxprune.selection import any_nan
from jaxprune.spec import Parts
from jaxprune.starts import started
from jaxprune.state import PRNG
from jaxprune.types import Candidates, Chosen, Leaves, MaskUpdate, Ranked, Signals


class Held(NamedTuple):
    """What a refresh may change. All else of an update is read only in it.

    Attributes:
      mask: the masks.
      dense: the dense weights that settle; empty where a view settles none.
      memory: what is remembered between refreshes; empty where that is nothing.
      slots: the state of the inner optimizer, in which what begins to grow starts anew.
      skipped: refreshes skipped because a score was NaN.
    """

    mask: Leaves
    dense: Leaves
    memory: Any
    slots: Any
    skipped: jax.Array


def refresh(
    parts: Parts, s: Signals, slots: Any, skipped: jax.Array, age: jax.Array
) -> tuple[Signals, Any, jax.Array]:
    """Masks and what goes with them after an update; all is held unless a change is due.

    Args:
      parts: the parts of the method.
      s: what the scores see: the weights of before the update, or of after it.
      slots: the state of the inner optimizer.
      skipped: refreshes skipped so far.
      age: the updates completed, this one included: what schedules read.

    Returns:
      The signals, of the step they came with; slots; and skipped.
    """
    whens = [update.when(age) for update in parts.mask_updates]
    due = functools.reduce(jnp.logical_or, whens, age == 1)
    if parts.grows and parts.phases is not None:  # a phase may let pruned entries move
        due |= parts.phases(age).step == 0
    if parts.view.copy:  # the old masks are read by what moved the weights, the new ones overwrite
        due = known_after(due, {path: s.dense[path] for path in s.support})
    settles, renews = parts.view.settle is not None, parts.renews
    held = Held(
        mask=dict(s.mask),
        dense={path: s.dense[path] for path in s.support} if settles else {},
        memory=s.memory if renews else {},
        slots=slots,
        skipped=skipped,
    )
    new = either(due, lambda: _change(parts, s._replace(step=age), held, whens), lambda: held)
    s = s._replace(mask=new.mask, dense={**s.dense, **new.dense})
    return s._replace(memory=new.memory if renews else s.memory), new.slots, new.skipped


def _change(parts: Parts, s: Signals, held: Held, whens: list[jax.Array]) -> Held:
    """What is held, after every change that is due; as it was where a score is NaN."""
    key = jax.random.fold_in(jax.random.wrap_key_data(s.key, impl=PRNG), s.step)
    s, before = s._replace(key=jax.random.key_data(key)), s._replace(step=s.step - 1)
    began = started(parts, s)
    first = {x: jnp.where(s.step == 1, m, s.mask[x]) for x, m in began.items()}
    old = {**s.mask, **first}
    s, failed = s._replace(mask=old), any_nan([Ranked(x) for x in jax.tree.leaves(s.learned)])
    for due, update in zip(whens, parts.mask_updates, strict=True):
        stays = functools.partial(Chosen, dict(s.mask), jnp.zeros((), bool))
        new = either(due, functools.partial(changed, update, readable(parts, s)), stays)
        s, failed = s._replace(mask=new.masks), failed | new.nan
    s = s._replace(mask={x: jnp.where(failed, old[x], m) for x, m in s.mask.items()})
    begin, grown = _beginning(parts, before, s), _grown(parts, before, s)
    mask = overwritten_after((begin, grown), s.mask, before.mask)
    s = s._replace(mask=mask)
    memory = held.memory
    if parts.memory is not None and parts.renews:
        new = parts.memory.update(s)
        memory = jax.tree.map(lambda a, b: jnp.where(failed, a, b.astype(a.dtype)), memory, new)
    s = s._replace(memory=memory if parts.renews else s.memory)
    return Held(
        mask=mask,
        dense={} if parts.view.settle is None else dict(parts.view.settle(s, grown)),
        memory=memory,
        slots=slots.restarted(held.slots, begin, s.support, s.dense),
        skipped=held.skipped + failed.astype(jnp.int32),
    )


def readable(parts: Parts, s: Signals) -> Signals:
    """What scores may read: beside a copy they rank new weights, and the gradient is of the old."""
    return s._replace(grads={}) if parts.view.copy else s


def changed(update: MaskUpdate, s: Signals) -> Chosen:
    """The masks after one change, and whether a score was NaN at a candidate."""
    scores = update.score(s)
    scores = scores if s.units is None else s.units.pooled(scores)
    grows, all_may = update.candidates is Candidates.PRUNED, update.candidates is Candidates.ALL
    ranked = {}
    for site, m in s.mask.items():
        score = scores[site] if isinstance(scores[site], Ranked) else Ranked(scores[site])
        ranked[site] = score.replace(mask=None if all_may else m, pruned=grows)
    return update.keep(ranked, s, s.mask if grows else {})


def _beginning(parts: Parts, before: Signals, after: Signals) -> dict[str, jax.Array]:
    """Pruned entries that begin to move: grown ones, or all those that a phase lets move."""
    if not parts.grows:
        return {}
    moved, moves = moving(parts, before), moving(parts, after)
    return {path: moves[path] & ~moved[path] & ~m for path, m in before.support.items()}


def _grown(parts: Parts, before: Signals, after: Signals) -> dict[str, jax.Array]:
    """Entries that the masks keep now, and did not before."""
    if parts.view.settle is None:
        return {}
    old = before.support
    return {path: m & ~old[path] for path, m in after.support.items()}


def moving(parts: Parts, s: Signals) -> dict[str, jax.Array]:
    """Which prunable entries the update moves, in the shape of the leaves."""
    if parts.view.update_scale is not None:
        given = parts.view.update_scale(s)
        factors = {p: jnp.asarray(given.get(p, True)).astype(bool) for p in s.support}
    else:
        factors = {p: jnp.ones((), bool) if parts.view.copy else m for p, m in s.support.items()}
    return {p: jnp.broadcast_to(x, s.dense[p].shape) for p, x in factors.items()}
