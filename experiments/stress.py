"""Kills a short run at random moments, lets it go on, and compares the end with a run left alone.

    make stress

The moments are drawn over the whole life of a process, its start and its checkpoints included. What
must be equal, bit for bit: the final checkpoint and all logs.
"""

import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging
from tqdm import tqdm

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = {
    "model.widths": "(10,)",
    "steps": 500,
    "batch_size": 16,
    "log_every": 50,
    "evaluate_every": 100,
    "checkpoint_every": 17,  # between rows of the log
}
"""Digits in seconds: short steps and many checkpoints, so that a kill often meets one."""

LOGS = ("metrics.jsonl", "layers.jsonl", "result.json", "first_mask.npy")


def stress(kills: int, workdir: pathlib.Path, seed: int = 0, **values: Any) -> int:
    """Kills and resumes a run, and compares.

    Args:
      kills: how often.
      workdir: emptied; gets both runs.
      seed: of the moments.
      **values: what differs from `RECIPE`.

    Returns:
      How many of the kills came after the first checkpoint and before the end.

    Raises:
      RuntimeError: if the end is another, or a process fails by itself.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    command = [sys.executable, "-m", "experiments.train"]
    command += [f"--config={ROOT}/experiments/configs/mlp_digits.py:magnitude_attention"]
    command += [f"--config.{name}={value}" for name, value in (RECIPE | values).items()]
    began = time.perf_counter()
    _ended([*command, f"--workdir={workdir / 'whole'}"])
    life, rng, met = time.perf_counter() - began, random.Random(seed), 0
    killed = workdir / "killed"
    for _ in tqdm(range(kills), unit="kill"):
        process = _started([*command, f"--workdir={killed}"])
        time.sleep(rng.uniform(0, life))
        process.kill()
        code = process.wait()
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"a run must go on or be killed, got exit code {code}")
        met += _steps(killed) > 0 and code != 0
        if code == 0:  # it came to its end: the next life begins anew
            _compared(workdir / "whole", killed)
            shutil.rmtree(killed)
    _ended([*command, f"--workdir={killed}"])
    _compared(workdir / "whole", killed)
    return met


def _started(command: Sequence[str]) -> subprocess.Popen:
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, **quiet)


def _ended(command: Sequence[str]) -> None:
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"a run must end well, got {run.stderr[-2000:]}")


def _steps(workdir: pathlib.Path) -> int:
    """The newest whole checkpoint."""
    names = [path.name for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    return max(map(int, names), default=0)


def _compared(one: pathlib.Path, other: pathlib.Path) -> None:
    for name in LOGS:
        if (one / name).read_bytes() != (other / name).read_bytes():
            raise RuntimeError(f"a resumed run must write the same {name}, got another in {other}")
    if _steps(one) != _steps(other):
        raise RuntimeError(f"a resumed run must end at {_steps(one)}, got {_steps(other)}")
    states = [_saved(workdir) for workdir in (one, other)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        if np.asarray(a).tobytes() != np.asarray(b).tobytes():
            raise RuntimeError(f"a resumed run must end in the same bits, got others in {other}")


def _saved(workdir: pathlib.Path) -> Any:
    """The arrays of the newest checkpoint, in whatever containers."""
    with ocp.CheckpointManager((workdir / "checkpoints").absolute()) as manager:
        items = ocp.args.Composite(state=ocp.args.StandardRestore())
        return manager.restore(manager.latest_step(), args=items)["state"]


def main(argv: list[str]) -> None:
    """Print what came of it."""
    del argv
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        met = stress(flags.FLAGS.kills, pathlib.Path(folder))
    print(
        f"{flags.FLAGS.kills} kills, {met} of them between the first checkpoint and the end: "
        "the same bits at the end"
    )


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 100, "How often the run is killed.")
    app.run(main)
