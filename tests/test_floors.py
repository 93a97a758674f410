"""The house keeps its floors: a room imports only from lower ones, and rooms stay small."""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxprune

LIBRARY = Path(jaxprune.__file__).parent
ROOT = Path(__file__).parents[1]

# Longest prefix wins: `jaxprune.methods.static` stands where `jaxprune.methods` does.
FLOORS = {
    "jaxprune.types": 0,
    "jaxprune.numbers": 1,
    "jaxprune.trees": 1,
    "jaxprune.selection": 1,
    "jaxprune.names": 2,
    "jaxprune.network": 2,
    "jaxprune.fences": 2,
    "jaxprune.schedules": 2,
    "jaxprune.units": 3,
    "jaxprune.knapsack": 3,
    "jaxprune.distributions": 4,
    "jaxprune.scores": 4,
    "jaxprune.masks": 4,
    "jaxprune.views": 4,
    "jaxprune.keep": 5,
    "jaxprune.spec": 5,
    "jaxprune.slots": 5,
    "jaxprune.landing": 5,
    "jaxprune.learning": 5,
    "jaxprune.starts": 6,
    "jaxprune.state": 6,
    "jaxprune.refresh": 7,
    "jaxprune.wrapper": 8,
    "jaxprune.transform": 9,
    "jaxprune.readers": 10,
    "jaxprune.shrinking": 10,
    "jaxprune.shipped": 10,
    "jaxprune.shardings": 10,
    "jaxprune.checks": 10,
    "jaxprune.stages": 10,
    "jaxprune.files": 10,
    "jaxprune.flops": 10,
    "jaxprune.latency": 10,
    "jaxprune.methods": 10,
    "jaxprune.methods.common": 5,
    "jaxprune.replicas": 11,
    "jaxprune.report": 11,
    "jaxprune": 12,
}
EVERYWHERE = {"jax", "optax", "chex", "numpy"} | sys.stdlib_module_names
INSIDE_FUNCTIONS = {"flax", "orbax", "matplotlib", "safetensors"}
LONGEST_FILE = 400
LONGEST_FUNCTION = 80


def modules(folder: Path) -> dict[str, Path]:
    """The modules of a package folder by name."""
    files = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder.parent).with_suffix("").parts
        files[".".join(parts).removesuffix(".__init__")] = file
    return files


MODULES = modules(LIBRARY)


def floor(module: str) -> int | None:
    parts = module.split(".")
    if len(parts) > 1 and ".".join(parts[:2]) not in FLOORS:
        return None
    return max(
        (
            (len(name), level)
            for name, level in FLOORS.items()
            if f"{module}.".startswith(f"{name}.")
        ),
    )[1]


def imports(tree: ast.Module, known: set[str]) -> Iterator[tuple[ast.stmt, str, bool]]:
    """Each import statement, the module it names, and whether it stands inside a function."""

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[ast.stmt, str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child, alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from ((child, name, inside) for name in _sources(child, known))
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, inside or is_function)

    return visit(tree, False)


def _sources(statement: ast.ImportFrom, known: set[str]) -> list[str]:
    """`from package import room` names the room, `from room import name` the room too."""
    module = statement.module or ""
    children = (f"{module}.{alias.name}" for alias in statement.names)
    return [child if child in known else module for child in children]


def wrong_imports(module: str, source: str, known: set[str] | None = None) -> list[str]:
    """Each import of a library module that its floor does not allow."""
    known = set(MODULES) if known is None else known
    own = floor(module)
    if own is None:
        return [f"{module}: has no floor: give it one in {Path(__file__).name}"]
    found = []
    for statement, name, inside in imports(ast.parse(source), known):
        where = f"{module}:{statement.lineno}"
        if isinstance(statement, ast.ImportFrom) and statement.level:
            found.append(f"{where}: relative import")
        elif name.split(".")[0] == "jaxprune":
            other = floor(name)
            if not _same_room(module, name) and (other is None or other >= own):
                found.append(f"{where}: floor {own} imports {name} of floor {other}")
        elif name.split(".")[0] not in EVERYWHERE | (INSIDE_FUNCTIONS if inside else set()):
            found.append(f"{where}: imports {name}{'' if inside else ' at module level'}")
    return found


