"""What every method costs on a pod, read off the programs that the TPU's own compiler makes of it.

    pip install 'jax[tpu]'
    python -m experiments.scale --network llama_8b --topology v5e:16x16

Nothing is trained, and no TPU is needed: params are shapes, and the compiler that comes with the
package `libtpu` compiles for any slice. `--network passes` runs the search for a threshold on
random weights instead, and counts how often it reads them; `docs/scale.md` says what follows from
both.
"""

import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxprune
from experiments import bench, states
from jaxprune.selection.keys import order_of
from jaxprune.selection.search import Search
from jaxprune.types import Ranked

RAMPED = {"sparsity": 0.9, "ramp": (0, 10_000), "every": 100}
SWAPPED = {"sparsity": 0.9, "stop": 10_000}
STAGES = dict.fromkeys(("measure_steps", "improve_steps", "explore_steps"), 100)

METHODS: Mapping[str, Callable[..., Any]] = {
    "static": lambda inner, **its: jaxprune.static(inner, sparsity=0.9, **its),
    "snip": lambda inner, **its: jaxprune.snip(inner, sparsity=0.9, **its),
    "gradual_magnitude": lambda inner, **its: jaxprune.gradual_magnitude(inner, **RAMPED, **its),
    "straight_through": lambda inner, **its: jaxprune.straight_through(inner, **RAMPED, **its),
    "magnitude_attention": lambda inner, **its: jaxprune.magnitude_attention(
        inner, **RAMPED, **its
    ),
    "rigl": lambda inner, **its: jaxprune.rigl(inner, **SWAPPED, every=100, **its),
    "sparse_evolution": lambda inner, **its: jaxprune.sparse_evolution(
        inner, **SWAPPED, every=100, **its
    ),
    "granet": lambda inner, **its: jaxprune.granet(inner, **RAMPED, **its),
    "acdc": lambda inner, **its: jaxprune.acdc(
        inner, **SWAPPED, begin=100, sparse_steps=100, dense_steps=100, **its
    ),
    "prune_and_grow": lambda inner, **its: jaxprune.prune_and_grow(
        inner, **SWAPPED, **STAGES, **its
    ),
    "prune_and_grow, averaged Taylor": lambda inner, **its: jaxprune.prune_and_grow(
        inner, **SWAPPED, **STAGES, importance="taylor", **its
    ),
    "layer_attention": lambda inner, **its: jaxprune.layer_attention(
        inner, sparsity=0.9, learner=optax.sgd(1e-3), ramp=None, every=100, **_alone(its)
    ),
    "movement": lambda inner, **its: jaxprune.movement(inner, **RAMPED, **its),
    "soft_threshold": lambda inner, **its: jaxprune.soft_threshold(
        inner, learner=optax.sgd(0.1), threshold_init=-8.0, decay=1e-3, **_alone(its)
    ),
    "n_of_m": lambda inner, **its: jaxprune.n_of_m(inner, n=2, m=4, **_alone(its)),
    "sr_ste": lambda inner, **its: jaxprune.sr_ste(inner, n=2, m=4, **_alone(its)),
}
"""Each with a refresh in its step; uniform where a ranking together would be too large for it."""


def _alone(its: Mapping[str, Any]) -> dict[str, Any]:
    """What methods take that say themselves how sparse each layer becomes."""
    return {name: value for name, value in its.items() if name != "distribution"}


NETWORKS = ("resnet50", "vit_l", "llama_8b")


class Network(NamedTuple):
    """The params of a network by shape, and what its methods are told.

    Attributes:
      shapes: ``{path: shape}``.
      sharded: whether params are shared out over both axes of the mesh, or on every device whole.
      told: keyword values for all methods.
    """

    shapes: dict[str, tuple[int, ...]]
    sharded: bool
    told: dict[str, Any]


