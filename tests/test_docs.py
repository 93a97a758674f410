"""Every public name is documented with an example that runs, and so is the prose around it."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jaxprune

ROOT = Path(__file__).parents[1]
MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(jaxprune.__path__, "jaxprune.")
]
TOOLBOXES = ("flops", "masks", "schedules", "distributions", "scores", "views", "keep", "units")


def public_names() -> dict[str, Any]:
    """What a user can name: everything exported, and the functions and classes of the toolboxes."""
    found = {}
    for name in jaxprune.__all__:
        found[f"jaxprune.{name}"] = getattr(jaxprune, name)
    for toolbox in TOOLBOXES:
        module = importlib.import_module(f"jaxprune.{toolbox}")
        for name, value in vars(module).items():
            home = getattr(value, "__module__", None) or ""  # a folder's names live in its files
            if not name.startswith("_") and f"{home}.".startswith(f"{module.__name__}."):
                found[f"{module.__name__}.{name}"] = value
    return {name: value for name, value in found.items() if callable(value) and not _ours(value)}


def _ours(value: Any) -> bool:
    """Whether it is one of our own classes' objects: the class is documented, in its place."""
    return type(value).__module__.startswith("jaxprune.")


PUBLIC = public_names()


def sections(value: Any) -> dict[str, str]:
    """The parts of a docstring by title; the text before the first title has the title ""."""
    text = inspect.cleandoc(value.__doc__ or "")
    parts = re.split(r"^([A-Z][a-z]+):[ ]*$", text, flags=re.MULTILINE)
    return {"": parts[0].strip()} | dict(zip(parts[1::2], parts[2::2], strict=True))


def undescribed(names: list[str], section: str) -> list[str]:
    return [name for name in names if not re.search(rf"^\s+\**{name}\b.*:", section, re.MULTILINE)]


def faults(value: Any) -> list[str]:
    """What the documentation of a function or class lacks."""
    parts = sections(value)
    found = [] if parts[""] else ["has no docstring"]
    found += _faults_of_class(value, parts) if inspect.isclass(value) else _faults(value, parts)
    if "References" in parts and not _is_source(parts["References"]):
        found.append("has References without a source")
    return found


def _faults(function: Callable[..., Any], parts: dict[str, str]) -> list[str]:
    signature = inspect.signature(function)
    found = [f"Args lacks {name}" for name in undescribed([*signature.parameters], _args(parts))]
    if "Returns" not in parts and signature.return_annotation is not None:
        found.append("has no Returns")
    if "Raises" not in parts and _raises(function):
        found.append("has no Raises")
    if ">>>" not in parts.get("Examples", ""):
        found.append("has no Examples")
    return found


def _faults_of_class(cls: type, parts: dict[str, str]) -> list[str]:
    # A record is shown where it is given or taken; what is called needs an example of its own.
    if callable(getattr(cls, "__call__", None)) and "__call__" in vars(cls):  # noqa: B004
        found = [] if ">>>" in parts.get("Examples", "") else ["has no Examples"]
    else:
        found = []
    names = [*getattr(cls, "_fields", ())]
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls) if not field.name.startswith("_")]
    found += [f"Attributes lacks {name}" for name in undescribed(names, _args(parts))]
    for name, member in vars(cls).items():
        function = member.fget if isinstance(member, property) else member
        if inspect.isfunction(function) and not name.startswith("_") and not function.__doc__:
            found.append(f"has no docstring on {name}")
    return found


def _args(parts: dict[str, str]) -> str:
    return parts.get("Args", "") + parts.get("Attributes", "")


def _raises(function: Callable[..., Any]) -> bool:
    """Whether the body itself raises; what functions further down raise is theirs to tell."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    return any(isinstance(node, ast.Raise) for node in ast.walk(ast.parse(source)))


def _is_source(references: str) -> bool:
    """Whether it names a work, by its year; what is nobody else's needs no References."""
    return bool(re.search(r"\b(19|20)\d\d\b", references)) and "original" not in references.lower()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented(name):
    assert faults(PUBLIC[name]) == []


@pytest.mark.parametrize("module", [jaxprune, *MODULES], ids=lambda module: module.__name__)
def test_a_module_says_what_it_is_for(module):
    assert (module.__doc__ or "").strip()


def test_what_is_exported_is_there_once():
    assert len(set(jaxprune.__all__)) == len(jaxprune.__all__)
    assert [name for name in jaxprune.__all__ if not hasattr(jaxprune, name)] == []


def _documented(x: int) -> int:
    """Doubles.

    Args:
      x: a number.

    Returns:
      Twice the number.

    Raises:
      ValueError: if it is negative.

    Examples:
      >>> 1 + 1
      2

    References:
      Hardy and Wright, An Introduction to the Theory of Numbers, 1938.
    """
    if x < 0:
        raise ValueError(x)
    return 2 * x


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ("Doubles.", "has no docstring"),
        ("  x: a number.", "Args lacks x"),
        ("Returns:", "has no Returns"),
        ("Raises:", "has no Raises"),
        ("  >>> 1 + 1", "has no Examples"),
        (", 1938", "has References without a source"),
    ],
)
def test_a_missing_part_is_found(part, fault):
    assert faults(_documented) == []
    text = inspect.cleandoc(_documented.__doc__ or "")
    assert part in text
    assert fault in faults(told(text.replace(part, "")))


def told(text: str) -> Callable[..., Any]:
    """The function with another docstring."""
    function = types.FunctionType(_documented.__code__, globals())
    function.__annotations__ = _documented.__annotations__
    function.__doc__ = text
    return function


def test_references_stand_only_where_there_is_one():
    text, references = inspect.cleandoc(_documented.__doc__ or "").split("References:")
    assert faults(told(text)) == []  # and where there is none, nothing stands for it
    for none in ("original.", f"original; {references.strip()}", ""):
        assert faults(told(f"{text}References:\n  {none}")) == ["has References without a source"]


def doctests() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [finder.find(module, module.__name__) for module in [jaxprune, *MODULES]]
    return [test for tests in found for test in tests if test.examples]


@pytest.mark.parametrize("example", doctests(), ids=lambda example: example.name)
def test_an_example_runs(example, request):
    names = request.config.getini("doctest_optionflags")
    runner = doctest.DocTestRunner(
        optionflags=sum(doctest.OPTIONFLAGS_BY_NAME[name] for name in names)
    )
    output: list[str] = []
    failed, attempted = runner.run(example, out=output.append)
    assert attempted
    assert not failed, "".join(output)


def python_blocks(text: str) -> list[str]:
    """The fenced Python of a page, each block moved down to its own line numbers."""
    return [
        "\n" * text[: match.start(1)].count("\n") + match[1]
        for match in re.finditer(r"^```python[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


PAGES = [
    *("README.md", "CONTRIBUTING.md"),
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs" / "trainers").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """All blocks of a page, one after another in one namespace, as a reader would paste them."""
    blocks = python_blocks((ROOT / page).read_text())
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, str(ROOT / page), "exec"), namespace)


def test_a_block_that_fails_is_found_with_its_line():
    text = "# A page\n\n```python\nx = 1\n```\n\nand\n\n```python\nassert x == 2\n```\n"
    first, second = python_blocks(text)
    namespace: dict[str, Any] = {}
    exec(compile(first, "page", "exec"), namespace)
    with pytest.raises(AssertionError) as caught:
        exec(compile(second, "page", "exec"), namespace)
    assert caught.traceback[-1].lineno == 9  # counted from 0
