"""The battery that every method passes: scans, sweeps, and several devices."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from methods_table import (
    CORE,
    SPARSITY,
    STEPS,
    TARGET,
    Row,
    adamw,
    begin,
    every_method,
    every_method_with,
    one_program,
)
from tiny import Loop, theirs

import jaxprune


@one_program
def test_scan_and_vmap_over_seeds_and_sparsities(row: Row) -> None:
    """A scan ends where the loop does; a sweep of traced values as its single runs."""

    def run(sparsity: Any, seed: Any) -> Any:
        seeds = {"seed": seed} if row.takes("seed") else {}
        tx, params = (
            row(theirs(adamw()), sparsity=sparsity, **seeds, **row.traceable),
            tiny.params(),
        )

        def body(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = tx.update(tiny.pull(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(body, (params, tx.init(params)), length=STEPS)
        return params, jaxprune.get_masks(state), jaxprune.sparsity_of(state)

    sparsities, seeds = jnp.array([0.5, SPARSITY, 0.9]), jnp.array([3, 0, 4])

    def both() -> Any:
        return run(SPARSITY, 0), jax.vmap(run)(sparsities, seeds)

    scanned, swept = jax.jit(both, compiler_options=tiny.quick())()
    step, params, state = begin(row)
    if row.traceable:
        tx, params = row(theirs(adamw()), **row.traceable), tiny.params()
        step, state = tiny.Loop(tx), tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    for found in scanned, tiny.part(swept, 1):
        tiny.same_bits(tiny.saved(found[1]), tiny.saved(jaxprune.get_masks(state)))
        tiny.close(found[0], params)
    sizes = [tiny.size(path) for path in TARGET] if row.by_leaf and not row.counted else [72]
    wanted = [sum(row.kept_of(size, s, state) for size in sizes) for s in (0.5, SPARSITY, 0.9)]
    np.testing.assert_allclose(swept[2], 1 - np.array(wanted) / 72, rtol=1e-6)


def layout_on(kind: Any) -> Any:
    """Shardings as jit writes them on its outputs: another spelling is another compilation."""
    rows = P("x", None) if kind == AxisType.Explicit else P("x")
    return {"body": {"kernel": P(None, "x"), "bias": P("x")}, "head": {"kernel": rows}}


@contextlib.contextmanager
def on_mesh(kind: Any) -> Iterator[Any]:
    """Within a mesh of four devices; without a kind, on one device."""
    if kind is None:
        yield None
        return
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        yield mesh


def trained_on(row: Row, optimizer: str, kind: Any = None) -> dict[str, np.ndarray]:
    """The masks and params after training on four devices, or on one."""
    tx, params = row(theirs(CORE[optimizer]())), tiny.params()
    with on_mesh(kind) as mesh:
        if mesh is None:
            state = jax.jit(tx.init, compiler_options=tiny.quick())(params)
        else:
            shardings = jax.tree.map(functools.partial(NamedSharding, mesh), layout_on(kind))
            params = jax.device_put(params, shardings)
            shardings = jaxprune.state_shardings(tx, params)
            init = jax.jit(tx.init, out_shardings=shardings, compiler_options=tiny.quick())
            state = init(params)
            masks = tiny.layout(jaxprune.get_masks(state))
            assert masks["head"]["kernel"][-1] == ("x", None)
        before, step = tiny.layout((params, state)), Loop(tx, compiler_options=tiny.quick())
        for n in range(1, STEPS + 1):
            params, state = step(params, state)
            row.check(params, state, n)
        assert tiny.layout((params, state)) == before
        assert (step.traces, step.compiled) == (1, 1)
    return tiny.masks_of(state) | {"params": tiny.saved(params)}


@pytest.mark.several_devices
@every_method_with(CORE, rest=("adamw",))
def test_sharded_training_gives_the_same_masks(row: Row, optimizer: str) -> None:
    """On Auto and Explicit meshes; masks exactly, weights closely."""
    alone = trained_on(row, optimizer)
    meshes = [AxisType.Auto, AxisType.Explicit] if optimizer == "adamw" else [AxisType.Explicit]
    for kind in meshes:
        sharded = trained_on(row, optimizer, kind)
        for path in TARGET:
            np.testing.assert_array_equal(sharded[path], alone[path])
        tiny.close(sharded["params"], alone["params"])


@pytest.mark.several_devices
@every_method
def test_replicas_of_pmap_agree(row: Row) -> None:
    """Each replica has a gradient of its own, and they take the mean."""
    tx = row(theirs(adamw()))

    @functools.partial(jax.pmap, axis_name="replicas", devices=jax.devices()[:4])
    def step(params: Any, state: Any, push: Any) -> Any:
        grads = jax.tree.map(jnp.add, tiny.pull(params), push)
        updates, state = tx.update(jax.lax.pmean(grads, "replicas"), state, params)
        return optax.apply_updates(params, updates), state

    params = tiny.params()
    params, state = jax.tree.map(lambda x: jnp.stack([x] * 4), (params, tx.init(params)))
    for n in range(1, STEPS + 1):
        own = [tiny.normal(10 * n + replica) for replica in range(4)]
        push = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
        params, state = jax.block_until_ready(step(params, state, push))
        first, *others = [tiny.part((params, state), replica) for replica in range(4)]
        row.check(*first, n)
        for other in others:
            tiny.same_bits(other, first)
