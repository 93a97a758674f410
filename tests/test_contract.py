"""The battery that every method passes: optimizers, surroundings, and what can go wrong.

The methods stand in `methods_table.py`. Most programs here are compiled with few optimizations,
five times faster; those of adamw with all that XLA has.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tiny
from methods_table import (
    CORE,
    EVERY,
    STEPS,
    Row,
    adamw,
    begin,
    every_method,
    every_method_with,
    one_program,
    shared,
    train_and_resume,
)
from tiny import Loop, ours, theirs

import jaxprune

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": CORE["momentum"],
    "lion": CORE["lion"],
    "adafactor": CORE["adafactor"],
    "rmsprop": lambda: optax.rmsprop(0.01, momentum=0.9),
    "lamb": lambda: optax.lamb(0.05),
    "muon": lambda: optax.contrib.muon(0.05),
    "adamw with injected hyperparameters": lambda: optax.inject_hyperparams(optax.adamw)(0.05),
    "clipping inside": lambda: optax.chain(optax.clip_by_global_norm(0.5), adamw()),
    "MultiSteps inside": lambda: optax.MultiSteps(adamw(), 2).gradient_transformation(),
    "apply_if_finite inside": lambda: optax.apply_if_finite(adamw(), 3),
}

FROZEN = {"body": {"kernel": "train", "bias": "frozen"}, "head": {"kernel": "train"}}


def injected(row: Row) -> Any:
    static = (*row.times, *(["every"] if row.takes("every") else []))
    method = optax.inject_hyperparams(row.method, static_args=static)
    return method(theirs(adamw()), **row.given(**row.traceable))


def strict(row: Row, inner: Any = None) -> Any:
    return ours(row(theirs(adamw() if inner is None else inner)))


SURROUNDINGS = {
    "clipping before": lambda row: optax.chain(optax.clip_by_global_norm(0.5), strict(row)),
    "last in a chain": lambda row: optax.chain(adamw(), ours(row(None))),
    "MultiSteps outside": lambda row: optax.MultiSteps(strict(row), 2).gradient_transformation(),
    "apply_if_finite outside": lambda row: optax.apply_if_finite(strict(row), 3),
    "injected sparsity": injected,
    "multi_transform": lambda row: optax.multi_transform(
        {"train": strict(row), "frozen": optax.set_to_zero()}, FROZEN
    ),
}


@one_program
def test_adamw_ends_exactly_on_target(row: Row) -> None:
    train_and_resume(row, shared(row))


@every_method_with(OPTIMIZERS, rest=("momentum", "lion", "adafactor", "MultiSteps inside"))
def test_any_optimizer_ends_exactly_on_target(row: Row, optimizer: str) -> None:
    tx = row(theirs(OPTIMIZERS[optimizer]()))
    train_and_resume(row, Loop(tx, compiler_options=tiny.quick()))


@every_method
@pytest.mark.parametrize("around", SURROUNDINGS)
def test_any_surroundings_end_exactly_on_target(row: Row, around: str) -> None:
    if around == "last in a chain" and row.gradients:
        with pytest.raises(ValueError, match="last in a chain"):
            row(None).init(tiny.params())
        return
    step = Loop(theirs(SURROUNDINGS[around](row)), compiler_options=tiny.quick())
    params, _ = train_and_resume(row, step, calls=2 if around == "MultiSteps outside" else 1)
    if around == "multi_transform":
        np.testing.assert_array_equal(params["body"]["bias"], tiny.params()["body"]["bias"])


@every_method_with(CORE, rest=("momentum",))
def test_bfloat16_params_and_gradients(row: Row, optimizer: str) -> None:
    options = tiny.optimized() if optimizer == "adamw" else tiny.quick()
    step = Loop(row(theirs(CORE[optimizer]())), compiler_options=options)
    params, _ = train_and_resume(row, step, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


@every_method
def test_bfloat16_gradients_of_float32_params(row: Row) -> None:
    def narrow(grads: Any) -> Any:
        return jax.tree.map(lambda g: g.astype(jnp.bfloat16), grads)

    step = Loop(row(theirs(adamw())), cast=narrow, compiler_options=tiny.quick())
    train_and_resume(row, step)


# ------------------------------------------------------------ one compiled step under adamw for all


@one_program
def test_weights_loaded_after_init_are_kept(row: Row) -> None:
    step, params, state = begin(row)
    early, late = (params, step.tx.init(tiny.normal(7))), (tiny.params(), state)
    for n in range(1, STEPS + 1):
        early, late = step(*early), step(*late)
        row.check(*early, n)
    tiny.same_bits(early, late)


@one_program
def test_a_zero_leaf_learns(row: Row) -> None:
    params = tiny.params()
    params["head"]["kernel"] = jnp.zeros((8, 5))
    step, params, state = begin(row, params)
    params, state = step(params, state)
    mask = tiny.masks_of(state)["head/kernel"]
    assert mask.any()
    np.testing.assert_array_equal(np.asarray(params["head"]["kernel"]) != 0, mask)


@one_program
def test_equal_scores_keep_the_first(row: Row) -> None:
    """All entries are 1 and move alike: exact counts; by magnitude, the lower index wins."""
    params = jax.tree.map(jnp.ones_like, tiny.params())
    step, params, state = begin(row, params)
    for n in range(1, STEPS + 1):
        params, state = step(params, state, strength=0.0)
        row.check(params, state, n)
    if row.magnitude:
        flat = np.concatenate([mask.ravel() for mask in tiny.masks_of(state).values()])
        np.testing.assert_array_equal(flat, row.first_entries())


@one_program
def test_all_zero_params_keep_exactly_as_many(row: Row) -> None:
    step, params, state = begin(row, tiny.zeros_like(tiny.params()))
    for n in range(1, STEPS + 1):
        params, state = step(params, state, strength=0.0)
        row.kept_as_scheduled(state, n)
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(params))


@one_program
def test_nan_gradients_at_a_refresh_change_no_mask_that_reads_them(row: Row) -> None:
    step, params, state = begin(row)
    params, state = step(params, state)
    nan = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    params, state = step(params, state, push=nan)
    refreshed, skipped = tiny.saved(jaxprune.get_masks(state)), int(state.prune_skipped)
    copies = state.prune_spec.parts.view.copy  # then masks rank the weights after the update
    assert skipped == (row.refreshes and (copies or row.gradients))
    for _ in range(STEPS - 2):
        params, state = step(params, state)
        tiny.same_bits(tiny.saved(jaxprune.get_masks(state)), refreshed)
        for path, mask in tiny.masks_of(state).items():
            module, name = path.split("/")
            if row.explores_after:  # pruned weights were seen, and no update can make NaN a 0
                continue
            assert not tiny.bits(params[module][name])[~mask].any()
    assert (int(state.prune_skipped) > skipped) == row.refreshes


@one_program
def test_nan_gradients_of_pruned_entries_reach_no_kept_one(row: Row) -> None:
    step, params, state = begin(row)
    last = STEPS - 2 if STEPS - 2 not in row.explores_after else 2  # there they have gradients
    for _ in range(last):
        params, state = step(params, state)
    clean, others = step(*tiny.saved((params, state)))
    masks = tiny.masks_of(state)
    push = tiny.zeros_like(params)
    for path, mask in masks.items():
        module, name = path.split("/")
        push[module][name] = jnp.asarray(np.where(mask, np.float32(0), np.float32(np.nan)))
    params, state = step(params, state, push=push)
    row.check(*step(*tiny.saved((params, state))), last + 2)
    for path, mask in tiny.masks_of(state).items():  # a change due in this step was skipped
        module, name = path.split("/")
        both = mask & tiny.masks_of(others)[path]
        tiny.same_bits(params[module].pop(name)[both], clean[module].pop(name)[both])
    tiny.same_bits(params, clean)


@one_program
def test_orbax_saves_and_restores_bit_for_bit(row: Row, tmp_path: Path) -> None:
    step, params, state = begin(row)
    for _ in range(EVERY):  # right after a refresh, right before the next update
        params, state = step(params, state)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", {"params": params, "state": state})
        checkpointer.wait_until_finished()
        fresh = {"params": tiny.normal(5), "state": row(theirs(adamw())).init(tiny.normal(5))}
        loaded = checkpointer.restore(tmp_path / "saved", fresh)
    again = jax.tree.map(jnp.asarray, jax.tree.map(np.array, (loaded["params"], loaded["state"])))
    tiny.same_bits(again, (params, state))
    jaxprune.check_rules(jaxprune.describe(state), again[1])
    for _ in range(STEPS - EVERY):
        (params, state), again = step(params, state), step(*again)
    tiny.same_bits(again, (params, state))
    row.check(*again, STEPS)


@one_program
def test_map_params_finds_what_belongs_to_the_params(row: Row) -> None:
    tx, params = row(theirs(adamw())), tiny.params()
    state = tx.init(params)
    seen = []
    mapped = optax.tree.map_params(tx, lambda leaf: seen.append(leaf.shape) or leaf, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    for shape in [(4, 8), (8, 5)]:  # a mask and two moments of each kernel at least
        assert seen.count(shape) >= 3
    tiny.same_bits(mapped, state)
