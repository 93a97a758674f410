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
from jaxprune import trees, views
from jaxprune.distributions import Budget
from jaxprune.masks import largest
from jaxprune.methods.common import Less, Together, budget_of
from jaxprune.refresh import _missing
from jaxprune.schedules import constant, cubic
from jaxprune.selection import Ranked
from jaxprune.types import Signals

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


def agrees_with_a_sort(seed):
    rng = np.random.default_rng(seed)
    leaves = {str(i): draw(rng, shape) for i, (shape, _) in enumerate(CASES)}
    leaves["whole"] = draw(rng, (9,))
    chosen = {path: rng.random(x.shape) < 0.7 for path, x in leaves.items()}
    axes = {str(i): axis for i, (_, axis) in enumerate(CASES)}

    @jax.jit
    def masks(leaves, chosen, counts):
        plain = largest(leaves, counts)
        ranked = {p: Ranked(x, True, chosen[p]) for p, x in leaves.items()}
        return plain, largest(ranked, counts)

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
        return largest({"w": Ranked(x, True)}, {"w": k})["w"]

    np.testing.assert_array_equal(jax.jit(jax.vmap(mask))(x, counts), right)
    np.testing.assert_array_equal(mask(jnp.asarray(x[0]), jnp.asarray(counts[0])), right[0])


def test_other_leaves_share_their_number_and_floor():
    scores = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(4.0), "c": 10 + jnp.arange(4.0)}
    counts = {"a": jnp.asarray([[1], [2]]), "*": 4}
    masks = largest(scores, counts, min_density=0.25)
    assert list(masks) == ["a", "b", "c"]
    np.testing.assert_array_equal(masks["a"], [[False, False, True], [False, True, True]])
    assert masks["b"].tolist() == [False, False, False, True]
    assert masks["c"].tolist() == [False, True, True, True]


def test_one_slice_is_the_leaf():
    scores = {"a": jnp.arange(6.0).reshape(1, 2, 3)}
    masks = largest(scores, {"a": jnp.full((1, 1, 1), 2)})
    np.testing.assert_array_equal(masks["a"][0], [[False, False, False], [False, True, True]])


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (2, 4), (4, 1), (1, 3)])
def test_counts_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"`counts` must be one number for 'a', or \(3, 4\) on"):
        largest({"a": jnp.ones((3, 4))}, {"a": jnp.ones(shape, jnp.int32)})


def test_compiled_text_does_not_grow_with_the_number_of_slices():
    def text(length):
        leaf = jax.ShapeDtypeStruct((length, 40, 50), jnp.float32)
        count = jax.ShapeDtypeStruct((length, 1, 1), jnp.int32)
        return jax.jit(lambda x, k: largest({"a": x}, {"a": k})).lower(leaf, count).as_text()

    assert len(text(40).splitlines()) == len(text(2).splitlines())


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
        kept = largest({p: Ranked(x, True, x > -1) for p, x in leaves.items()}, counts)
        return kept, _missing({p: k + 1 for p, k in counts.items()}, kept)

    with jax.set_mesh(mesh):
        text = masks.lower(leaves, counts).compile().as_text()
        assert text is not None
        assert "all-reduce" in text
        assert not re.search("all-gather|all-to-all|collective-permute", text)
        found, missing = jax.block_until_ready(masks(leaves, counts))
    for path, axis in axes.items():
        with np.errstate(invalid="ignore"):
            some = host[path] > -1
        right = expected_mask(host[path], axis, counts[path].reshape(-1), True, some)
        np.testing.assert_array_equal(found[path], right)
        kept = [part.sum() for part in slices_of(right, axis)]
        np.testing.assert_array_equal(
            np.ravel(missing[path]), np.maximum(counts[path].reshape(-1) + 1 - kept, 0)
        )
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
}


def counts_at(budget, tree, step):
    mask = {path: jnp.ones(x.shape, bool) for path, x in trees.by_path(tree).items()}
    return budget(Signals(jnp.int32(step), {}, mask))


