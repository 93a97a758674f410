"""Train a network, dense or pruned: one loop, read it top to bottom.

    python -m experiments.train --config experiments/configs/mlp_digits.py:magnitude_attention
        --config.method.sparsity=0.95 --workdir runs/example

The same command goes on where it was stopped, kill -9 included, to bit-identical results. On many
devices, ``--config.mesh.data=-1`` and the like say where arrays lie; on many hosts, every one runs
the command with ``--distributed`` and a work directory that all of them see.
"""

import contextlib
import json
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging
from ml_collections import config_flags

import jaxprune
from experiments import (
    channels,
    checkpoints,
    cut_steps,
    data,
    layouts,
    logs,
    measures,
    models,
    optimizers,
    plots,
    preemption,
    states,
    training,
)


class Run(NamedTuple):
    """What stands while a network trains.

    Attributes:
      config: the experiment.
      workdir: holds the checkpoints.
      logs: gets everything else: the same, but on other processes than the first, which write for
        nobody.
      layout: where arrays lie.
      model: the network.
      step: an update.
      train: the images.
      test: those that are tested on.
    """

    config: Any
    workdir: pathlib.Path
    logs: pathlib.Path
    layout: layouts.Layout
    model: Any
    step: Any
    train: data.Images
    test: data.Images


