"""Selection against a real sort, on both lowerings, and what it may cost."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune import selection
from jaxprune.selection import Ranked, any_nan, chunked, cut, keep_largest, rows
from jaxprune.selection.keys import codes_of, order_of

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
"""Cases of each variant, dtype and lowering: 6,336 together."""

KINDS = ["normal", "lattice", "half zeros", "zeros", "equal", "denormal", "special", "bits"]


@pytest.fixture(params=["chunked", "matrix", "natural"])
def lowering(request, monkeypatch):
    """Passes over the leaves, which small ones are spared; in a matrix alone; or on any device."""
    monkeypatch.setattr(selection, "_on_one_cpu", lambda: request.param != "natural")
    if request.param == "chunked":
        monkeypatch.setattr(rows, "_LEAST", 1)
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_many_random_cases_equal_a_stable_sort(lowering, dtype):
    rng = np.random.default_rng(len(lowering) + len(dtype))
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
            found.append(keep_largest(ranked, list(wanted), groups))
        return found

    found = jax.jit(lambda *case: jax.lax.map(one_case, case))(leaves, chosen, counts)
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


def test_float64_is_exact_beyond_float32(lowering):
    with jax.enable_x64(True):
        x = jnp.asarray(1 + np.random.default_rng(0).permutation(3000) * 2.0**-50)
        y = jnp.asarray([1 + 2.0**-24, -np.inf], jnp.float32)
        masks = jax.jit(lambda x, y, k: keep_largest([x, y], [k], [0, 0]))(x, y, 700)
        expected = oracle.keep_largest([x, y], [700], [0, 0])
    for got, right in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(got, right)


def test_leaves_of_several_dtypes_and_magnitudes_rank_by_value(lowering):
    rng = np.random.default_rng(1)
    leaves = [
        rng.standard_normal(1500).astype(dtype) for dtype in (jnp.bfloat16, np.float16, np.float32)
    ]
    flags = [False, True, True]

    def masks(leaves, k):
        return keep_largest(
            [Ranked(x, flag) for x, flag in zip(leaves, flags, strict=True)], [k], [0, 0, 0]
        )

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


def test_passes_are_bounded_on_adversaries():
    size = 300_000
    scores = adversaries(size)
    ks = np.asarray([1, 2, 10, 2990, 3000, size // 3, size // 2, size - 1], np.uint32)

    def one(x):
        ranked = [Ranked(x)]
        order = order_of(ranked)
        run = lambda k: chunked.keep_largest_and_passes(ranked, k[None], [0], order)  # noqa: E731
        found, (passes, _) = jax.lax.map(run, ks)
        return found.masks[0], passes

    masks, passes = jax.jit(lambda scores: jax.lax.map(one, scores))(scores)
    assert int(passes.max()) <= 34
    assert int(passes.min()) >= 1
    for x, found in zip(scores, masks, strict=True):
        order = np.argsort(-x, kind="stable")
        for k, mask in zip(ks, np.asarray(found), strict=True):
            assert mask.sum() == k
            assert mask[order[:k]].all()


@pytest.mark.parametrize("variant", ["magnitude", "signed", "candidates", "bfloat16", "layers"])
def test_temporaries_are_small(variant):
    dtype = jnp.bfloat16 if variant == "bfloat16" else jnp.float32
    leaves = [jax.ShapeDtypeStruct((n, 1000), dtype) for n in (3000, 500, 77, 1000)] * 2
    chosen = [jax.ShapeDtypeStruct(x.shape, bool) for x in leaves]
    groups = list(range(8)) if variant == "layers" else [0] * 8

    def masks(leaves, chosen, k):
        ranked = [
            Ranked(x, variant != "signed", c if variant == "candidates" else None)
            for x, c in zip(leaves, chosen, strict=True)
        ]
        return keep_largest(ranked, [k] * (max(groups) + 1), groups)

    compiled = jax.jit(masks).lower(leaves, chosen, jnp.int32(5)).compile()
    size = sum(x.size for x in leaves)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    assert memory.output_size_in_bytes >= size
    assert memory.temp_size_in_bytes <= 0.1 * size
    assert not re.search(r"\bsort\(", text)


def test_new_counts_do_not_retrace(lowering):
    traces = []

    @jax.jit
    def masks(x, k):
        traces.append(k)
        return keep_largest([x], [k], [0])[0]

    x = jnp.arange(2000.0)
    assert [int(masks(x, k).sum()) for k in (0, 1, 77, 1999, 2000, 9999, -5)] == [
        0, 1, 77, 1999, 2000, 2000, 0,
    ]  # fmt: skip
    assert len(traces) == 1


def test_under_vmap_scan_cond_grad_and_without_jit(lowering):
    rng = np.random.default_rng(3)
    xs = np.round(rng.standard_normal((4, 40, 30)) * 20).astype(np.float32)
    ks = np.asarray([0, 5, 600, 1200], np.int32)
    expected = [oracle.keep_largest([x], [k], [0])[0] for x, k in zip(xs, ks, strict=True)]

    def mask(x, k):
        return keep_largest([x], [k], [0])[0]

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


def test_any_nan_looks_only_at_candidates(lowering):
    x = jnp.asarray([[1.0, jnp.nan], [jnp.inf, 0.0]])
    assert any_nan([jnp.zeros(3), x])
    assert not any_nan([jnp.zeros(3), Ranked(x, True, ~jnp.isnan(x))])
    assert not any_nan([])
    for place in (0, 1023, 2000, 2099):
        large = jnp.zeros(2100).at[place].set(-jnp.nan)
        assert any_nan([large])
        assert not any_nan([Ranked(large, candidates=jnp.arange(2100) != place)])


def test_written_marks_what_is_no_candidate():
    ranked = Ranked(jnp.asarray([-2.0, 1.0]), True, jnp.asarray([True, False]))
    np.testing.assert_array_equal(ranked.written(), [2.0, np.nan])
    np.testing.assert_array_equal(ranked._replace(candidates=None).written(), [2.0, 1.0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "complex64"])
def test_cut_leaves_positive_zeros(dtype):
    x = jnp.asarray([1.5, -jnp.nan, -jnp.inf, -0.0, -2.0, jnp.nan]).astype(dtype)
    kept = jnp.asarray([True, False, False, False, True, True])
    result = np.asarray(cut(x, kept))
    assert result.dtype == x.dtype
    assert result[0] == np.asarray(x)[0]
    assert result[4] == np.asarray(x)[4]
    assert np.isnan(result[5].astype(np.complex64))
    assert not np.any(result[1:4].view(np.uint8))


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
    with pytest.raises(ValueError, match="`candidates` must have the shape"):
        keep_largest([Ranked(x, candidates=jnp.ones(2, bool))], [1], [0])


SHARDED = {(16, 24): P("x", None), (8, 4, 10): P("x", "y"), (6, 32): P(None, "y"), (7,): P()}


def sharded_leaves(mesh, rng):
    leaves = [np.round(rng.standard_normal(shape) * 9).astype(np.float32) for shape in SHARDED]
    places = [NamedSharding(mesh, spec) for spec in SHARDED.values()]
    return leaves, [jax.device_put(x, place) for x, place in zip(leaves, places, strict=True)]


@pytest.mark.several_devices
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_leaves_are_not_gathered(axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    host, leaves = sharded_leaves(mesh, np.random.default_rng(4))
    groups = [0, 0, 1, 1]

    @jax.jit
    def masks(leaves, ks):
        chosen = [x > -5 for x in leaves]
        return keep_largest(
            [Ranked(x, True, c) for x, c in zip(leaves, chosen, strict=True)], list(ks), groups
        )

    with jax.set_mesh(mesh):
        compiled = masks.lower(leaves, np.asarray([3, 5], np.int32)).compile()
        text = compiled.as_text()
        assert text is not None
        assert "all-reduce" in text
        assert not re.search("all-gather|all-to-all|collective-permute", text)
        for ks in ([0, 5], [77, 100], [311, 150], [9999, 1]):
            found = jax.block_until_ready(masks(leaves, np.asarray(ks, np.int32)))
            expected = oracle.keep_largest(host, ks, groups, True, [x > -5 for x in host])
            for mask, leaf, right in zip(found, leaves, expected, strict=True):
                np.testing.assert_array_equal(mask, right)
                assert mask.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


@pytest.mark.several_devices
def test_replicas_under_pmap_and_shard_map_select_alone():
    rng = np.random.default_rng(5)
    xs = np.round(rng.standard_normal((8, 30, 40)) * 9).astype(np.float32)
    ks = np.arange(8, dtype=np.int32) * 170
    expected = [oracle.keep_largest([x], [k], [0])[0] for x, k in zip(xs, ks, strict=True)]

    def mask(x, k):
        return keep_largest([x], [k], [0])[0]

    np.testing.assert_array_equal(jax.block_until_ready(jax.pmap(mask)(xs, ks)), expected)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda x, k: mask(x[0], k[0])[None], mesh=mesh, in_specs=P("x"), out_specs=P("x")
    )
    np.testing.assert_array_equal(jax.block_until_ready(jax.jit(mapped)(xs, ks)), expected)


@pytest.mark.parametrize("sizes", [(3000,), (35,), (9000, 35, 256)])
def test_under_shard_map_on_one_device(lowering, sizes):
    rng = np.random.default_rng(6)
    xs = [np.round(rng.standard_normal(size) * 9).astype(np.float32) for size in sizes]
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda xs, k: keep_largest(xs, [k], [0] * len(sizes)),
        mesh=mesh,
        in_specs=(P("x"), P()),
        out_specs=P("x"),
    )
    k = sum(sizes) // 3
    expected = oracle.keep_largest(xs, [k], [0] * len(sizes))
    for found, right in zip(jax.jit(mapped)(xs, jnp.int32(k)), expected, strict=True):
        np.testing.assert_array_equal(found, right)
