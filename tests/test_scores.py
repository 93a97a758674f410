"""What an entry is worth."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import scores
from jaxprune.selection import as_array
from jaxprune.types import Ranked, Signals
from jaxprune.units import Channels, Group

RNG = np.random.default_rng(0)


def signals(dtype="float32", **changes):
    shapes = {"a/kernel": (3, 4), "b": (5,), "bias": (4,)}
    weights = {path: jnp.asarray(RNG.normal(size=shape), dtype) for path, shape in shapes.items()}
    grads = {path: jnp.asarray(RNG.normal(size=shape), dtype) for path, shape in shapes.items()}
    mask = {path: weights[path] > 0 for path in ("a/kernel", "b")}
    key = jax.random.key_data(jax.random.key(3))
    parts = {"dense": weights, "mask": mask, "grads": grads, "key": key} | changes
    return Signals(step=jnp.int32(1), **parts)


REFERENCES = {
    "magnitude": lambda s, path: np.abs(s.dense[path]),
    "gradient": lambda s, path: np.abs(s.grads[path]),
    "saliency": lambda s, path: np.abs(np.asarray(s.dense[path]) * np.asarray(s.grads[path])),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_score_is_its_formula_on_the_prunable_leaves(name, dtype):
    s = signals(dtype)
    scored = getattr(scores, name)(s)
    assert list(scored) == ["a/kernel", "b"]
    for path, lazy in scored.items():
        score = as_array(lazy)
        assert score.shape == s.mask[path].shape
        assert isinstance(lazy, Ranked) == (dtype != "complex64")  # nothing is written out
        assert score.dtype == ("float32" if dtype == "complex64" else dtype)
        expected = REFERENCES[name](s, path).astype("float32")
        np.testing.assert_allclose(score.astype("float32"), expected, rtol=1e-6)


def test_pruned_entries_have_scores_too():
    s = signals()
    found = {path: as_array(score) for path, score in scores.gradient(s).items()}
    assert all((score[~s.mask[path]] > 0).all() for path, score in found.items())


def test_gradients_may_be_narrower_than_the_weights():
    s = signals()
    narrow = s._replace(grads={p: g.astype(jnp.bfloat16) for p, g in s.grads.items()})
    scored = scores.saliency(narrow)
    for path in s.mask:
        expected = np.abs(s.dense[path] * narrow.grads[path].astype(jnp.float32))
        assert as_array(scored[path]).dtype == jnp.float32
        np.testing.assert_array_equal(as_array(scored[path]), expected)


def test_nan_stays_nan():
    s = signals(grads={"a/kernel": jnp.full((3, 4), jnp.nan), "b": jnp.zeros(5)})
    assert jnp.isnan(as_array(scores.saliency(s)["a/kernel"])).all()
    assert jnp.isnan(as_array(scores.gradient(s)["a/kernel"])).all()


@pytest.mark.parametrize("name", ["gradient", "saliency"])
def test_without_a_gradient_there_is_no_score_of_it(name):
    message = "`inner` must give scores the gradient of 'a/kernel', got 'none': last in a chain"
    with pytest.raises(ValueError, match=message):
        getattr(scores, name)(signals(grads={}))


def test_chance_is_uniform_by_key_and_path():
    s = signals()
    chance = scores.random(s)
    for path, mask in s.mask.items():
        key = jax.random.fold_in(jax.random.key(3), zlib.crc32(path.encode()))
        np.testing.assert_array_equal(chance[path], jax.random.uniform(key, mask.shape))
        assert chance[path].dtype == jnp.float32
    other = scores.random(s._replace(key=jax.random.key_data(jax.random.key(4))))
    assert (other["b"] != chance["b"]).all()


def test_chance_of_a_leaf_does_not_depend_on_the_others():
    s = signals()
    alone = scores.random(s._replace(mask={"b": s.mask["b"]}))
    np.testing.assert_array_equal(alone["b"], scores.random(s)["b"])


def test_raw_keys_are_threefry_whatever_the_default_is():
    s = signals()
    expected = scores.random(s)["b"]
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(scores.random(s)["b"], expected)


def test_channels_have_the_scores_of_their_members_and_chance_of_their_own():
    s = signals()
    groups = {"hidden": Group(4, {"a/kernel": 1, "bias": 0})}
    s = s._replace(mask={"hidden": jnp.ones(4, bool)}, units=Channels(groups))
    sums = np.abs(s.dense["a/kernel"]).sum(0) + np.abs(s.dense["bias"])
    np.testing.assert_allclose(scores.magnitude(s)["hidden"], sums / sums.mean(), rtol=1e-6)
    assert {path: x.shape for path, x in scores.random(s).items()} == {"hidden": (4,)}
