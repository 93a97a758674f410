"""What jaxprune costs: ratios of times taken side by side in one process.

    python -m experiments.bench

Each row is a median over interleaved rounds, with quartiles, beside what it is meant to reach; a
ratio hardly depends on the machine, a time does. A busy machine widens the quartiles: close what
else runs. Refreshes are counted in *reads*: one `jnp.sum` over the same leaves in the same process.
Memory and collectives are read off compiled programs, those of sharded parameters in a second
process with 8 virtual devices; compile times are CPU seconds.
"""

import json
import math
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
from experiments import models, states
from jaxprune.selection import keep_largest
from jaxprune.types import Ranked

ROUNDS = 15
NEVER = {"sparsity": 0.9, "ramp": (0, 10**6), "every": 10**6}
"""A method whose masks do not change in the steps that are timed."""

STAGES = dict.fromkeys(("measure_steps", "improve_steps", "explore_steps"), 10**6)

METHODS: Mapping[str, Callable[[Any], Any]] = {
    "gradual magnitude": lambda inner: jaxprune.gradual_magnitude(inner, **NEVER),
    "static": lambda inner: jaxprune.static(inner, sparsity=0.9),
    "RigL": lambda inner: jaxprune.rigl(inner, sparsity=0.9, stop=10**7, every=10**6),
    "straight-through": lambda inner: jaxprune.straight_through(inner, **NEVER),
    "magnitude attention": lambda inner: jaxprune.magnitude_attention(inner, **NEVER),
    "prune and grow": lambda inner: jaxprune.prune_and_grow(
        inner, sparsity=0.9, stop=10**7, **STAGES
    ),
}
OTHERS: Mapping[str, Callable[[Any], Any]] = {
    "prune and grow, Taylor": lambda inner: jaxprune.prune_and_grow(
        inner, sparsity=0.9, stop=10**7, importance="taylor", **STAGES
    ),
    "SET": lambda inner: jaxprune.sparse_evolution(inner, sparsity=0.9, stop=10**7, every=10**6),
    "layer attention": lambda inner: jaxprune.layer_attention(
        inner, sparsity=0.9, learner=optax.sgd(1e-3), ramp=None, every=10**6
    ),
    "movement": lambda inner: jaxprune.movement(inner, **NEVER),
    "soft threshold": lambda inner: jaxprune.soft_threshold(
        inner, learner=optax.sgd(0.1), threshold_init=-8.0, decay=1e-3
    ),
}
OPTIMIZERS = {"sgd-momentum": optax.sgd(0.1, momentum=0.9), "adamw": optax.adamw(1e-3)}

REACH: Mapping[str, tuple[float, float]] = {
    "gradual magnitude": (1.25, 1.20),
    "static": (1.25, 1.20),
    "RigL": (1.30, 1.25),
    "straight-through": (1.75, 1.60),
    "magnitude attention": (1.90, 1.75),
    "prune and grow": (1.35, 1.30),
}
"""What an ordinary step of each is meant to cost at most, over bare momentum and bare adamw."""


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


Row = tuple[str, str, str]
"""What is measured, what came, what it is meant to reach."""


def row(what: str, ratios: np.ndarray, reach: str) -> Row:
    """A row of the table: median and quartiles of ratios."""
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return what, f"{median:.2f} ({low:.2f} to {high:.2f})", reach


# ---------------------------------------------------------------------------------------- selection


