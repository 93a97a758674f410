"""Selection against a real sort, with and without a sample, and what it may cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxprune.selection import any_nan, as_array, count_true, keep_largest, largest_of, sum_of
from jaxprune.selection.keys import codes_of, order_of
from jaxprune.selection.search import Search
from jaxprune.types import Ranked

SHAPES = [(2, 1100), (), (3, 4, 5), (0, 3), (1024,)]
ALTERNATING = (0, 1, 0, 1, 1)
TOGETHER = (0,) * 5
ALONE = (0, 1, 2, 3, 4)
VARIANTS = [
    # magnitude, candidates, groups
    (True, False, TOGETHER),
    (False, True, ALTERNATING),
    (True, True, ALONE),
    (False, False, ALTERNATING),
]
CASES = 176
"""Cases of each variant, of which each dtype has four: 2,816 together."""

KINDS = ["normal", "lattice", "half zeros", "zeros", "equal", "denormal", "special", "bits"]


@pytest.fixture(params=[True, False], ids=["sampled", "not sampled"])
def sampled(request, monkeypatch):
    """Whether the first thresholds come from a sample, as on one device, or not, as on several."""
    monkeypatch.setattr(Search, "sampled", request.param)
    return request.param


def draw(rng, kind, shape, dtype):
    """Scores of one kind; `special` has NaNs of both signs and several payloads."""
    x = rng.standard_normal(shape)
    if kind == "lattice":
        x = np.round(3 * x)
    if kind == "half zeros":
        x = x * (rng.random(shape) < rng.choice([0.5, 0.1]))
    if kind == "zeros":
        x = 0.0 * x
    if kind == "equal":
        x = np.full(shape, rng.choice([-1.5, 0.25]))
    if kind == "denormal":
        x = np.round(5 * x) * float(jnp.finfo(dtype).smallest_subnormal)
    if kind == "special":
        x = np.where(rng.random(shape) < 0.2, np.sign(x) * np.inf, np.round(x))
    x = np.asarray(x).astype(dtype)
    unsigned = np.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = x.view(unsigned).copy()
    if kind == "special":
        infinity = np.asarray(np.inf).astype(dtype).view(unsigned)
        sign = unsigned.type(1) << unsigned.type(8 * unsigned.itemsize - 1)
        nan = infinity + rng.integers(1, 4, shape).astype(unsigned)
        nan = np.where(rng.random(shape) < 0.5, nan, nan | sign)
        bits = np.where(rng.random(shape) < 0.3, nan, bits)
    if kind == "bits":
        bits = rng.integers(0, 2 ** (8 * unsigned.itemsize), shape, np.uint64).astype(unsigned)
    return np.asarray(bits, unsigned).view(x.dtype)


def draw_counts(rng, sizes, groups):
    counts = []
    for group in range(max(groups) + 1):
        size = sum(s for s, g in zip(sizes, groups, strict=True) if g == group)
        counts.append(int(rng.choice([0, 1, size - 1, size, *rng.integers(-1, size + 2, 6)])))
    return np.asarray(counts, np.int32)


@pytest.mark.parametrize(
    ("sampled", "dtype"),
    [(True, "float32"), (False, "float32"), (True, "bfloat16"), (False, "float16")],
    indirect=["sampled"],
    ids=["float32 sampled", "float32", "bfloat16 sampled", "float16"],
)
def test_many_random_cases_equal_a_stable_sort(sampled, dtype):
    rng = np.random.default_rng([sampled, len(dtype)])
    dtype = jnp.dtype(dtype)
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    kinds = [KINDS[case % len(KINDS)] for case in range(CASES)]
    leaves = [np.stack([draw(rng, kind, shape, dtype) for kind in kinds]) for shape in SHAPES]
    chosen = [rng.random((CASES, *shape)) < 0.6 for shape in SHAPES]
    counts = [
        np.stack([draw_counts(rng, sizes, groups) for _ in kinds]) for _, _, groups in VARIANTS
    ]

    def one_case(case):
        leaves, chosen, counts = case
        found = []
        for (magnitude, limited, groups), wanted in zip(VARIANTS, counts, strict=True):
            ranked = [
                Ranked(x, magnitude, c if limited else None)
                for x, c in zip(leaves, chosen, strict=True)
            ]
            found.append(keep_largest(ranked, list(wanted), groups)[0])
        return found

    # Compiling is all it takes, and the options of all programs are tried by the first.
    options = tiny.optimized() if sampled and dtype == "float32" else tiny.quick()
    masks_of = jax.jit(lambda *case: jax.lax.map(one_case, case), compiler_options=options)
    found = masks_of(leaves, chosen, counts)
    for (magnitude, limited, groups), wanted, masks in zip(VARIANTS, counts, found, strict=True):
        masks = [np.asarray(mask) for mask in masks]
        for case, kind in enumerate(kinds):
            expected = oracle.keep_largest(
                [x[case] for x in leaves],
                wanted[case],
                groups,
                magnitude,
                [c[case] for c in chosen] if limited else None,
            )
            for got, right in zip(masks, expected, strict=True):
                message = f"{kind}, {wanted[case]}, {magnitude=}, {limited=}"
                np.testing.assert_array_equal(got[case], right, message)


def test_float64_is_exact_beyond_float32(sampled):
    with jax.enable_x64(True):
        x = jnp.asarray(1 + np.random.default_rng(0).permutation(3000) * 2.0**-50)
        y = jnp.asarray([1 + 2.0**-24, -np.inf], jnp.float32)
        masks = jax.jit(lambda x, y, k: keep_largest([x, y], [k], [0, 0])[0])(x, y, 700)
        expected = oracle.keep_largest([x, y], [700], [0, 0])
    for got, right in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(got, right)


def test_leaves_of_several_dtypes_and_magnitudes_rank_by_value(sampled):
    rng = np.random.default_rng(1)
    leaves = [
        rng.standard_normal(1500).astype(dtype) for dtype in (jnp.bfloat16, np.float16, np.float32)
    ]
    flags = [False, True, True]

    def masks(leaves, k):
        return keep_largest(
            [Ranked(x, flag) for x, flag in zip(leaves, flags, strict=True)], [k], [0, 0, 0]
        )[0]

    for k in (0, 10, 1000, 3000, 4100, 4500):
        expected = oracle.keep_largest(leaves, [k], [0, 0, 0], flags)
        for got, right in zip(jax.jit(masks)(leaves, k), expected, strict=True):
            np.testing.assert_array_equal(got, right)


finite = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(finite, min_size=2, max_size=2))
def test_codes_order_numbers_as_python_does(pair):
    x = jnp.asarray(np.asarray(pair, np.float32))
    a, b = (int(code) for code in codes_of(Ranked(x), order_of([Ranked(x)])))
    left, right = (float(np.float32(v)) for v in pair)
    if left != left or right != right:
        assert (a == 1) == (left != left)
        assert (b == 1) == (right != right)
    else:
        assert (a < b, a == b) == (left < right, left == right)


def adversaries(size):
    """Scores on which a secant, or a sample, is misled."""
    rng = np.random.default_rng(2)
    one = np.float32(1).view(np.uint32)
    close = (one + rng.integers(0, 50, size).astype(np.uint32)).view(np.float32)
    alternating = np.where(np.arange(size) % 7 == 3, np.float32(1e-30), np.float32(1e30))
    bits = rng.integers(0, 0x7F800000, size).astype(np.uint32).view(np.float32)
    lattice = (np.round(rng.standard_normal(size) * 300) * 0.0123).astype(np.float32)
    outlier = close.copy()
    outlier[[5, 77]] = np.inf, 3e38
    halves = np.repeat(np.float32(2.0) ** -np.arange(100, dtype=np.float32), size // 100 + 1)
    tiny = rng.integers(0, 2**20, size).astype(np.uint32).view(np.float32)
    heavy = np.exp(12 * rng.standard_normal(size)).astype(np.float32)
    unseen = np.where(np.arange(size) % 1000 < 10, close, rng.standard_normal(size))
    return np.stack(
        [close, alternating, bits, lattice, outlier, halves[:size], tiny, heavy, unseen]
    ).astype(np.float32)


def test_passes_are_bounded_on_adversaries(sampled):
    size = 300_000
    scores = adversaries(size)
    ks = np.asarray([1, 2, 10, 2990, 3000, size // 3, size // 2, size - 1], np.uint32)

    def one(x):
        search = Search([Ranked(x)], np.zeros(1, int), 1, order_of([Ranked(x)]))

        def masks_and_passes(k):
            found = search.found(k[None])
            return search.masks(found)[0], found.passes

        return jax.lax.map(masks_and_passes, ks)

    masks, passes = jax.jit(lambda scores: jax.lax.map(one, scores))(scores)
    assert int(passes.max()) <= 34
    assert int(passes.min()) >= 1
    for x, found in zip(scores, masks, strict=True):
        order = np.argsort(-x, kind="stable")
        for k, mask in zip(ks, np.asarray(found), strict=True):
            assert mask.sum() == k
            assert mask[order[:k]].all()


def test_new_counts_do_not_retrace(sampled):
    traces = []

    @jax.jit
    def masks(x, k):
        traces.append(k)
        return keep_largest([x], [k], [0])[0][0]

    x = jnp.arange(2000.0)
    assert [int(masks(x, k).sum()) for k in (0, 1, 77, 1999, 2000, 9999, -5)] == [
        0, 1, 77, 1999, 2000, 2000, 0,
    ]  # fmt: skip
    assert len(traces) == 1


def test_under_vmap_scan_cond_grad_and_without_jit(sampled):
    rng = np.random.default_rng(3)
    xs = np.round(rng.standard_normal((4, 40, 30)) * 20).astype(np.float32)
    ks = np.asarray([0, 5, 600, 1200], np.int32)
    expected = [oracle.keep_largest([x], [k], [0])[0] for x, k in zip(xs, ks, strict=True)]

    def mask(x, k):
        return keep_largest([x], [k], [0])[0][0]

    np.testing.assert_array_equal(jax.jit(jax.vmap(mask))(xs, ks), expected)
    scanned = jax.lax.scan(lambda carry, case: (carry, mask(*case)), 0, (xs, ks))[1]
    np.testing.assert_array_equal(scanned, expected)

    @jax.jit
    def due(flag, x, k):
        return jax.lax.cond(flag, lambda: mask(x, k), lambda: jnp.ones(x.shape, bool))

    np.testing.assert_array_equal(due(True, xs[2], ks[2]), expected[2])
    assert due(False, xs[2], ks[2]).all()
    np.testing.assert_array_equal(mask(jnp.asarray(xs[1]), 5), expected[1])
    slope = jax.grad(lambda x: jnp.sum(jnp.where(mask(x, 600), x, 0.0)))(xs[2])
    np.testing.assert_array_equal(slope, expected[2].astype(np.float32))


def test_any_nan_looks_only_at_candidates():
    x = jnp.asarray([[1.0, jnp.nan], [jnp.inf, 0.0]])
    assert any_nan([Ranked(jnp.zeros(3)), Ranked(x)])
    assert not any_nan([Ranked(jnp.zeros(3)), Ranked(x, True, ~jnp.isnan(x))])
    assert not any_nan([])
    for place in (0, 1023, 2000, 2099):
        large = jnp.zeros(2100).at[place].set(-jnp.nan)
        assert any_nan([Ranked(large)])
        assert not any_nan([Ranked(large, mask=jnp.arange(2100) != place)])


@pytest.mark.parametrize("count", [0, 3, 2101])
def test_a_selection_says_whether_a_candidate_is_nan(sampled, count):
    x = jnp.zeros(2100).at[1023].set(-jnp.nan)

    @jax.jit
    def nan(x, chosen):
        leaves = [Ranked(jnp.ones(3)), Ranked(x, mask=chosen)]
        return keep_largest(leaves, [2, count], [0, 1])[1]

    assert nan(x, jnp.ones(2100, bool))
    assert not nan(x, jnp.arange(2100) != 1023)
    assert not nan(jnp.zeros(2100), jnp.ones(2100, bool))


def test_without_scores_nothing_is_kept_and_nothing_is_nan():
    assert keep_largest([], [], []) == ([], False)
    (mask,), nan = keep_largest([jnp.zeros((0, 3))], [2], [0])
    assert mask.shape == (0, 3) and mask.dtype == bool and not nan


def test_scores_as_an_array_mark_what_is_no_candidate():
    ranked = Ranked(jnp.asarray([-2.0, 1.0]), True, jnp.asarray([True, False]))
    np.testing.assert_array_equal(as_array(ranked), [2.0, np.nan])
    np.testing.assert_array_equal(as_array(ranked.replace(mask=None)), [2.0, 1.0])
    np.testing.assert_array_equal(as_array(Ranked(ranked.values)), [-2.0, 1.0])
    assert as_array(ranked.values) is ranked.values


def counts_sums_and_maxima():
    """That each is NumPy's, of any shape."""
    rng = np.random.default_rng(7)
    for shape in [(), (0, 3), (7,), (8, 24), (3, 16, 8, 5)]:
        x = rng.standard_normal(shape).astype(np.float32)
        count, total, largest = jax.jit(
            lambda x: (count_true(x > 0), sum_of(x), largest_of(jnp.abs(x)))
        )(x)
        assert count.dtype == jnp.int32 and int(count) == (x > 0).sum()
        np.testing.assert_allclose(total, x.sum(), rtol=1e-5, atol=1e-5)
        assert largest == np.abs(x).max(initial=0)
    assert jnp.isnan(sum_of(jnp.asarray([1.0, jnp.nan])))


