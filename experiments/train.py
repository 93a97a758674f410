"""Train a network, dense or pruned: one loop, read it top to bottom.

    python -m experiments.train --config experiments/configs/mlp_digits.py:magnitude_attention
        --config.method.sparsity=0.95 --workdir runs/example

The same command goes on where it was stopped, kill -9 included, to bit-identical results.
"""

import json
import pathlib
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import (
    channels,
    checkpoints,
    cut_steps,
    data,
    logs,
    models,
    optimizers,
    plots,
    states,
    training,
)


def train(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains what a config describes, from the newest checkpoint of the work directory on.

    Args:
      config: the experiment, a `ConfigDict`.
      workdir: gets ``checkpoints/``, ``metrics.jsonl``, ``layers.jsonl`` with the density of each
        layer, ``result.json`` and pictures.

    Returns:
      What `training.result` measures on the final params.

    Raises:
      ValueError: if checkpoints or evaluations would fall between two rows of metrics, or the work
        directory holds a run of another config.
    """
    for interval in ("checkpoint_every", "evaluate_every"):  # else a resumed run logs other windows
        if config[interval] % config.log_every:
            expected = f"be a multiple of log_every, {config.log_every}"
            raise ValueError(f"`{interval}` must {expected}, got {config[interval]}")
    workdir.mkdir(parents=True, exist_ok=True)
    images, test = (
        data.load(config.data, split) for split in (config.train_split, config.test_split)
    )
    model = models.build(config.model, images.classes)
    tx = optimizers.build(config, channels.choice(config, model, images.images.shape[1:], workdir))
    fresh = training.create(model, tx, images, config.seed)
    train_step = cut_steps.step_of(config, model, images.images.shape[1:])

    with checkpoints.manager(workdir) as manager:
        state = checkpoints.restore(manager, fresh, config)
        start = int(state.step)
        log = logs.Log(workdir / "metrics.jsonl", after=start, tensorboard=config.tensorboard)
        layers = logs.Log(workdir / "layers.jsonl", after=start)
        progress = logs.Progress(config.steps, "step", done=start)
        batches = data.batches(
            images, config.batch_size, seed=config.seed, start=start, augment=config.augment
        )
        window = []
        for step, batch in zip(range(start + 1, config.steps + 1), batches, strict=False):
            state, metrics = train_step(state, batch)
            progress.advance()
            window.append(metrics)
            last = step == config.steps
            if step == 1 and states.is_pruned(state.opt_state):  # before there is a checkpoint
                np.save(workdir / "first_mask.npy", plots.first_layer(state.opt_state)[1])
            if step % config.log_every == 0 or last:
                row = training.mean(window) | {"sparsity": states.sparsity(state.opt_state)}
                if step % config.evaluate_every == 0 or last:
                    row["test_accuracy"] = training.accuracy(state, test)
                log.write(step, **row, **states.learned(state.opt_state))
                layers.write(step, **states.densities(state.opt_state))
                progress.tell(", ".join(f"{name} {value:.3f}" for name, value in row.items()))
                window = []
            if step % config.checkpoint_every == 0 or last:
                checkpoints.save(manager, state, config)
        for file in (log, layers, progress):
            file.close()

    result = training.result(state, test, config)
    if config.channels and states.is_pruned(state.opt_state):
        of_cut, small = channels.of_cut(model, state, test)
        result |= of_cut
        if isinstance(train_step, cut_steps.CutSteps):
            result["training_time"] = train_step.told()
        channels.write(small, test, result["accuracy"], workdir)
    (workdir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    plots.of_run(workdir, config, result, state.opt_state)
    return result


def main(argv: list[str]) -> None:
    """Run the experiment of the command line."""
    del argv
    logging.set_verbosity(logging.WARNING)  # orbax tells of every file
    result = train(flags.FLAGS.config, pathlib.Path(flags.FLAGS.workdir))
    what = "channels" if "parameters" in result else "prunable weights"
    kept = f"{result['kept']:,} of {result['total']:,} {what} kept"
    if "parameters" in result:
        (less, whole), (taken, dense) = result["parameters"], result["milliseconds"]
        kept += f", {less:,} of {whole:,} parameters, {taken:.1f} instead of {dense:.1f} ms"
    if result.get("training_time", {}).get("share"):
        spent, flops = result["training_time"], result["training_flops"]
        print(
            f"training: {spent['share']:.3f} of the time of as many steps of the whole network, "
            f"{flops:.3f} of its FLOPs; {spent['seconds']:.0f} s for {spent['steps']} steps, and "
            f"{spent['compiling']:.0f} s to compile {spent['programs']} networks"
        )
    print(f"test accuracy {result['accuracy']:.2%}, {kept}; see {flags.FLAGS.workdir}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and plots go.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
