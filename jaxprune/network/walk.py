"""One walk through a traced program; each family of primitives has its rules in a file of its own.

A rule says, of one equation, what is known of its outputs, and ties, pins and notes what follows
from it. It keeps ``small(values) == masked(values)[kept]``: whatever the kept indices of the inputs
hold, those of the outputs hold in the network that is cut. Of a primitive without a rule all axes
are pinned, which keeps that always.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

from jaxprune.network.ids import FIXED, Ids
from jaxprune.network.values import NUMBER, ZERO, Axis, Site, Value, fixed_axis, fixed_value


class Product(NamedTuple):
    """A leaf contracted with something: a layer.

    Attributes:
      path: of the leaf.
      contracted: its axes that are summed, in the order of memory, the fastest last.
      outputs: its axes that count outputs.
      batch: its axes along which products are done side by side.
      flops: of all times that it runs, two a multiplication; 0 where another branch costs more.
      line: the user's line.
      others: the leaves of which the other operand is made alone; none if it holds data.
      looked_up: whether the other operand is one-hot: a table is read by it.
    """

    path: str
    contracted: tuple[int, ...]
    outputs: tuple[int, ...]
    batch: tuple[int, ...]
    flops: float
    line: str
    others: tuple[str, ...]
    looked_up: bool


class Inexact(NamedTuple):
    """A sum over indices that are not 0 in the masked network, though they are removed."""

    ids: np.ndarray
    what: str
    line: str


class Equation(NamedTuple):
    """An equation where it stands.

    Attributes:
      of: the equation.
      site: where it stands.
      times: how often it runs.
      outside: the user's line of the call that it stands in.
    """

    of: Any
    site: Site
    times: float
    outside: str

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.of.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """The primitive's parameters."""
        return self.of.params

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its first output."""
        return tuple(self.of.outvars[0].aval.shape)

    @property
    def line(self) -> str:
        """The user's line: of the innermost frame that is no library's."""
        for file, line in _frames(self.of):
            if not file.startswith(_LIBRARY) and not any(part in file for part in _LIBRARIES):
                return f"{file.rpartition('/')[2]}:{line}"
        return self.outside

    def why(self) -> str:
        """Its name and the user's line, as a reason."""
        return f"{self.name} at {self.line}"


