"""Masks with a pattern, n of m and blocks, and every mask function on sharded leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import assert_equal, densities, hard, lattice, normal, seeds

from jaxprune import masks


@given(seeds, st.integers(1, 5), st.data())
@settings(max_examples=25)
def test_n_of_m_keeps_the_first_of_each_group(seed, m, data):
    n = data.draw(st.integers(0, m))
    axis = data.draw(st.integers(-3, 2))
    shape = [2, 3, 2]
    shape[axis] = 2 * m
    scores = hard(seed, shape)
    masked = masks.n_of_m(scores, n, m, axis)
    np.testing.assert_array_equal(masked, oracle.n_of_m(scores, n, m, axis))


@given(
    seeds,
    st.integers(1, 4),
    st.sampled_from([(0, 1), (1, 0), (0, 2), (-1, 0), (2, 0, 1)]),
    st.data(),
)
@settings(max_examples=25)
def test_several_axes_count_as_one_the_fastest_last(seed, m, axes, data):
    n = data.draw(st.integers(0, m))
    shape = [2, 3, 2]
    shape[axes[0]] *= m
    scores = hard(seed, shape)
    others = [a for a in range(3) if a not in [b % 3 for b in axes]]
    order = [*others, *(a % 3 for a in axes)]
    moved = scores.transpose(order)
    rows = moved.reshape(*(shape[a] for a in others), -1)
    expected = oracle.n_of_m(rows, n, m, -1).reshape(moved.shape).transpose(np.argsort(order))
    np.testing.assert_array_equal(masks.n_of_m(scores, n, m, axes), expected)


def test_groups_go_on_over_the_axes_that_count_as_one():
    scores = np.arange(8.0, dtype="f4").reshape(2, 2, 2)
    kept = masks.n_of_m(scores, 1, 4, (0, 1))  # of 0, 2, 4, 6 and of 1, 3, 5, 7
    assert np.flatnonzero(kept).tolist() == [6, 7]
    kept = masks.n_of_m(scores, 1, 2, (1, 0))  # of 0 and 4, 1 and 5, 2 and 6, 3 and 7
    assert np.flatnonzero(kept).tolist() == [4, 5, 6, 7]
    with pytest.raises(ValueError, match=r"multiple of m = 3 entries along axis \(0, 1\) .* got 4"):
        masks.n_of_m(scores, 1, 3, (0, 1))


def test_axes_of_groups_are_given_by_path():
    scores = {"a": lattice(0, (4, 3)), "b": lattice(1, (3, 2, 2))}
    masked = masks.n_of_m(scores, 1, 4, {"a": 0, "b": (1, 2)})
    np.testing.assert_array_equal(masked["a"], oracle.n_of_m(scores["a"], 1, 4, 0))
    rows = oracle.n_of_m(scores["b"].reshape(3, 4), 1, 4, -1)
    np.testing.assert_array_equal(masked["b"], rows.reshape(3, 2, 2))


def test_n_of_m_of_large_groups():
    scores = hard(0, (3, 200))
    for n, m in ((7, 40), (30, 100), (0, 200), (200, 200)):
        np.testing.assert_array_equal(masks.n_of_m(scores, n, m), oracle.n_of_m(scores, n, m, -1))


def test_one_of_one_keeps_everything():
    assert masks.n_of_m(hard(0, (4,)), 1, 1).all()


@given(seeds, densities, st.sampled_from([(2, 3), (9,)]))
@settings(max_examples=30)
def test_block_keeps_the_blocks_of_the_highest_mean(seed, density, shape):
    scores = np.random.default_rng(seed).integers(-8, 8, (3, 5, 4)) * 12.0  # exact means
    masked = masks.block(scores.astype("f4"), density, shape)
    np.testing.assert_array_equal(masked, oracle.block(scores, density, shape))


def test_a_ragged_block_counts_whole_and_by_the_entries_it_has():
    scores = np.ones(61, "f4")
    scores[60] = 1.5  # alone in its block
    assert np.flatnonzero(masks.block(scores, 1 / 16, (4,))).tolist() == [60]
    scores[60] = 0.5
    assert np.flatnonzero(~masks.block(scores, 15 / 16, (4,))).tolist() == [60]


def test_a_block_with_a_nan_ranks_last_and_infinities_count():
    scores = np.zeros(64, "f4")
    scores[:16:2] = np.nan, 99, 1, 1, np.inf, 99, -np.inf, 99
    kept = {k: np.asarray(masks.block(scores, k / 16, (4,)))[:16:4] for k in (1, 2, 14, 15, 16)}
    assert {k: np.flatnonzero(blocks).tolist() for k, blocks in kept.items()} == {
        1: [2],
        2: [1, 2],
        14: [1, 2],
        15: [1, 2, 3],
        16: [0, 1, 2, 3],
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_blocks_of_narrow_scores_are_averaged_in_float32(dtype):
    scores = np.ones((16, 256), dtype)
    scores[5], scores[5, 7] = 0.5, 256  # a mean of 1.498
    mask = masks.block(jnp.asarray(scores.reshape(-1)), 1 / 16, (256,))
    assert np.asarray(mask).reshape(16, 256).all(1).tolist() == [i == 5 for i in range(16)]


@given(seeds)
@settings(max_examples=10)
def test_blocks_are_the_same_for_any_unit_of_the_scores(seed):
    scores = normal(seed)
    np.testing.assert_array_equal(
        masks.block(scores, 0.3, (4,)), masks.block(2 * scores + 1, 0.3, (4,))
    )


def several(x, order):
    """2 of every 4 along the axes of a transposed array that end it, the leading one apart in B."""
    moved = x.transpose(order)
    rows = moved.reshape(len(moved) if x.ndim == 3 else 1, -1)
    return oracle.n_of_m(rows, 2, 4, -1).reshape(moved.shape).transpose(np.argsort(order))


SHARDED = {"a": lattice(0, (16, 12)), "b": lattice(1, (8, 4, 4))}
A, B = SHARDED.values()
ON_SHARDS = {
    "topk": (lambda x: masks.topk(x, 0.25), lambda: oracle.keep_largest([A, B], [48, 32], [0, 1])),
    "global_topk": (
        lambda x: masks.global_topk(x, 0.25, min_density=0.125),
        lambda: oracle.global_topk([A, B], 80, [24, 16]),
    ),
    "n_of_m": (
        lambda x: masks.n_of_m(x, 2, 4),
        lambda: [oracle.n_of_m(x, 2, 4, -1) for x in (A, B)],
    ),
    "n_of_m across devices": (
        lambda x: masks.n_of_m(x, 2, 4, axis=0),
        lambda: [oracle.n_of_m(x, 2, 4, 0) for x in (A, B)],
    ),
    "n_of_m over several axes": (
        lambda x: masks.n_of_m(x, 2, 4, {"a": (1, 0), "b": (0, 2)}),
        lambda: [several(A, (1, 0)), several(B, (1, 0, 2))],
    ),
    "topk along": (
        lambda x: masks.topk(x, 0.25, axis=-1),
        lambda: [oracle.n_of_m(A, 3, 12, -1), oracle.n_of_m(B, 1, 4, -1)],
    ),
    "topk across devices": (
        lambda x: masks.topk(x, 0.25, axis=0),
        lambda: [oracle.n_of_m(A, 4, 16, 0), oracle.n_of_m(B, 2, 8, 0)],
    ),
    "block": (
        lambda x: masks.block(x, 0.25, (2, 2)),
        lambda: [oracle.block(x, 0.25, (2, 2)) for x in (A, B)],
    ),
    "random": (
        lambda x: masks.random(jax.random.key(0), x, 0.25),
        lambda: masks.random(jax.random.key(0), SHARDED, 0.25).values(),
    ),
    "nonzero": (masks.nonzero, lambda: [A != 0, B != 0]),
}


@pytest.mark.several_devices
@pytest.mark.parametrize(
    ("kind", "names"), [("Explicit", list(ON_SHARDS)), ("Auto", ["global_topk", "n_of_m"])]
)
def test_sharded_leaves_give_the_same_masks(kind, names):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType[kind],))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    sharded = {path: jax.device_put(leaf, spec) for path, leaf in SHARDED.items()}
    for name in names:
        function, expected = ON_SHARDS[name]
        with jax.set_mesh(mesh):
            masked = jax.block_until_ready(jax.jit(function)(sharded))
        assert_equal(masked, expected())
        if kind == "Explicit":
            assert all(x.sharding.is_equivalent_to(spec, x.ndim) for x in masked.values()), name
