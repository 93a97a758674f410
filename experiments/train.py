"""Train a network, dense or pruned: one loop, read it top to bottom.

    python -m experiments.train --config experiments/configs/mlp_digits_magnitude_attention.py
        --config.method.sparsity=0.95 --workdir runs/example

The same command goes on where it was stopped, kill -9 included, to bit-identical results.
"""

import json
import pathlib
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from experiments import checkpoints, data, logs, models, optimizers, plots, training


def train(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains what a config describes, from the newest checkpoint of the work directory on.

    Args:
      config: the experiment, a `ConfigDict`.
      workdir: gets ``checkpoints/``, ``metrics.jsonl``, ``result.json`` and pictures.

    Returns:
      What `training.result` measures on the final params.

    Raises:
      ValueError: if checkpoints or evaluations would fall between two rows of metrics, or the work
        directory holds a run of another config.

    References:
      original.
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
    tx = optimizers.build(config)
    fresh = training.create(model, tx, images, config.seed)
    before = plots.first_mask(fresh.opt_state, config.method.name)

    with checkpoints.manager(workdir) as manager:
        state = checkpoints.restore(manager, fresh, config)
        start = int(state.step)
        log = logs.Log(workdir / "metrics.jsonl", after=start, tensorboard=config.tensorboard)
        batches = data.batches(
            images, config.batch_size, seed=config.seed, start=start, augment=config.augment
        )
        window = []
        bar = tqdm(range(start + 1, config.steps + 1), initial=start, total=config.steps)
        for step, batch in zip(bar, batches, strict=False):
            state, metrics = training.train_step(state, batch)
            window.append(metrics)
            last = step == config.steps
            if step % config.log_every == 0 or last:
                row = training.mean(window)
                row["sparsity"] = training.sparsity(state, config.method.name)
                if step % config.evaluate_every == 0 or last:
                    row["test_accuracy"] = training.accuracy(state, test)
                log.write(step, **row, **training.learned(state, config.method.name))
                bar.set_postfix({name: f"{value:.3f}" for name, value in row.items()})
                window = []
            if step % config.checkpoint_every == 0 or last:
                checkpoints.save(manager, state, config)
        log.close()

    result = training.result(state, test, config)
    (workdir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    plots.of_run(workdir, result, before, plots.first_mask(state.opt_state, config.method.name))
    return result


def main(argv: list[str]) -> None:
    """Run the experiment of the command line."""
    del argv
    logging.set_verbosity(logging.WARNING)  # orbax tells of every file
    result = train(flags.FLAGS.config, pathlib.Path(flags.FLAGS.workdir))
    kept = f"{result['kept']:,} of {result['total']:,} prunable weights kept"
    print(f"test accuracy {result['accuracy']:.2%}, {kept}; see {flags.FLAGS.workdir}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and plots go.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
