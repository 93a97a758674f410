"""The wheel holds the library only, and imports where nothing but its dependencies is installed."""

import os
import re
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import BytesParser
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
CORE = {"jax", "optax", "chex", "numpy"}
BUILD = "import sys, hatchling.build; hatchling.build.build_wheel(sys.argv[1])"

# Imports every module and prunes, while what is listed is not to be found.
USE = """
import importlib.abc, pkgutil, sys

hidden = set(sys.argv[2].split())

class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r} (not a dependency)", name=name)

sys.meta_path.insert(0, Wall())
sys.path.insert(0, sys.argv[1])
import jax.numpy as jnp
import jaxprune
assert jaxprune.__file__.startswith(sys.argv[1]), jaxprune.__file__
for info in pkgutil.walk_packages(jaxprune.__path__, "jaxprune."):
    __import__(info.name)
print(*jaxprune.masks.topk(jnp.arange(4.0), 0.5).tolist())
for name in ("flax", "orbax", "matplotlib", "pytest"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        print("without", name)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel in JAXPRUNE_WHEEL, or one built from this checkout."""
    if given := os.environ.get("JAXPRUNE_WHEEL"):
        return Path(given)
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, check=True)
    (built,) = folder.glob("*.whl")
    return built


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return BytesParser().parsebytes(archive.read(name))


def _needed(requirement: str) -> str | None:
    """The distribution that a requirement without extras names, if it applies here."""
    parsed = Requirement(requirement)
    applies = parsed.marker is None or parsed.marker.evaluate({"extra": ""})
    return _canonical(parsed.name) if applies else None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _closure(names: set[str]) -> set[str]:
    """The distributions that some distributions need, and those that these need."""
    found, open_ = set(), set(names)
    while open_:
        name = open_.pop()
        found.add(name)
        try:
            needed = {_needed(requirement) for requirement in requires(name) or []}
        except PackageNotFoundError:  # needed on another platform only
            continue
        open_ |= {other for other in needed if other is not None} - found
    return found


def test_the_wheel_holds_the_library_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert "jaxprune" in tops
    assert all(top == "jaxprune" or top.endswith(".dist-info") for top in tops)
    assert "jaxprune/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
    library = [name for name in names if name.startswith("jaxprune/")]
    assert [name for name in library if not name.endswith((".py", "py.typed"))] == []


def test_the_wheel_needs_only_the_four(wheel):
    needed = {_needed(line) for line in _metadata(wheel).get_all("Requires-Dist", [])}
    assert needed - {None} == CORE
    assert _metadata(wheel)["Requires-Python"] == ">=3.11"


def test_the_wheel_works_without_the_extras(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    closure = _closure(CORE)
    assert closure.isdisjoint({"flax", "orbax-checkpoint", "matplotlib", "pytest"})
    hidden = {
        top
        for top, distributions in packages_distributions().items()
        if closure.isdisjoint(map(_canonical, distributions))
    }
    hidden = (hidden | {"experiments", "tests"}) - {"jaxprune"}
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", USE, str(tmp_path), " ".join(hidden)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "False False True True",
        "without flax",
        "without orbax",
        "without matplotlib",
        "without pytest",
    ]
