"""Readers: what a state says, through any nesting, under jit, before and after the first update."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from tiny import theirs, updater

import jaxprune
from jaxprune import trees

METHODS = {
    "hard": jaxprune.gradual_magnitude,
    "straight_through": jaxprune.straight_through,
    "attention": jaxprune.magnitude_attention,
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def trained(method: Any, inner: Any = None, steps: int = 2, **values: Any) -> tuple[Any, Any, Any]:
    """``(params, state, step)`` of a run towards a sparsity of one half in two updates."""
    inner = optax.sgd(0.1, momentum=0.9) if inner is None else inner
    tx = method(theirs(inner), **({"sparsity": 0.5, "ramp": (0, 2), "every": 1} | values))
    step, params = updater(tx), tiny.params()
    state = tx.init(params)
    for n in range(steps):
        params, state = step(tiny.normal(n + 1), state, params)
    return params, state, step


# ---------------------------------------------------------------------------------- masks and phase


def test_two_methods_side_by_side_are_read_as_one() -> None:
    labels = {"body": {"kernel": "a", "bias": "b"}, "head": {"kernel": "b"}}
    half = {"body": {"kernel": jnp.arange(32).reshape(4, 8) < 16}}
    some = {"head": {"kernel": jnp.arange(40).reshape(8, 5) < 10}}
    tx = optax.multi_transform(
        {"a": jaxprune.static(None, masks=half), "b": jaxprune.static(None, masks=some)}, labels
    )
    params = tiny.params()
    state = tx.init(params)
    masks = jaxprune.get_masks(state)
    assert tiny.kept(state) == {"body/kernel": 16, "head/kernel": 10}
    assert trees.is_hole(masks["body"]["bias"])
    assert float(jaxprune.sparsity_of(state)) == np.float32((72 - 26) / 72)
    assert [each["method"] for each in jaxprune.describe(state)["methods"]] == ["static"] * 2
    seen = jaxprune.view_params(params, state)
    tiny.on_support(seen, state)
    tiny.same_bits(seen, jaxprune.active_params(params, state))


def test_readers_work_under_jit() -> None:
    _, state, _ = trained(jaxprune.magnitude_attention, steps=1, stop=3)

    @jax.jit
    def read(state: Any) -> Any:
        phase = jaxprune.phase_of(state)
        return jaxprune.sparsity_of(state), phase.index, phase.step, phase.length

    sparsity, *phase = read(state)
    kept = sum(tiny.kept(state).values())
    assert (float(sparsity), sparsity.dtype) == (np.float32((72 - kept) / 72), jnp.float32)
    assert [int(x) for x in phase] == [0, 1, 3]
    assert all(x.dtype == jnp.int32 for x in phase)


def test_the_phase_is_that_of_the_coming_forward_pass() -> None:
    names = []
    _, state, step = trained(jaxprune.magnitude_attention, steps=0, stop=3)
    params = tiny.params()
    for _ in range(5):
        names.append(jaxprune.phase_of(state).name)
        params, state = step(tiny.zeros_like(params), state, params)
    assert names == ["moving"] * 3 + ["fixed"] * 2
    only = jaxprune.phase_of(trained(jaxprune.gradual_magnitude, steps=0)[1])
    assert (only.name, int(only.length)) == ("train", -1)


def test_an_untyped_restore_is_refused_with_a_hint() -> None:
    """Without a target tree a checkpoint comes back as plain dicts."""
    _, state, _ = trained(jaxprune.gradual_magnitude, steps=0)
    for reader in (jaxprune.get_masks, jaxprune.phase_of, jaxprune.describe):
        with pytest.raises(ValueError, match="restore checkpoints with a target tree"):
            reader(state._asdict())
    with pytest.raises(ValueError, match="restore checkpoints with a target tree"):
        jaxprune.verify(tiny.params(), state._asdict())


def test_an_nnx_optimizer_and_its_boxed_state_are_read_alike() -> None:
    model = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
    tx = jaxprune.straight_through(optax.sgd(0.1), sparsity=0.5, ramp=(0, 1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    params = nnx.state(model, nnx.Param)
    for state in (optimizer, optimizer.opt_state, nnx.as_pure(optimizer.opt_state)):
        assert float(jaxprune.sparsity_of(state)) == 0.5
        assert jaxprune.phase_of(state).name == "train"
        assert jaxprune.describe(state)["sparsity"] == 0.5
        assert jaxprune.summarize(params, state).kept == 12
        jaxprune.verify(params, state)
        jaxprune.verify(model, state)
    seen = jaxprune.view_params(params, optimizer)
    assert jax.tree.structure(seen) == jax.tree.structure(params)
    tiny.same_bits(seen, params)
    boxed = jaxprune.rebase(params, optimizer.opt_state)
    assert jax.tree.structure(boxed) == jax.tree.structure(optimizer.opt_state)


# -------------------------------------------------------------------------------- networks, rebased


@every_method
def test_the_view_is_the_params_and_an_exact_step_0(method: Any) -> None:
    start = {"body": {"kernel": jnp.arange(32).reshape(4, 8) % 4 > 0}}
    params, state, _ = trained(method, start=start)
    for reader in (jaxprune.view_params, jaxprune.active_params):
        tiny.close(reader(params, state), params)
        tiny.on_support(reader(params, state), state)
    params, state, _ = trained(method, steps=0, start=start)
    assert tiny.kept(state) == {"body/kernel": 24}
    tiny.on_support(jaxprune.view_params(params, state), state)


def test_a_projection_masks_an_average() -> None:
    params, state, _ = trained(jaxprune.gradual_magnitude)
    average = jax.tree.map(lambda p: 0.9 * p + 0.1, params)
    projected = jaxprune.project(average, state)
    for path, mask in tiny.masks_of(state).items():
        leaf = np.asarray(trees.by_path(projected)[path])
        np.testing.assert_array_equal(leaf, np.where(mask, trees.by_path(average)[path], 0))
        assert not tiny.bits(leaf)[~mask].any()
    tiny.same_bits(projected["body"]["bias"], average["body"]["bias"])
    nan = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    projected = trees.by_path(jaxprune.project(nan, state))
    for path, mask in tiny.masks_of(state).items():
        np.testing.assert_array_equal(np.isnan(projected[path]), mask)


@every_method
def test_schedule_free_ships_the_average_through_the_view(method: Any) -> None:
    inner = optax.contrib.schedule_free_sgd(0.1)
    params, state, _ = trained(method, inner)
    f = theirs_of(optax.contrib.schedule_free_eval_params)
    shipped = jaxprune.eval_params(params, state, f)
    assert jax.tree.structure(shipped) == jax.tree.structure(params)
    tiny.on_support(shipped, state)
    dense = trees.by_path(params) | trees.by_path(state.prune_dense)
    x = trees.by_path(f(state.prune_inner, trees.from_paths(params, dense)))
    np.testing.assert_array_equal(shipped["body"]["bias"], x["body/bias"])
    if method is not jaxprune.magnitude_attention:  # there the view is more than the mask
        for path, mask in tiny.masks_of(state).items():
            np.testing.assert_array_equal(trees.by_path(shipped)[path], np.where(mask, x[path], 0))


def theirs_of(function: Any) -> Any:
    def call(*args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args)

    return call


def test_eval_params_needs_exactly_one_method() -> None:
    labels = {"body": "a", "head": "b"}
    one = {"body": {"kernel": jnp.ones((4, 8), bool)}}
    two = {"head": {"kernel": jnp.ones((8, 5), bool)}}
    tx = optax.multi_transform(
        {"a": jaxprune.static(None, masks=one), "b": jaxprune.static(None, masks=two)}, labels
    )
    with pytest.raises(ValueError, match="hold one jaxprune method, got 2"):
        jaxprune.eval_params(tiny.params(), tx.init(tiny.params()), lambda state, dense: dense)


# ---------------------------------------------------------------------------------------- shardings


@pytest.mark.several_devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_state_shardings_follow_the_params(kind: Any) -> None:
    """Also from shapes alone; what belongs to no parameter is replicated."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,), devices=jax.devices()[:4])
    split = NamedSharding(mesh, P(None, "x"))
    params = {"kernel": jax.device_put(jnp.ones((4, 8)), split)}
    params["bias"] = jax.device_put(jnp.ones(8), NamedSharding(mesh, P()))
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for path, leaf in params.items()
    }
    tx = jaxprune.magnitude_attention(theirs(optax.adamw(0.1)), sparsity=0.5, ramp=(0, 4))
    with jax.set_mesh(mesh):
        for given in (params, shapes):
            wanted = jaxprune.state_shardings(tx, given)
            assert wanted.prune_mask["kernel"].spec == P(None, "x")
            assert wanted.prune_dense["kernel"].spec == P(None, "x")
            assert wanted.prune_inner[0].mu["kernel"].spec == P(None, "x")
            assert wanted.prune_count.is_fully_replicated
            assert trees.is_hole(wanted.prune_mask["bias"])
        state = jax.jit(tx.init, out_shardings=wanted)(params)
    assert state.prune_mask["kernel"].sharding.is_equivalent_to(split, 2)


