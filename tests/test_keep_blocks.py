"""Who stays, decided about whole blocks."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import lattice, normal, seeds
from test_keep import (
    SHAPES,
    among_all,
    among_kept,
    among_pruned,
    drawn,
    equal,
    of_sort,
    signals,
)

from jaxprune import keep
from jaxprune.distributions import Budget
from jaxprune.schedules import constant
from jaxprune.types import Ranked


def blocks_of(x: np.ndarray, shape: Any, pick: Any) -> np.ndarray:
    """One number a block, by a loop; the shape is of the last axes."""
    extents = (1,) * (x.ndim - len(shape)) + tuple(shape)
    grid = [-(-size // extent) for size, extent in zip(x.shape, extents, strict=True)]
    found = np.zeros(grid, x.dtype)
    for place in np.ndindex(*grid):
        part = tuple(slice(i * e, (i + 1) * e) for i, e in zip(place, extents, strict=True))
        found[place] = pick(x[part])
    return found


def spread(kept: np.ndarray, shape: Any, like: np.ndarray) -> np.ndarray:
    extents = (1,) * (like.ndim - len(shape)) + tuple(shape)
    for axis, extent in enumerate(extents):
        kept = np.repeat(kept, extent, axis)
    return kept[tuple(slice(size) for size in like.shape)]


@pytest.mark.parametrize("shape", [(2, 2), (3,), (4, 1), (1, 1)])
@given(seeds, st.integers(0, 24))
@settings(max_examples=8)
def test_blocks_stay_by_their_mean(shape: Any, seed: int, number: int) -> None:
    """Also ragged ones; of all, of the kept and of the pruned."""
    values = {path: x * 12 for path, x in drawn(seed, lattice).items()}  # exact means
    word = keep.in_blocks(keep.largest(number), shape)
    means = {path: blocks_of(x, shape, np.mean) for path, x in values.items()}
    rng = np.random.default_rng(seed)
    coarse = {path: rng.random(mean.shape) < 0.5 for path, mean in means.items()}
    mask = {path: spread(kept, shape, values[path]) for path, kept in coarse.items()}

    expected = of_sort(means, [number], [0, 0])
    equal(among_all(word, values).masks, spread_all(expected, shape, values))
    expected = of_sort(means, [number], [0, 0], coarse)
    equal(among_kept(word, values, mask).masks, spread_all(expected, shape, values))
    missing = max(number - sum(int(kept.sum()) for kept in coarse.values()), 0)
    grown = of_sort(means, [missing], [0, 0], {path: ~kept for path, kept in coarse.items()})
    expected = {path: coarse[path] | m for path, m in grown.items()}
    equal(among_pruned(word, values, mask).masks, spread_all(expected, shape, values))


def spread_all(kept: Any, shape: Any, values: Any) -> Any:
    return {path: spread(m, shape, values[path]) for path, m in kept.items()}


def test_a_budget_of_blocks_counts_blocks() -> None:
    values = drawn(5, normal)
    word: Any = keep.in_blocks(keep.largest(Budget(constant(0.5), "uniform")), [2, 3])
    found = among_all(word, values)
    assert word.shape == (2, 3)
    for path, mask in found.masks.items():
        kept = blocks_of(np.asarray(mask).astype("f4"), (2, 3), np.mean)
        assert sorted(kept.ravel().tolist()) == [0.0] * (kept.size // 2) + [1.0] * (kept.size // 2)
        assert mask.shape == SHAPES[path]


def test_magnitudes_and_factors_are_averaged_as_scores() -> None:
    values = {"a/kernel": jnp.array([[3.0, -3.0, 1.0, 1.5]])}
    factor = jnp.array([[1.0, 1.0, 9.0, 1.0]])
    mask = {"a/kernel": np.ones((1, 4), bool)}
    word = keep.in_blocks(keep.largest(1), (2,))
    size = {"a/kernel": Ranked(values["a/kernel"], magnitude=True)}
    assert word(size, signals(mask), {}).masks["a/kernel"].tolist() == [[True, True, False, False]]
    scaled = {"a/kernel": size["a/kernel"].replace(factor=factor)}
    assert word(scaled, signals(mask), {}).masks["a/kernel"].tolist() == [
        [False, False, True, True]
    ]


def test_a_nan_makes_its_block_last_and_is_told() -> None:
    values = {"a/kernel": np.array([[np.nan, 9.0, 1.0, 1.0]], "f4")}
    mask = {"a/kernel": np.ones((1, 4), bool)}
    found = among_all(keep.in_blocks(keep.largest(1), (2,)), values, mask=mask)
    assert found.masks["a/kernel"].tolist() == [[False, False, True, True]]
    assert bool(found.nan)


def test_without_a_shape_blocks_are_entries() -> None:
    values = drawn(6)
    plain, word = keep.largest(7), keep.in_blocks(keep.largest(7), None)
    equal(among_all(word, values).masks, among_all(plain, values).masks)
    assert word == plain


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((0, 2), ValueError, "`block` must be made of numbers of at least 1"),
        ((0.5,), TypeError, "`block` must be made of integers"),
    ],
)
def test_blocks_that_cannot_be_are_refused_at_once(shape: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        keep.in_blocks(keep.largest(1), shape)


def test_blocks_of_too_many_axes_are_refused_at_a_call() -> None:
    with pytest.raises(ValueError, match="`block` must have at most the 2 axes of 'a/kernel'"):
        among_all(keep.in_blocks(keep.largest(1), (1, 2, 2)), drawn(0))


# ------------------------------------------------------------------------- above, and everything