@pytest.mark.parametrize("schedule", ["ramp", "function"])
@pytest.mark.parametrize("values", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_budgets_are_those_of_the_layers_apart(axis, values, schedule):
    ramp = cubic(2, 12, 0.7, initial=0.2)
    when = ramp if schedule == "ramp" else lambda n: ramp(n)
    together, apart = stacked_tree(axis, jnp.ones)
    budget = Budget(when, **values)
    stacked = Budget(when, **values, stacked={"wide|deep": axis})
    for step in (0, 5, 12):
        got, right = counts_at(stacked, together, step), counts_at(budget, apart, step)
        for name in ("wide", "deep"):
            found, rank = got[f"{name}/kernel"], len(SLICES[name]) + 1
            assert found.dtype == jnp.int32
            assert found.shape == tuple(LENGTH if a == axis % rank else 1 for a in range(rank))
            assert found.ravel().tolist() == [
                int(right[f"{name}/{i}/kernel"]) for i in range(LENGTH)
            ]
        assert int(got["alone/kernel"]) == int(right["alone/kernel"])
        assert got["alone/kernel"].shape == ()
    if schedule == "ramp":
        leaves, single = trees.by_path(together), trees.by_path(apart)
        for sums, each in [
            (stacked.at_end(leaves), budget.at_end(single)),
            (stacked.floors(leaves), budget.floors(single)),
        ]:
            for name in ("wide", "deep"):
                own = sum(each[f"{name}/{i}/kernel"] for i in range(LENGTH))
                assert sums[f"{name}/kernel"] == own
            assert sums["alone/kernel"] == each["alone/kernel"]


def test_a_global_ranking_takes_stacks_whole_but_for_overrides():
    together, _ = stacked_tree(0, jnp.ones)
    values = dict(distribution="global", overrides={"deep": 0.5}, min_density=0.1)
    stacked = Budget(constant(0.75), **values, stacked={"wide|deep": 0})
    plain = Budget(constant(0.75), **values)
    leaves = trees.by_path(together)
    assert stacked.at_end(leaves) == plain.at_end(leaves)
    assert stacked.floors(leaves) == plain.floors(leaves)
    counts = counts_at(stacked, together, 0)
    assert counts["deep/kernel"].ravel().tolist() == [6, 6, 6]
    assert counts["*"].shape == ()


def test_densities_are_given_by_leaf_or_by_slice():
    tree = {"a": jnp.ones((2, 10))}
    by_leaf = Budget(constant(0.5), {"a": 0.3}, stacked={"a": 0})
    by_slice = Budget(constant(0.5), {"a[0]": 0.3, "a[1]": 0.7}, stacked={"a": 0})
    assert counts_at(by_leaf, tree, 0)["a"].tolist() == [[3], [3]]
    assert counts_at(by_slice, tree, 0)["a"].tolist() == [[3], [7]]
    with pytest.raises(ValueError, match=r"`distribution` must have a density for 'a\[1\]'"):
        Budget(constant(0.5), {"a[0]": 0.3}, stacked={"a": 0}).at_end(tree)


def rows(counts, path="a"):
    return counts[path].tolist()


def test_a_budget_of_masks_has_the_counts_of_each_slice():
    mask = {"a": np.asarray([[1, 1, 1, 0], [0, 1, 0, 0]], bool)}
    budget = budget_of(None, "erk", None, 0.0, mask, {"a": 0})
    assert rows(counts_at(budget, mask, 0)) == [[3], [1]]
    signals = Signals(jnp.int32(0), {}, mask)
    assert rows(Together(budget)(signals), "*") == 4
    assert rows(Less(budget, lambda step: 0.4)(signals)) == [[2], [1]]
    fewer = {"a": jnp.asarray([[3], [2]])}
    assert rows(_missing(fewer, {"a": jnp.zeros((2, 4), bool)})) == [[3], [2]]
    assert rows(_missing(fewer, {"a": jnp.ones((2, 1), bool)})) == [[2], [1]]


def test_budgets_can_be_compared_and_hashed():
    def made():
        return Budget(constant(0.5), "erk", {"a": 0.1}, 0.0, {"b": 1})

    assert made() == made()
    assert hash(made()) == hash(made())
    assert made() != Budget(constant(0.5), "erk", {"a": 0.1}, 0.0, {"b": 0})


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


def test_units_are_those_of_each_slice():
    mask = np.zeros((2, 3, 4), bool)
    mask[0, 1, 2] = mask[1, 0, 0] = mask[1, 2, 0] = True
    alive = views.living_units({"a": jnp.asarray(mask)}, None, {"a": 0})["a"]
    np.testing.assert_array_equal(alive, mask.any(axis=1, keepdims=True))
    middle = views.living_units({"a": jnp.asarray(mask)}, 0, {"a": 1})["a"]
    np.testing.assert_array_equal(middle, mask.any(axis=2, keepdims=True))
    # Outputs come first in a `weight`, and so in its slices; last in a kernel stacked at the end.
    first = views.living_units({"weight": jnp.asarray(mask)}, None, {"weight": 0})["weight"]
    np.testing.assert_array_equal(first, mask.any(axis=2, keepdims=True))
    last = views.living_units({"kernel": jnp.asarray(mask)}, None, {"kernel": -1})["kernel"]
    np.testing.assert_array_equal(last, mask.any(axis=0, keepdims=True))
    memory = views.guard(None, {"a": 0}).init({"a": jnp.asarray(mask)})
    np.testing.assert_array_equal(memory["alive"]["a"], alive)
    assert views.living_units({"a": jnp.asarray([True, False])}, None, {"a": 0})["a"].tolist() == [
        True,
        False,
    ]
