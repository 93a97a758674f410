"""The mask functions against their NumPy references, and what holds for every one of them."""

import itertools
import math

import equinox as eqx
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from samples import HARD, assert_equal, densities, hard, normal, seeds, tree

from jaxprune import masks
from jaxprune.masks.ranking import largest
from jaxprune.types import Ranked


@given(seeds, densities)
@settings(max_examples=25)
def test_topk_keeps_the_first_of_a_sort_in_each_leaf(seed, density):
    scores = tree(seed)
    leaves = list(scores.values())
    counts = [oracle.kept(leaf.size, density) for leaf in leaves]
    expected = oracle.keep_largest(leaves, counts, range(len(leaves)))
    assert_equal(masks.topk(scores, density), expected)


@given(seeds, densities)
@settings(max_examples=25)
def test_global_topk_keeps_the_first_of_one_sort(seed, density):
    scores = tree(seed)
    leaves = list(scores.values())
    count = oracle.kept(sum(leaf.size for leaf in leaves), density)
    expected = oracle.keep_largest(leaves, [count], [0] * len(leaves))
    assert_equal(masks.global_topk(scores, density), expected)


@given(seeds, st.sampled_from([0.0, 0.1, 0.4]), st.integers(0, 60))
@settings(max_examples=20)
def test_each_leaf_keeps_its_least_and_the_tree_its_number(seed, floor, more):
    scores = tree(seed)
    leaves = list(scores.values())
    size = sum(leaf.size for leaf in leaves)
    floors = [oracle.kept(leaf.size, floor) for leaf in leaves]
    count = min(sum(floors) + more, size)
    masked = masks.global_topk(scores, count / size, min_density=floor)
    assert_equal(masked, oracle.global_topk(leaves, count, floors))
    assert sum(int(mask.sum()) for mask in masked.values()) == count


@given(seeds, densities, st.sampled_from([0, -1, (0, 1), (2, 0), (-1, 1), (-3, 1, 2)]))
@settings(max_examples=25)
def test_topk_along_axes_keeps_the_first_of_a_sort_of_each_row(seed, density, axis):
    """Several axes count as one, the fastest last; ties, NaN and -0.0 as in a leaf."""
    scores = hard(seed, (3, 4, 2))
    axes = [a % 3 for a in ((axis,) if isinstance(axis, int) else axis)]
    order = [*(a for a in range(3) if a not in axes), *axes]
    moved = scores.transpose(order)
    rows = moved.reshape(-1, math.prod(scores.shape[a] for a in axes))
    counts = [oracle.kept(rows.shape[1], density)] * len(rows)
    expected = np.stack(oracle.keep_largest(list(rows), counts, range(len(rows))))
    expected = expected.reshape(moved.shape).transpose(np.argsort(order))
    np.testing.assert_array_equal(masks.topk(scores, density, axis), expected)


def test_topk_along_axes_takes_densities_by_path_and_traced_ones():
    scores = {"a": hard(0, (8, 8)), "b": hard(1, (4, 2, 8))}
    by_leaf = masks.topk(scores, {"a": 0.25, "b": 0.5}, axis=-1)
    assert np.asarray(by_leaf["a"]).sum(-1).tolist() == [2] * 8
    assert np.asarray(by_leaf["b"]).sum(-1).tolist() == [[4, 4]] * 4
    traced = jax.jit(lambda d: masks.topk(scores, {"a": d / 2, "b": d}, axis=-1))(0.5)
    jax.tree.map(np.testing.assert_array_equal, traced, by_leaf)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_scores_of_any_floating_dtype_are_ranked_exactly(dtype):
    scores = jnp.asarray(hard(1, (64,)), dtype)
    for density in (0.0, 0.25, 0.5, 1.0):
        expected = oracle.keep_largest([scores], [oracle.kept(64, density)], [0])
        assert_equal(masks.topk(scores, density), expected)
        assert_equal(masks.topk(scores, density, axis=0), expected)
    np.testing.assert_array_equal(masks.n_of_m(scores, 1, 4), oracle.n_of_m(scores, 1, 4, -1))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "bool"])