Rule = Callable[["Walk", Equation, list[Value]], list[Value]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for primitives by name."""

    def register(found: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, found))
        return found

    return register


class Notes(NamedTuple):
    """What a walk has seen, by where it stands.

    Attributes:
      products: what is contracted, by equation, operand and path.
      ends: what the output of each layer has met where it goes on as no function of it.
      uses: how each leaf is used.
      inexact: sums that are not exact.
      unknown: primitives without a rule that met an axis which could be cut.
      added: ids of the axes along which outputs of several layers are added, as to a skip.
    """

    products: dict[Site, Product]
    ends: dict[Site, set[tuple[tuple[str, str], ...]]]
    uses: dict[str, set[str]]
    inexact: dict[Site, Inexact]
    unknown: dict[Site, str]
    added: dict[Site, np.ndarray]

    def copied(self) -> "Notes":
        """A copy, to which a loop returns after a round that was not the last."""
        return Notes(
            dict(self.products),
            {site: set(met) for site, met in self.ends.items()},
            {path: set(uses) for path, uses in self.uses.items()},
            dict(self.inexact),
            dict(self.unknown),
            dict(self.added),
        )


class Walk:
    """A walk under way."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.ids = Ids()
        self.sizes: dict[str, int] = {}
        """The sizes of leaves."""
        self.notes = Notes({}, {}, {}, {}, {}, {})
        self.labels: dict[Site, tuple[list[Value], list[Value]]] = {}
        """What goes into each equation and what comes out of it, in the last round of a loop."""
        self.equations: dict[Site, Equation] = {}

    # --------------------------------------------------------------------------- for the rules

    def free_axis(self, size: int) -> Axis:
        """An axis of numbers that lives with whatever it meets; one entry is nothing to cut."""
        return Axis(self.ids.fresh(size), np.full(size, NUMBER)) if size > 1 else fixed_axis(size)

    def tie(self, a: Axis, b: Axis, equation: Equation) -> None:
        """The two axes are one, index by index."""
        self.ids.tie(a.ids, b.ids, equation.why)

    def pin(self, axis: Axis, equation: Equation) -> Axis:
        """Nothing of an axis is cut; gives the axis."""
        self.ids.pin(axis.ids, equation.why)
        return axis

    def used(self, value: Value, how: str) -> None:
        """Notes how the leaves of a value are used, if it is made of nothing else."""
        for path in value.made or ():
            self.notes.uses.setdefault(path, set()).add(how)

    def ended(self, *values: Value) -> None:
        """Values go on as no function of the layer's output that they were, entry by entry."""
        for value in values:
            if value.origin is not None:
                met = self.notes.ends.setdefault(value.origin.product, set())
                met.add(value.origin.met)

    def summed(self, axis: Axis, masked: np.ndarray, equation: Equation, what: str) -> None:
        """Notes a sum along an axis of what is not 0 where it is removed."""
        wrong = axis.ids[(masked != ZERO) & (axis.ids != FIXED)]
        if wrong.size:
            self.notes.inexact[(*equation.site, what)] = Inexact(wrong, what, equation.line)

    # -------------------------------------------------------------------------------- the walk

    def constant(self, number: Any) -> Value:
        """A constant of a program."""
        shape = np.shape(number)
        kind = getattr(getattr(number, "dtype", None), "kind", "f")  # keys have no number
        known = float(number) if not shape and kind in "biuf" else None
        return Value(tuple(map(self.free_axis, shape)), frozenset(), known)

    def inside(
        self, equation: Equation, program: Any, inputs: list[Value], part: str = "", times: int = 1
    ) -> list[Value]:
        """The outputs of a program within an equation: a part of it, run so many times."""
        site = (*equation.site, part)
        return self.through(program, inputs, site, equation.times * times, equation.line)

    def through(
        self,
        program: Any,
        inputs: list[Value],
        site: Site = (),
        times: float = 1.0,
        outside: str = "an unknown line",
    ) -> list[Value]:
        """The outputs of a program whose inputs are known."""
        jaxpr = getattr(program, "jaxpr", program)
        consts = [self.constant(x) for x in getattr(program, "consts", ())]
        self.labels[*site, "constants"] = consts, []
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Value:
            if isinstance(atom, core.Literal):
                return self.constant(atom.val)
            return values[atom]

        for place, of in enumerate(jaxpr.eqns):
            equation = Equation(of, (*site, place), times, outside)
            given = [*map(read, of.invars)]
            found = RULES.get(equation.name, unknown)(self, equation, given)
            self.labels[equation.site], self.equations[equation.site] = (given, found), equation
            for variable, value in zip(of.outvars, found, strict=True):
                assert value.shape == tuple(variable.aval.shape), (equation.why(), value.shape)
                values[variable] = value
        return [read(atom) for atom in jaxpr.outvars]


def unknown(walk: Walk, equation: Equation, inputs: list[Value]) -> list[Value]:
    """Pins all axes: always sound, since there no shape changes any more.

    A program within that takes and gives what the equation does is walked for what it says of
    leaves, at the shapes that it has there: on one device of several.
    """
    walk.ended(*inputs)
    for program in core.jaxprs_in_params(equation.params):
        if _ranks(program.invars) == _ranks(equation.of.invars) and _ranks(
            program.outvars
        ) == _ranks(equation.of.outvars):
            given = [
                _fixed(v, getattr(x.aval, "shape", ()))
                for v, x in zip(inputs, program.invars, strict=True)
            ]
            walk.inside(equation, program, given)
            break
    for value in inputs:
        walk.used(value, "other")
        for axis in value.axes:
            walk.pin(axis, equation)
    if all(value.made == frozenset() for value in inputs):  # it is run whole, and then cut
        shapes = [tuple(v.aval.shape) for v in equation.of.outvars]
        return [Value(tuple(map(walk.free_axis, shape)), frozenset()) for shape in shapes]
    if any((axis.ids != FIXED).any() for value in inputs for axis in value.axes):
        walk.notes.unknown[equation.site] = equation.why()
    return [fixed_value(tuple(v.aval.shape)) for v in equation.of.outvars]


def _ranks(atoms: Any) -> list[int]:
    return [len(getattr(atom.aval, "shape", ())) for atom in atoms]


def _fixed(value: Value, shape: Any) -> Value:
    """A value of which nothing is cut, in another shape of its rank."""
    axes = [fixed_axis(n, axis.of) for n, axis in zip(shape, value.axes, strict=True)]
    return Value(tuple(axes), value.made)


_LIBRARY = str(Path(__file__).parents[1])
_LIBRARIES = ("site-packages", "/lib/python")


def _frames(equation: Any) -> Iterator[tuple[str, int]]:
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        yield frame.file_name, frame.line_num
