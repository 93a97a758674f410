"""Searches that begin where the last ones ended, and that end among few blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxprune import selection
from jaxprune.masks.ranking import chosen, largest
from jaxprune.selection import Points, Ranked, any_nan, chunked, rows, search
from jaxprune.selection.keys import codes_of, order_of

SIZES = (40_000, 700, 256, 3)


@pytest.fixture(params=["chunked", "natural"])
def lowering(request, monkeypatch):
    monkeypatch.setattr(selection, "_on_one_cpu", lambda: request.param == "chunked")
    return request.param


def weights(seed, sizes=SIZES):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(np.float32) for size in sizes]


def assert_equal_masks(found, leaves, counts, groups):
    expected = oracle.keep_largest(leaves, counts, groups, True)
    for mask, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mask, right)


@jax.jit
def apart(leaves, counts, near):
    return search([Ranked(x, True) for x in leaves], list(counts), range(len(leaves)), near)


@jax.jit
def together(leaves, count, near):
    return search([Ranked(x, True) for x in leaves], [count], [0] * len(leaves), near)


codes = st.one_of(st.integers(0, 2**32 - 1), st.integers(0xFE000000, 0xFF000000), st.just(0))


numbers = st.one_of(st.integers(0, 40_000), st.integers(0, 2**32 - 1))


@given(
    st.lists(codes, min_size=8, max_size=8),
    st.lists(numbers, min_size=8, max_size=8),
    st.integers(0, 9),
    st.floats(0, 1),
)
def test_wherever_a_search_begins_the_masks_are_those_of_a_sort(near, above, seed, density):
    leaves = weights(seed)
    counts = np.asarray([round(density * size) for size in SIZES], np.int32)
    codes = np.asarray(near, np.uint32).reshape(2, 4)
    near = Points(codes, np.asarray(above, np.uint32).reshape(2, 4))
    assert_equal_masks(apart(leaves, counts, near).masks, leaves, counts, range(4))
    whole = together(leaves, counts.sum(), Points(*[x[:, :1] for x in near]))
    assert_equal_masks(whole.masks, leaves, [counts.sum()], [0] * 4)


def test_cuts_lie_between_what_is_kept_and_what_is_not(lowering):
    leaves, counts = weights(0), np.asarray([4000, 70, 26, 1], np.int32)
    found = jax.jit(lambda: search([Ranked(x, True) for x in leaves], list(counts), range(4)))()
    order = order_of([Ranked(x) for x in leaves])
    for i, (leaf, mask) in enumerate(zip(leaves, found.masks, strict=True)):
        kept = np.asarray(codes_of(Ranked(jnp.asarray(leaf), True), order))
        codes_here, above_them = (np.asarray(x)[:, i] for x in found.points)
        cut = codes_here[0]
        for code, above in zip(codes_here, above_them, strict=True):
            assert code == 0 or above == (kept > code).sum()
        # A cut may lie anywhere between the least that is kept and the largest that is not.
        assert kept[~np.asarray(mask)].max() <= cut <= kept[np.asarray(mask)].min()


def test_a_search_whose_end_is_known_takes_one_pass_and_a_new_one_few():
    leaves = weights(1, (2_000_000, 300_000))
    counts = jnp.asarray([200_000, 30_000], jnp.uint32)

    @jax.jit
    def passes(near, counts):
        ranked = [Ranked(jnp.asarray(x), True) for x in leaves]
        return chunked.keep_largest_and_passes(ranked, counts, [0, 1], order_of(ranked), near)

    none = jnp.zeros((2, 2), jnp.uint32)
    found, (cold, after) = passes(Points(none, none), counts)
    assert int(cold) <= 4
    assert int(after) <= 8
    near = found.points
    for _ in range(12):  # the same again: what lies aside comes nearer each time
        near = passes(near, counts)[0].points
    known, (warm, _) = passes(near, counts)
    assert int(warm) == 1
    fewer = counts - jnp.asarray([200, 30], jnp.uint32)
    moving, (on_its_way, _) = passes(near, fewer)
    assert int(on_its_way) <= 2
    moved = near._replace(codes=near.codes + jnp.uint32(20_000))
    missed, (again, _) = passes(moved, counts)
    assert int(again) <= 3
    for other, kept in ((known, counts), (missed, counts), (moving, fewer)):
        assert_equal_masks(other.masks, leaves, kept, [0, 1])


def test_more_active_blocks_than_rows_are_searched_where_they_lie():
    x = np.repeat(np.float32([3, 2, 1]), 40_000)
    x[::7] = 2.5  # ties in more blocks than the matrix has rows
    for k in (1, 39_999, 50_000, 57_000, 119_999):
        found = apart([x], np.asarray([k]), None)
        assert_equal_masks(found.masks, [x], [k], [0])


def test_rows_hold_the_active_blocks_and_every_rest():
    leaves = [np.arange(1.0, size + 1, dtype=np.float32) for size in (60_000, 255, 256)]
    ranked = [Ranked(jnp.asarray(x)) for x in leaves]
    blocks = chunked.split(ranked, order_of(ranked))
    lengths = blocks.lengths
    assert list(lengths) == [-(-x.size // 256) for x in leaves]
    active = jnp.zeros(lengths.sum(), bool).at[np.asarray([3, 100])].set(True)
    assert rows.fit(blocks, jnp.asarray([64, 255, 256], jnp.uint32)).all()
    assert rows.fit(blocks, jnp.asarray([65, 255, 256], jnp.uint32)).tolist() == [False, True, True]
    room = rows.room(blocks, np.asarray([0, 1, 0]), 2)
    np.testing.assert_allclose(room, [64 * (60_256 / 60_000), 255])
    matrix = rows.taken(blocks, active)
    total = int(lengths.sum())
    taken = {int(b): np.asarray(row) for b, row in zip(matrix.block, matrix.codes, strict=True)}
    rests = {int(lengths[0]) - 1, int(lengths[0])}
    assert set(taken) - {total} == {3, 100} | rests
    expected = codes_of(Ranked(jnp.asarray(leaves[0][256 * 3 : 256 * 4])), blocks.order)
    np.testing.assert_array_equal(taken[3], expected)
    assert not taken[total].any()
    numbers = jnp.arange(total)
    assert set(np.asarray(rows.of_blocks(matrix, numbers)).tolist()) == {0, 3, 100} | rests
    put = rows.put(matrix, jnp.zeros(total, int), jnp.ones(len(matrix.block), int))
    assert set(np.flatnonzero(put).tolist()) == {3, 100} | rests


@pytest.mark.parametrize("k", [0, 5, 3000])
def test_a_search_says_whether_a_candidate_is_nan(lowering, k):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(2000).astype(np.float32)

    @jax.jit
    def nans(y, candidates):
        leaves = [Ranked(y, True), Ranked(y, True, candidates)]
        found = [search([leaf, jnp.ones(3)], [k, 1], [0, 1]).nan for leaf in leaves]
        return found, [any_nan([leaf]) for leaf in leaves]

    for place in (None, 0, 700, 1999):
        y = x if place is None else np.where(np.arange(2000) == place, -np.float32(np.nan), x)
        for candidates in (np.isfinite(y), rng.random(2000) < 0.5, np.arange(2000) >= 0):
            found, expected = nans(y, candidates)
            assert found == expected
            assert bool(found[0]) == (place is not None)


def test_masks_by_name_start_where_their_names_ended():
    scores = {"a": jnp.asarray(weights(5)[0]), "b": jnp.asarray(weights(6)[1])}
    counts = {"b": 70, "*": 4000}
    first = jax.jit(lambda: chosen(scores, counts))()
    assert first.points.counts[0].tolist() == [70, 4000]
    again = jax.jit(lambda: chosen(scores, counts, near=first.points))()
    alone = largest(scores, counts)
    for path in scores:
        np.testing.assert_array_equal(again.masks[path], first.masks[path])
        np.testing.assert_array_equal(again.masks[path], alone[path])
    stacked = {"a": jnp.stack([scores["b"], 2 * scores["b"]]).at[1, 3].set(jnp.nan)}
    found = chosen(stacked, {"a": jnp.asarray([[7], [9]])})
    assert found.masks["a"].sum(axis=1).tolist() == [7, 9]
    assert not found.points.codes.size
    assert found.nan


def test_a_nan_that_a_least_share_takes_is_one(lowering):
    scores = {"a": jnp.asarray([1.0, jnp.nan]), "b": jnp.asarray([3.0, 4.0])}
    assert jax.jit(lambda: chosen(scores, 3, min_density=1.0).nan)()
    assert not jax.jit(lambda: chosen({"b": scores["b"]}, 1, min_density=0.5).nan)()


@pytest.mark.parametrize("varying", ["leaves", "counts", "near"])
def test_a_warm_search_under_shard_map_whatever_varies(varying):
    (x,), counts = weights(7, (40_000,)), jnp.asarray([4000])
    near = search([Ranked(jnp.asarray(x), True)], [4000], [0]).points
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda x, counts, near: search([Ranked(x, True)], [counts[0]], [0], near).masks[0],
        mesh=mesh,
        in_specs=(
            P("x") if varying == "leaves" else P(),
            P("x") if varying == "counts" else P(),
            P(None, "x") if varying == "near" else P(),
        ),
        out_specs=P("x"),
    )
    assert_equal_masks([jax.jit(mapped)(x, counts, near)], [x], [4000], [0])


def test_near_has_two_points_for_each_group():
    near = Points(*[jnp.zeros((2, 3), jnp.uint32)] * 2)
    with pytest.raises(ValueError, match=r"`near` must have the shape \(2, 1\), got \(2, 3\)"):
        search([jnp.ones(3)], [1], [0], near)
