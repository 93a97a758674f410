"""A program run on cut arrays: equation by equation, on the indices that are kept."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxprune.network.values import Site, Value
from jaxprune.network.walk import RULES, Equation, Walk
from jaxprune.types import wrong

Keeps = list[np.ndarray]
"""Which indices of each axis of a value are kept, `[N]` each."""

SmallRule = Callable[["Small", Equation, list[Any], list[Keeps], list[Keeps]], Sequence[Any]]
SMALL: dict[str, SmallRule] = {}
"""How primitives run on cut arrays that cannot be run as they are, with other shapes."""

Watch = Callable[[Equation, list[Any], list[Keeps]], None]
Labels = Mapping[Site, tuple[list[Value], list[Value]]]


def small(*names: str) -> Callable[[SmallRule], SmallRule]:
    """Registers how primitives run on cut arrays."""

    def register(found: SmallRule) -> SmallRule:
        SMALL.update(dict.fromkeys(names, found))
        return found

    return register


class Small:
    """A program on what is kept."""

    def __init__(
        self,
        labels: Labels,
        kept: np.ndarray,
        watch: Watch | None = None,
        inexact: bool = False,
    ) -> None:
        """A program to run.

        Args:
          labels: what a walk knows of each value.
          kept: which ids are kept.
          watch: who looks at each equation.
          inexact: whether sums may miss what is not 0.
        """
        self.labels, self.kept, self.watch, self.inexact = labels, kept, watch, inexact

    def keeps(self, value: Value) -> Keeps:
        """What is kept of each axis of a value."""
        return [self.kept[axis.ids] for axis in value.axes]

    def inside(self, equation: Equation, program: Any, args: Sequence[Any], part: str = "") -> Any:
        """The outputs of a program within an equation, as `Walk.inside` walked it."""
        return self.through(program, args, (*equation.site, part))

    def through(self, program: Any, args: Sequence[Any], site: Site = ()) -> list[Any]:
        """The outputs of a program on cut arrays."""
        jaxpr = getattr(program, "jaxpr", program)
        constants, _ = self.labels[*site, "constants"]
        pairs = zip(getattr(program, "consts", ()), constants, strict=True)
        values = dict(zip(jaxpr.constvars, (cut(x, self.keeps(v)) for x, v in pairs), strict=True))
        values |= dict(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for place, of in enumerate(jaxpr.eqns):
            equation = Equation(of, (*site, place), 1.0, "")
            ins, outs = (list(map(self.keeps, each)) for each in self.labels[equation.site])
            found = self.equation(equation, [*map(read, of.invars)], ins, outs)
            _check(equation, found, outs)
            if self.watch is not None:
                self.watch(equation, found, outs)
            values |= dict(zip(of.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(
        self, equation: Equation, args: list[Any], ins: list[Keeps], outs: list[Keeps]
    ) -> list[Any]:
        """The outputs of one equation; as it is where nothing of it is cut."""
        touched = not all(keep.all() for keeps in (*ins, *outs) for keep in keeps)
        if (touched or self.watch is not None) and equation.name in SMALL:
            return [*SMALL[equation.name](self, equation, args, ins, outs)]
        found = bound(equation, args)
        if equation.name in RULES:
            return found
        return [cut(x, keeps) for x, keeps in zip(found, outs, strict=True)]


def _check(equation: Equation, found: Sequence[Any], outs: list[Keeps]) -> None:
    """Refuses what a rule of the user's own gave in another shape than it had said."""
    for x, keeps in zip(found, outs, strict=True):
        for axis, keep in enumerate(keeps):
            if not keep.all() and x.shape[axis] != keep.sum():
                expected = f"say what {equation.why()} gives of cut arrays"
                raise ValueError(wrong("rule", expected, f"{x.shape[axis]} along axis {axis}"))