def test_counts_sums_and_maxima_are_those_of_numpy():
    counts_sums_and_maxima()


@pytest.mark.several_devices
def test_counts_sums_and_maxima_are_those_of_numpy_beside_other_devices():
    counts_sums_and_maxima()


@pytest.mark.parametrize("magnitude", [True, False])
def test_candidates_may_be_what_a_mask_prunes_and_scores_a_product(sampled, magnitude):
    rng = np.random.default_rng(8)
    x, factor = (np.round(rng.standard_normal((40, 50)) * 9).astype(np.float32) for _ in range(2))
    mask = rng.random((40, 50)) < 0.6

    @jax.jit
    def kept(x, factor, mask):
        return keep_largest([Ranked(x, magnitude, mask, pruned=True, factor=factor)], [300], [0])

    right = oracle.keep_largest([x * factor], [300], [0], magnitude, [~mask])
    np.testing.assert_array_equal(kept(x, factor, mask)[0][0], right[0])
    written = as_array(Ranked(jnp.asarray(x), magnitude, jnp.asarray(mask), True, factor))
    product = np.abs(x * factor) if magnitude else x * factor
    np.testing.assert_array_equal(written, np.where(mask, np.nan, product))


def test_errors_name_the_argument():
    x = jnp.ones(3)
    with pytest.raises(ValueError, match="`groups` must name one group for each of 1 leaves"):
        keep_largest([x], [1], [0, 0])
    with pytest.raises(ValueError, match=r"`groups` must lie in \[0, 1\)"):
        keep_largest([x], [1], [1])
    with pytest.raises(TypeError, match="`scores` must be floating"):
        keep_largest([jnp.arange(3)], [1], [0])
    with pytest.raises(TypeError, match="`counts` must be integers"):
        keep_largest([x], [1.5], [0])
    with pytest.raises(ValueError, match="`scores` must have arrays of one shape"):
        keep_largest([Ranked(x, mask=jnp.ones(2, bool))], [1], [0])