def test_integers_are_ranked_exactly(dtype):
    scores = np.array([3, -3, 0, 1, 120, -120, 119, 3]).astype(dtype)
    if dtype == "int32":
        scores[:4] = 2**24 + 1, 2**24, -(2**24) - 1, 2**31 - 2**24
    scores = np.tile(scores, 8)
    for k in range(0, 65, 4):
        expected = oracle.keep_largest([scores], [k], [0])
        assert_equal(masks.topk(scores, k / 64), expected)
        assert_equal(masks.topk(scores, k / 64, axis=-1), expected)
    np.testing.assert_array_equal(masks.n_of_m(scores, 1, 4), oracle.n_of_m(scores, 1, 4, -1))


def test_complex_scores_have_no_order():
    with pytest.raises(TypeError, match="`scores` must be floating, got 'complex64'"):
        masks.topk(jnp.ones(3, jnp.complex64), 0.5)


FUNCTIONS = {
    "topk": lambda scores: masks.topk(scores, 0.3),
    "global_topk": lambda scores: masks.global_topk(scores, 0.3, min_density=0.1),
    "topk along": lambda scores: masks.topk(scores, 0.3, axis=-1),
    "n_of_m": lambda scores: masks.n_of_m(scores, 2, 4),
    "block": lambda scores: masks.block(scores, 0.3, (4,)),
}


@pytest.mark.parametrize("name", ["topk", "topk along", "global_topk", "n_of_m"])
@given(seeds)
@settings(max_examples=10)
def test_only_the_order_of_scores_matters(name, seed):
    scores = {"a": normal(seed, (8, 8)), "b": normal(seed + 1, (2, 4, 8)) + 0.5}
    grown = {path: np.float32(1.01) ** leaf for path, leaf in scores.items()}
    before, after = FUNCTIONS[name](scores), FUNCTIONS[name](grown)
    jax.tree.map(np.testing.assert_array_equal, before, after)


@given(seeds, densities)
@settings(max_examples=20)
def test_a_permutation_of_the_scores_permutes_the_mask(seed, density):
    scores = normal(seed)
    order = np.random.default_rng(seed + 1).permutation(64)
    mask = np.asarray(masks.topk(scores, density))
    np.testing.assert_array_equal(masks.topk(scores[order], density), mask[order])
    rows, order = scores.reshape(16, 4), np.random.default_rng(seed + 2).permutation(16)
    assume(len(set(rows.sum(1))) == 16)
    blocks = np.asarray(masks.block(scores, density, (4,))).reshape(16, 4)
    permuted = masks.block(rows[order].reshape(64), density, (4,))
    np.testing.assert_array_equal(permuted.reshape(16, 4), blocks[order])


@pytest.mark.parametrize(
    "mask_of",
    [
        masks.topk,
        lambda scores, density: masks.topk(scores, density, axis=-1),
        masks.global_topk,
        lambda scores, density: masks.block(scores, density, (2,)),
        lambda scores, density: masks.random(jax.random.key(0), scores, density),
        lambda scores, density: masks.n_of_m(scores, round(8 * density), 8),
    ],
)
def test_masks_of_growing_density_are_nested(mask_of):
    scores = {"a": hard(0, (8, 8)), "b": hard(1, (2, 4, 8))}
    course = [mask_of(scores, density) for density in np.linspace(0, 1, 9)]
    kept = [sum(int(mask.sum()) for mask in masked.values()) for masked in course]
    assert kept == [0, 16, 32, 48, 64, 80, 96, 112, 128]
    for small, large in itertools.pairwise(course):
        assert all(bool((~small[path] | large[path]).all()) for path in scores)


