"""Scores to rank: with and without ties, and all that floats can be."""

import math

import jax
import numpy as np
from hypothesis import strategies as st

HARD = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 1.0, -1.0, 1e-40, -1e-40, 2.0)

# Selection is compiled once for its shapes, which takes seconds: most tests share these leaves, or
# one of 64 entries, or 16 blocks.
SHAPES = ((3, 5), (0, 3), (64,))
seeds = st.integers(0, 2**31)
densities = st.integers(0, 100).map(lambda percent: percent / 100)


def normal(seed, shape=(64,)):
    """Scores without ties."""
    return np.random.default_rng(seed).permutation(math.prod(shape)).reshape(shape).astype("f4")


def hard(seed, shape):
    """Scores full of ties, NaN, infinities, signed zeros and denormals."""
    return np.random.default_rng(seed).choice(np.array(HARD, "f4"), shape)


def lattice(seed, shape):
    """Scores with many ties, whose means over blocks of four are exact."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype("f4")


def tree(seed, make=hard):
    """Scores of several leaves."""
    return {f"leaf{i}": make([seed, i], shape) for i, shape in enumerate(SHAPES)}


def assert_equal(masked, expected):
    for mask, reference in zip(jax.tree.leaves(masked), expected, strict=True):
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, reference)
