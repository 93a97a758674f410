"""What methods do with a traced network: the truth where names only suggest."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen
from jax import lax
from test_network import of_linen

import jaxprune

pytestmark = pytest.mark.usefixtures("standard_promotion")


def sgd() -> Any:
    return optax.sgd(0.1)


def compiled(tx: Any) -> Any:
    """One program of an update compiles in a tenth of the time that its operations take."""
    return jax.jit(tx.update, compiler_options=tiny.quick())


def masks_after(tx: Any, params: Any) -> dict[str, np.ndarray]:
    """Masks after one update, of which the params are left exactly pruned."""
    zeros, update = jax.tree.map(jnp.zeros_like, params), compiled(tx)
    updates, state = update(zeros, tx.init(params), params)
    jaxprune.verify(optax.apply_updates(params, updates), state)
    return {path: np.asarray(mask) for path, mask in jaxprune.masks_by_path(state).items()}


def in_groups(mask: np.ndarray, axes: tuple[int, ...], m: int = 4) -> set[int]:
    """How many of each group of m neighbours along some axes, taken as one, are kept."""
    rows = np.moveaxis(mask, axes, range(-len(axes), 0)).reshape(-1, m)
    return {*rows.sum(axis=1).tolist()}


def drawn(**shapes: tuple[int, ...]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


def test_what_is_contracted_is_pruned_and_nothing_else() -> None:
    """Names say the opposite of each of them."""
    params = drawn(bias=(8, 6), embedding=(6, 4), kernel=(9, 8), weight=(3, 5, 8))

    def fn(params: Any, tokens: Any) -> Any:
        x = params["kernel"][tokens] + params["weight"][0, 0]
        return jnp.tanh(x @ params["bias"]) @ params["embedding"]

    net = jaxprune.trace(fn, params, jnp.zeros(5, int))
    tx = jaxprune.gradual_magnitude(sgd(), sparsity=0.5, ramp=(0, 1), network=net)
    assert [*masks_after(tx, params)] == ["bias", "embedding"]
    plan = {leaf.path: leaf.reason for leaf in jaxprune.plan(tx, params).leaves if not leaf.pruned}
    assert plan["kernel"] == "a table, of which rows are looked up"
    both = jaxprune.gradual_magnitude(sgd(), sparsity=0.5, ramp=(0, 1), network=net, exclude="bias")
    assert [*masks_after(both, params)] == ["embedding"]
    only = jaxprune.gradual_magnitude(sgd(), sparsity=0.5, ramp=(0, 1), network=net, where="kernel")
    assert [*masks_after(only, params)] == ["kernel"]


METHODS = {
    "n_of_m": lambda net: jaxprune.n_of_m(sgd(), n=2, m=4, network=net),
    "sr_ste": lambda net: jaxprune.sr_ste(sgd(), n=2, m=4, network=net),
    "prune_and_grow": lambda net: jaxprune.prune_and_grow(
        sgd(), n_of_m=(2, 4), stop=900, network=net
    ),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_groups_lie_along_the_contraction_whatever_a_leaf_is_called(method: Any) -> None:
    params = drawn(qkv=(3, 4, 16, 8), out=(4, 8, 16), turned=(6, 16))

    def fn(params: Any, x: Any) -> Any:
        q, k, v = jnp.einsum("btd,sndh->sbtnh", x, params["qkv"])
        y = jnp.einsum("btnh,nhd->btd", q * k * v, params["out"])
        return jnp.einsum("btd,od->bto", y, params["turned"])

    net = jaxprune.trace(fn, params, jnp.ones((2, 5, 16)))
    masks = masks_after(method(net), params)
    for path, axes in {"qkv": (2,), "out": (0, 1), "turned": (1,)}.items():
        assert in_groups(masks[path], axes) == {2}, path


def test_transposed_kernels_and_recurrent_weights_are_grouped_along_their_inputs() -> None:
    class Up(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.ConvTranspose(6, (2, 2), transpose_kernel=True, name="up")(x)

    x = jnp.ones((1, 4, 4, 8))
    params = Up().init(jax.random.key(0), x)["params"]
    tx = jaxprune.n_of_m(sgd(), n=2, m=4, network=of_linen(Up(), x))
    assert in_groups(masks_after(tx, params)["up/kernel"], (0, 1, 3)) == {2}

    cell = eqx.nn.GRUCell(8, 8, key=jax.random.key(0))
    params, static = eqx.partition(cell, eqx.is_inexact_array)

    def fn(params: Any, xs: Any) -> Any:
        own = eqx.combine(params, static)
        return lax.scan(lambda h, x: (own(x, h), None), jnp.zeros(8), xs)[0]

    net = jaxprune.trace(fn, params, jnp.ones((3, 8)))
    masks = masks_after(jaxprune.n_of_m(sgd(), n=2, m=4, network=net), params)
    assert [*masks] == ["weight_ih", "weight_hh"]
    assert all(in_groups(mask, (1,)) == {2} for mask in masks.values())


def test_scanned_layers_have_counts_of_their_own_without_being_declared() -> None:
    params = drawn(layers=(3, 8, 8), head=(8, 4))

    def fn(params: Any, x: Any) -> Any:
        x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"])[0]
        return x @ params["head"]

    net = jaxprune.trace(fn, params, jnp.ones((2, 8)))
    values = {"sparsity": 0.75, "ramp": (0, 1), "distribution": "uniform", "network": net}
    masks = masks_after(jaxprune.gradual_magnitude(sgd(), **values), params)
    assert masks["layers"].sum(axis=(1, 2)).tolist() == [16, 16, 16]
    tx = jaxprune.n_of_m(sgd(), n=2, m=4, network=net)
    assert in_groups(masks_after(tx, params)["layers"], (1,)) == {2}


def test_dead_units_are_counted_over_all_outputs() -> None:
    params = drawn(mix=(2, 8, 3))
    net = jaxprune.trace(
        lambda p, x: jnp.einsum("bd,gdh->bgh", x, p["mix"]), params, jnp.ones((4, 8))
    )
    mask = np.ones((2, 8, 3), bool)
    mask[1, :, 2] = False
    tx = jaxprune.straight_through(
        sgd(), sparsity=0.5, ramp=(5, 9), start={"mix": mask}, network=net
    )
    summary = jaxprune.summarize({"mix": params["mix"] * mask}, tx.init(params))
    assert "1 of 6" in str(summary)


def test_a_tied_table_is_named_and_pruned_only_where_it_is_asked_for() -> None:
    params = drawn(table=(9, 4), body=(4, 4))

    def fn(params: Any, tokens: Any) -> Any:
        return jnp.tanh(params["table"][tokens] @ params["body"]) @ params["table"].T

    net = jaxprune.trace(fn, params, jnp.zeros(5, int))
    tx = jaxprune.gradual_magnitude(sgd(), sparsity=0.5, ramp=(0, 1), network=net)
    (table,) = [leaf for leaf in jaxprune.plan(tx, params).leaves if leaf.path == "table"]
    assert not table.pruned
    assert table.reason.startswith("used in two ways: name it by `where`")


def test_other_params_and_other_rules_are_refused() -> None:
    params = drawn(w=(4, 4))
    net = jaxprune.trace(lambda p, x: x @ p["w"], params, jnp.ones((1, 4)))
    tx = jaxprune.gradual_magnitude(sgd(), sparsity=0.5, ramp=(0, 1), network=net)
    with pytest.raises(ValueError, match=r"`params` must have the leaves that `network`.*got 'v'"):
        tx.init({"v": params["w"]})
    state = tx.init(params)
    by_name = jaxprune.gradual_magnitude(sgd(), sparsity=0.5, ramp=(0, 1))
    with pytest.raises(ValueError, match="network="):
        by_name.update(params, state, params)


def test_a_trace_with_another_batch_is_the_same_rule() -> None:
    params = drawn(w=(4, 4))

    def method(batch: int) -> Any:
        net = jaxprune.trace(lambda p, x: x @ p["w"], params, jnp.ones((batch, 4)))
        return jaxprune.gradual_magnitude(sgd(), sparsity=0.5, ramp=(0, 1), network=net)

    method(1).update(params, method(7).init(params), params)


def test_layer_attention_scales_the_bias_of_a_layer_whatever_it_is_called() -> None:
    params = drawn(first=(4, 6), shift=(6,), second=(6, 3), bias=(3,))

    def fn(params: Any, x: Any) -> Any:
        x = jnp.tanh(x @ params["first"] + params["shift"][None])
        return x @ params["second"] * 2.0

    net = jaxprune.trace(fn, params, jnp.ones((2, 4)))
    assert net.leaf("bias").use == "unused"
    tx = jaxprune.layer_attention(
        sgd(),
        **{"sparsity": 0.5, "learner": optax.set_to_zero(), "attention_init": 0.5, "ramp": None},
        network=net,
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = compiled(tx)(zeros, tx.init(params), params)
    after: Any = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["shift"], params["shift"] / 2)
    np.testing.assert_array_equal(after["bias"], params["bias"])
    jaxprune.verify(after, state)