def network(name: str) -> Network:
    """One of the networks of the table.

    Args:
      name: ``resnet50``, 25.6 M in 161 leaves, whole on every device; ``vit_l``, 304 M in 389;
        ``llama_8b``, 8.03 billion in 12, of which nine stack 32 layers.

    Returns:
      Its shapes.

    Examples:
      >>> {name: sum(map(math.prod, network(name).shapes.values())) for name in NETWORKS}
      {'resnet50': 25557032, 'vit_l': 304322536, 'llama_8b': 8030261248}
    """
    if name == "resnet50":
        shapes = {path: leaf.shape for path, leaf in bench.resnet50_leaves().items()}
        return Network(shapes, False, {})
    shapes = {}
    if name == "vit_l":
        width, hidden = 1024, 4096
        shapes |= {"patch/kernel": (16, 16, 3, width), "patch/bias": (width,)}
        shapes |= {"position_embedding": (1, 196, width)}
        shapes |= {"head/kernel": (width, 1000), "head/bias": (1000,)}
        layers = dict.fromkeys(("query", "key", "value", "out"), (width, width))
        layers |= {"up": (width, hidden), "down": (hidden, width)}
        for block in range(24):
            for layer, shape in layers.items():
                shapes[f"block{block}/{layer}/kernel"] = shape
                shapes[f"block{block}/{layer}/bias"] = shape[1:]
            for norm in ("norm1", "norm2"):
                shapes |= {f"block{block}/{norm}/{x}": (width,) for x in ("scale", "bias")}
        return Network(shapes, True, {})
    width, hidden, of_keys, words = 4096, 14336, 1024, 128256
    shapes |= {"embedding": (words, width), "head/kernel": (width, words), "norm/scale": (width,)}
    layers = {"query": (width, width), "key": (width, of_keys), "value": (width, of_keys)}
    layers |= {"out": (width, width), "down": (hidden, width)}
    layers |= dict.fromkeys(("gate", "up"), (width, hidden))
    shapes |= {f"layers/{layer}/kernel": (32, *shape) for layer, shape in layers.items()}
    shapes |= {f"layers/{norm}/scale": (32, width) for norm in ("norm1", "norm2")}
    return Network(shapes, True, {"stacked": {"layers": 0}, "distribution": "uniform"})


