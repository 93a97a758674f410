"""Scanned layers: each slice of a stacked leaf is a layer of its own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from stacks import LENGTH, SLICES, slices_of, stacked_tree

import jaxprune
from jaxprune import keep, trees, views
from jaxprune.distributions import Budget
from jaxprune.masks.ranking import largest
from jaxprune.methods.common import budget_of
from jaxprune.schedules import constant, cubic
from jaxprune.types import Ranked, Signals
from jaxprune.units import Entries

# ---------------------------------------------------------------------------------- selection

CASES = [((4, 5, 6), 0), ((5, 4, 6), 1), ((5, 6, 4), 2), ((4, 7), 1), ((3, 1), 0), ((1, 3), 1)]


def draw(rng, shape):
    """Scores with many ties, infinities and NaN."""
    x = np.round(rng.standard_normal(shape) * 2).astype(np.float32)
    x = np.where(rng.random(shape) < 0.05, np.inf, x)
    return np.where(rng.random(shape) < 0.15, np.nan, x).astype(np.float32)


def expected_mask(x, axis, counts, magnitude, chosen):
    parts = slices_of(x, axis)
    some = None if chosen is None else slices_of(chosen, axis)
    masks = oracle.keep_largest(parts, counts, range(len(parts)), magnitude, some)
    return np.stack(masks, axis)


def alone(counts):
    """Numbers by site, as those of sites that are ranked alone."""
    return {(path,): number for path, number in counts.items()}


def agrees_with_a_sort(seed):
    rng = np.random.default_rng(seed)
    leaves = {str(i): draw(rng, shape) for i, (shape, _) in enumerate(CASES)}
    leaves["whole"] = draw(rng, (9,))
    chosen = {path: rng.random(x.shape) < 0.7 for path, x in leaves.items()}
    axes = {str(i): axis for i, (_, axis) in enumerate(CASES)}

    @jax.jit
    def masks(leaves, chosen, counts):
        ranked = {p: Ranked(x, True, chosen[p]) for p, x in leaves.items()}
        return largest(leaves, alone(counts)).masks, largest(ranked, alone(counts)).masks

    for _ in range(6):
        counts, wanted = {"whole": np.int32(4)}, {}
        for path, axis in axes.items():
            x = leaves[path]
            size, length = x.size // x.shape[axis], x.shape[axis]
            wanted[path] = rng.integers(-1, size + 2, length).astype(np.int32)
            shape = [length if a == axis else 1 for a in range(x.ndim)]
            counts[path] = wanted[path].reshape(shape)
        for found, some in zip(masks(leaves, chosen, counts), (None, chosen), strict=True):
            assert list(found) == list(leaves)
            for path, axis in axes.items():
                limits = None if some is None else some[path]
                right = expected_mask(leaves[path], axis, wanted[path], some is not None, limits)
                np.testing.assert_array_equal(found[path], right)
            (right,) = oracle.keep_largest(
                [leaves["whole"]], [4], [0], some is not None, some and [some["whole"]]
            )
            np.testing.assert_array_equal(found["whole"], right)


def test_each_slice_keeps_its_own_count():
    agrees_with_a_sort(0)


@pytest.mark.several_devices
def test_each_slice_keeps_its_own_count_beside_other_devices():
    agrees_with_a_sort(1)


def test_slices_of_several_blocks_under_vmap_and_without_jit():
    rng = np.random.default_rng(2)
    x = np.round(rng.standard_normal((2, 50, 3, 41)) * 30).astype(np.float32)
    counts = rng.integers(0, 2050, (2, 1, 3, 1)).astype(np.int32)
    right = [expected_mask(a, 1, k.reshape(-1), True, None) for a, k in zip(x, counts, strict=True)]

    def mask(x, k):
        return largest({"w": Ranked(x, True)}, {("w",): k}).masks["w"]

    np.testing.assert_array_equal(jax.jit(jax.vmap(mask))(x, counts), right)
    np.testing.assert_array_equal(mask(jnp.asarray(x[0]), jnp.asarray(counts[0])), right[0])


def test_other_leaves_share_their_number_and_floor():
    scores = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(4.0), "c": 10 + jnp.arange(4.0)}
    counts = {("a",): jnp.asarray([[1], [2]]), ("b", "c"): 4}
    masks = largest(scores, counts, {"a": 0, "b": 1, "c": 1}).masks
    assert list(masks) == ["a", "b", "c"]
    np.testing.assert_array_equal(masks["a"], [[False, False, True], [False, True, True]])
    assert masks["b"].tolist() == [False, False, False, True]
    assert masks["c"].tolist() == [False, True, True, True]


def test_one_slice_is_the_leaf():
    scores = {"a": jnp.arange(6.0).reshape(1, 2, 3)}
    masks = largest(scores, {("a",): jnp.full((1, 1, 1), 2)}).masks
    np.testing.assert_array_equal(masks["a"][0], [[False, False, False], [False, True, True]])


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (2, 4), (4, 1), (1, 3)])
def test_counts_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"`counts` must be one number for 'a', or \(3, 4\) on"):
        largest({"a": jnp.ones((3, 4))}, {("a",): jnp.ones(shape, jnp.int32)})


def test_compiled_text_does_not_grow_with_the_number_of_slices():
    def text(length):
        leaf = jax.ShapeDtypeStruct((length, 40, 50), jnp.float32)
        count = jax.ShapeDtypeStruct((length, 1, 1), jnp.int32)
        mask = jax.jit(lambda x, k: largest({"a": x}, {("a",): k}).masks)
        return mask.lower(leaf, count).as_text()

    assert len(text(40).splitlines()) == len(text(2).splitlines())


def grown(kept, counts, values=None):
    """What `keep.largest` makes of masks where so many entries of each slice are to be kept."""
    values = values or {path: jnp.zeros(mask.shape) for path, mask in kept.items()}
    scores = {path: Ranked(values[path], mask=mask, pruned=True) for path, mask in kept.items()}
    return keep.largest(lambda s: counts)(scores, Signals(jnp.int32(1), {}, kept), kept).masks


SPECS = {"front": P(None, "x", "y"), "back": P("x", "y", None)}


@pytest.mark.several_devices
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_slices_are_not_gathered(axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    rng = np.random.default_rng(3)
    host = {"front": draw(rng, (3, 16, 8)), "back": draw(rng, (8, 4, 3))}
    axes = {"front": 0, "back": 2}
    leaves = {p: jax.device_put(x, NamedSharding(mesh, SPECS[p])) for p, x in host.items()}
    counts = {
        "front": np.asarray([5, 60, 128], np.int32).reshape(3, 1, 1),
        "back": np.asarray([0, 7, 31], np.int32).reshape(1, 1, 3),
    }

    @jax.jit
    def masks(leaves, counts):
        ranked = {p: Ranked(x, True, x > -1) for p, x in leaves.items()}
        kept = largest(ranked, alone(counts)).masks
        return kept, grown(kept, {p: k + 1 for p, k in counts.items()}, leaves)

    with jax.set_mesh(mesh):
        text = masks.lower(leaves, counts).compile().as_text()
        assert text is not None
        assert "all-reduce" in text
        assert not re.search("all-gather|all-to-all|collective-permute", text)
        found, more = jax.block_until_ready(masks(leaves, counts))
    for path, axis in axes.items():
        with np.errstate(invalid="ignore"):
            some = host[path] > -1
        right = expected_mask(host[path], axis, counts[path].reshape(-1), True, some)
        np.testing.assert_array_equal(found[path], right)
        kept = [part.sum() for part in slices_of(right, axis)]
        size = right.size // right.shape[axis]
        wanted = np.clip(counts[path].reshape(-1) + 1, kept, size)
        np.testing.assert_array_equal([x.sum() for x in slices_of(more[path], axis)], wanted)
        assert not (right & ~np.asarray(more[path])).any()
        assert found[path].sharding.is_equivalent_to(leaves[path].sharding, 3)


# ------------------------------------------------------------------------------------ budgets


def small_are_dense(leaves, sparsity):
    return {path: 1.0 if leaf.size < 15 else 1 - sparsity for path, leaf in leaves.items()}


BUDGETS = {
    "uniform": dict(distribution="uniform"),
    "erk": dict(distribution="erk"),
    "function": dict(distribution=small_are_dense),
    "floor": dict(distribution="erk", min_density=0.25),
    "override": dict(distribution="erk", overrides={"deep": 0.5}),
    "uniform floor": dict(distribution="uniform", min_density=0.25),
    "uniform override": dict(distribution="uniform", overrides={"deep": 0.5}),
}


def masks_like(tree):
    return {path: jnp.ones(x.shape, bool) for path, x in trees.by_path(tree).items()}


def counts_at(budget, tree, step, stacked=None):
    return budget(Signals(jnp.int32(step), {}, masks_like(tree), units=Entries(stacked=stacked)))


def layers(tree, stacked=None):
    return Entries(stacked=stacked).layers(masks_like(tree))


@pytest.mark.parametrize("schedule", ["ramp", "function"])
@pytest.mark.parametrize("values", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_budgets_are_those_of_the_layers_apart(axis, values, schedule):
    ramp = cubic(2, 12, 0.7, initial=0.2)
    when = ramp if schedule == "ramp" else lambda n: ramp(n)
    together, apart = stacked_tree(axis, jnp.ones)
    if schedule == "function" and values["distribution"] != "uniform":
        with pytest.raises(ValueError, match="`distribution` must be global or uniform where"):
            counts_at(Budget(when, **values), together, 0, {"wide|deep": axis})
        return
    budget, stacked = Budget(when, **values), {"wide|deep": axis}
    for step in (0, 5, 12):
        got, right = counts_at(budget, together, step, stacked), counts_at(budget, apart, step)
        for name in ("wide", "deep"):
            found, rank = got[f"{name}/kernel",], len(SLICES[name]) + 1
            assert found.dtype == jnp.int32
            assert found.shape == tuple(LENGTH if a == axis % rank else 1 for a in range(rank))
            assert found.ravel().tolist() == [
                int(right[f"{name}/{i}/kernel",]) for i in range(LENGTH)
            ]
        assert int(got["alone/kernel",]) == int(right["alone/kernel",])
        assert got["alone/kernel",].shape == ()
    if schedule == "ramp":
        sums, each = budget.at_end(layers(together, stacked)), budget.at_end(layers(apart))
        assert sums is not None and each is not None
        least = budget.floors(layers(together, stacked)), budget.floors(layers(apart))
        for name in ("wide", "deep"):
            own = [f"{name}/{i}/kernel" for i in range(LENGTH)]
            assert sums[f"{name}/kernel",] == sum(each[path,] for path in own)
            assert least[0][f"{name}/kernel"] == sum(least[1][path] for path in own)
        assert sums["alone/kernel",] == each["alone/kernel",]
        assert least[0]["alone/kernel"] == least[1]["alone/kernel"]


def test_a_global_ranking_takes_stacks_whole_but_for_overrides():
    together, _ = stacked_tree(0, jnp.ones)
    budget = Budget(constant(0.75), "global", {"deep": 0.5}, 0.1)
    stacked = {"wide|deep": 0}
    assert budget.at_end(layers(together, stacked)) == budget.at_end(layers(together))
    assert budget.floors(layers(together, stacked)) == budget.floors(layers(together))
    counts = counts_at(budget, together, 0, stacked)
    assert counts["deep/kernel",].ravel().tolist() == [6, 6, 6]
    assert counts["alone/kernel", "wide/kernel"].shape == ()


def test_densities_are_given_by_leaf_or_by_slice():
    tree, stacked = {"a": jnp.ones((2, 10))}, {"a": 0}
    by_leaf, by_slice = {"a": 0.3}, {"a[0]": 0.3, "a[1]": 0.7}
    found = counts_at(Budget(constant(0.5), by_leaf), tree, 0, stacked)
    assert rows(found) == [[3], [3]]
    found = counts_at(Budget(constant(0.5), by_slice), tree, 0, stacked)
    assert rows(found) == [[3], [7]]
    with pytest.raises(ValueError, match=r"`distribution` must have a density for 'a\[1\]'"):
        Budget(constant(0.5), {"a[0]": 0.3}).at_end(layers(tree, stacked))


def rows(counts, *sites):
    return counts[sites or ("a",)].tolist()


def test_a_budget_of_masks_has_the_counts_of_each_slice():
    mask, stacked = {"a": np.asarray([[1, 1, 1, 0], [0, 1, 0, 0]], bool)}, {"a": 0}
    budget = budget_of(None, "erk", None, 0.0, mask, Entries(stacked=stacked))
    assert rows(counts_at(budget, mask, 0, stacked)) == [[3], [1]]
    assert rows(counts_at(budget.together(), mask, 0, stacked)) == 4
    assert rows(counts_at(budget.less(lambda step: 0.4), mask, 0, stacked)) == [[2], [1]]
    fewer = {"a": jnp.asarray([[3], [2]])}
    none, first = {"a": jnp.zeros((2, 4), bool)}, {"a": jnp.asarray([[1, 0, 0, 0]] * 2, bool)}
    assert grown(none, fewer)["a"].sum(1).tolist() == [3, 2]
    assert grown(first, fewer)["a"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    full = {"a": jnp.ones((2, 4), bool)}
    assert grown(full, fewer)["a"].all()  # what stays is not taken away


def test_budgets_can_be_compared_and_hashed():
    def made(stacked=0):
        return Entries(stacked={"b": stacked}), Budget(constant(0.5), "erk", {"a": 0.1}, 0.0)

    assert made() == made()
    assert hash(made()) == hash(made())
    assert made() != made(1)
    assert made()[1] != Budget(constant(0.5), "erk", {"a": 0.2}, 0.0)


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_out_of_range_is_refused(axis):
    tx = jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=0.5, ramp=(0, 2), stacked={"a": axis})
    with pytest.raises(ValueError, match=r"`stacked` must lie in \[-2, 2\) for 'a', got"):
        tx.init({"a": jnp.ones((2, 3))})


def test_a_pattern_without_match_and_a_wrong_type_are_refused():
    params = {"layers": {"kernel": jnp.ones((2, 3))}}
    for name in ("rigl", "prune_and_grow"):
        tx = getattr(jaxprune, name)(
            optax.sgd(0.1), sparsity=0.5, stop=900, stacked={"layer/kernel": 0}
        )
        expected = r"`stacked` must match at least one path, got 'layer/kernel': did you mean"
        with pytest.raises(ValueError, match=expected):
            tx.init(params)
    with pytest.raises(TypeError, match="`stacked` must give an integer, the axis of 'layers/"):
        jaxprune.prune_once(params, 0.5, distribution="erk", stacked={"layers": "0"})


# -------------------------------------------------------------------------------------- units


def living(path, mask, output_axis, axis):
    units = Entries(output_axis=output_axis, stacked={path: axis})
    return units.living({path: jnp.asarray(mask)})[path]


def test_units_are_those_of_each_slice():
    mask = np.zeros((2, 3, 4), bool)
    mask[0, 1, 2] = mask[1, 0, 0] = mask[1, 2, 0] = True
    alive = living("a", mask, None, 0)
    np.testing.assert_array_equal(alive, mask.any(axis=1, keepdims=True))
    middle = living("a", mask, 0, 1)  # the first axis of a slice
    np.testing.assert_array_equal(middle, mask.any(axis=2, keepdims=True))
    # Outputs come first in a `weight`, and so in its slices; last in a kernel stacked at the end.
    first = living("weight", mask, None, 0)
    np.testing.assert_array_equal(first, mask.any(axis=2, keepdims=True))
    last = living("kernel", mask, None, -1)
    np.testing.assert_array_equal(last, mask.any(axis=0, keepdims=True))
    s = Signals(jnp.int32(0), {}, {"a": jnp.asarray(mask)}, units=Entries(stacked={"a": 0}))
    np.testing.assert_array_equal(views.guarded().init(s)["alive"]["a"], alive)
    assert living("a", [True, False], None, 0).tolist() == [True, False]