def bound(equation: Equation, args: Sequence[Any], **changed: Any) -> list[Any]:
    """The outputs of an equation's primitive, with some of its parameters changed."""
    of = equation.of
    found = of.primitive.get_bind_params(dict(of.params) | changed)
    functions, params = found if isinstance(found, tuple) else ((), found)  # until jax 0.10.1
    outputs = of.primitive.bind(*functions, *args, **params)
    return [*outputs] if of.primitive.multiple_results else [outputs]


def cut(x: Any, keeps: Keeps) -> Any:
    """What is kept of an array."""
    for axis, keep in enumerate(keeps):
        if not keep.all():
            x = taken(x, np.flatnonzero(keep), axis)
    return x


def taken(x: Any, index: np.ndarray, axis: int) -> Any:
    """Some indices of an axis, in order: a slice where they follow each other."""
    layout = jax.typeof(x).sharding
    if not layout.mesh.empty and layout.mesh.are_all_axes_explicit:
        return x.at[(slice(None),) * axis + (index,)].get(out_sharding=layout)
    if len(index) and (np.diff(index) == 1).all():
        return jax.lax.slice_in_dim(x, int(index[0]), int(index[-1]) + 1, axis=axis)
    return jnp.take(x, index, axis=axis)


def sizes(shape: Sequence[Any], keeps: Keeps) -> tuple[Any, ...]:
    """The shape that is left; a size that is not cut stays as it is, symbolic ones too."""
    return tuple(n if keep.all() else int(keep.sum()) for n, keep in zip(shape, keeps, strict=True))


def kept_of(walk: Walk, known: Sequence[tuple[Value, Keeps]]) -> np.ndarray:
    """Which ids of a walk are kept, if it is known what is kept of some of its values.

    A unit is gone if all indices are that it is a part of.

    Args:
      walk: through the whole program.
      known: values of it, and what is kept of each of their axes.

    Returns:
      A bool an id.
    """
    axes = [axis.ids for value, _ in known for axis in value.axes]
    keeps = [keep for _, each in known for keep in each]
    closed = walk.ids.closed()
    places, roots = closed.units(np.concatenate([np.zeros(0, int), *axes]))
    kept = np.concatenate([np.zeros(0, bool), *keeps])[places]
    gone = np.zeros(len(closed.roots), bool)
    gone[roots] = True
    gone[roots[kept]] = False
    return closed.kept(gone)


def on_cut(
    program: Any,
    args: Sequence[Any],
    ins: Sequence[Keeps],
    outs: Sequence[Keeps] = (),
    inexact: bool = False,
) -> tuple[list[Any], list[Keeps]]:
    """A program of full-sized arrays run on cut ones.

    Args:
      program: a closed jaxpr.
      args: the cut arrays.
      ins: what is kept of each.
      outs: what has to be kept of the first outputs.
      inexact: whether sums may miss what is not 0.

    Returns:
      The outputs, and what is kept of each.

    Raises:
      ValueError: if it fixes what is cut, or sums over it.
    """
    walk = Walk()
    given = [_free(walk, keeps) for keeps in ins]
    found = walk.through(program, given)
    pairs = [*zip(given, ins, strict=True), *zip(found, outs, strict=False)]
    run = Small(walk.labels, kept_of(walk, pairs), inexact=inexact)
    for value, keeps in pairs:
        for ours, keep in zip(run.keeps(value), keeps, strict=True):
            if (ours != keep).any():
                expected = "have derivatives that let its channels be cut"
                pins = "; ".join(dict.fromkeys(why() for _, why in walk.ids.pins)) or "tied ones"
                raise ValueError(wrong("fn", expected, pins))
    for each in walk.notes.inexact.values():  # nothing is known to be 0 here
        if not inexact and not run.kept[each.ids].all():
            expected = "have derivatives that sum over no channels that are removed"
            raise ValueError(wrong("fn", expected, f"{each.what} at {each.line}"))
    return run.through(program, args), [run.keeps(value) for value in found]


def _free(walk: Walk, keeps: Keeps) -> Value:
    return Value(tuple(walk.free_axis(len(keep)) for keep in keeps))
