"""Channels that are really cut: train, prune half of them, cut, fine-tune, export, load again.

python -m experiments.demo_channels
"""

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from jax import export
from matplotlib.figure import Figure
from tqdm import tqdm

import jaxprune
from experiments import data, models, training
from experiments.configs import common

BATCH = 100
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


def demo(workdir: pathlib.Path, steps: int | None = None) -> dict[str, dict[str, float]]:
    """Prunes and cuts half the channels of a small network on glyphs.

    Args:
      workdir: gets ``channels.json``, the exported network, sparse files and a picture.
      steps: updates of training, if not the recipe's; a quarter of them fine-tunes.

    Returns:
      ``{network: {measure: value}}`` of the dense, the masked and the cut network.

    Raises:
      RuntimeError: if the exported network measures otherwise in a fresh process.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    config: Any = common.glyphs_resnet("gradual_magnitude")
    updates: int = steps or config.steps
    train, test = (data.load(config.data, split) for split in ("train", "test"))
    model = models.GlyphResNet(classes=train.classes)

    def fn(params: Any, stats: Any, images: jax.Array) -> Any:
        return model.apply({"params": params, "batch_stats": stats}, images, train=False)

    def training_fn(params: Any, stats: Any, images: jax.Array) -> Any:
        variables = {"params": params, "batch_stats": stats}
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    dense = training.create(model, optimizer(updates), train, seed=0)
    images = jnp.zeros((BATCH, *train.images.shape[1:]), jnp.float32)
    net = jaxprune.trace(fn, dense.params, images, also=dense.batch_stats)
    print(net)
    dense = fitted(dense, train, updates, "dense")

    tx = jaxprune.gradual_magnitude(
        optimizer(updates),
        sparsity=0.5,
        ramp=(updates // 8, updates * 5 // 8),
        channels=net.channels(round_to=4),
    )
    masked = fitted(training.create(model, tx, train, seed=0), train, updates, "pruned gradually")
    jaxprune.verify(masked.params, masked.opt_state)

    masks = jaxprune.get_masks(masked.opt_state)
    small = jaxprune.shrink(net, masked.params, masks, also=masked.batch_stats)
    jaxprune.verify_shrink(small, images)
    cut = _small_state(small, training_fn, masked, updates // 4)
    tuned = fitted(cut, train, updates // 4, "cut, fine-tuned")

    networks = {"dense": dense, "masked": masked, "cut": cut, "cut, fine-tuned": tuned}
    found = {name: measured(state, test, workdir, name) for name, state in networks.items()}
    _export(small, tuned, test, found["cut, fine-tuned"]["accuracy"], workdir)
    print("\n" + table(found))
    picture(workdir / "channels.png", found)
    (workdir / "channels.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"\nPicture and numbers: {workdir / 'channels.png'}, {workdir / 'channels.json'}")
    return found


def optimizer(steps: int, peak: float = 0.3) -> optax.GradientTransformation:
    """Momentum and decay along half a cosine."""
    rate = optax.cosine_decay_schedule(peak, steps)
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9))


def fitted(state: Any, dataset: data.Dataset, steps: int, name: str) -> Any:
    """The state after so many updates; the one that is given stays."""
    state = jax.tree.map(jnp.copy, state)
    batches = data.batches(dataset, 64, seed=0)
    for _ in tqdm(range(steps), desc=name, unit="step", leave=False):
        state, _ = training.train_step(state, next(batches))
    return jax.block_until_ready(state)


def _small_state(
    small: jaxprune.Shrunk, training_fn: Callable[..., Any], masked: Any, steps: int
) -> Any:
    """The training state of the cut network, with the cut memory of the optimizer."""
    functions = {False: small.fn, True: small.bind(training_fn)}

    def apply(variables: Any, images: jax.Array, *, train: bool, mutable: Any = ()) -> Any:
        del mutable  # the function that trains returns the new statistics
        return functions[train](variables["params"], variables["batch_stats"], images)

    tx = optimizer(steps, 0.05)
    momentum: Any = small.cut(masked.opt_state.prune_inner)
    fresh: Any = tx.init(small.params)
    state = (momentum[0], (momentum[1][0], *fresh[1][1:]))  # the learning rate begins anew
    return masked.replace(
        apply_fn=apply,
        params=small.params,
        batch_stats=small.also,
        tx=tx,
        opt_state=state,
        step=jnp.zeros((), jnp.int32),
        flops=jnp.zeros((), jnp.float32),
    )


def measured(state: Any, test: data.Dataset, workdir: pathlib.Path, name: str) -> dict[str, float]:
    """Parameters, operations, milliseconds, size of the sparse file and accuracy of a network."""
    shape = (BATCH, *test.images.shape[1:])

    def logits(params: Any, stats: Any, images: jax.Array) -> Any:
        return state.apply_fn({"params": params, "batch_stats": stats}, images, train=False)

    def one(params: Any, images: jax.Array) -> Any:
        return logits(params, state.batch_stats, images)

    image = jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32)
    operations = sum(jaxprune.flops.forward_flops(one, state.params, image).values())
    images, run, taken = jnp.zeros(shape), jax.jit(logits), []
    for _ in range(40):
        began = time.perf_counter()
        jax.block_until_ready(run(state.params, state.batch_stats, images))
        taken.append(time.perf_counter() - began)
    file = workdir / f"{name.replace(', ', '_')}.safetensors"
    jaxprune.save_sparse(file, {"params": state.params, "batch_stats": state.batch_stats})
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "MFLOPs an image": operations / 1e6,
        f"ms for {BATCH} images": 1e3 * float(np.median(taken[5:])),
        "kB of the sparse file": file.stat().st_size / 1e3,
        "accuracy": training.accuracy(state, test),
    }


def _export(
    small: jaxprune.Shrunk, state: Any, test: data.Dataset, accuracy: float, workdir: pathlib.Path
) -> None:
    """Writes the network with its weights for any batch, and measures it in a fresh process."""

    def network(images: jax.Array) -> Any:
        return small.fn(state.params, state.batch_stats, images)

    height, width, colors = test.images.shape[1:]
    shape = export.symbolic_shape(f"batch, {height}, {width}, {colors}")
    exported = export.export(jax.jit(network))(jax.ShapeDtypeStruct(shape, jnp.float32))
    file = workdir / "cut.jax_export"
    file.write_bytes(exported.serialize())
    given = []
    for name, array in (("images", test.images), ("labels", test.labels)):
        given.append(str(workdir / f"test_{name}.npy"))
        np.save(given[-1], array)
    command = [sys.executable, "-c", RELOAD, str(file), *given]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    again = json.loads(run.stdout.splitlines()[-1])
    if abs(again - accuracy) > 2 / len(test.labels):  # an image or two on a boundary
        raise RuntimeError(f"the loaded network must measure {accuracy:.4f}, got {again:.4f}")
    print(f"\nLoaded in a fresh process from {file}: test accuracy {again:.2%}.")


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """The measures as a table."""
    names = [*next(iter(found.values()))]
    rows = [["network", *names], ["---"] * (len(names) + 1)]
    for network, values in found.items():
        shown = [f"{values[name]:,.4g}" if name != "accuracy" else "" for name in names[:-1]]
        shown[0] = f"{values['parameters']:,}"
        rows.append([network, *shown, f"{values['accuracy']:.1%}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def picture(path: pathlib.Path, found: Mapping[str, Mapping[str, float]]) -> None:
    """One panel of bars a measure."""
    names = [*next(iter(found.values()))]
    figure = Figure(figsize=(13, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        values = [each[name] for each in found.values()]
        axes.bar([*found], values, color=["#777777", "#9467bd", "#2ca02c", "#1f77b4"])
        axes.set_title(name, fontsize="medium")
        axes.tick_params(axis="x", rotation=35)
    figure.savefig(path, dpi=110)


def main(argv: list[str]) -> None:
    """Run the demo."""
    del argv
    logging.set_verbosity(logging.WARNING)
    demo(pathlib.Path(flags.FLAGS.workdir), flags.FLAGS.steps)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/channels", "Where results go.")
    flags.DEFINE_integer("steps", None, "Updates of training; the recipe's by default.")
    app.run(main)
