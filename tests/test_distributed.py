"""Two processes on one machine, as `jax.distributed` runs them: they agree, bit for bit."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "distributed_run.py"
DEVICES = 8


def printed(processes: int, kind: str) -> list[list[str]]:
    """The lines of each process about its arrays."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    flags = f"{os.environ['XLA_FLAGS']} {devices}"
    with contextlib.ExitStack() as stack:
        running = []
        for rank in range(processes):
            command = [sys.executable, str(PROGRAM), str(processes), str(rank), str(port), kind]
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            running.append(process)
        results = [process.communicate(timeout=400) for process in running]
        for process, (_, error) in zip(running, results, strict=True):
            assert process.returncode == 0, error[-2000:]
    return [[line for line in out.splitlines() if " ['" in line] for out, _ in results]


def test_two_processes_agree_and_have_the_masks_of_one() -> None:
    """With the batch sharded, and with the kernels sharded; params too are equal in both."""
    (alone,) = printed(1, "Auto")
    first, second = printed(2, "Explicit")
    assert first == second
    assert len(first) == 2 * 2 * 4
    masks = [[line for line in each if "masks" in line] for each in (first, alone)]
    assert masks[0] == masks[1]
    kept = [int(line.split()[-2]) for line in masks[0]]
    assert [sum(kept[i : i + 2]) for i in range(0, len(kept), 2)] == [128] * 4
