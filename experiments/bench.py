"""What jaxprune costs: ratios of times taken side by side in one process.

    python -m experiments.bench

Each row is a median over interleaved rounds, with quartiles, beside what it is meant to reach; a
ratio hardly depends on the machine, a time does. A busy machine widens the quartiles: close what
else runs. The rows on sharded parameters count instructions in the compiled program, in a second
process with 8 virtual devices.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import jaxprune
from jaxprune.selection import Ranked, keep_largest

ROUNDS = 15
NEVER = {"sparsity": 0.9, "ramp": (0, 10**6), "every": 10**6}
"""A method whose masks do not change in the steps that are timed."""

STAGES = dict.fromkeys(("measure_steps", "improve_steps", "explore_steps"), 10**6)

METHODS: Mapping[str, Callable[[Any], Any]] = {
    "gradual magnitude": lambda inner: jaxprune.gradual_magnitude(inner, **NEVER),
    "static": lambda inner: jaxprune.static(inner, sparsity=0.9),
    "straight-through": lambda inner: jaxprune.straight_through(inner, **NEVER),
    "magnitude attention": lambda inner: jaxprune.magnitude_attention(inner, **NEVER),
    "RigL": lambda inner: jaxprune.rigl(inner, sparsity=0.9, stop=10**7, every=10**6),
    "prune and grow": lambda inner: jaxprune.prune_and_grow(
        inner, sparsity=0.9, stop=10**7, **STAGES
    ),
    "prune and grow, Taylor": lambda inner: jaxprune.prune_and_grow(
        inner, sparsity=0.9, stop=10**7, importance="taylor", **STAGES
    ),
}
OPTIMIZERS = {"sgd-momentum": optax.sgd(0.1, momentum=0.9), "adamw": optax.adamw(1e-3)}
COPY = {"sgd-momentum": 1.74, "adamw": 1.58}
"""1.2 times the bytes a step with a dense copy must move, over those of the bare optimizer."""

REACH: Mapping[str, Mapping[str, float]] = {
    "gradual magnitude": {"sgd-momentum": 1.25, "adamw": 1.20, "network": 1.10},
    "static": {"sgd-momentum": 1.25, "adamw": 1.20, "network": 1.10},
    "straight-through": COPY,
    "magnitude attention": COPY,
    "RigL": {"sgd-momentum": 1.30, "adamw": 1.25},
    "prune and grow": COPY,
    "prune and grow, Taylor": {"sgd-momentum": 2.22, "adamw": 1.93},
}
"""What an ordinary step of each is meant to cost at most, over the bare optimizer."""


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
    """The kernels of a ResNet-50 by path: 54 leaves, 25.5 million parameters."""
    shapes = {"head": (2048, 1000), "stem": (7, 7, 3, 64)}
    inputs = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            shapes[f"{name}_a"] = (1, 1, inputs, width)
            shapes[f"{name}_b"] = (3, 3, width, width)
            shapes[f"{name}_c"] = (1, 1, width, 4 * width)
            if block == 0:
                shapes[f"{name}_skip"] = (1, 1, inputs, 4 * width)
            inputs = 4 * width
    return {f"{name}/kernel": shape for name, shape in shapes.items()}


def normal_params(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, jax.Array]:
    """Normal weights of these shapes, always the same for a seed."""
    key = jax.random.key(seed)
    return {
        path: jax.random.normal(jax.random.fold_in(key, place), shape)
        for place, (path, shape) in enumerate(shapes.items())
    }


def seconds(runs: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, np.ndarray]:
    """Seconds of each function in each of several interleaved rounds, after one that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if round_number:
                taken[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in taken.items()}


def row(what: str, ratios: np.ndarray, reach: str) -> tuple[str, str, str]:
    """A row of the table: median and quartiles of ratios."""
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return what, f"{median:.2f} ({low:.2f} to {high:.2f})", reach


# ---------------------------------------------------------------------------------------- selection


