"""Strict promotion for our code, and eight devices for the tests that need several.

How many devices there are decides how masks are selected, and a process cannot change it. So tests
marked `several_devices` run in one child process per file, and their reports come back from there;
all others see one CPU device.

Optax's own optimizers (Adam's bias correction, schedules, `MultiSteps`) mix int32 counters with
floats, which strict promotion refuses. So they run under standard promotion, and everything else,
what they wrap included, under the strict one.
"""

import functools
import gc
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A quarter of the time less; tests that are about optimized programs say so (`tiny.optimized`).
# The second flag by the version: one that XLA does not know ends the process.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    + "--xla_cpu_use_fusion_emitters=false "
    * importlib.metadata.version("jaxlib").startswith("0.10.")
    + os.environ.get("XLA_FLAGS", "")
)

import hypothesis
import jax
import optax
import pytest

DEVICES = int(os.environ.get("JAXPRUNE_TEST_DEVICES", "1"))
REPORTS = os.environ.get("JAXPRUNE_TEST_REPORTS")
CHILD_SECONDS = 1500

# A tenth of the time less: traces make objects by the million, few of them garbage, and jax, too,
# has something to do at each collection.
gc.set_threshold(50_000, 10, 10)

jax.config.update("jax_num_cpu_devices", DEVICES)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


class _Promoting:
    """A function that runs under its own mode of dtype promotion."""

    def __init__(self, function: Callable[..., Any]):
        functools.update_wrapper(self, function)
        self.function = function
        module = getattr(function, "__module__", None) or ""
        self.mode = "standard" if module.startswith("optax.") else "strict"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion(self.mode):
            return self.function(*args, **kwargs)


_new = optax.GradientTransformation.__new__


def _new_promoting(cls: type, init: Callable[..., Any], update: Callable[..., Any]) -> Any:
    return _new(cls, init, _Promoting(update))


optax.GradientTransformation.__new__ = _new_promoting
optax.MultiSteps.update = jax.numpy_dtype_promotion("standard")(optax.MultiSteps.update)

hypothesis.settings.register_profile(
    "jaxprune",
    deadline=None,  # the first example of each shape compiles
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ,
    print_blob=True,
)
hypothesis.settings.load_profile("jaxprune")


def _runs_elsewhere(item: pytest.Item) -> bool:
    return DEVICES == 1 and item.get_closest_marker("several_devices") is not None


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker gets all tests of a file that share a child."""
    for item in items:
        if _runs_elsewhere(item):
            item.add_marker(pytest.mark.xdist_group(f"several_devices-{item.path.stem}"))


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Reports what the child found, in place of running the test here."""
    if not _runs_elsewhere(item):
        return None
    found = item.session.stash.setdefault(CHILDREN, {})
    if item.path not in found:
        found[item.path] = _run_child(item)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in found[item.path](item):
        item.ihook.pytest_runtest_logreport(report=report)
    # The test before this one left standing what it thought this one shares.
    item.session._setupstate.teardown_exact(nextitem)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


CHILDREN = pytest.StashKey[dict]()


def _name(item: pytest.Item) -> str:
    """The node id without the group that pytest-xdist appends to it."""
    group = item.get_closest_marker("xdist_group")
    assert group is not None
    return item.nodeid.removesuffix(f"@{group.args[0]}")


def _run_child(first: pytest.Item) -> "_Child":
    names = [
        _name(item)
        for item in first.session.items
        if item.path == first.path and _runs_elsewhere(item)
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    with tempfile.TemporaryDirectory() as folder:
        reports = Path(folder, "reports.jsonl")
        reports.touch()
        environment |= {"JAXPRUNE_TEST_DEVICES": "8", "JAXPRUNE_TEST_REPORTS": str(reports)}
        command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *names]
        try:
            done = subprocess.run(
                command,
                cwd=first.config.rootpath,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=CHILD_SECONDS,
            )
            output = done.stdout
        except subprocess.TimeoutExpired as expired:
            output = f"no end after {CHILD_SECONDS} seconds\n{expired.output!r}"
        return _Child(reports.read_text().splitlines(), output)


class _Child:
    """The reports of one child process by node id, and all that it printed."""

    def __init__(self, lines: list[str], output: str):
        self.output = output
        self.reports = defaultdict(list)
        for line in lines:
            data = json.loads(line)
            self.reports[data["nodeid"]].append(data)

    def __call__(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        found = self.reports[_name(item)]
        for data in found:
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            report.nodeid = item.nodeid
            yield report
        if not any(data["when"] == "teardown" for data in found):
            text = (
                f"the process with eight devices did not finish this test:\n{self.output[-8000:]}"
            )
            yield pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A child writes each report down for its parent."""
    report = yield
    if REPORTS is not None:
        data = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
        with Path(REPORTS).open("a") as file:
            file.write(json.dumps(data) + "\n")
    return report


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data"))
