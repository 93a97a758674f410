"""The battery that every method passes: loops of the libraries with only the optimizer changed."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import linen, nnx
from flax.core import FrozenDict
from flax.training import train_state
from methods_table import STEPS, Row, adamw, every_method
from tiny import ours, theirs, updater

import jaxprune


@every_method
def test_linen_train_state(row: Row) -> None:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(10)(linen.relu(linen.Dense(12)(x)))

    network, x = Network(), jnp.ones((2, 8))
    params = network.init(jax.random.key(0), x)["params"]
    tx = ours(row(theirs(adamw()), sparsity=0.9))
    state = train_state.TrainState.create(apply_fn=network.apply, params=params, tx=tx)

    @functools.partial(jax.jit, compiler_options=tiny.quick())
    def step(state: Any) -> Any:
        def loss(params: Any) -> Any:
            return jnp.mean((state.apply_fn({"params": params}, x) - 1.0) ** 2)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(STEPS):
        state = step(state)
    ends_on_target(row, state.params, state.opt_state)


@every_method
def test_nnx_optimizer(row: Row) -> None:
    class Network(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.Linear(8, 12, rngs=nnx.Rngs(0))
            self.second = nnx.Linear(12, 10, rngs=nnx.Rngs(1))

        def __call__(self, x: Any) -> Any:
            return self.second(nnx.relu(self.first(x)))

    network, x = Network(), jnp.ones((2, 8))
    optimizer = nnx.Optimizer(network, ours(row(theirs(adamw()), sparsity=0.9)), wrt=nnx.Param)

    @nnx.jit
    def step(network: Any, optimizer: Any) -> None:
        def loss(network: Any) -> Any:
            return jnp.mean((network(x) - 1.0) ** 2)

        optimizer.update(network, nnx.grad(loss)(network))

    for _ in range(STEPS):
        step(network, optimizer)
    ends_on_target(row, nnx.state(network, nnx.Param), optimizer)
    jaxprune.verify(network, optimizer)
    jaxprune.verify(nnx.state(network, nnx.Param), optimizer.opt_state)


@every_method
def test_equinox_loop(row: Row) -> None:
    network, x = eqx.nn.MLP(8, 10, 12, 1, key=jax.random.key(0)), jnp.ones(8)
    tx = ours(row(theirs(adamw()), sparsity=0.9))
    state = tx.init(eqx.filter(network, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(network: Any, state: Any) -> Any:
        grads = eqx.filter_grad(lambda network: jnp.mean((network(x) - 1.0) ** 2))(network)
        updates, state = tx.update(grads, state, eqx.filter(network, eqx.is_inexact_array))
        return eqx.apply_updates(network, updates), state

    for _ in range(STEPS):
        network, state = step(network, state)
    ends_on_target(row, eqx.filter(network, eqx.is_inexact_array), state)


def ends_on_target(row: Row, params: Any, opt_state: Any) -> None:
    """Two kernels, 96 and 120 entries: 22 are kept together at 90 %, 10 and 12 by leaf."""
    summary, wanted = jaxprune.summarize(params, opt_state), row.kept_of(216, 0.9, opt_state)
    assert (summary.kept, summary.total) == (wanted, 216)
    nonzero = sum(leaf.nonzero for leaf in summary.leaves)
    assert nonzero <= wanted if row.grows else nonzero == wanted
    assert float(jaxprune.sparsity_of(opt_state)) == np.float32((216 - wanted) / 216)
    jaxprune.verify(params, opt_state)


class Pair(NamedTuple):
    """A module of one's own."""

    kernel: Any
    bias: Any


@every_method
def test_any_containers_stay_as_they_are(row: Row) -> None:
    """Dicts, frozen ones, lists, tuples, named ones, an integer leaf, a box, one array alone."""
    rng = np.random.default_rng(0)

    def leaf(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    mixed = [
        {"frozen": FrozenDict({"kernel": leaf(4, 3)}), "tuple": (leaf(4, 3), leaf(3), leaf(0, 2))},
        Pair(leaf(8, 2), leaf(2)),
        {"box": linen.Partitioned(leaf(4, 3), names=("a", None)), "scalar": leaf()},
        leaf(4, 2),
    ]
    alone = leaf(8, 6)
    tx = row(theirs(adamw()), sparsity=0.5)
    for params, total in ((mixed, 60), (alone, 48)):
        step, state, structure = updater(tx), tx.init(params), jax.tree.structure(params)
        for _ in range(STEPS):
            params, state = step(tiny.saved(params), state, params)
        assert jax.tree.structure(params) == structure
        summary = jaxprune.summarize(params, state)
        assert (summary.kept, summary.total) == (row.kept_of(total, 0.5, state), total)
        jaxprune.verify(params, state)
        tiny.same_bits(jaxprune.project(params, state), params)
