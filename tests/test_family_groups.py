"""N:M methods: exact groups in every layout, along a ramp, and the formula of SR-STE."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import tiny
from test_family import like, run, sgd
from test_methods import RATE
from tiny import masks_of, theirs

import jaxprune
from jaxprune import trees

LAYOUTS = {
    "dense/kernel": ((8, 5), 0),
    "conv/kernel": ((2, 2, 8, 4), 2),
    "dense/weight": ((5, 8), 1),
    "conv/weight": ((4, 8, 2, 2), 1),
}


def layouts() -> Any:
    rng = np.random.default_rng(0)
    tree: Any = {"dense": {}, "conv": {}}
    for path, (shape, _) in LAYOUTS.items():
        part, name = path.split("/")
        tree[part][name] = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return tree


def groups_of(state: Any, m: int = 4) -> set[int]:
    """How many entries the groups of all leaves keep."""
    found = set()
    for path, mask in masks_of(state).items():
        rows = np.moveaxis(mask, LAYOUTS[path][1], -1).reshape(-1, m)
        found |= set(rows.sum(1).tolist())
    return found


@pytest.mark.parametrize(
    "method",
    [
        lambda inner: jaxprune.n_of_m(inner, n=2, m=4),
        lambda inner: jaxprune.n_of_m(inner, n=2, m=4, view="straight_through"),
        lambda inner: jaxprune.sr_ste(inner, n=2, m=4),
    ],
    ids=["hard", "straight_through", "sr_ste"],
)
def test_groups_lie_along_the_contraction_of_every_layout(method: Any) -> None:
    """Exactly those of the oracle, at the first update."""
    params = layouts()
    _, (_, state), (_, later) = run(method(theirs(optax.sgd(0.0))), 2, params)
    for path, mask in masks_of(state).items():
        w = np.abs(np.asarray(trees.by_path(params)[path]))
        np.testing.assert_array_equal(mask, oracle.n_of_m(w, 2, 4, LAYOUTS[path][1]))
    assert groups_of(later) == {2}


@pytest.mark.parametrize("view", ["hard", "straight_through"])
def test_a_gradual_n_of_m_goes_down_in_every_group(view: Any) -> None:
    tx = jaxprune.n_of_m(sgd(), n=1, m=4, ramp=(0, 6), every=2, view=view)
    trail = run(tx, 8, layouts())
    wanted = {2: 2, 4: 2, 6: 1, 8: 1}  # 4 - 3 (1 - (1 - n / 6)^3) is 1.9, 1.1 and 1
    for n, (params, state) in enumerate(trail):
        assert groups_of(state) == {wanted.get(n // 2 * 2, 4)}
        tiny.on_support(params, state)
    same = [kernel_bits(trail[n][1]) == kernel_bits(trail[n - 1][1]) for n in (4, 8)]
    assert same == ([True, True] if view == "hard" else [False, False])


def kernel_bits(state: Any) -> bytes:
    return b"".join(mask.tobytes() for mask in masks_of(state).values())


def test_an_output_axis_moves_the_groups() -> None:
    tx = jaxprune.n_of_m(sgd(), n=1, m=4, where="body/kernel", output_axis=0)
    mask = masks_of(run(tx, 1)[1][1])["body/kernel"]
    np.testing.assert_array_equal(mask.reshape(4, 2, 4).sum(-1), np.ones((4, 2)))


def test_a_plan_shows_what_groups_keep() -> None:
    tx = jaxprune.n_of_m(optax.sgd(0.1), n=1, m=4, ramp=(0, 9))
    plan = jaxprune.plan(tx, tiny.params())
    assert [leaf.density_end for leaf in plan.leaves if leaf.pruned] == [0.25, 0.25]


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_sr_ste_is_its_formula(decay: float) -> None:
    """``w <- w - lr (g + decay (1 - mask) w)``; without decay it is straight-through N:M."""
    params = {"kernel": tiny.params()["head"]["kernel"]}
    trail = run(jaxprune.sr_ste(sgd(), n=1, m=2, decay=decay), 6, params)
    w, mask, flips = np.asarray(params["kernel"]), np.ones((8, 5), bool), 0
    for n in range(1, 7):
        g = np.asarray(like(params, n)["kernel"])
        w = w - RATE * (g + np.where(mask, 0, decay * w))
        new = oracle.n_of_m(np.abs(w), 1, 2, 0)
        flips, mask = flips + (new & ~mask).sum(), new
        seen, state = trail[n]
        np.testing.assert_array_equal(masks_of(state)["kernel"], mask)
        np.testing.assert_allclose(state.prune_dense["kernel"], w, rtol=2e-5, atol=1e-6)
        kept = np.where(mask, np.asarray(state.prune_dense["kernel"]), np.float32(0))
        np.testing.assert_allclose(seen["kernel"], kept, rtol=3e-7)
    assert flips > 0
    if not decay:
        plain = jaxprune.n_of_m(sgd(), n=1, m=2, every=1, view="straight_through")
        for (a, state), (b, other) in zip(trail, run(plain, 6, params), strict=True):
            tiny.same_bits(state.prune_mask, other.prune_mask)
            tiny.close(a, b)


@pytest.mark.parametrize("method", [jaxprune.n_of_m, jaxprune.sr_ste])
def test_a_leaf_that_groups_do_not_fit_is_named_at_init(method: Any) -> None:
    with pytest.raises(ValueError, match=r"multiples of m = 8 .* got \{'body/kernel': 4\}"):
        method(optax.sgd(0.1), n=2, m=8).init(tiny.params())
    with pytest.raises(ValueError, match=r"got \{'body/kernel': 4, 'head/kernel': 8\}"):  # in one
        method(optax.sgd(0.1), n=2, m=16).init(tiny.params())
    method(optax.sgd(0.1), n=2, m=8, where="head").init(tiny.params())
