"""The tests run as they claim to: strict promotion for our code, as many devices as asked for."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import optax
import pytest

PARAMS = {"kernel": jnp.ones((2, 2))}


def _identity(updates, state, params=None, **extra):
    del params, extra
    return updates, state


def _mixing(updates, state, params=None):
    del params
    return jax.tree.map(lambda u: u * jnp.int32(2), updates), state


def _init(params):
    del params
    return ()


def _run(tx):
    state = tx.init(PARAMS)
    return jax.jit(tx.update)(PARAMS, state, PARAMS)[0]


WRAPPERS = [
    lambda tx: tx,
    lambda tx: optax.chain(optax.adam(0.1), tx),
    lambda tx: optax.MultiSteps(optax.chain(tx, optax.adam(0.1)), 2),
    lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
]


@pytest.mark.parametrize(
    "wrap", WRAPPERS, ids=["alone", "chain", "MultiSteps", "as transformation"]
)
def test_what_optax_wraps_is_strict_and_optax_is_not(wrap):
    assert jnp.all(
        jnp.isfinite(_run(wrap(optax.GradientTransformationExtraArgs(_init, _identity)))["kernel"])
    )
    with pytest.raises(ValueError, match="promotion=strict"):
        _run(wrap(optax.GradientTransformation(_init, _mixing)))


def test_an_update_keeps_its_signature_and_pickles():
    tx = optax.GradientTransformationExtraArgs(_init, _identity)
    assert inspect.signature(tx.update) == inspect.signature(_identity)
    assert pickle.loads(pickle.dumps(tx)).update(PARAMS, ()) == (PARAMS, ())


def test_ranks_are_not_promoted():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.add(jnp.ones((2, 3)), jnp.ones(3))


def test_there_is_one_device():
    assert jax.device_count() == 1


@pytest.mark.several_devices
@pytest.mark.parametrize("shape", [(8,), (2, 4)])
def test_there_are_several_devices_where_asked_for(shape):
    mesh = jax.make_mesh(shape, tuple("ab"[: len(shape)]))
    assert mesh.size == jax.device_count() == 8