def test_state_shardings_of_one_device_and_of_none() -> None:
    tx = jaxprune.gradual_magnitude(optax.adam(0.1), sparsity=0.5, ramp=(0, 4))
    found = jax.tree.leaves(jaxprune.state_shardings(tx, tiny.params()))
    assert {type(sharding) for sharding in found} == {SingleDeviceSharding}
    with pytest.raises(ValueError, match="have a sharding on every leaf, got 'body/bias'"):
        jaxprune.state_shardings(tx, jax.eval_shape(tiny.params))


def test_a_tree_of_other_shapes_is_not_projected() -> None:
    tx = jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=0.5, ramp=(0, 2))
    params = tiny.params()
    state = tx.init(params)
    other = jax.tree.map(lambda x: jnp.ones((2,) * x.ndim), params)
    with pytest.raises(ValueError, match="`tree` must be those of the state, of shape"):
        jaxprune.project(other, state)
    with pytest.raises(ValueError, match="`params` must be those of the state, of shape"):
        jaxprune.eval_params(other, state, lambda inner, dense: dense)
    with pytest.raises(ValueError, match="`tree` must come first, then the state"):
        jaxprune.project(state, params)


def test_metrics_are_of_one_member() -> None:
    tx = jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=0.5, ramp=(0, 2))
    states = jax.vmap(lambda _: tx.init(tiny.params()))(jnp.arange(2))
    with pytest.raises(ValueError, match="index one member first"):
        jaxprune.metrics(states)
    found = jax.vmap(jaxprune.metrics)(states)
    assert found["sparsity"].shape == (2,)