def test_nonzero_is_decided_by_the_bits():
    x = jnp.array(HARD, jnp.float32)
    expected = [v != 0 for v in HARD]
    assert masks.nonzero(x).tolist() == jax.jit(masks.nonzero)(x).tolist() == expected
    assert masks.nonzero(jnp.array([0, 3])).tolist() == [False, True]
    assert masks.nonzero(jnp.array([0, 3], jnp.float4_e2m1fn)).tolist() == [False, True]
    assert masks.nonzero(jnp.array([False, True])).tolist() == [False, True]
    assert masks.nonzero(jnp.array([0j, 1e-3j, complex(0, -0.0)])).tolist() == [False, True, False]


def test_nonzero_keeps_a_leaf_without_any_other_entry():
    tree = {
        "fresh": jnp.zeros((2, 2)),
        "negative": jnp.array([-0.0, -0.0]),
        "pruned": jnp.array([0.0, 1e-40]),
        "nan": jnp.array([0.0, jnp.nan]),
        "integers": jnp.array([0, 0]),
        "complex": jnp.array([0j, complex(-0.0, 0.0)]),
        "empty": jnp.zeros((0, 3)),
    }
    expected = {
        "fresh": [[True, True], [True, True]],
        "negative": [True, True],
        "pruned": [False, True],
        "nan": [False, True],
        "integers": [True, True],
        "complex": [True, True],
        "empty": [],
    }
    for function in (masks.nonzero, jax.jit(masks.nonzero)):
        assert {path: mask.tolist() for path, mask in function(tree).items()} == expected


def test_a_bare_array_is_a_tree_of_any_rank():
    assert masks.topk(jnp.float32(3.0), 1.0).tolist() is True
    assert masks.topk(np.arange(64.0), 0.5).tolist() == [False] * 32 + [True] * 32
    assert masks.global_topk([1.0, 2.0], 0.5) == [False, True]  # two leaves of one entry each


@pytest.mark.parametrize("name", ["topk", "topk along", "n_of_m", "random", "nonzero"])
def test_containers_and_holes_stay_as_they_are(name):
    more = {
        "random": lambda scores: masks.random(jax.random.key(0), scores, 0.3),
        "nonzero": masks.nonzero,
    }
    function = (FUNCTIONS | more)[name]
    leaf = jnp.arange(16.0).reshape(2, 8)
    params = {
        "a": (leaf, [leaf, None]),
        "hole": optax.MaskedNode(),
        "box": flax.linen.Partitioned(leaf, names=("x", None)),
        "state": flax.nnx.State({"w": flax.nnx.Param(leaf)}),
        "module": eqx.nn.Linear(8, 2, use_bias=False, key=jax.random.key(0)),
    }
    masked = function(params)
    assert jax.tree.structure(masked) == jax.tree.structure(params)
    assert {x.dtype for x in jax.tree.leaves(masked)} == {np.dtype(bool)}
    assert [x.shape for x in jax.tree.leaves(masked)] == [(2, 8)] * 5


def test_densities_are_matched_by_path():
    scores = {
        "a": {"kernel": normal(0, (8, 8))},
        "b": normal(1, (2, 4, 8)),
        "c": optax.MaskedNode(),
    }
    by_leaf = {"a": {"kernel": 0.25}, "b": np.float32(0.5), "c": 1.0}
    assert [int(x.sum()) for x in jax.tree.leaves(masks.topk(scores, by_leaf))] == [16, 32]
    by_leaf = {"a": {"kernel": 0.25}, "b": jnp.float32(0.5)}
    assert [int(x.sum()) for x in jax.tree.leaves(masks.block(scores, by_leaf, (2,)))] == [16, 32]


