"""The battery that every method passes: one line a method in `METHODS`, and that is all."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tiny
from flax import linen, nnx
from flax.training import train_state
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import Loop, kept, on_support, ours, theirs

import jaxprune

SPARSITY, RAMP, EVERY = 0.7, (0, 4), 2
STEPS = 6
TARGET = {"body/kernel": 10, "head/kernel": 12}  # round(0.3 * 32), round(0.3 * 40); 22 together


class Row(NamedTuple):
    """What the battery has to know of a method."""

    method: Callable[..., Any]
    ramp: bool = True  # takes `ramp` and `every`; without it, the masks are drawn at once
    by_leaf: bool = False  # each leaf has a count of its own, as in `TARGET`
    magnitude: bool = True  # masks rank |w|

    def __call__(self, inner: Any, **values: Any) -> optax.GradientTransformationExtraArgs:
        times = {"ramp": RAMP, "every": EVERY} if self.ramp else {}
        return self.method(inner, **({"sparsity": SPARSITY} | times | values))

    def kept(self, n: int) -> dict[str, int]:
        """Entries kept after update n: of each leaf, or over the tree."""

        def at(total: int, target: int) -> int:
            return tiny.scheduled(total, target, n, RAMP[1], EVERY) if self.ramp else target

        if self.by_leaf:
            return {path: at(tiny.size(path), target) for path, target in TARGET.items()}
        return {"*": at(sum(map(tiny.size, TARGET)), sum(TARGET.values()))}

    def check(self, params: Any, state: Any, n: int) -> None:
        """After update n: exact counts, exact support, and `verify` has nothing to say."""
        found = kept(state)
        assert (found if self.by_leaf else {"*": sum(found.values())}) == self.kept(n)
        on_support(params, state)
        assert int(optax.tree.get(state, "prune_count")) == n
        jaxprune.verify(params, state)


METHODS = {
    "gradual_magnitude": Row(jaxprune.gradual_magnitude, by_leaf=True),
    "magnitude_attention": Row(jaxprune.magnitude_attention),
    "straight_through": Row(jaxprune.straight_through),
    "static": Row(jaxprune.static, ramp=False, magnitude=False),
}


def adamw() -> Any:
    return optax.adamw(0.05, weight_decay=0.1)


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": adamw,
    "lion": lambda: optax.lion(0.01),
    "adafactor": lambda: optax.adafactor(0.05, min_dim_size_to_factor=2),
    "rmsprop": lambda: optax.rmsprop(0.01, momentum=0.9),
    "lamb": lambda: optax.lamb(0.05),
    "muon": lambda: optax.contrib.muon(0.05),
    "adamw with injected hyperparameters": lambda: optax.inject_hyperparams(optax.adamw)(0.05),
    "clipping inside": lambda: optax.chain(optax.clip_by_global_norm(0.5), adamw()),
    "MultiSteps inside": lambda: optax.MultiSteps(adamw(), 2).gradient_transformation(),
    "apply_if_finite inside": lambda: optax.apply_if_finite(adamw(), 3),
}

FROZEN = {"body": {"kernel": "train", "bias": "frozen"}, "head": {"kernel": "train"}}


def injected(row: Row) -> Any:
    times = {"ramp": RAMP, "every": EVERY} if row.ramp else {}
    method = optax.inject_hyperparams(row.method, static_args=tuple(times))
    return method(theirs(adamw()), sparsity=SPARSITY, **times)


def strict(row: Row, inner: Any = None) -> Any:
    return ours(row(theirs(adamw() if inner is None else inner)))


SURROUNDINGS = {
    "clipping before": lambda row: optax.chain(optax.clip_by_global_norm(0.5), strict(row)),
    "last in a chain": lambda row: optax.chain(adamw(), ours(row(None))),
    "MultiSteps outside": lambda row: optax.MultiSteps(strict(row), 2).gradient_transformation(),
    "apply_if_finite outside": lambda row: optax.apply_if_finite(strict(row), 3),
    "injected sparsity": injected,
    "multi_transform": lambda row: optax.multi_transform(
        {"train": strict(row), "frozen": optax.set_to_zero()}, FROZEN
    ),
}

CORE = {name: OPTIMIZERS[name] for name in ("adamw", "momentum", "lion", "adafactor")}

every_method = pytest.mark.parametrize("row", METHODS.values(), ids=METHODS)


def train_and_resume(row: Row, tx: Any, *, dtype: Any = jnp.float32, calls: int = 1, **loop) -> Any:
    """Trains with a check after each update, goes on from each save, and compiles once."""
    step = Loop(tx, **loop)
    params = tiny.params(dtype)
    state = tx.init(params)
    before = tiny.layout((params, state))
    trail = []
    for n in range(1, STEPS + 1):
        trail.append(tiny.saved((params, state)))
        for _ in range(calls):
            old = params
            params, state = step(params, state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old)), "params were not donated"
        row.check(params, state, n)
    assert tiny.layout((params, state)) == before
    for n in range(STEPS):
        again = trail[n]
        for _ in range((STEPS - n) * calls):
            again = step(*again)
        tiny.same_bits(again, (params, state))
    assert (step.traces, step.compiled) == (1, 1)
    return params, state


@every_method
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_optimizer_ends_exactly_on_target(row: Row, optimizer: str) -> None:
    train_and_resume(row, row(theirs(OPTIMIZERS[optimizer]())))


@every_method
@pytest.mark.parametrize("around", SURROUNDINGS)
def test_any_surroundings_end_exactly_on_target(row: Row, around: str) -> None:
    calls = 2 if around == "MultiSteps outside" else 1
    params, _ = train_and_resume(row, theirs(SURROUNDINGS[around](row)), calls=calls)
    if around == "multi_transform":
        np.testing.assert_array_equal(params["body"]["bias"], tiny.params()["body"]["bias"])


@every_method
@pytest.mark.parametrize("optimizer", CORE)
def test_bfloat16_params_and_gradients(row: Row, optimizer: str) -> None:
    tx = row(theirs(CORE[optimizer]()))
    params, _ = train_and_resume(row, tx, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


@every_method
def test_bfloat16_gradients_of_float32_params(row: Row) -> None:
    def narrow(grads: Any) -> Any:
        return jax.tree.map(lambda g: g.astype(jnp.bfloat16), grads)

    train_and_resume(row, row(theirs(adamw())), cast=narrow)


# ------------------------------------------------------------ one compiled step under adamw for all


@functools.cache
def shared(row: Row) -> Loop:
    return Loop(row(theirs(adamw())))


one_program = pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=pytest.mark.xdist_group(name)) for name, row in METHODS.items()],
    ids=METHODS,
)


def begin(row: Row, params: Any = None) -> tuple[Loop, Any, Any]:
    step, params = shared(row), tiny.params() if params is None else params
    return step, params, step.tx.init(params)


@one_program
def test_weights_loaded_after_init_are_kept(row: Row) -> None:
    step, params, state = begin(row)
    early, late = (params, step.tx.init(tiny.normal(7))), (tiny.params(), state)
    for n in range(1, STEPS + 1):
        early, late = step(*early), step(*late)
        row.check(*early, n)
    tiny.same_bits(early, late)


@one_program
def test_a_zero_leaf_learns(row: Row) -> None:
    params = tiny.params()
    params["head"]["kernel"] = jnp.zeros((8, 5))
    step, params, state = begin(row, params)
    params, state = step(params, state)
    mask = tiny.masks_of(state)["head/kernel"]
    assert mask.any()
    np.testing.assert_array_equal(np.asarray(params["head"]["kernel"]) != 0, mask)


@one_program
def test_equal_scores_keep_the_first(row: Row) -> None:
    """All entries are 1 and move alike: exact counts; by magnitude, the lower index wins."""
    params = jax.tree.map(jnp.ones_like, tiny.params())
    step, params, state = begin(row, params)
    for n in range(1, STEPS + 1):
        params, state = step(params, state, strength=0.0)
        row.check(params, state, n)
    if row.magnitude:
        flat = np.concatenate([mask.ravel() for mask in tiny.masks_of(state).values()])
        rank = np.concatenate([np.arange(32), np.arange(40)]) if row.by_leaf else np.arange(72)
        count = np.repeat(list(TARGET.values()), [32, 40]) if row.by_leaf else 22
        np.testing.assert_array_equal(flat, rank < count)


@one_program
def test_all_zero_params_keep_exactly_as_many(row: Row) -> None:
    step, params, state = begin(row, tiny.zeros_like(tiny.params()))
    for n in range(1, STEPS + 1):
        params, state = step(params, state, strength=0.0)
        found = kept(state)
        assert (found if row.by_leaf else {"*": sum(found.values())}) == row.kept(n)
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(params))


@one_program
def test_nan_gradients_at_a_refresh_change_no_mask_that_reads_them(row: Row) -> None:
    step, params, state = begin(row)
    params, state = step(params, state)
    nan = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    params, state = step(params, state, push=nan)
    refreshed, skipped = tiny.saved(jaxprune.get_masks(state)), int(state.prune_skipped)
    copies = state.prune_spec.parts.view.copy  # then masks rank the weights after the update
    assert skipped == (1 if copies and row.ramp else 0)
    for _ in range(STEPS - 2):
        params, state = step(params, state)
        tiny.same_bits(tiny.saved(jaxprune.get_masks(state)), refreshed)
        for path, mask in tiny.masks_of(state).items():
            module, name = path.split("/")
            assert not tiny.bits(params[module][name])[~mask].any()
    assert (int(state.prune_skipped) > skipped) == row.ramp


@one_program
def test_nan_gradients_of_pruned_entries_reach_no_kept_one(row: Row) -> None:
    step, params, state = begin(row)
    for _ in range(STEPS - 2):
        params, state = step(params, state)
    clean = step(*tiny.saved((params, state)))
    masks = tiny.masks_of(state)
    push = tiny.zeros_like(params)
    for path, mask in masks.items():
        module, name = path.split("/")
        push[module][name] = jnp.asarray(np.where(mask, np.float32(0), np.float32(np.nan)))
    params, state = step(params, state, push=push)
    tiny.same_bits(params, clean[0])
    params, state = step(params, state)
    row.check(params, state, STEPS)


@one_program
def test_orbax_saves_and_restores_bit_for_bit(row: Row, tmp_path: Path) -> None:
    step, params, state = begin(row)
    for _ in range(EVERY):  # right after a refresh, right before the next update
        params, state = step(params, state)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", {"params": params, "state": state})
        checkpointer.wait_until_finished()
        fresh = {"params": tiny.normal(5), "state": row(theirs(adamw())).init(tiny.normal(5))}
        loaded = checkpointer.restore(tmp_path / "saved", fresh)
    again = jax.tree.map(jnp.asarray, jax.tree.map(np.array, (loaded["params"], loaded["state"])))
    tiny.same_bits(again, (params, state))
    jaxprune.check(jaxprune.describe(state), again[1])
    for _ in range(STEPS - EVERY):
        (params, state), again = step(params, state), step(*again)
    tiny.same_bits(again, (params, state))
    row.check(*again, STEPS)


@one_program
def test_map_params_finds_what_belongs_to_the_params(row: Row) -> None:
    tx, params = row(theirs(adamw())), tiny.params()
    state = tx.init(params)
    seen = []
    mapped = optax.tree.map_params(tx, lambda leaf: seen.append(leaf.shape) or leaf, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    for shape in [(4, 8), (8, 5)]:  # a mask and two moments of each kernel at least
        assert seen.count(shape) >= 3
    tiny.same_bits(mapped, state)


# ----------------------------------------------------------------------------- scan, vmap, sharding


@every_method
def test_scan_and_vmap_over_seeds_and_sparsities(row: Row) -> None:
    """A scan ends where the loop does; a sweep of traced values as its single runs."""

    def run(sparsity: Any, seed: Any) -> Any:
        tx, params = row(theirs(adamw()), sparsity=sparsity, seed=seed), tiny.params()

        def body(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = tx.update(tiny.pull(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(body, (params, tx.init(params)), length=STEPS)
        return params, jaxprune.get_masks(state), jaxprune.sparsity_of(state)

    sparsities, seeds = jnp.array([0.5, SPARSITY, 0.9]), jnp.array([3, 0, 4])
    scanned, swept = jax.jit(lambda: (run(SPARSITY, 0), jax.vmap(run)(sparsities, seeds)))()
    step, params, state = begin(row)
    for _ in range(STEPS):
        params, state = step(params, state)
    for found in scanned, tiny.part(swept, 1):
        tiny.same_bits(tiny.saved(found[1]), tiny.saved(jaxprune.get_masks(state)))
        tiny.close(found[0], params)
    total = sum(map(tiny.size, TARGET))
    wanted = np.array([36, 22, 7]) if not row.by_leaf else np.array([16 + 20, 10 + 12, 3 + 4])
    np.testing.assert_allclose(swept[2], 1 - wanted / total, rtol=1e-6)


def layout_on(kind: Any) -> Any:
    """Shardings as jit writes them on its outputs: another spelling is another compilation."""
    rows = P("x", None) if kind == AxisType.Explicit else P("x")
    return {"body": {"kernel": P(None, "x"), "bias": P("x")}, "head": {"kernel": rows}}


def trained_on(row: Row, inner: Any, kind: Any = None) -> dict[str, np.ndarray]:
    """The masks and params after training on four devices, or on one."""
    tx, params = row(theirs(inner)), tiny.params()
    if kind is None:
        state, mesh = tx.init(params), contextlib.nullcontext()
    else:
        mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,), devices=jax.devices()[:4])
        shardings = jax.tree.map(functools.partial(NamedSharding, mesh), layout_on(kind))
        params = jax.device_put(params, shardings)
        shardings = jaxprune.state_shardings(tx, params)
        mesh = jax.set_mesh(mesh)
    with mesh:
        if kind is not None:
            state = jax.jit(tx.init, out_shardings=shardings)(params)
            masks = tiny.layout(jaxprune.get_masks(state))
            assert masks["head"]["kernel"][-1] == ("x", None)
        before, step = tiny.layout((params, state)), Loop(tx)
        for n in range(1, STEPS + 1):
            params, state = step(params, state)
            row.check(params, state, n)
        assert tiny.layout((params, state)) == before
        assert (step.traces, step.compiled) == (1, 1)
    return tiny.masks_of(state) | {"params": tiny.saved(params)}


@pytest.mark.several_devices
@every_method
@pytest.mark.parametrize("optimizer", CORE)
def test_sharded_training_gives_the_same_masks(row: Row, optimizer: str) -> None:
    """On Auto and Explicit meshes; masks exactly, weights closely."""
    alone = trained_on(row, CORE[optimizer]())
    meshes = [AxisType.Auto, AxisType.Explicit] if optimizer == "adamw" else [AxisType.Explicit]
    for kind in meshes:
        sharded = trained_on(row, CORE[optimizer](), kind)
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


# -------------------------------------------- loops of the libraries, only the optimizer is changed


@every_method
def test_linen_train_state(row: Row) -> None:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(10)(linen.relu(linen.Dense(12)(x)))

    network, x = Network(), jnp.ones((2, 6))
    params = network.init(jax.random.key(0), x)["params"]
    tx = ours(row(theirs(adamw()), sparsity=0.9))
    state = train_state.TrainState.create(apply_fn=network.apply, params=params, tx=tx)

    @jax.jit
    def step(state: Any) -> Any:
        def loss(params: Any) -> Any:
            return jnp.mean((state.apply_fn({"params": params}, x) - 1.0) ** 2)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(STEPS):
        state = step(state)
    ends_at_ninety_percent(state.params, state.opt_state)


@every_method
def test_nnx_optimizer(row: Row) -> None:
    class Network(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.Linear(6, 12, rngs=nnx.Rngs(0))
            self.second = nnx.Linear(12, 10, rngs=nnx.Rngs(1))

        def __call__(self, x: Any) -> Any:
            return self.second(nnx.relu(self.first(x)))

    network, x = Network(), jnp.ones((2, 6))
    optimizer = nnx.Optimizer(network, ours(row(theirs(adamw()), sparsity=0.9)), wrt=nnx.Param)

    @nnx.jit
    def step(network: Any, optimizer: Any) -> None:
        def loss(network: Any) -> Any:
            return jnp.mean((network(x) - 1.0) ** 2)

        optimizer.update(network, nnx.grad(loss)(network))

    for _ in range(STEPS):
        step(network, optimizer)
    ends_at_ninety_percent(nnx.state(network, nnx.Param), optimizer)
    jaxprune.verify(network, optimizer)
    jaxprune.verify(nnx.state(network, nnx.Param), optimizer.opt_state)


@every_method
def test_equinox_loop(row: Row) -> None:
    network, x = eqx.nn.MLP(6, 10, 12, 1, key=jax.random.key(0)), jnp.ones(6)
    tx = ours(row(theirs(adamw()), sparsity=0.9))
    state = tx.init(eqx.filter(network, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(network: Any, state: Any) -> Any:
        grads = eqx.filter_grad(lambda network: jnp.mean((network(x) - 1.0) ** 2))(network)
        updates, state = tx.update(grads, state, eqx.filter(network, eqx.is_inexact_array))
        return eqx.apply_updates(network, updates), state

    for _ in range(STEPS):
        network, state = step(network, state)
    ends_at_ninety_percent(eqx.filter(network, eqx.is_inexact_array), state)


def ends_at_ninety_percent(params: Any, opt_state: Any) -> None:
    """Two kernels, 72 and 120 entries: 19 are kept together, 7 and 12 by leaf."""
    summary = jaxprune.summarize(params, opt_state)
    assert (summary.kept, summary.total) == (19, 192)
    assert sum(leaf.nonzero for leaf in summary.leaves) == 19
    assert float(jaxprune.sparsity_of(opt_state)) == np.float32(173 / 192)
    jaxprune.verify(params, opt_state)
