"""What is compiled: an ordinary step copies no parameter, and a refresh needs little memory."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import tiny
from methods_table import METHODS, Row, theirs

SHAPES = {"body": {"kernel": (1000, 800), "bias": (800,)}, "head": {"kernel": (800, 400)}}
SMALLEST = 800 * 400
BYTES = 2.1
MORE = {
    "prune_and_grow": 3.1,  # of jax 0.12; 2.1 before
    "sparse_evolution": 16.0,  # random numbers of every entry, and what draws them
    "snip": 7.0,  # with a `min_density` as here: two searches share the order of scores
}


def structs() -> Any:
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def compiled(tx: Any) -> Any:
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = structs()
    state = jax.eval_shape(tx.init, params)
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    return lowered.compile(compiler_options=tiny.fused())


def computations(text: str) -> dict[str, list[str]]:
    """The instructions of each computation by its name; those of the entry under `ENTRY`, too."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        begins = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if begins:
            lines = found.setdefault(begins.group(2), [])
            if begins.group(1):
                found["ENTRY"] = lines
        elif line.startswith("  "):
            lines.append(line.strip())
    return found


def ordinary(text: str) -> list[str]:
    """The instructions of a step that changes no mask: those outside of branches, and `keep`'s."""
    found = computations(text)
    lines = [*found["ENTRY"]]
    for line in found["ENTRY"]:
        if " conditional(" in line:
            false = re.search(r"(?:false_computation=|branch_computations=\{)%?([\w.\-]+)", line)
            assert false is not None, line
            lines += found[false.group(1)]
    return lines


def copies(text: str) -> list[str]:
    """The copies of arrays as large as a parameter in a step that changes no mask."""
    found = []
    for line in ordinary(text):
        shape = re.search(r"= \w+\[([\d,]*)\]\S* copy(-start)?\(", line)
        if shape and math.prod(map(int, filter(None, shape.group(1).split(",")))) >= SMALLEST:
            found.append(line)
    return found


@pytest.mark.parametrize(("name", "row"), METHODS.items(), ids=METHODS)
def test_an_ordinary_step_copies_no_parameter_and_a_refresh_needs_little(
    name: str, row: Row
) -> None:
    program = compiled(row(theirs(optax.sgd(0.1, momentum=0.9))))
    assert copies(program.as_text()) == []
    size = sum(x.size for x in jax.tree.leaves(structs()))
    temporaries = program.memory_analysis().temp_size_in_bytes / size
    assert temporaries <= MORE.get(name, BYTES)


def test_a_copy_would_be_found() -> None:
    """As where the old array is read after the new one has been computed from it in place."""

    def step(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = jnp.sort(x, axis=0)
        return new, y + x[::-1]

    x = jax.ShapeDtypeStruct((1000, 800), jnp.float32)
    program = jax.jit(step, donate_argnums=0).lower(x, x).compile(compiler_options=tiny.fused())
    assert copies(program.as_text())