def placed(of: Network, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Params by shape and sharding: matrices over both axes of a mesh, where they divide.

    Args:
      of: the network.
      mesh: of two axes.

    Returns:
      ``{path: shape}``.
    """
    rows, columns = mesh.axis_names

    def spec(path: str, shape: tuple[int, ...]) -> PartitionSpec:
        two = len(shape) - path.startswith("layers/") == 2
        fits = all(n % size == 0 for n, size in zip(shape[-2:], mesh.devices.shape, strict=False))
        return PartitionSpec(*[None] * (len(shape) - 2), rows, columns) if two & fits else _WHOLE

    return {
        path: jax.ShapeDtypeStruct(
            shape,
            jnp.float32,
            sharding=NamedSharding(mesh, spec(path, shape) if of.sharded else _WHOLE),
        )
        for path, shape in of.shapes.items()
    }


_WHOLE = PartitionSpec()


class Costs(NamedTuple):
    """What a compiled step, its refresh within, costs a device; bytes are those a parameter.

    Attributes:
      arguments: bytes of params, gradients and state.
      temporaries: bytes beside them at most, a TPU's fast memory included.
      written: bytes that an ordinary step writes, in which no mask changes.
      changed: those of a step in which masks change, each loop counted once.
      collectives: how many there are in the program.
      largest: bytes that the largest of them moves.
      seconds: CPU seconds of tracing and compiling.
    """

    arguments: float
    temporaries: float
    written: float
    changed: float
    collectives: int
    largest: int
    seconds: float


def costs(tx: Any, params: Mapping[str, jax.ShapeDtypeStruct]) -> Costs:
    """Compiles a step for the devices on which its params lie.

    Args:
      tx: the transformation.
      params: by shape and sharding.

    Returns:
      What it costs.
    """
    began, given = time.process_time(), dict(params)
    traced = bench.step_of(tx).trace(given, states.placed(tx, given), given)
    (platform,) = {d.platform for leaf in params.values() for d in leaf.sharding.device_set}
    compiled = traced.lower(lowering_platforms=(platform,)).compile()
    seconds = time.process_time() - began
    memory, text = compiled.memory_analysis(), compiled.as_text()
    size = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in params.values())
    moved = [size_of(shapes) for shapes in re.findall(rf"= (.*?) (?:{COLLECTIVES})\(", text)]
    return Costs(
        memory.argument_size_in_bytes / size,
        memory.temp_size_in_bytes / size,
        written(text, change=False) / size,
        written(text, change=True) / size,
        len(moved),
        max(moved, default=0),
        seconds,
    )


COLLECTIVES = "(?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?"
BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "u16": 2}
_MOVES_NOTHING = {
    *("parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "constant"),
    *("copy-start", "copy-done", "slice-start", "slice-done", "custom-call"),
}
"""Among them how a TPU's fast memory is filled: what is copied there has been written before."""


def size_of(shapes: str) -> int:
    """Bytes of the arrays in the result of an instruction, as a program's text has them.

    Args:
      shapes: the text.

    Returns:
      Their sum.

    Examples:
      >>> size_of("(f32[2,3]{1,0:T(8,128)}, pred[4]{0})")
      28
    """
    found = re.findall(r"(\w+)\[([\d,]*)\]", re.sub(r"\{[^}]*\}", "", shapes))
    return sum(
        BYTES.get(t, 4) * math.prod(int(n) for n in dims.split(",") if n) for t, dims in found
    )


def written(text: str, change: bool) -> int:
    """Bytes that a compiled step writes to memory.

    Args:
      text: of the program.
      change: whether conditionals take their last branch, the True one, or their first.

    Returns:
      The bytes; what is done in a loop counts once.

    Examples:
      >>> import jax.numpy as jnp
      >>> either = jax.jit(lambda flag, x: jax.lax.cond(flag, lambda: x[::-1], lambda: x * 2))
      >>> compiled = either.lower(True, jnp.ones(100)).compile()
      >>> written(compiled.as_text(), change=True) >= 400
      True
    """
    bodies = {}
    for body in re.split(r"\n(?=(?:ENTRY )?%)", text):
        name = body.split(" (")[0]
        bodies["ENTRY" if name.startswith("ENTRY") else name] = body

    def of(name: str) -> int:
        total = 0
        for result, operation, rest in re.findall(r"\n.* = (.*?) ([\w\-]+)\((.*)", bodies[name]):
            if operation == "conditional":
                branches = re.findall(r"branch_computations=\{(.*?)\}", rest)[0].split(", ")
                total += of(branches[-1 if change else 0])
            elif operation == "while":
                total += of(re.findall(r"body=(%[\w.\-]+)", rest)[0])
            elif operation not in _MOVES_NOTHING:
                total += size_of(result)
        return total

    return of("ENTRY")


def passes(of: Network, together: bool) -> int:
    """How often a search for thresholds reads normal weights, as it does on several devices.

    Args:
      of: the network; of stacked layers one slice.
      together: whether all leaves are ranked together, or each has a count of its own.

    Returns:
      The number of passes, the last one, which writes the masks, not among them.
    """
    shapes = {p: s[1:] if p.startswith("layers/") else s for p, s in of.shapes.items()}
    shapes = {p: s for p, s in shapes.items() if len(s) > 1 and "embedding" not in p}
    leaves = [Ranked(x, magnitude=True) for x in bench.normal_params(shapes).values()]
    groups = np.zeros(len(leaves), int) if together else np.arange(len(leaves))
    sizes = np.asarray([leaf.values.size for leaf in leaves])
    wanted = [round(0.1 * int(sizes[groups == group].sum())) for group in sorted(set(groups))]
    search = Search(leaves, groups, len(wanted), order_of(leaves))
    return int(jax.jit(search.found)(jnp.asarray(wanted, jnp.uint32)).passes)


def main(_: Any) -> None:
    """Prints the table."""
    chosen = flags.FLAGS
    if chosen.network == "passes":
        jax.config.update("jax_num_cpu_devices", 2)  # beside one device the search is another
        print("| network | ranked together | each leaf its own |\n|---|---|---|")
        for name in NETWORKS:
            both = " | ".join(str(passes(network(name), together)) for together in (True, False))
            print(f"| {name} | {both} |", flush=True)
    else:
        table(chosen.network, chosen.topology, chosen.methods or list(METHODS))


def table(name: str, topology: str, methods: Sequence[str]) -> None:
    """Prints what methods cost a network on a slice of a pod.

    Args:
      name: of the network.
      topology: as ``v5e:16x16``.
      methods: keys of `METHODS`.
    """
    jax.config.update("jax_num_cpu_devices", 2)  # what is traced beside one device is for one
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # not on a TPU's host: nobody answers
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    shape = tuple(int(n) for n in topology.split(":")[1].split("x"))
    mesh = Mesh(np.asarray(devices).reshape(shape), ("fsdp", "tensor"))
    of, inner = network(name), optax.adamw(1e-3)
    params = placed(of, mesh)
    print(f"jax {jax.__version__}, {name}, {len(params)} leaves, {topology}")
    print(
        "| method | state beside the optimizer's | temporaries | written, ordinary step"
        " | written, with a refresh | collectives, the largest | CPU-s to compile |"
    )
    print("|---|---|---|---|---|---|---|")
    bare = costs(inner, params)
    for method, wrap in {"bare adamw": None, **{m: METHODS[m] for m in methods}}.items():
        found = bare if wrap is None else costs(wrap(inner, **of.told), params)
        print(
            f"| {method} | {found.arguments - bare.arguments:.2f} | {found.temporaries:.2f} |"
            f" {found.written:.1f} | {found.changed:.1f} |"
            f" {found.collectives}, {found.largest} B | {found.seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    flags.DEFINE_enum("network", "llama_8b", [*NETWORKS, "passes"], "Whose params.")
    flags.DEFINE_string("topology", "v5e:16x16", "A slice of a TPU pod, of two dimensions.")
    flags.DEFINE_list("methods", [], "Some of the methods; by default all.")
    app.run(main)