def _same_room(module: str, other: str) -> bool:
    """Whether two files lie in one folder room, or one is a package that gathers the other."""
    if module in ("jaxprune", "jaxprune.methods"):
        return other.startswith(f"{module}.")
    return _room(module) == _room(other) != "jaxprune.methods"


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def in_order(sources: dict[str, str]) -> list[str]:
    """The modules, each after those it imports; raises graphlib.CycleError if there is no order."""
    graph = {
        module: {name for _, name, _ in imports(ast.parse(source), set(sources))} & set(sources)
        for module, source in sources.items()
    }
    return [*graphlib.TopologicalSorter(graph).static_order()]


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """A well-told function is not a long one."""
    if ast.get_docstring(function) is None:
        return 0
    return _end(function.body[0]) - function.body[0].lineno + 1


def leftovers(name: str, source: str) -> list[str]:
    """Files and functions that are too long, and notes to oneself."""
    found = []
    lines = source.splitlines()
    if len(lines) > LONGEST_FILE:
        found.append(f"{name}: {len(lines)} lines")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = _end(node) - node.lineno + 1 - _docstring_lines(node)
            if length > LONGEST_FUNCTION:
                found.append(f"{name}:{node.lineno}: {node.name} has {length} lines")
    note = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b")
    found += [f"{name}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if note.search(line)]
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_lower_floors(module):
    assert wrong_imports(module, MODULES[module].read_text()) == []


def test_no_import_goes_in_circles():
    order = in_order({module: file.read_text() for module, file in MODULES.items()})
    assert set(order) == set(MODULES)


@pytest.mark.parametrize(
    "folder", [LIBRARY, ROOT / "experiments", ROOT / "tests"], ids=lambda f: f.name
)
def test_files_and_functions_are_short_and_finished(folder):
    files = sorted(folder.rglob("*.py"))
    assert files
    found = [fault for file in files for fault in leftovers(file.name, file.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("jaxprune.types", "from jaxprune import trees", "imports jaxprune.trees of floor"),
        ("jaxprune.masks", "from jaxprune.distributions import erk", "imports jaxprune.distr"),
        ("jaxprune.masks", "import jaxprune.transform", "imports jaxprune.transform of floor"),
        ("jaxprune.views", "def f():\n    from jaxprune import prune", "imports jaxprune of floor"),
        ("jaxprune.methods.static", "from jaxprune.methods import set", "methods.set of floor"),
        ("jaxprune.methods.static", "from jaxprune.readers import get_masks", "jaxprune.readers"),
        ("jaxprune.masks", "from jaxprune import scores", "imports jaxprune.scores of floor"),
        ("jaxprune.readers", "from . import trees", "relative import"),
        ("jaxprune.readers", "import flax", "imports flax at module level"),
        (
            "jaxprune.readers",
            "class A:\n    import flax.linen",
            "imports flax.linen at module level",
        ),
        ("jaxprune.readers", "if 1:\n    from scipy import stats", "imports scipy at module level"),
        ("jaxprune.readers", "def f():\n    import experiments", "imports experiments"),
        ("jaxprune.cellar", "import jax", "has no floor"),
    ],
)
def test_a_planted_import_is_found(module, source, fault):
    known = {*FLOORS, "jaxprune.methods.static", "jaxprune.methods.set"}
    (found,) = wrong_imports(module, source, known)
    assert fault in found
    if "of floor" in found:
        assert f"floor {floor(module)} imports" in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jaxprune.masks", "import jax.numpy as jnp, numpy, functools\nfrom jaxprune import trees"),
        ("jaxprune.readers", "def f():\n    from flax import nnx\n    import orbax.checkpoint"),
        ("jaxprune", "from jaxprune.methods.static import static"),
        ("jaxprune.selection.search", "from jaxprune.selection.keys import keys"),
    ],
)
def test_an_allowed_import_is_not_reported(module, source):
    assert wrong_imports(module, source, {*FLOORS}) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("x = 1\n" * (LONGEST_FILE + 1), "401 lines"),
        ("def f():\n" + "    x = 1\n" * LONGEST_FUNCTION, "f has 81 lines"),
        ('def f():\n    """Told\n\n\n    well."""\n' + "    x = 1\n" * 80, "f has 81 lines"),
        ("x = 1  # " + "TO" + "DO: more", "room.py:1"),
    ],
)
def test_a_planted_leftover_is_found(source, fault):
    (found,) = leftovers("room.py", source)
    assert fault in found


def test_a_planted_circle_is_found():
    circle = {
        "jaxprune.selection": "from jaxprune.selection.search import f",
        "jaxprune.selection.search": "def g():\n    from jaxprune import selection",
    }
    with pytest.raises(graphlib.CycleError):
        in_order({"jaxprune": "", **circle})
