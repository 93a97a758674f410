"""Channels that are really cut: train, prune half of them, cut, fine-tune, export, load again.

python -m experiments.demo_channels
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags, logging
from matplotlib.figure import Figure
from tqdm import tqdm

import jaxprune
from experiments import channels, data, measures, models, training
from experiments.configs import common

BATCH = channels.TIMED_BATCH


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

    dense = training.create(model, optimizer(updates), train, seed=0)
    images = jnp.zeros((BATCH, *train.shape), jnp.float32)
    net = channels.traced(model, images.shape[1:])
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
    cut = _small_state(small, model, masked, updates // 4)
    tuned = fitted(cut, train, updates // 4, "cut, fine-tuned")

    networks = {"dense": dense, "masked": masked, "cut": cut, "cut, fine-tuned": tuned}
    found = {name: measured(state, test, workdir, name) for name, state in networks.items()}
    final = dataclasses.replace(small, params=tuned.params, also=tuned.batch_stats)
    channels.write(final, test, workdir)
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
    batches = dataset.batches(64, seed=0)
    for _ in tqdm(range(steps), desc=name, unit="step", leave=False):
        state, _ = training.train_step(state, next(batches))
    return jax.block_until_ready(state)


def _small_state(small: jaxprune.Shrunk, model: Any, masked: Any, steps: int) -> Any:
    """The training state of the cut network, with the cut memory of the optimizer."""
    tx = optimizer(steps, 0.05)
    momentum: Any = small.cut(masked.opt_state.prune_inner)
    fresh: Any = tx.init(small.params)
    state = (momentum[0], (momentum[1][0], *fresh[1][1:]))  # the learning rate begins anew
    return channels.small_state(small, model, masked, tx, state)


def measured(state: Any, test: data.Dataset, workdir: pathlib.Path, name: str) -> dict[str, float]:
    """Parameters, operations, milliseconds, size of the sparse file and accuracy of a network."""
    shape = (BATCH, *test.shape)

    def logits(params: Any, stats: Any, images: jax.Array) -> Any:
        return state.apply_fn({"params": params, "batch_stats": stats}, images, train=False)

    def one(params: Any, images: jax.Array) -> Any:
        return logits(params, state.batch_stats, images)

    image = jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32)
    operations = sum(jaxprune.flops.forward_flops(one, state.params, image).values())
    images, run = jnp.zeros(shape), jax.jit(logits)
    taken = channels.seconds({"": lambda: run(state.params, state.batch_stats, images)})[""]
    file = workdir / f"{name.replace(', ', '_')}.safetensors"
    jaxprune.save_sparse(file, {"params": state.params, "batch_stats": state.batch_stats})
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "MFLOPs an image": operations / 1e6,
        f"ms for {BATCH} images": 1e3 * taken,
        "kB of the sparse file": file.stat().st_size / 1e3,
        "accuracy": measures.accuracy(state, test),
    }


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
