"""Channels in experiments: which ones a config means, what their network costs, and the cut one.

The cut network is written as files that need nothing of this library but to be looked at: one of
`jax.export`, for any batch, with its weights; one of safetensors with the plan of the cut.
"""

import functools
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.experimental import multihost_utils

import jaxprune
from experiments import data, measures, training
from jaxprune.network import ChannelChoice, Cost

TIMED_BATCH = 100
"""Images of which a forward pass is timed."""

RELOAD = """
import json, sys
import numpy as np
from jax import export
file, images, labels = sys.argv[1:]
with open(file, "rb") as opened:
    network = export.deserialize(bytearray(opened.read()))
images, labels = np.load(images), np.load(labels)
right = 0
for begin in range(0, len(labels), 500):
    logits = network.call(images[begin : begin + 500].astype("float32") / 127.5 - 1)
    right += int((np.asarray(logits).argmax(-1) == labels[begin : begin + 500]).sum())
print(json.dumps(right / len(labels)))
"""
"""What a fresh process runs: it knows neither this library nor the network."""


def functions(model: nn.Module) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``fn(params, batch_stats, images)`` of a network: its logits; those in training, with stats.

    Args:
      model: the network.

    Returns:
      Both functions.
    """

    def logits(params: Any, stats: Any, images: jax.Array) -> Any:
        return model.apply({"params": params, "batch_stats": stats}, images, train=False)

    def training_logits(params: Any, stats: Any, images: jax.Array) -> Any:
        variables = {"params": params, "batch_stats": stats}
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    return logits, training_logits


def traced(model: nn.Module, shape: tuple[int, ...]) -> jaxprune.Network:
    """A network with batch norm, traced from shapes.

    Args:
      model: the network.
      shape: of an image.

    Returns:
      The network.

    Examples:
      >>> from experiments import channels, models
      >>> net = channels.traced(models.GlyphResNet(classes=62), (16, 16, 1))
      >>> [group.size for group in net.groups]
      [40, 40, 40, 16]
    """
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(functools.partial(model.init, train=False), key, images)
    return jaxprune.trace(
        functions(model)[0], variables["params"], images, also=variables.get("batch_stats", {})
    )


def choice(
    config: Any, model: nn.Module, shape: tuple[int, ...], workdir: pathlib.Path | None = None
) -> ChannelChoice | None:
    """The channels that an experiment prunes; None where it prunes weights.

    Args:
      config: the experiment; ``config.channels`` is empty, or holds the arguments of
        ``network.channels``. Its ``cost`` is empty, "parameters", "FLOPs" or "latency": that of a
        forward pass of `TIMED_BATCH` images, measured here.
      model: the network.
      shape: of an image.
      workdir: keeps what was measured as ``latency.json``, and is read first.

    Returns:
      What methods take as ``channels``.
    """
    if not config["channels"]:
        return None
    options, net = dict(config["channels"]), traced(model, shape)
    options["cost"] = options["cost"] or None
    if options["score"] == "random":
        options["score"] = jaxprune.scores.random
    if options["cost"] == "latency":
        options["cost"] = latency(net, shape, options["round_to"], workdir)
    return net.channels(**options)


def latency(
    net: jaxprune.Network,
    shape: tuple[int, ...],
    round_to: int,
    workdir: pathlib.Path | None = None,
) -> Cost:
    """The latencies of a network's layers, from the work directory or measured.

    Args:
      net: the network.
      shape: of an image.
      round_to: widths are multiples of it.
      workdir: where ``latency.json`` lies, or will.

    Returns:
      The cost in seconds.
    """
    if workdir is None:
        return _measured(net, shape, round_to)
    file = workdir / "latency.json"
    if jax.process_index() == 0 and not file.exists():
        jaxprune.save_cost(file, _measured(net, shape, round_to))
    multihost_utils.sync_global_devices("latencies are measured")
    return jaxprune.load_cost(file)


def _measured(net: jaxprune.Network, shape: tuple[int, ...], round_to: int) -> Cost:
    source = net.traced_from()
    params, stats = (
        jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), tree)
        for tree in (source.params, source.also)
    )
    images = jnp.zeros((TIMED_BATCH, *shape), jnp.float32)
    return jaxprune.measure_latency(net, params, images, also=stats, round_to=round_to)


def shrunk(model: nn.Module, state: training.State, shape: tuple[int, ...]) -> jaxprune.Shrunk:
    """The network that a finished run ships, really cut.

    Args:
      model: the network.
      state: the final state.
      shape: of an image.

    Returns:
      The cut network.

    Raises:
      ValueError: if it is not equal to the masked one on a few images.
    """
    masks = jaxprune.get_masks(state.opt_state)
    net = traced(model, shape)
    params = jaxprune.active_params(state.params, state.opt_state)
    small = jaxprune.shrink(net, params, masks, also=state.batch_stats)
    images = jax.random.normal(jax.random.key(0), (4, *shape))
    jaxprune.verify_shrink(small, images, tolerance=1e-5)
    return small


def applied(small: jaxprune.Shrunk, model: nn.Module) -> Callable[..., Any]:
    """A cut network as flax's ``model.apply``.

    Args:
      small: the cut network.
      model: the whole one.

    Returns:
      A function of ``{"params": ..., "batch_stats": ...}``, both cut, and images.
    """
    by_mode = {False: small.fn, True: small.bind(functions(model)[1])}

    def apply(variables: Any, images: jax.Array, *, train: bool, mutable: Any = ()) -> Any:
        del mutable  # the function that trains returns the new statistics
        return by_mode[train](variables["params"], variables["batch_stats"], images)

    return apply


def small_state(
    small: jaxprune.Shrunk, model: nn.Module, state: training.State, tx: Any, opt_state: Any
) -> training.State:
    """The training state of a cut network.

    Args:
      small: the cut network.
      model: the whole one.
      state: the training state of the masked one.
      tx: the optimizer that goes on.
      opt_state: its state.

    Returns:
      A state for `training.train_step`, at step 0.
    """
    return state.replace(
        apply_fn=applied(small, model),
        params=small.params,
        batch_stats=small.also,
        tx=tx,
        opt_state=opt_state,
        step=jnp.zeros((), jnp.int32),
        flops=jnp.zeros((), jnp.float32),
    )


def recalibrated(state: training.State, dataset: data.Dataset, batches: int = 60) -> training.State:
    """The state with statistics of batch norm gathered anew; weights stay.

    Args:
      state: a training state.
      dataset: images to gather them from.
      batches: how many batches of 100 are looked at.

    Returns:
      The state.
    """

    @jax.jit
    def look(stats: Any, image: jax.Array) -> Any:
        variables = {"params": state.params, "batch_stats": stats}
        images = training.normalized(image)
        return state.apply_fn(variables, images, train=True, mutable=["batch_stats"])[1]

    stats, size = state.batch_stats, min(100, len(dataset))
    for _, batch in zip(range(batches), dataset.batches(size, seed=0), strict=False):
        stats = look(stats, batch["image"])["batch_stats"]
    return state.replace(batch_stats=stats)


def seconds(functions: Mapping[str, Callable[[], Any]], times: int = 40) -> dict[str, float]:
    """Medians of what functions take, run in turn.

    Args:
      functions: by name, compiled.
      times: runs of each.

    Returns:
      Seconds by name.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(times + 3):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            taken[name].append(time.perf_counter() - began)
    return {name: float(np.median(each[3:])) for name, each in taken.items()}