def train(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains what a config describes, from the newest checkpoint of the work directory on.

    Args:
      config: the experiment, a `ConfigDict`.
      workdir: gets ``checkpoints/``, ``metrics.jsonl``, ``layers.jsonl`` with the density of each
        layer, ``result.json`` and pictures. All processes name the same one.

    Returns:
      What `measures.result` measures on the final params.

    Raises:
      ValueError: if evaluations would fall between two rows of metrics, a batch does not fit the
        devices, the work directory holds a run of another config, or replicas have other masks than
        each other.
      SystemExit: after SIGTERM, once the state is saved.
    """
    if config.evaluate_every % config.log_every:
        expected = f"be a multiple of log_every, {config.log_every}"
        raise ValueError(f"`evaluate_every` must {expected}, got {config.evaluate_every}")
    layout = layouts.of(config.mesh)
    if config.batch_size % (devices := layout.devices * jax.process_count()):
        expected = f"be a multiple of the {devices} devices along the batch"
        raise ValueError(f"`batch_size` must {expected}, got {config.batch_size}")
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        own = workdir
        if jax.process_index() > 0:
            own = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        images, test = (
            data.opened(config.data, split) for split in (config.train_split, config.test_split)
        )
        model = models.build(config.model, images.classes)
        tx = optimizers.build(config, channels.choice(config, model, images.shape, workdir))
        state = training.create(model, tx, images, config.seed, training.recipe_of(config))
        step = cut_steps.step_of(config, model, images.shape, layout)
        run = Run(config, workdir, own, layout, model, step, images, test)
        with layout.within():
            there, accuracies = trained(run, state)
            state = layouts.gathered(layout.one(there)).replace(apply_fn=state.apply_fn)
        return finished(run, state, accuracies)


def trained(run: Run, state: training.State) -> tuple[training.State, dict[str, float]]:
    """The state after all updates, and what it comes to on the test images.

    Args:
      run: what stands.
      state: before the first one.

    Returns:
      The state, and its accuracies (`measures.accuracies`).
    """
    config, layout = run.config, run.layout
    accuracies: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(checkpoints.manager(run.workdir))
        preempted = stack.enter_context(preemption.Preemption())
        state = state.replace(apply_fn=layout.seen(state.apply_fn))
        state, window = checkpoints.restore(manager, layout.one(layout.placed(state)), config)
        start, state = int(state.step), layout.placed(state)
        log = logs.Log(run.logs / "metrics.jsonl", after=start, tensorboard=config.tensorboard)
        layers = logs.Log(run.logs / "layers.jsonl", after=start)
        progress, pace = logs.Progress(config.steps, "step", start), logs.Pace(config.batch_size)
        for file in (log, layers, progress):
            stack.callback(file.close)
        batches = run.train.batches(
            config.batch_size, seed=config.seed, start=start, augment=config.augment
        )
        for step in range(start + 1, config.steps + 1):
            state, metrics = run.step(state, layout.batch(pace.next(batches)))
            progress.advance()
            window.append(metrics)
            last = step == config.steps
            if step == 1:  # before there is a checkpoint
                plots.keep_first_mask(run.logs, layout.one(state.opt_state))
            if step % config.log_every == 0 or last:
                opt_state, at_pace = layout.one(state.opt_state), pace.tell(config.steps - step)
                row = measures.mean(window) | {"sparsity": states.sparsity(opt_state)}
                if last:
                    accuracies = measures.accuracies(state, run.test, layout)
                    row["test_accuracy"] = accuracies["accuracy"]
                elif step % config.evaluate_every == 0:
                    row["test_accuracy"] = measures.accuracy(state, run.test, layout)
                _check_replicas(layout, state.opt_state)
                log.write(step, **row, **states.learned(opt_state))
                layers.write(step, **states.densities(opt_state))
                told = [f"{name} {value:.3f}" for name, value in row.items()]
                progress.tell(", ".join([*told, at_pace]))
                window = []
            asked = preempted.at(step) and not last
            if step % config.checkpoint_every == 0 or last or asked:
                window = measures.fetched(window)
                checkpoints.save(manager, layout.one(state), config, window)
            if step % config.log_every == 0:
                pace.begin()
            if asked:
                break
    if (done := int(layout.one(state.step))) < config.steps:
        print(f"Saved after step {done} and ended, as SIGTERM asks; the same command goes on.")
        raise SystemExit(0)
    # Of a run that had only ended, and not yet been measured, nothing is left to train.
    return state, accuracies or measures.accuracies(state, run.test, layout)


def _check_replicas(layout: layouts.Layout, opt_state: Any) -> None:
    """Of replicas that each hold a state; a sharded one is one."""
    if layout.axis and states.is_pruned(opt_state):
        jaxprune.check_replicas(layout.compiled(jaxprune.mask_digest)(opt_state))


def finished(run: Run, state: training.State, accuracies: dict[str, float]) -> dict[str, Any]:
    """What a run has come to, written and drawn.

    Args:
      run: what stands.
      state: after all updates, whole on one device of each process.
      accuracies: on the test images.

    Returns:
      What is written.
    """
    result, small = measures.result(state, run.config, accuracies), None
    if run.config.channels and states.is_pruned(state.opt_state):
        of_cut, small = channels.of_cut(run.model, state, run.test)
        result |= of_cut
        if isinstance(run.step, cut_steps.CutSteps):
            result["training_time"] = run.step.told()
    if jax.process_index() == 0:
        (run.logs / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        if small is not None:
            channels.write(small, run.test, run.logs)
        plots.of_run(run.logs, run.config, result, state.opt_state)
    return result


def joined(distributed: str) -> None:
    """Joins the other processes of a run.

    Args:
      distributed: empty, "auto", or "host:port,number of processes,number of this one".

    Raises:
      ValueError: if it is none of these.
    """
    if distributed == "auto":
        jax.distributed.initialize()
    elif distributed:
        try:
            address, processes, this = distributed.split(",")
            numbers = int(processes), int(this)
        except ValueError:
            expected = "be auto, or host:port,number of processes,number of this one"
            raise ValueError(f"`--distributed` must {expected}, got {distributed!r}") from None
        jax.distributed.initialize(address, *numbers)


def main(argv: list[str]) -> None:
    """Run the experiment of the command line."""
    del argv
    logging.set_verbosity(logging.WARNING)  # orbax tells of every file
    if "://" in flags.FLAGS.workdir:
        expected = "be a folder of this machine's, that all hosts see"
        raise ValueError(f"`--workdir` must {expected}, got {flags.FLAGS.workdir}: mount it")
    joined(flags.FLAGS.distributed)
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
    flags.DEFINE_string(
        "distributed",
        "",
        "Many processes: auto where a cluster says who is who, else address,processes,this one.",
    )
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