def selection_rows() -> list[Row]:
    """Refreshes on the leaves of a ResNet-50, in reads of them."""
    leaves = list(normal_params(resnet50_shapes()).values())
    own = [round(0.1 * leaf.size) for leaf in leaves]

    def refresh(groups: list[int]) -> Any:
        def masks(leaves: list[jax.Array], counts: Any) -> Any:
            return keep_largest([Ranked(x, magnitude=True) for x in leaves], [*counts], groups)

        return jax.jit(masks)

    read = jax.jit(lambda leaves: sum(jnp.sum(leaf) for leaf in leaves))
    together, apart = refresh([0] * len(leaves)), refresh(list(range(len(leaves))))
    counts, counts_apart = jnp.array([sum(own)]), jnp.array(own)
    times = seconds(
        {
            "read": lambda: read(leaves),
            "global": lambda: together(leaves, counts),
            "per leaf": lambda: apart(leaves, counts_apart),
        }
    )
    memory = together.lower(leaves, counts).compile().memory_analysis().temp_size_in_bytes
    size = sum(leaf.size for leaf in leaves)
    return [
        row("refresh, global, reads", times["global"] / times["read"], "<= 9"),
        row("refresh, every leaf its own count, reads", times["per leaf"] / times["read"], "<= 16"),
        ("temporaries of a selection, bytes a parameter", f"{memory / size:.4f}", "<= .01"),
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


def step_rows() -> list[Row]:
    """Ordinary steps, in which no mask changes, over the bare optimizer's."""
    rows, shapes = [], resnet50_shapes()
    grads = normal_params(shapes)
    for place, (name, inner) in enumerate(OPTIMIZERS.items()):
        runs = {"bare": running(inner, lambda: normal_params(shapes), grads)}
        for method, wrap in METHODS.items():
            runs[method] = running(wrap(inner), lambda: normal_params(shapes), grads)
        times = seconds(runs)
        for method in METHODS:
            ratios, reach = times[method] / times["bare"], f"<= {REACH[method][place]:.2f}"
            rows.append(row(f"ordinary step, {method} / bare {name}", ratios, reach))
    return rows


def mlp_rows() -> list[Row]:
    """The whole training step of a multi-layer perceptron of 10 million parameters, batch 32."""
    shapes = {f"dense{i}/kernel": (1826, 1826) for i in range(3)}
    inputs = jax.random.normal(jax.random.key(1), (32, 1826))

    def loss(params: Any, inputs: jax.Array) -> jax.Array:
        for kernel in params.values():
            inputs = jnp.tanh(inputs @ kernel)
        return jnp.mean(inputs**2)

    def params() -> Any:
        return {path: 0.02 * leaf for path, leaf in normal_params(shapes).items()}

    inner, reach = OPTIMIZERS["sgd-momentum"], {"static": 1.10, "RigL": 1.20, "prune and grow": 1.2}
    runs = {"bare": running(inner, params, inputs, jax.grad(loss))}
    for method in reach:
        runs[method] = running(METHODS[method](inner), params, inputs, jax.grad(loss))
    times = seconds(runs)
    return [
        row(f"step of an MLP, {method} / dense", times[method] / times["bare"], f"<= {most:.2f}")
        for method, most in reach.items()
    ]


def resnet_rows() -> list[Row]:
    """The whole training step of a ResNet-20 on images of 32x32 at batch 64."""
    model = models.build({"name": "resnet", "depth": 20}, classes=10)
    images = jax.random.normal(jax.random.key(1), (64, 32, 32, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()

    def loss(params: Any, images: jax.Array) -> jax.Array:
        seen = {**variables, "params": params}
        return jnp.mean(model.apply(seen, images, train=True, mutable=["batch_stats"])[0] ** 2)

    def params() -> Any:
        return jax.tree.map(jnp.copy, variables["params"])

    inner, every = OPTIMIZERS["sgd-momentum"], {**METHODS, **OTHERS}
    runs = {"bare": running(inner, params, images, jax.grad(loss))}
    for method, wrap in every.items():
        runs[method] = running(wrap(inner), params, images, jax.grad(loss))
    times = seconds(runs, rounds=7)
    return [
        row(f"step of a ResNet-20, {method} / dense", times[method] / times["bare"], "<= 1.03")
        for method in every
    ]


# -------------------------------------------------------------------------------- compiled programs


def resnet50_leaves() -> dict[str, jax.ShapeDtypeStruct]:
    """All 161 leaves of a ResNet-50, by shape."""
    shapes: dict[str, tuple[int, ...]] = {"head/bias": (1000,)}
    for path, shape in resnet50_shapes().items():
        shapes[path] = shape
        if path != "head/kernel":
            shapes |= {f"{path}_norm/{name}": shape[-1:] for name in ("scale", "bias")}
    assert len(shapes) == 161
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}


def program(tx: Any, params: Any) -> tuple[Any, float]:
    """A compiled step, and the CPU seconds that tracing and compiling it took."""
    began = time.process_time()
    compiled = step_of(tx).lower(params, jax.eval_shape(tx.init, params), params).compile()
    return compiled, time.process_time() - began


def compile_rows() -> list[Row]:
    """How much longer a step with its refresh compiles than the bare one."""
    square = {f"layer{i}/kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32) for i in range(40)}
    cases = {
        "161 leaves": (resnet50_leaves(), {"gradual magnitude": 8, "magnitude attention": 11}),
        "40 leaves of 64x64": (square, {"static": 1, "RigL": 5, "prune and grow": 6}),
    }
    rows, inner = [], OPTIMIZERS["sgd-momentum"]
    for what, (params, reach) in cases.items():
        bare = program(inner, params)[1]
        for method, most in reach.items():
            more = program(METHODS[method](inner), params)[1] - bare
            rows.append((f"compiling {method}, {what}, s more", f"{more:.1f}", f"<= {most}"))
    return rows


def temporaries(compiled: Any, params: Any) -> float:
    """Bytes of temporary memory a parameter, of those on one device."""
    shards = [x.sharding.shard_shape(x.shape) if x.sharding else x.shape for x in params.values()]
    return compiled.memory_analysis().temp_size_in_bytes / sum(map(math.prod, shards))


# ----------------------------------------------------------------------------------------- sharding


LEAVES = 3
WHERE = "one device; 8, Auto mesh; Explicit"


def sharded_params(axis: jax.sharding.AxisType) -> tuple[jax.sharding.Mesh, Any]:
    """A mesh of 8 devices, and leaves sharded over it, by shape."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    return mesh, {
        f"{i}/kernel": jax.ShapeDtypeStruct((640, 1280 * (i + 1)), jnp.float32, sharding=sharding)
        for i in range(LEAVES)
    }


def sharded_step(axis: jax.sharding.AxisType, wrap: Callable[[Any], Any]) -> tuple[str, float]:
    """The program of a sharded step with its refresh, and its temporaries a parameter."""
    mesh, params = sharded_params(axis)
    tx = wrap(OPTIMIZERS["sgd-momentum"])
    with jax.set_mesh(mesh):
        compiled = step_of(tx).lower(params, states.placed(tx, params), params).compile()
    return compiled.as_text(), temporaries(compiled, params)


def collectives(text: str) -> tuple[int, int]:
    """How many collectives of a program move a parameter's size, and how many less."""
    moves = re.findall(r"= (.*?) (?:all-gather|all-to-all|collective-permute|all-reduce)", text)
    large = sum(_elements(shapes) >= 640 for shapes in moves)
    return large, len(moves) - large


def _elements(shapes: str) -> int:
    found = re.findall(r"\[([\d,]*)\]", shapes)
    return sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in found)


def sharded() -> dict[str, Any]:
    """Collectives, and the temporaries of each method, by kind of mesh: for 8 devices."""
    found: dict[str, Any] = {}
    for axis in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        steps = {name: sharded_step(axis, wrap) for name, wrap in {**METHODS, **OTHERS}.items()}
        found[axis.name] = {
            "collectives": collectives(steps["magnitude attention"][0]),
            "temporaries": {name: memory for name, (_, memory) in steps.items()},
        }
    return found


def program_rows() -> list[Row]:
    """Memory of a whole step with its refresh, and collectives of one that is sharded."""
    flags = "--xla_force_host_platform_device_count=8"
    command = [sys.executable, "-m", "experiments.bench", "sharded"]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    meshes = json.loads(printed.stdout)
    params, rows = resnet50_leaves(), []
    for method, wrap in {**METHODS, **OTHERS}.items():
        compiled, _ = program(wrap(OPTIMIZERS["sgd-momentum"]), params)
        memory = [mesh["temporaries"][method] for mesh in meshes.values()]
        measured = "; ".join(f"{bytes_:.2f}" for bytes_ in (temporaries(compiled, params), *memory))
        rows.append((f"temporaries, bytes a parameter ({WHERE}), {method}", measured, "<= 2.0"))
    for name, mesh in meshes.items():
        large, small = mesh["collectives"]
        what = f"sharded step with refresh, {LEAVES} leaves, {name} mesh: collectives"
        rows.append((f"{what} as large as parameters, smaller", f"{large}, {small}", "0, any"))
    return rows


def main() -> None:
    """Prints the table."""
    if sys.argv[1:] == ["sharded"]:
        print(json.dumps(sharded()))
        return
    from experiments import bench_cut, bench_input  # the first reads this module

    sections = (
        selection_rows,
        step_rows,
        mlp_rows,
        resnet_rows,
        compile_rows,
        program_rows,
        bench_cut.cut_rows,
        bench_cut.native_rows,
        bench_cut.trace_rows,
        bench_input.input_rows,
    )
    show([each for section in tqdm(sections, unit="section") for each in section()])


def show(rows: list[Row]) -> None:
    """Prints rows as a table."""
    print(f"jax {jax.__version__}, {jax.devices()[0].platform}, {os.cpu_count()} cores")
    print("| measure | median (quartiles) | to reach |\n|---|---|---|")
    for what, measured, reach in rows:
        print(f"| {what} | {measured} | {reach} |")


if __name__ == "__main__":
    main()
