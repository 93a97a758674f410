"""One command on several processes, as a cluster starts it: killed, started again, asked to end."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest

import jaxprune
from experiments import evaluate, train

# The recipes are user code, under JAX's own rules; orbax and Flax do not keep the strict ones.
pytestmark = pytest.mark.usefixtures("standard_promotion")

ROOT = pathlib.Path(__file__).parents[1]
STEPS, DEVICES = 60, 4
VALUES = {
    "model.widths": "(16,)",
    "test_split": "test[:101]",  # no multiple of anything
    "steps": STEPS,
    "batch_size": 16,
    "log_every": 6,
    "evaluate_every": 12,
    "checkpoint_every": 4,
    "method.every": 3,
    "mesh.data": -1,
}

Watch = Callable[[pathlib.Path, Sequence[subprocess.Popen]], None]


def run(
    processes: int, workdir: pathlib.Path, data_dir: str, watch: Watch | None = None, **more: Any
) -> list[tuple[int, str]]:
    """The exit codes and what is printed by that many processes with four devices in all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    count = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}",
    }
    command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}"]
    command += [f"--config={ROOT}/experiments/configs/mlp_digits.py:gradual_magnitude"]
    values = VALUES | {"data.data_dir": data_dir} | more
    command += [f"--config.{key}={value}" for key, value in values.items()]
    with contextlib.ExitStack() as stack:
        running = []
        for rank in range(processes):
            own = [f"--distributed=localhost:{port},{processes},{rank}"] if processes > 1 else []
            options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(
                [*command, *own], cwd=ROOT, env=environment, text=True, **options
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            running.append(process)
        if watch is not None:
            watch(workdir, running)
        told = [process.communicate(timeout=300)[0] for process in running]
    return [(process.returncode, out) for process, out in zip(running, told, strict=True)]


def saved_beyond(workdir: pathlib.Path, step: int) -> None:
    """Waits until a checkpoint beyond a step is whole."""
    for _ in range(600):
        whole = [p.name for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
        if any(int(name) > step for name in whole):
            return
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint beyond step {step}")


def killed(workdir: pathlib.Path, running: Sequence[subprocess.Popen]) -> None:
    """One dies; the others, who wait for it, are ended as a cluster does it."""
    saved_beyond(workdir, 3)
    for process in reversed(running):
        process.kill()


def asked_to_end(workdir: pathlib.Path, running: Sequence[subprocess.Popen]) -> None:
    saved_beyond(workdir, 3)
    for process in running:
        process.send_signal(signal.SIGTERM)


def masks_of(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    _, _, state = evaluate.restored(workdir)  # on another mesh than it was saved on
    assert int(state.step) == STEPS
    jaxprune.verify(state.params, state.opt_state)
    masks = jaxprune.masks_by_path(state.opt_state)
    return {path: np.asarray(mask) for path, mask in masks.items()}


@pytest.fixture(scope="module")
def alone(data_dir: str, tmp_path_factory: Any) -> dict[str, np.ndarray]:
    """The masks of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    config: Any = train_config(data_dir)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        train.train(config, workdir)
        return masks_of(workdir)


def train_config(data_dir: str) -> Any:
    from experiments.configs import mlp_digits

    config: Any = mlp_digits.get_config("gradual_magnitude")
    values = VALUES | {"data.data_dir": data_dir, "model.widths": (16,), "mesh.data": 1}
    config.update_from_flattened_dict(values)
    return config


def same_masks(workdir: pathlib.Path, expected: dict[str, np.ndarray]) -> None:
    found = masks_of(workdir)
    assert found.keys() == expected.keys()
    for path, mask in expected.items():
        np.testing.assert_array_equal(found[path], mask)


def test_two_processes_one_killed_go_on_to_the_same_bits(
    alone: Any, data_dir: str, tmp_path: pathlib.Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for code, out in run(2, whole, data_dir):
        assert code == 0, out[-2000:]
    assert all(code == -signal.SIGKILL for code, _ in run(2, parts, data_dir, killed))
    results = run(2, parts, data_dir)
    for code, out in results:
        assert code == 0, out[-2000:]
        assert re.search(r"test accuracy .* weights kept", out)
    assert "images/s" in results[0][1] and "images/s" not in results[1][1]  # one process speaks
    for name in ("metrics.jsonl", "layers.jsonl"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    ends = [jax.tree.leaves(evaluate.restored(workdir)[2]) for workdir in (whole, parts)]
    for one, other in zip(*ends, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    same_masks(whole, alone)
    assert json.loads((whole / "result.json").read_text())["steps"] == STEPS


def test_four_processes_asked_to_end_save_and_go_on_as_replicas_too(
    alone: Any, data_dir: str, tmp_path: pathlib.Path
) -> None:
    """With fsdp on an Explicit mesh; what they saved goes on under `pmap`, on two processes."""
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.mode": "explicit"}
    for code, out in run(4, tmp_path, data_dir, asked_to_end, **mesh):
        assert code == 0 and "as SIGTERM asks" in out, out[-2000:]
    assert not (tmp_path / "result.json").exists()
    for code, out in run(2, tmp_path, data_dir, **{"mesh.mode": "pmap"}):
        assert code == 0, out[-2000:]
    same_masks(tmp_path, alone)