def selection_rows() -> list[tuple[str, str, str]]:
    """Refreshes on the leaves of a ResNet-50, against numpy and against a sort."""
    params = normal_params(resnet50_shapes())
    leaves = list(params.values())
    prepared = np.abs(np.concatenate([np.asarray(leaf).reshape(-1) for leaf in leaves]))
    total, own = prepared.size, [round(0.1 * leaf.size) for leaf in leaves]
    kept = round(0.1 * total)

    def refresh(groups: list[int]) -> Any:
        def masks(leaves: list[jax.Array], counts: Any) -> list[jax.Array]:
            return keep_largest([Ranked(leaf, magnitude=True) for leaf in leaves], counts, groups)

        return jax.jit(masks)

    def sorted_mask(flat: jax.Array) -> jax.Array:
        return jnp.zeros(flat.shape, bool).at[jnp.argsort(-flat)[:kept]].set(True)

    together, apart = refresh([0] * len(leaves)), refresh(list(range(len(leaves))))
    counts, counts_apart = jnp.array([kept]), jnp.array(own)
    times = seconds(
        {
            "partition": lambda: np.partition(prepared, total - kept),
            "global": lambda: together(leaves, counts),
            "per leaf": lambda: apart(leaves, counts_apart),
        }
    )
    by_sort = seconds({"sort": lambda: jax.jit(sorted_mask)(jnp.asarray(prepared))}, rounds=2)
    memory = together.lower(leaves, counts).compile().memory_analysis().temp_size_in_bytes
    partition = times["partition"]
    return [
        row("refresh, global / np.partition", times["global"] / partition, "<= 0.7"),
        row("refresh, per leaf / np.partition", times["per leaf"] / partition, "<= 1.3"),
        row("argsort mask / refresh, global", by_sort["sort"].min() / times["global"], ">= 300"),
        ("temporary memory of a refresh, bytes a parameter", f"{memory / total:.3f}", "<= 0.1"),
    ]


# ---------------------------------------------------------------------------------- optimizer steps


def step_of(tx: Any, grad: Callable[..., Any] | None = None) -> Any:
    """A donated step: the optimizer part alone, or with the gradient of a loss."""

    def step(params: Any, state: Any, given: Any) -> tuple[Any, Any]:
        grads = given if grad is None else grad(params, given)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def running(tx: Any, make: Callable[[], Any], given: Any, grad: Any = None) -> Callable[[], Any]:
    """A function that takes one step from where the last one ended."""
    params = make()
    state, step = jax.jit(tx.init)(params), step_of(tx, grad)
    held = [params, state]

    def run() -> Any:
        held[:] = step(*held, given)
        return held

    return run


def step_rows() -> list[tuple[str, str, str]]:
    """Ordinary steps, in which no mask changes, over the bare optimizer's."""
    rows, shapes = [], resnet50_shapes()
    grads = normal_params(shapes)
    for name, inner in OPTIMIZERS.items():
        runs = {"bare": running(inner, lambda: normal_params(shapes), grads)}
        for method, wrap in METHODS.items():
            runs[method] = running(wrap(inner), lambda: normal_params(shapes), grads)
        times = seconds(runs)
        for method in METHODS:
            ratios = times[method] / times["bare"]
            reach = f"<= {REACH[method][name]:.2f}"
            rows.append(row(f"ordinary step, {method} / bare {name}", ratios, reach))
    return rows


def mask_step_rows() -> list[tuple[str, str, str]]:
    """A step of RigL in which it drops and grows, over one refresh of the same leaves."""
    shapes = resnet50_shapes()
    leaves = list(normal_params(shapes).values())
    own, apart = jnp.array([round(0.1 * leaf.size) for leaf in leaves]), list(range(len(leaves)))

    @jax.jit
    def refresh(leaves: list[jax.Array], counts: Any) -> list[jax.Array]:
        return keep_largest([Ranked(leaf, magnitude=True) for leaf in leaves], counts, apart)

    always = jaxprune.rigl(OPTIMIZERS["sgd-momentum"], sparsity=0.9, stop=10**7, every=1)
    step = running(always, lambda: normal_params(shapes), normal_params(shapes))
    times = seconds({"refresh": lambda: refresh(leaves, own), "mask step": step})
    ratios = times["mask step"] / times["refresh"]
    return [row("mask step of RigL / refresh, per leaf", ratios, "<= 3")]


SETTLE = 15
"""Steps in which a search learns where the next one is to begin."""

SPEEDS = (0.0001, 0.001)
"""What each attention moves a step: from 1 to .1 in 9,000 steps, or in 900."""


def rebuild_rows() -> list[tuple[str, str, str]]:
    """Steps of layer attention that rebuild its masks, over those of the same that never does."""
    rows, shapes = [], resnet50_shapes()
    grads = {path: 1e-3 * leaf for path, leaf in normal_params(shapes, seed=2).items()}
    for name, inner in OPTIMIZERS.items():
        for speed in SPEEDS:
            method = jaxprune.layer_attention(
                inner,
                sparsity=0.9,
                attention_optimizer=optax.sign_sgd(speed),
                attention_init=0.3,
                target_anneal=None,
            )
            parts = jax.eval_shape(method.init, normal_params(shapes)).prune_spec.parts
            (update,) = parts.mask_updates
            changes = {
                "never": update._replace(when=jaxprune.schedules.every(10**6)),
                "in every step": update,
            }
            runs = {
                case: running(
                    jaxprune.prune(inner, [change], parts.view, learner=parts.learner),
                    lambda: normal_params(shapes),
                    grads,
                )
                for case, change in changes.items()
            }
            for _ in range(SETTLE):
                jax.block_until_ready(runs["in every step"]())
            times = seconds(runs)
            what = f"layer attention moving by {speed} a step, masks rebuilt / never, {name}"
            rows.append(row(what, times["in every step"] / times["never"], "<= 1.60"))
    return rows


