"""`verify` speaks of each fault by its path, and `rebase` adopts an edit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from test_readers import METHODS, every_method, trained
from tiny import theirs, updater

import jaxprune
from jaxprune import trees


def edited(params: Any, path: str, change: Any) -> Any:
    """The params with one leaf changed."""
    return trees.map_with_path(lambda p, leaf: change(leaf) if p == path else leaf, params)


def kept_entry(state: Any, path: str) -> tuple[int, ...]:
    return tuple(np.argwhere(tiny.masks_of(state)[path])[-1])


# ------------------------------------------------------------------------------------------- verify


@every_method
def test_an_entry_off_the_mask_is_named_at_once(method: Any) -> None:
    params, state, _ = trained(method)
    off = tuple(np.argwhere(~tiny.masks_of(state)["head/kernel"])[0])
    wrong = edited(params, "head/kernel", lambda leaf: leaf.at[off].set(1e-30))
    with pytest.raises(ValueError, match="must be 0 where pruned, got 1 other entries at 'head/k"):
        jaxprune.verify(wrong, state)


@every_method
def test_an_edit_of_a_kept_entry_is_named_where_there_is_a_copy(method: Any) -> None:
    params, state, step = trained(method)
    place = kept_entry(state, "head/kernel")
    wrong = edited(params, "head/kernel", lambda leaf: leaf.at[place].multiply(1.001))
    if method is jaxprune.gradual_magnitude:  # the params are the truth: an edit is honoured
        jaxprune.verify(wrong, state)
        again, _ = step(tiny.zeros_like(params), state, wrong)
        assert again["head"]["kernel"][place] != params["head"]["kernel"][place]
    else:
        with pytest.raises(
            ValueError, match=r"must be the view of the dense weights, got .* at 'head/k"
        ):
            jaxprune.verify(wrong, state)


@every_method
@pytest.mark.parametrize(
    "after", [optax.scale(0.5), optax.add_decayed_weights(0.01)], ids=["scaled", "decayed"]
)
def test_what_is_chained_behind_a_method_is_noticed(method: Any, after: Any) -> None:
    """After the next refresh that prunes."""
    tx = optax.chain(
        method(theirs(optax.sgd(0.1)), sparsity=0.5, ramp=(0, 4), every=2), theirs(after)
    )
    step, params = updater(tx), tiny.params()
    state = tx.init(params)
    for n in range(4):
        params, state = step(tiny.normal(n + 1), state, params)
    with pytest.raises(ValueError, match="nothing may change updates after a method"):
        jaxprune.verify(params, state)


def test_what_something_else_wrote_is_found_where_it_stands() -> None:
    """Not counted in the step: the next update puts it on zero again, and nothing is left of it."""
    params, state, step = trained(jaxprune.gradual_magnitude)
    off = tuple(np.argwhere(~tiny.masks_of(state)["body/kernel"])[:3].T)
    wrong = edited(params, "body/kernel", lambda leaf: leaf.at[off].set(5.0))
    with pytest.raises(ValueError, match=r"got 3 other entries at 'body/kernel': .*`rebase"):
        jaxprune.verify(wrong, state)
    params, state = step(tiny.zeros_like(params), state, wrong)
    tiny.on_support(params, state)
    jaxprune.verify(params, state)


@every_method
def test_verify_is_silent_on_what_is_right(method: Any) -> None:
    params, state, step = trained(method, steps=0)
    jaxprune.verify(params, state)  # before the first update the params are dense, and may be
    for n in range(4):
        params, state = step(tiny.normal(n + 1), state, params)
        jaxprune.verify(params, state)


def test_verify_reads_all_leaves() -> None:
    params, state, _ = trained(jaxprune.gradual_magnitude)
    with pytest.raises(
        ValueError, match=r"`params` must be those of the state, .*, got 'head/kernel'"
    ):
        jaxprune.verify({"body": params["body"]}, state)


def test_nan_is_seen_as_it_is() -> None:
    """NaN where the copy has NaN is right, and wrong where it has none."""
    params, state, step = trained(jaxprune.straight_through)
    place = kept_entry(state, "body/kernel")
    nan = edited(params, "body/kernel", lambda leaf: leaf.at[place].set(jnp.nan))
    with pytest.raises(ValueError, match="must be the view"):
        jaxprune.verify(nan, state)
    jaxprune.verify(*step(jax.tree.map(lambda p: p * jnp.nan, params), state, params))


# ------------------------------------------------------------------------------------------- rebase


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("strength", [0.0, 1.0, jnp.inf])
def test_rebase_inverts_attention(strength: float, forward: bool) -> None:
    """The params stay what was given: also above the maximum; any strength."""
    values = {"strength": strength, "forward": forward}  # the ramp ended: no refresh any more
    params, state, step = trained(jaxprune.magnitude_attention, **values)
    new = jax.tree.map(lambda p: -1.7 * p, params)
    with pytest.raises(ValueError, match="must be the view"):
        jaxprune.verify(new, state)
    state = jaxprune.rebase(new, state)
    jaxprune.verify(new, state)
    held = jax.tree.map(jnp.zeros_like, state.prune_inner)
    params, state = step(tiny.zeros_like(new), state._replace(prune_inner=held), new)
    for path, leaf in trees.by_path(new).items():
        np.testing.assert_allclose(trees.by_path(params)[path], leaf, rtol=1e-5)


@every_method
def test_rebase_keeps_what_was_not_edited_bit_for_bit(method: Any) -> None:
    params, state, _ = trained(method)
    tiny.same_bits(jaxprune.rebase(params, state), state)
    place = kept_entry(state, "head/kernel")
    wrong = edited(params, "head/kernel", lambda leaf: leaf.at[place].set(0.5))
    again = jaxprune.rebase(wrong, state)
    jaxprune.verify(wrong, again)
    if state.prune_spec.parts.view.copy:
        before, after = state.prune_dense["head"]["kernel"], again.prune_dense["head"]["kernel"]
        changed = np.argwhere(tiny.bits(before) != tiny.bits(after))
        assert changed.tolist() == [[*map(int, place)]]


def test_rebase_finds_the_state_in_its_containers() -> None:
    tx = optax.chain(optax.clip(1.0), METHODS["straight_through"](None, sparsity=0.5, ramp=(0, 2)))
    params = tiny.params()
    state = tx.init(params)
    _, state = updater(tx)(params, state, params)
    new = jaxprune.project(tiny.normal(7), state)
    with pytest.raises(ValueError, match="must be the view of the dense weights"):
        jaxprune.verify(new, state)
    fresh = jaxprune.rebase(new, state)
    assert jax.tree.structure(fresh) == jax.tree.structure(state)
    jaxprune.verify(new, fresh)