def of_cut(
    model: nn.Module, state: training.State, test: data.Images
) -> tuple[dict[str, Any], jaxprune.Shrunk]:
    """What is left of a network whose channels are cut, beside the dense one.

    Args:
      model: the network.
      state: the final state of a run that pruned channels.
      test: the test images.

    Returns:
      ``accuracy`` of the cut network; ``parameters`` and ``milliseconds``, each ``[cut, dense]``,
      the latter of `TIMED_BATCH` images; ``layers``, ``{group: [kept, channels]}``, ``kept``,
      ``total`` and ``sparsity`` of all; and the cut network.
    """
    shape = test.shape
    small, (logits, _) = shrunk(model, state, shape), functions(model)
    images, whole, less = jnp.zeros((TIMED_BATCH, *shape)), jax.jit(logits), jax.jit(small.fn)
    taken = seconds(
        {
            "dense": lambda: whole(state.params, state.batch_stats, images),
            "cut": lambda: less(small.params, small.also, images),
        }
    )
    masks = jaxprune.get_masks(state.opt_state)
    layers = {name: [int(mask.sum()), int(mask.size)] for name, mask in masks.items()}
    kept, total = (sum(each[i] for each in layers.values()) for i in (0, 1))
    found = {
        "accuracy": measures.accuracy(small_state(small, model, state, state.tx, ()), test),
        "parameters": [_size(small.params), _size(state.params)],
        "milliseconds": [1e3 * taken["cut"], 1e3 * taken["dense"]],
        "layers": layers,
        "kept": kept,
        "total": total,
        "sparsity": (total - kept) / total,
    }
    return found, small


def _size(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def write(small: jaxprune.Shrunk, test: data.Images, workdir: pathlib.Path) -> None:
    """Writes a cut network, and measures it here and in a fresh process.

    Args:
      small: the cut network.
      test: the test images, of which a batch of a thousand at most is looked at.
      workdir: gets ``cut.jax_export`` and ``cut.safetensors``.

    Raises:
      RuntimeError: if it measures otherwise.
    """

    def network(images: jax.Array) -> Any:
        return small.fn(small.params, small.also, images)

    height, width, colors = test.shape
    shape = export.symbolic_shape(f"batch, {height}, {width}, {colors}")
    exported = export.export(jax.jit(network))(jax.ShapeDtypeStruct(shape, jnp.float32))
    file = workdir / "cut.jax_export"
    file.write_bytes(exported.serialize())
    tree = {"params": small.params, "batch_stats": small.also}
    jaxprune.save_sparse(workdir / "cut.safetensors", tree, plan=small.plan)
    processes = jax.process_count()
    few = next(test.whole(max(min(len(test), 1000) // processes, 1) * processes))
    few = {name: x[few["label"] >= 0] for name, x in few.items()}
    logits = jax.jit(network)(training.normalized(few["image"]))
    here = float(np.mean(np.asarray(logits).argmax(-1) == few["label"]))
    again = reloaded(file, few, workdir)
    if abs(again - here) > 2 / len(few["label"]):  # an image or two on a boundary
        raise RuntimeError(f"the loaded network must measure {here:.4f}, got {again:.4f}")
    print(f"\nLoaded in a fresh process from {file}: {again:.2%} of {len(few['label'])} images.")


def reloaded(file: pathlib.Path, test: data.Batch, workdir: pathlib.Path) -> float:
    """The accuracy of an exported network in a fresh process.

    Args:
      file: of `jax.export`.
      test: the images.
      workdir: gets them as files.

    Returns:
      The share that is classified rightly.
    """
    given: Sequence[str] = [str(workdir / f"test_{name}.npy") for name in ("images", "labels")]
    for path, array in zip(given, (test["image"], test["label"]), strict=True):
        np.save(path, array)
    command = [sys.executable, "-c", RELOAD, str(file), *given]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])
