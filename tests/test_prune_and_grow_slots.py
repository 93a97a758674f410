"""Prune and grow (IEE): what the inner optimizer's slots hold of weights that come to life."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny
from test_prune_and_grow import (
    IMPROVE,
    LENGTH,
    MEASURE,
    SHAPES,
    dense_of,
    leaves_of,
    method,
    run,
)
from tiny import masks_of, theirs

from jaxprune import trees


def half(shape: tuple[int, ...]) -> jax.Array:
    return jnp.arange(np.prod(shape)).reshape(shape) % 2 == 0


def test_no_weight_that_comes_to_life_moves_more_than_two_learning_rates_under_adam() -> None:
    """After many updates, in which only kept weights had gradients: Adam's trap."""
    rate, masks = 0.01, {path: half(shape) for path, shape in SHAPES.items()}
    start = trees.from_paths(tiny.params(), masks)
    tx = method(theirs(optax.adam(rate)), sparsity=None, start=start)
    state = tx.init(tiny.params())
    adam, rest = state.prune_inner
    nu = jax.tree.map(jnp.ones_like, adam.nu)
    nu = trees.from_paths(nu, {p: masks[p].astype(x.dtype) if p in masks else x
                               for p, x in trees.by_path(nu).items()})  # fmt: skip
    adam = adam._replace(count=jnp.int32(100_000), nu=nu)
    trail = run(tx, 2 * LENGTH, tiny.normal, state._replace(prune_inner=(adam, rest)))
    largest = 0.0
    for n in range(1, 2 * LENGTH):
        old, new = dense_of(trail[n][1]), dense_of(trail[n + 1][1])
        moves = [np.abs(new[path] - old[path])[~np.asarray(m)] for path, m in masks.items()]
        largest = max(largest, *(float(move.max()) for move in moves))
    assert 0.1 * rate < largest <= 2 * rate


def test_slots_of_explored_weights_start_at_the_mean_and_no_other_slot_changes() -> None:
    tx = method(theirs(optax.adam(0.01)))
    begin = MEASURE + IMPROVE
    trail = run(tx, begin)
    (params, state), (_, after) = trail[begin - 1], trail[begin]
    grads = {p: np.where(m, leaves_of(tiny.pull(params))[p], 0) for p, m in masks_of(state).items()}
    old, new = state.prune_inner[0], after.prune_inner[0]
    for path, g in grads.items():
        mask = masks_of(after)[path]
        mu, nu = (leaves_of(slot)[path] for slot in (new.mu, new.nu))
        plain = (
            0.9 * leaves_of(old.mu)[path] + 0.1 * g,
            0.999 * leaves_of(old.nu)[path] + 1e-3 * g**2,
        )
        np.testing.assert_allclose(mu[mask], plain[0][mask], rtol=1e-5)
        np.testing.assert_allclose(nu[mask], plain[1][mask], rtol=1e-5)
        np.testing.assert_allclose(nu[~mask], nu[mask].mean(), rtol=1e-5)
        assert not mu[~mask].any() and mu[mask].all()
