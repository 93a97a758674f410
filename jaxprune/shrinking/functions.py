"""A function of full-sized arrays on cut ones: traced at full size, run on what is kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from jaxprune.network.cuts import Cut
from jaxprune.network.program import (
    Program,
    all_arrays,
    data_of,
    program_of,
    shape_of,
    walked,
    when_removed,
)
from jaxprune.network.small import Small, kept_of
from jaxprune.network.values import Value
from jaxprune.network.walk import Walk
from jaxprune.types import wrong


class CutFunction:
    """``fn`` on cut arrays, for inputs of any shape.

    It is traced at full size once for each shape of its inputs, and its program runs on what is
    kept: under `jax.jit`, with gradients, and exported with a symbolic batch.
    """

    def __init__(self, fn: Callable[..., Any], by: Cut, also: bool) -> None:
        """A function, the cut of its arrays, and whether it takes what is no param."""
        self.fn, self.by, self.also = fn, by, also
        self._known: dict[Any, tuple[Program, Small]] = {}

    def __call__(self, params: Any, *args: Any) -> Any:
        """What ``fn`` returns; what it returns along axes that are cut is cut."""
        return self.run(params, args, None)

    def run(self, params: Any, args: Sequence[Any], watch: Any) -> Any:
        """The outputs, with somebody who looks at each equation."""
        also, rest = (args[0], args[1:]) if self.also else (None, args)
        given = all_arrays(params, also)
        program, small = self._program(params, also, rest, given)
        runner = Small(small.labels, small.kept, watch, self.by.inexact)
        outputs = runner.through(program.traced, [*given.values(), *data_of(rest)])
        return program.outputs(outputs)

    def _program(
        self, params: Any, also: Any, rest: Any, given: Mapping[str, Any]
    ) -> tuple[Program, Small]:
        """The program for inputs of these shapes; made once for each."""
        leaves, structure = jax.tree.flatten((params, also, rest))
        key = (
            structure,
            tuple(jax.typeof(x) if hasattr(x, "dtype") else (type(x), x) for x in leaves),
        )
        try:
            hash(key)
        except TypeError:  # something that is no array and has no hash
            return self._traced(params, also, rest, given)
        if key not in self._known:
            self._known[key] = self._traced(params, also, rest, given)
        return self._known[key]

    def _traced(
        self, params: Any, also: Any, rest: Any, given: Mapping[str, Any]
    ) -> tuple[Program, Small]:
        keeps = {path: self.by.keeps(path, tuple(x.shape)) for path, x in given.items()}
        self._check(given, keeps)
        shapes = {p: shape_of(x, tuple(map(len, keeps[p]))) for p, x in given.items()}
        program = program_of(self.fn, params, also, rest, shapes)
        names: dict[str, int] = {}
        plain = jax.tree.map(lambda x: _concrete(x, names), rest)
        known = program if not names else program_of(self.fn, params, also, plain, shapes)
        if [*_names(program.traced)] != [*_names(known.traced)]:
            expected = "be the same program at every size that is symbolic"
            hint = "`x[:, ::2]` is a look-up there, `lax.slice_in_dim` is a slice at any size"
            raise ValueError(wrong("fn", expected, f"another one at {names}", hint))
        walk, axes, _ = walked(known, when_removed)
        leaves = [(Value(tuple(axes[path])), keeps[path]) for path in given]
        small = Small(walk.labels, kept_of(walk, leaves))
        for path, (value, wanted) in zip(given, leaves, strict=True):
            for axis, (ours, keep) in enumerate(zip(small.keeps(value), wanted, strict=True)):
                if (ours != keep).any():
                    raise ValueError(_refused(walk, path, axis, value.axes[axis].ids))
        self._check_sums(walk, small)
        return program, small

    def _check(self, given: Mapping[str, Any], keeps: Mapping[str, Any]) -> None:
        """Raises unless the arrays are the cut ones, and all that are cut are there."""
        for path in self.by.paths:
            if path not in given:
                raise ValueError(wrong("params", f"have the leaf '{path}', which is cut", [*given]))
            shape = tuple(int(keep.sum()) for keep in keeps[path])
            if shape != given[path].shape:
                expected = f"have the shape {shape} at '{path}', as cut"
                raise ValueError(wrong("params", expected, tuple(given[path].shape)))

    def _check_sums(self, walk: Walk, small: Small) -> None:
        """Raises where a sum misses what is not 0, unless of what is summed nothing is left."""
        if self.by.inexact:
            return
        at: dict[Any, list[Any]] = {}
        for site, each in walk.notes.inexact.items():
            at.setdefault(site[:-1], []).append(each.ids)
        for site, each in walk.notes.inexact.items():
            if small.kept[each.ids].all():
                continue
            here = np.concatenate(at[site[:-1]])
            others = [
                keep
                for value in small.labels[site[:-1]][0]
                for axis, keep in zip(value.axes, small.keeps(value), strict=True)
                if not np.isin(here, axis.ids).any()
            ]
            if all(keep.any() for keep in others):
                came = f"{each.what} at {each.line}"
                hint = "keep these channels, or give `inexact='allow'` and fine-tune"
                expected = "sum only zeros over channels that are removed"
                raise ValueError(wrong("fn", expected, came, hint))


def _refused(walk: Walk, path: str, axis: int, ids: np.ndarray) -> str:
    (why,) = walk.ids.closed().reasons([ids])
    came = "; ".join(why) or "channels that live and die with others there"
    return wrong("fn", f"let '{path}' be cut along axis {axis}", came)


def _concrete(x: Any, known: dict[str, int]) -> Any:
    """A shape with numbers in place of symbolic sizes, one number a name; others as they are."""
    shape = getattr(x, "shape", ())
    if not hasattr(x, "dtype") or all(isinstance(n, int) for n in shape):
        return x
    sizes = [
        n if isinstance(n, int) else known.setdefault(str(n), 12 * len(known) + 12) for n in shape
    ]
    return jax.ShapeDtypeStruct(tuple(sizes), x.dtype)


def _names(program: Any) -> Iterator[str]:
    """The primitives of a program and of those within."""
    for equation in getattr(program, "jaxpr", program).eqns:
        yield equation.primitive.name
        for inner in core.jaxprs_in_params(equation.params):
            yield from _names(inner)