@pytest.mark.parametrize(
    "mask_of",
    [
        lambda scores, d: masks.topk(scores, {"a": d, "b": 1 - d}),
        lambda scores, d: masks.global_topk(scores, d, min_density=d / 2),
        lambda scores, d: masks.block(scores["a"].reshape(64), d, (4,)),
    ],
)
def test_a_traced_density_is_one_trace_and_the_same_mask(mask_of):
    scores = {"a": hard(0, (8, 8)), "b": hard(1, (2, 4, 8))}
    traces = []

    @jax.jit
    def masked(density):
        traces.append(density)
        return mask_of(scores, density)

    for density in (0.0, 0.25, 0.5, 1.0):
        jax.tree.map(np.testing.assert_array_equal, masked(density), mask_of(scores, density))
    assert len(traces) == 1


def test_densities_can_be_swept():
    scores = hard(0, (64,))
    swept = jax.vmap(lambda density: masks.topk(scores, density))(jnp.array([0.25, 0.5]))
    np.testing.assert_array_equal(swept, [masks.topk(scores, 0.25), masks.topk(scores, 0.5)])


@given(seeds, st.integers(0, 60), st.integers(0, 15), st.sampled_from([0.0, 0.4]))
@settings(max_examples=20)
def test_largest_ranks_together_what_shares_a_number(seed, shared, own, floor):
    scores = tree(seed)
    paths, leaves = list(scores), list(scores.values())
    floors = [oracle.kept(leaf.size, floor) for leaf in leaves[1:]]
    masked, nan = largest(
        {path: jnp.asarray(leaf) for path, leaf in scores.items()},
        {("leaf0",): own, ("leaf1", "leaf2"): jnp.int32(shared)},
        dict(zip(paths, [0, *floors], strict=True)),
    )
    assert list(masked) == paths
    assert_equal(masked["leaf0"], oracle.keep_largest(leaves[:1], [own], [0]))
    expected = oracle.global_topk(leaves[1:], max(shared, sum(floors)), floors)
    assert_equal({path: masked[path] for path in paths[1:]}, expected)
    assert bool(nan) == any(np.isnan(leaf).any() for leaf in leaves)


def test_ties_of_sites_that_share_a_number_go_to_the_first_of_the_scores():
    """Whatever order the counts name them in."""
    scores = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    masked = largest(scores, {("b", "a"): 3}).masks
    assert (masked["a"].tolist(), masked["b"].tolist()) == ([True, True], [True, False])


def test_largest_keeps_candidates_only():
    values = jnp.array([-5.0, 1.0, jnp.nan, 3.0, 4.0])
    candidates = jnp.array([True, True, True, True, False])
    leaf = Ranked(values, magnitude=True, mask=candidates)
    kept = {k: largest({"a": leaf}, {("a",): k}).masks["a"].tolist() for k in (1, 2, 5)}
    assert kept[1] == [True, False, False, False, False]
    assert kept[2] == [True, False, False, True, False]
    assert kept[5] == candidates.tolist()
    pruned = leaf.replace(mask=~candidates, pruned=True)
    assert largest({"a": pruned}, {("a",): 5}).masks["a"].tolist() == candidates.tolist()
    both = {"a": leaf, "b": leaf.replace(values=values + 9)}
    half = largest(both, {("a", "b"): 3}, {"a": 2, "b": 2}).masks
    assert int(half["a"].sum()) == 2 and int(half["b"].sum()) == 2  # floors win over the number


@pytest.mark.parametrize("counts", [{("a",): 1}, {("a", "b"): 2}, {("a",): np.array([[1], [0]])}])
def test_largest_says_whether_a_candidate_is_nan(counts):
    """In whatever way sites are ranked; also where the NaN is not kept."""
    counts = counts if len(next(iter(counts))) == 2 else counts | {("b",): 1}
    here = jnp.array([[True, True], [True, False]])
    with_nan, without = [[jnp.nan, 1.0], [2.0, 3.0]], [[0.0, 1.0], [2.0, jnp.nan]]
    for values, found in ((with_nan, True), (without, False)):
        scores = {"a": Ranked(jnp.array(values), mask=here), "b": Ranked(jnp.ones(3))}
        for least in ({}, {"b": 1}, {"a": 1, "b": 1}):
            nan = jax.jit(lambda x, y: largest(x, counts, y).nan)(scores, least)
            assert bool(nan) is found


