"""What moves together: blocks along a course, and groups in every layout."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import tiny
from tiny import masks_of, theirs

import jaxprune
from jaxprune import trees

# ------------------------------------------------------------------------- blocks along a course

BLOCK = (2, 4)
GRIDS = {"body/kernel": (2, 2), "head/kernel": (4, 2)}  # the head's last blocks are ragged


def blocks_kept(state: Any) -> dict[str, np.ndarray]:
    """Which blocks are kept; all entries of one must be alike."""
    found = {}
    for path, mask in masks_of(state).items():
        rows, columns = GRIDS[path]
        kept = mask[::2, ::4]
        assert kept.shape == (rows, columns)
        whole = kept.repeat(2, 0).repeat(4, 1)[: mask.shape[0], : mask.shape[1]]
        np.testing.assert_array_equal(mask, whole)
        found[path] = kept
    return found


def along(tx: Any, steps: int, grads: Any) -> list[tuple[Any, Any]]:
    step, trail = tiny.updater(tx), [(tiny.params(), tx.init(tiny.params()))]
    for n in range(1, steps + 1):
        params, state = trail[-1]
        trail.append(step(grads(n), state, params))
    return trail


def test_gradual_magnitude_drops_whole_blocks_by_their_count() -> None:
    tx = jaxprune.gradual_magnitude(
        theirs(optax.sgd(0.1)), sparsity=0.75, ramp=(0, 6), every=2, block=BLOCK
    )
    trail = along(tx, 8, tiny.normal)
    before = {path: np.ones(grid, bool) for path, grid in GRIDS.items()}
    for n, (params, state) in enumerate(trail):
        kept = blocks_kept(state)
        for path, mask in kept.items():
            total = mask.size
            last = min(n - n % 2, 6)
            wanted = tiny.scheduled(total, total // 4, last, 6, 2) if n > 1 else total
            assert mask.sum() == wanted, (n, path)
            assert not (mask & ~before[path]).any()
        if n in (2, 4, 6):  # by the mean size of what was there before the update
            for path, mask in kept.items():
                w = np.abs(np.asarray(trees.by_path(trail[n - 1][0])[path]))
                means = [
                    w[2 * i : 2 * i + 2, 4 * j : 4 * j + 4].astype("f8").mean()
                    for i, j in np.ndindex(*GRIDS[path])
                ]
                (expected,) = oracle.keep_largest(
                    [np.reshape(means, GRIDS[path])], [mask.sum()], [0], candidates=[before[path]]
                )
                np.testing.assert_array_equal(mask, expected)
        before = kept
        tiny.on_support(params, state)
        if n:
            jaxprune.verify(params, state)


def test_rigl_grows_and_drops_whole_blocks_by_their_count() -> None:
    tx = jaxprune.rigl(
        theirs(optax.sgd(0.1)),
        sparsity=0.5,
        stop=9,
        every=2,
        drop_fraction=0.5,
        block=BLOCK,
        distribution="uniform",
    )
    trail, changes = along(tx, 9, tiny.normal), 0
    for n, (params, state) in enumerate(trail[1:], 1):
        kept, old = blocks_kept(state), blocks_kept(trail[n - 1][1])
        assert {path: int(mask.sum()) for path, mask in kept.items()} == {
            "body/kernel": 2,
            "head/kernel": 4,
        }
        if n > 1:
            new = {path: mask & ~old[path] for path, mask in kept.items()}
            changes += sum(int(mask.sum()) for mask in new.values())
            if n % 2:
                assert not any(mask.any() for mask in new.values())
        jaxprune.verify(params, state)
        tiny.on_support(params, state, whole=False)
    assert changes > 0


def test_rigl_grows_the_block_of_the_largest_mean_gradient() -> None:
    params = {"kernel": jnp.arange(1.0, 9.0).reshape(1, 8)}
    tx = jaxprune.rigl(
        optax.sgd(0.0), sparsity=0.5, stop=10**6, every=1, drop_fraction=0.5, block=(2,), seed=3
    )
    state = tx.init(params)
    zeros = {"kernel": jnp.zeros((1, 8))}
    grads = {"kernel": jnp.asarray([[1.0, 1.0, 1.9, 0.0, 0.8, 0.8, 3.0, 0.0]])}
    step = jax.jit(tx.update)
    _, state = step(zeros, state, params)
    first = np.asarray(jaxprune.get_masks(state)["kernel"])[0, ::2]
    assert first.sum() == 2
    params = {"kernel": jnp.where(jaxprune.get_masks(state)["kernel"], params["kernel"], 0)}
    _, state = step(grads, state, params)
    found = np.asarray(jaxprune.get_masks(state)["kernel"])[0, ::2]
    means = np.array([1.0, 0.95, 0.8, 1.5])
    stays = np.flatnonzero(first)[1]  # the larger weights
    others = [i for i in range(4) if i != stays]
    grows = max(others, key=lambda i: means[i])
    assert np.flatnonzero(found).tolist() == sorted([stays, grows])


@pytest.mark.parametrize("density", [0.25, 0.5])
def test_a_plan_counts_the_entries_of_whole_blocks(density: float) -> None:
    params = {"a": {"kernel": jnp.ones((4, 8))}, "b": {"kernel": jnp.ones((4, 16))}}
    tx = jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=1 - density, ramp=(0, 1), block=BLOCK)
    assert [leaf.density_end for leaf in jaxprune.plan(tx, params).leaves] == [density] * 2
    _, state = tx.update(tiny.zeros_like(params), tx.init(params), params)
    kept = {path: int(mask.sum()) for path, mask in masks_of(state).items()}
    assert kept == {"a/kernel": 32 * density, "b/kernel": 64 * density}


@pytest.mark.parametrize(
    "method",
    [
        lambda **values: jaxprune.gradual_magnitude(
            optax.sgd(0.1), sparsity=0.5, ramp=(0, 4), **values
        ),
        lambda **values: jaxprune.rigl(optax.sgd(0.1), sparsity=0.5, stop=900, **values),
    ],
    ids=["gradual_magnitude", "rigl"],
)
def test_blocks_that_cannot_be_are_refused(method: Any) -> None:
    params = {"kernel": jnp.ones((4, 8))}
    with pytest.raises(ValueError, match="`start` must be None beside `block`"):
        method(block=(2, 2), start={"kernel": jnp.ones((4, 8), bool)})
    with pytest.raises(TypeError, match="`block` must be a tuple of integers, got 4"):
        method(block=4)
    with pytest.raises(ValueError, match="`block` must be made of numbers of at least 1"):
        method(block=(0, 4))
    with pytest.raises(ValueError, match="`block` must be made of numbers of at least 1"):
        method(block=(0, 2))
    with pytest.raises(TypeError, match="`block` must be made of integers"):
        method(block=(0.5, 2))
    with pytest.raises(ValueError, match="`block` must have at most the 2 axes of 'kernel'"):
        method(block=(1, 2, 2)).init(params)


# ---------------------------------------------------------------------------- groups in networks

CONVNET = {
    "stem/kernel": (3, 3, 3, 8),  # 27 inputs
    "conv/kernel": (3, 3, 8, 8),
    "conv/bias": (8,),
    "classes/kernel": (10, 5),
}


def convnet() -> Any:
    rng, tree = np.random.default_rng(0), {}
    for path, shape in CONVNET.items():
        module, name = path.split("/")
        tree.setdefault(module, {})[name] = jnp.asarray(rng.normal(size=shape), "f4")
    return tree


METHODS = {
    "n_of_m": lambda **values: jaxprune.n_of_m(theirs(optax.sgd(0.1)), n=2, m=4, **values),
    "straight_through": lambda **values: jaxprune.n_of_m(
        theirs(optax.sgd(0.1)), n=2, m=4, view="straight_through", **values
    ),
    "sr_ste": lambda **values: jaxprune.sr_ste(theirs(optax.sgd(0.1)), n=2, m=4, **values),
    "prune_and_grow": lambda **values: jaxprune.prune_and_grow(
        theirs(optax.sgd(0.1)), n_of_m=(2, 4), stop=900, **values
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_all_leaves_that_groups_do_not_fit_are_named_at_init(name: str) -> None:
    got = (
        r"got \{'classes/kernel': 10, 'stem/kernel': 27\}: .* by `exclude`, or .* by unfit=\"skip\""
    )
    with pytest.raises(ValueError, match=rf"sum multiples of m = 4 inputs in every leaf, {got}"):
        METHODS[name]().init(dict(sorted(convnet().items())))
    state = METHODS[name](exclude=["stem", "classes"]).init(convnet())
    assert [*masks_of(state)] == ["conv/kernel"]
    with pytest.raises(ValueError, match="`unfit` must be 'refuse' or 'skip', got 'leave'"):
        METHODS[name](unfit="leave")


@pytest.mark.parametrize("name", METHODS)
def test_leaves_that_groups_do_not_fit_stay_dense_and_the_plan_says_so(name: str) -> None:
    tx, params = METHODS[name](unfit="skip"), convnet()
    plan = {leaf.path: leaf for leaf in jaxprune.plan(tx, params).leaves}
    assert [path for path, leaf in plan.items() if leaf.pruned] == ["conv/kernel"]
    assert plan["conv/kernel"].density_end == 0.5
    assert plan["stem/kernel"].reason == "sums 27 inputs, no multiple of 4"
    assert plan["classes/kernel"].reason == "sums 10 inputs, no multiple of 4"
    step, state = tiny.updater(tx), tx.init(params)
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        grads = jax.tree.map(lambda p, r=rng: jnp.asarray(r.normal(size=p.shape), p.dtype), params)
        params, state = step(grads, state, params)
    masks = masks_of(state)
    assert [*masks] == ["conv/kernel"]
    assert (groups(masks["conv/kernel"], (3, 0, 1, 2), 4) == 2).all()
    leaves = trees.by_path(params)
    assert (np.asarray(leaves["stem/kernel"]) != 0).all()
    assert (np.asarray(leaves["classes/kernel"]) != 0).all()


def groups(mask: np.ndarray, order: tuple[int, ...], m: int) -> np.ndarray:
    """How many entries each group keeps, the order ending with the axes along which they lie."""
    return mask.transpose(order).reshape(-1, m).sum(1)


ATTENTION = {
    "query/kernel": ((16, 4, 8), (1, 2, 0)),
    "key/kernel": ((16, 4, 8), (1, 2, 0)),
    "value/kernel": ((16, 4, 8), (1, 2, 0)),
    "out/kernel": ((4, 8, 16), (2, 0, 1)),
}
OUT = {"out/kernel": ((4, 6, 16), (2, 0, 1))}  # 24 entries as one: neither 4 nor 6 is enough
GRU = {"weight_ih": ((24, 8), (0, 1)), "weight_hh": ((24, 8), (0, 1))}


def checked_groups(tx: Any, params: Any, orders: Any, m: int) -> None:
    """After one update, those of an oracle along the flattened contraction."""
    _, state = tiny.updater(tx)(tiny.zeros_like(params), tx.init(params), params)
    found, leaves = masks_of(state), trees.by_path(params)
    assert sorted(found) == sorted(orders)
    for path, order in orders.items():
        w = np.abs(np.asarray(leaves[path])).transpose(order)
        expected = oracle.n_of_m(w.reshape(-1, m), 2, m, -1).reshape(w.shape)
        np.testing.assert_array_equal(found[path].transpose(order), expected, err_msg=path)


@pytest.mark.parametrize("name", ["n_of_m", "straight_through", "sr_ste"])
@pytest.mark.parametrize("shapes", [ATTENTION, OUT, GRU], ids=["attention", "out", "gru"])
def test_groups_lie_along_what_is_summed(name: str, shapes: Any) -> None:
    rng, params = np.random.default_rng(5), {}
    for path, (shape, _) in shapes.items():
        *module, own = path.split("/")
        part = params.setdefault(module[0], {}) if module else params
        part[own] = jnp.asarray(rng.normal(size=shape), "f4")
    orders = {path: order for path, (_, order) in shapes.items()}
    checked_groups(METHODS[name](), params, orders, 4)


def test_groups_of_all_the_entries_of_heads_count_as_one() -> None:
    params = {
        "out": {"kernel": jnp.asarray(np.random.default_rng(6).normal(size=(4, 6, 16)), "f4")}
    }
    tx = jaxprune.n_of_m(theirs(optax.sgd(0.1)), n=2, m=24)
    checked_groups(tx, params, {"out/kernel": (2, 0, 1)}, 24)
    assert masks_of(tx.init(params))["out/kernel"].shape == (4, 6, 16)
    with pytest.raises(ValueError, match=r"multiples of m = 16 .* got \{'out/kernel': 24\}"):
        jaxprune.n_of_m(optax.sgd(0.1), n=2, m=16).init(params)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_groups_fit_the_attention_of_flax(library: str, standard_promotion: Any) -> None:
    import flax.linen
    import flax.nnx

    if library == "linen":
        block = flax.linen.MultiHeadDotProductAttention(num_heads=4, qkv_features=32)
        params = block.init(jax.random.key(0), jnp.ones((2, 3, 16)))["params"]
    else:
        rngs = flax.nnx.Rngs(0)
        block = flax.nnx.MultiHeadAttention(4, 16, 32, decode=False, rngs=rngs)
        params = flax.nnx.to_pure_dict(flax.nnx.state(block, flax.nnx.Param))
    shapes = {path: leaf.shape for path, leaf in trees.by_path(params).items()}
    assert shapes["query/kernel"] == (16, 4, 8) and shapes["out/kernel"] == (4, 8, 16)
    checked_groups(
        METHODS["n_of_m"](), params, {p: order for p, (_, order) in ATTENTION.items()}, 4
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_layout_that_no_name_tells_has_to_be_said(name: str) -> None:
    params = {
        "fused": {"kernel": jnp.asarray(np.random.default_rng(7).normal(size=(8, 2, 3)), "f4")}
    }
    with pytest.raises(ValueError, match=r"`output_axis` .* got \{'fused/kernel': \(8, 2, 3\)\}"):
        METHODS[name]().init(params)
    said = METHODS[name](output_axis={"fused": (1, 2)})
    if name == "prune_and_grow":  # the first masks are drawn by chance
        _, state = tiny.updater(said)(tiny.zeros_like(params), said.init(params), params)
        assert (groups(masks_of(state)["fused/kernel"], (1, 2, 0), 4) == 2).all()
    else:
        checked_groups(said, params, {"fused/kernel": (1, 2, 0)}, 4)