@pytest.mark.parametrize("sizes", [(3000,), (35,), (9000, 35, 256)])
def test_under_shard_map_on_one_device(sampled, sizes):
    rng = np.random.default_rng(6)
    xs = [np.round(rng.standard_normal(size) * 9).astype(np.float32) for size in sizes]
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda xs, k: keep_largest(xs, [k], [0] * len(sizes))[0],
        mesh=mesh,
        in_specs=(P("x"), P()),
        out_specs=P("x"),
    )
    k = sum(sizes) // 3
    expected = oracle.keep_largest(xs, [k], [0] * len(sizes))
    for found, right in zip(jax.jit(mapped)(xs, jnp.int32(k)), expected, strict=True):
        np.testing.assert_array_equal(found, right)


def test_eight_billion_entries_are_ranked_apart_and_not_together():
    leaves = [jax.ShapeDtypeStruct((2**15, 2**15), jnp.float32)] * 8

    def masks(groups, leaves):
        return keep_largest(leaves, [5] * (max(groups) + 1), groups)[0]

    apart = jax.eval_shape(functools.partial(masks, range(8)), leaves)
    assert [mask.shape for mask in apart] == [leaf.shape for leaf in leaves]
    with pytest.raises(ValueError, match=r"fewer than 2\*\*32 in a group, got 8589934592: rank"):
        jax.eval_shape(functools.partial(masks, [0] * 8), leaves)
