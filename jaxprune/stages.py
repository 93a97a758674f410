"""From one stage of training to the next, by other rules."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune import keep, trees
from jaxprune.numbers import is_traced
from jaxprune.state import PruneState, is_state, states_of
from jaxprune.types import KEPT, Leaves, wrong


def next_stage(tx: optax.GradientTransformation, params: Any, old_state: Any) -> Any:
    """The state with which another method goes on where one has ended.

    Masks are those of the old stage; dense weights are carried over where both methods keep a copy
    of them, and the slots of the optimizer where both have the same, inside the method or around
    it. The clock begins anew: ramps and refreshes of the new method count from here; a ramp begins
    at the sparsity of the masks if the method has them as ``start``, else at 0.

    Args:
      tx: the transformation to go on with, with one method anywhere in it.
      params: the params as they are.
      old_state: the state to go on from.

    Returns:
      A state for ``tx``.

    Raises:
      ValueError: if ``tx`` or the old state does not hold exactly one method, or ``tx`` prunes what
        the old one did not, or has a function as ``start``.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> masks = jaxprune.masks.nonzero({"kernel": jnp.array([[0.0, -4.0], [3.0, 0.0]])})
      >>> old = jaxprune.static(optax.sgd(0.1), masks=masks).init(params)
      >>> tx = jaxprune.rigl(optax.sgd(0.1), sparsity=0.5, stop=900)
      >>> state = jaxprune.next_stage(tx, params, old)
      >>> print(jaxprune.get_masks(state)["kernel"])
      [[False  True]
       [ True False]]
    """
    old, fresh = states_of(old_state, "old_state"), tx.init(params)
    for argument, states in (("old_state", old), ("tx", states_of(fresh, "tx"))):
        if len(states) != 1:
            raise ValueError(wrong(argument, "hold one jaxprune method", len(states)))

    around = _slots(_around(getattr(old_state, "opt_state", old_state)), _around(fresh))

    def go_on(node: Any, slots: Any) -> Any:
        return _continued(node, old[0]) if is_state(node) else slots

    return jax.tree.map(go_on, fresh, around, is_leaf=is_state)


def _around(state: Any) -> Any:
    """What lies around the method: in a chain, the slots of an optimizer that comes before it."""
    return jax.tree.map(lambda n: None if is_state(n) else n, state, is_leaf=is_state)


def _continued(new: PruneState, old: PruneState) -> PruneState:
    masks, before = trees.by_path(new.prune_mask), trees.by_path(old.prune_mask)
    for site, mask in masks.items():
        trees.known(site, before, "tx", "prune only what the old method pruned")
        if jnp.shape(before[site]) != jnp.shape(mask):
            expected = f"be those of the old state, of shape {jnp.shape(before[site])} at '{site}'"
            raise ValueError(wrong("params", expected, jnp.shape(mask)))
    _check_reachable(new, {site: before[site] for site in masks})
    start = new.prune_spec.parts.start
    if callable(start):
        hint = "the first update would ask it, and forget the masks that are carried over"
        raise ValueError(wrong("tx", "have no function as `start`", start, hint))
    dense = trees.by_path(new.prune_dense)
    dense |= {p: w.copy() for p, w in trees.by_path(old.prune_dense).items() if p in dense}
    carried = {site: before[site].copy() for site in masks}
    return new._replace(
        prune_mask=new.prune_spec.parts.units.packed(carried, new.prune_mask),
        prune_dense=trees.from_paths(new.prune_dense, dense),
        prune_inner=_slots(old.prune_inner, new.prune_inner),
        prune_loaded=jnp.asarray(bool(dense)),
    )


def _check_reachable(new: PruneState, masks: Leaves) -> None:
    """Refuses a method that is to keep more than the masks do, and never lets weights grow."""
    parts = new.prune_spec.parts
    if not parts.mask_updates or any(u.candidates is not KEPT for u in parts.mask_updates):
        return
    word = parts.mask_updates[-1].keep
    counts = keep.at_end(word, parts.units.layers(masks)) if hasattr(word, "budget") else None
    if counts is None or any(map(is_traced, masks.values())):
        return
    kept = sum(int(jnp.sum(mask)) for mask in masks.values())
    if sum(counts.values()) > kept:
        expected = f"keep no more than the {kept} weights that the old masks keep"
        hint = "what is pruned does not come back here"
        raise ValueError(wrong("tx", expected, sum(counts.values()), hint))


def _slots(old: Any, new: Any) -> Any:
    """The old optimizer's memory, where the new one has the same containers and shapes."""

    def layout(tree: Any) -> Any:
        return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)

    same = jax.tree.structure(old) == jax.tree.structure(new) and layout(old) == layout(new)
    return jax.tree.map(jnp.copy, old) if same else new