def test_no_leaf_no_mask():
    assert masks.topk({}, 0.5) == {} and masks.global_topk({}, 0.5) == {}
    assert masks.topk({}, 0.5, axis=0) == {}
    assert largest({}, {(): 3}).masks == {} and largest({}, {}).masks == {}
    assert masks.global_topk({"a": None}, 0.5) == {"a": None}


SCORES = {"a": {"kernel": jnp.ones((6, 4))}}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: masks.topk(SCORES, 90), ValueError, r"`density` .* got 90: .* mean 0.9\?"),
        (lambda: masks.topk(SCORES, -0.1), ValueError, r"`density` must lie in \[0, 1\], got -0.1"),
        (lambda: masks.topk(SCORES, math.nan), ValueError, r"`density` .* got nan"),
        (lambda: masks.topk(SCORES, "0.5"), TypeError, "`density` must be one number, got '0.5'"),
        (lambda: masks.topk(SCORES, {"a": 0.5}), ValueError, "a number for 'a/kernel', got"),
        (
            lambda: masks.topk(SCORES, {"a": {"kernel": 50}}),
            ValueError,
            r"`density\['a/kernel'\]` must lie in \[0, 1\], got 50: .* did you mean 0.5\?",
        ),
        (lambda: masks.global_topk(SCORES, {"a": 0.5}), TypeError, "`density` must be one number"),
        (
            lambda: masks.global_topk(SCORES, 0.5, min_density=0.6),
            ValueError,
            "`min_density` must keep no more than the 12 entries that `density` keeps, got 14",
        ),
        (lambda: masks.global_topk(SCORES, 0.5, 2), ValueError, r"`min_density` must lie in"),
        (lambda: masks.n_of_m(SCORES, 5, 4), ValueError, r"`n` must lie in \[0, m\] with m = 4"),
        (lambda: masks.n_of_m(SCORES, -1, 4), ValueError, r"`n` must lie in .* got -1"),
        (lambda: masks.n_of_m(SCORES, 0, 0), ValueError, "`m` must be at least 1, got 0"),
        (lambda: masks.n_of_m(SCORES, 0.5, 4), TypeError, "`n` must be an integer, got 0.5"),
        (
            lambda: masks.n_of_m(SCORES, 2, 4, axis=0),
            ValueError,
            "a multiple of m = 4 entries along axis 0 of 'a/kernel', got 6",
        ),
        (
            lambda: masks.n_of_m(SCORES, 2, 4, axis=2),
            ValueError,
            r"`axis` must be an axis of 'a/kernel', which has shape \(6, 4\), got 2",
        ),
        (
            lambda: masks.block(SCORES, 0.5, (1, 2, 2)),
            ValueError,
            r"`shape` must have at most the 2 axes of 'a/kernel', got \(1, 2, 2\)",
        ),
        (lambda: masks.block(SCORES, 0.5, (0, 2)), ValueError, "numbers of at least 1, got"),
        (lambda: masks.block(SCORES, 0.5, (0.5,)), TypeError, "`shape` must be made of integers"),
        (lambda: masks.block(SCORES, 40, (2,)), ValueError, "`density` .* did you mean 0.4"),
        (lambda: masks.random(jax.random.key(0), SCORES, 2), ValueError, "`density` must lie"),
        (lambda: masks.topk(SCORES, 90, axis=0), ValueError, "`density` .* did you mean 0.9"),
        (
            lambda: masks.topk(SCORES, 0.5, axis=(0, 2)),
            ValueError,
            r"`axis` must be an axis of 'a/kernel', which has shape \(6, 4\), got \(0, 2\)",
        ),
        (lambda: masks.topk(SCORES, 0.5, axis=(1, -1)), ValueError, "each axis of .* once"),
    ],
)
def test_what_wrong_input_gets(call, error, message):
    with pytest.raises(error, match=message):
        call()