def network_rows() -> list[tuple[str, str, str]]:
    """The whole training step of a multi-layer perceptron of 10 million parameters, batch 32."""
    shapes = {f"dense{i}/kernel": (1826, 1826) for i in range(3)}
    inputs = jax.random.normal(jax.random.key(1), (32, 1826))

    def loss(params: Any, inputs: jax.Array) -> jax.Array:
        for kernel in params.values():
            inputs = jnp.tanh(inputs @ kernel)
        return jnp.mean(inputs**2)

    def params() -> Any:
        return {path: 0.02 * leaf for path, leaf in normal_params(shapes).items()}

    inner = OPTIMIZERS["sgd-momentum"]
    runs = {"bare": running(inner, params, inputs, jax.grad(loss))}
    for method, wrap in METHODS.items():
        runs[method] = running(wrap(inner), params, inputs, jax.grad(loss))
    times = seconds(runs)
    return [
        row(
            f"training step of an MLP, {method} / dense",
            times[method] / times["bare"],
            f"<= {REACH[method].get('network', 1.2):.2f}",
        )
        for method in METHODS
    ]


def compile_rows() -> list[tuple[str, str, str]]:
    """How much longer a step with a refresh compiles, on the 161 leaves of a ResNet-50."""
    shapes = resnet50_shapes()
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    for path, kernel in list(params.items())[1:]:
        for name in ("scale", "bias"):
            width = (kernel.shape[-1],)
            params[f"{path}_{name}/{name}"] = jax.ShapeDtypeStruct(width, jnp.float32)
    params["head/bias"] = jax.ShapeDtypeStruct((1000,), jnp.float32)
    assert len(params) == 161
    inner = OPTIMIZERS["sgd-momentum"]
    wrapped = METHODS["gradual magnitude"](inner)

    def compiled(tx: Any) -> float:
        began = time.perf_counter()
        step_of(tx).lower(params, jax.eval_shape(tx.init, params), params).compile()
        return time.perf_counter() - began

    more = compiled(wrapped) - compiled(inner)
    return [("compiling a step with refresh, 161 leaves, more seconds", f"{more:.1f}", "<= 5")]


# ----------------------------------------------------------------------------------------- sharding


def collectives(axis: jax.sharding.AxisType) -> dict[str, int]:
    """How many instructions of each kind move parameters between devices in a sharded refresh."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    params = {f"{i}/kernel": jnp.ones((64, 128 * (i + 1))) for i in range(3)}
    params = jax.device_put(params, sharding)
    tx = jaxprune.magnitude_attention(optax.adamw(1e-3), sparsity=0.9, ramp=(0, 1))
    with jax.set_mesh(mesh):
        shardings = jaxprune.state_shardings(tx, params)
        state = jax.jit(tx.init, out_shardings=shardings)(params)
        text = step_of(tx).lower(params, state, params).compile().as_text()
    kinds = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    return {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}


def sharded_rows() -> list[tuple[str, str, str]]:
    """The counts of `collectives`, from a process with 8 virtual devices."""
    flags = "--xla_force_host_platform_device_count=8"
    command = [sys.executable, "-m", "experiments.bench", "sharded"]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return [
        (
            f"sharded step with refresh, {line.split(':')[0]} mesh",
            line.split(":")[1].strip(),
            "0, 0, 0",
        )
        for line in printed.stdout.splitlines()
    ]


def main() -> None:
    """Prints the table."""
    if sys.argv[1:] == ["sharded"]:
        for axis in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
            counts = collectives(axis)
            print(f"{axis.name}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
        return
    sections = (
        selection_rows,
        step_rows,
        mask_step_rows,
        rebuild_rows,
        network_rows,
        compile_rows,
        sharded_rows,
    )
    rows = [each for section in tqdm(sections, unit="section") for each in section()]
    print(f"jax {jax.__version__}, {jax.devices()[0].platform}, {os.cpu_count()} cores")
    print("| measure | median (quartiles) | to reach |\n|---|---|---|")
    for what, measured, reach in rows:
        print(f"| {what} | {measured} | {reach} |")


if __name__ == "__main__":
    main()
