"""What the leaves of a network are: contracted, looked up, added; their norms, biases and pins."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.network.ids import FIXED, Closed
from jaxprune.network.program import ALSO
from jaxprune.network.values import Axis
from jaxprune.network.walk import Notes, Product

Met = tuple[tuple[str, str], ...]
"""What a layer's output has met: how, and which leaf."""


class Pin(NamedTuple):
    """Indices of an axis that are never cut: which axis, how many, and why."""

    axis: int
    number: int
    why: str


class Leaf(NamedTuple):
    """What a leaf of the params is in its network.

    Attributes:
      path: its path.
      shape: its shape.
      use: "contracted" with data in a product; "table", of which rows are looked up; "tied", both,
        or contracted along different axes in different places; "factor" of a weight that others
        make; "multiplied", "added", "placed", "other"; or "unused".
      contracted: the axes along which its products sum, in the order of memory, the fastest last.
      outputs: the axes that count outputs; those of experts, which are side by side, too.
      stacked: the axis of layers that are scanned; None if it has none.
      flops: of its products in one call, two a multiplication.
      norm: the scale of the norm that all its outputs go through, and what is added behind it;
        empty if there is none.
      biases: what is added to its outputs themselves.
      lines: where it is used.
      pinned: which of its indices are never cut.
    """

    path: str
    shape: tuple[int, ...]
    use: str
    contracted: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    stacked: int | None = None
    flops: float = 0.0
    norm: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    pinned: tuple[Pin, ...] = ()


def leaves_of(
    notes: Notes, closed: Closed, axes: Mapping[str, list[Axis]], shapes: Mapping[str, Any]
) -> tuple[Leaf, ...]:
    """What each leaf of the params is, by what a walk has seen.

    Args:
      notes: of the walk.
      closed: its ids.
      axes: of the leaves by path.
      shapes: of the leaves of the params by path.
    """
    roots = closed.roots
    sites: dict[str, dict[Any, Product]] = defaultdict(dict)
    for site, product in notes.products.items():
        sites[product.path][site] = product
    sizes = {path: x.size for path, x in shapes.items()}
    uses = {path: notes.uses.get(path, set()) for path in shapes}
    along = {path: _along(axes[path], roots, _stacks(uses[path])) for path in shapes}
    found = []
    for path, x in shapes.items():
        leaf = _leaf(path, tuple(x.shape), uses[path], [*sites[path].values()], sizes)
        if leaf.use == "contracted":
            met = [each for at in sites[path] for each in notes.ends.get(at[:-2], ())]
            outputs = _along([axes[path][k] for k in leaf.outputs], roots) | {FIXED}
            leaf = _behind(leaf, met, {p for p in shapes if along[p] and along[p] <= outputs})
        found.append(leaf)
    places = [(p, k) for p in shapes for k in range(len(axes[p]))]
    pins: dict[str, list[Pin]] = defaultdict(list)
    for (path, k), why in zip(
        places, closed.reasons(axes[p][k].ids for p, k in places), strict=True
    ):
        pins[path] += [Pin(k, number, reason) for reason, number in why.items()]
    return tuple(leaf._replace(pinned=tuple(pins[leaf.path])) for leaf in found)


def _stacks(uses: set[str]) -> set[int]:
    """The axes along which a leaf is scanned."""
    return {int(use.split()[-1]) for use in uses if use.startswith("stacked along")}


def _leaf(
    path: str,
    shape: tuple[int, ...],
    uses: set[str],
    made: Sequence[Product],
    sizes: Mapping[str, int],
) -> Leaf:
    """What a leaf is by its products and other uses."""
    products = [p for p in made if p.contracted and not p.looked_up]
    looked_up = "looked up" in uses or any(p.looked_up for p in made)
    ways = {(p.contracted, tuple(sorted({*p.outputs, *p.batch}))) for p in products}
    # Of two weights that are multiplied the larger is taken for the layer's, the other for data.
    others = [sum(sizes.get(other, 0) for other in p.others) for p in products if p.others]
    factor = any(size >= sizes[path] for size in others) or bool(others and len(ways) > 1)
    leaf = Leaf(
        path,
        shape,
        _use(uses, bool(products), looked_up, factor, len(ways)),
        stacked=min(_stacks(uses), default=None),
        flops=sum(p.flops for p in made),
        lines=tuple(dict.fromkeys(p.line for p in made)),
    )
    if leaf.use != "contracted":
        return leaf
    ((contracted, outputs),) = ways
    return leaf._replace(contracted=contracted, outputs=outputs)


def _use(uses: set[str], contracted: bool, looked_up: bool, factor: bool, ways: int) -> str:
    if contracted:
        if looked_up or (ways > 1 and not factor):
            return "tied"
        return "factor" if factor else "contracted"
    if looked_up:
        return "table"
    if "contracted" in uses:
        return "factor"
    order = ("multiplied", "added", "placed", "reduced")
    return next((use for use in order if use in uses), "other" if "other" in uses else "unused")


def _behind(leaf: Leaf, ends: Sequence[Met], beside: set[str]) -> Leaf:
    """The leaf with the norm that all its outputs go through, and what is added to them.

    Args:
      leaf: a layer.
      ends: what its outputs have met by the time that they are used otherwise.
      beside: the leaves whose axes are all outputs of this one.
    """
    own = [tuple(step for step in met if not step[1].startswith(ALSO)) for met in ends]
    norms = {_norm(met, beside) for met in ends}
    scale = norms.pop() if len(norms) == 1 else ""
    after = [met[met.index(("multiplied", scale)) + 1 :] for met in own] if scale else []
    behind = _shared([_added(met, beside) for met in after])
    biases = _shared([_added(met, beside) for met in own])
    return leaf._replace(norm=(scale, *behind) if scale else (), biases=biases)


def _norm(met: Met, beside: set[str]) -> str:
    """The first scale that is met, if statistics are, too."""
    if not any(how == "normed" or path.startswith(ALSO) for how, path in met):
        return ""
    scales = (path for how, path in met if how == "multiplied" and not path.startswith(ALSO))
    scale = next(scales, "")
    return scale if scale in beside else ""


def _added(met: Met, beside: set[str]) -> list[str]:
    """What is added to a layer's outputs before the first factor."""
    factors = [k for k, (how, _) in enumerate(met) if how == "multiplied"]
    until = met[: factors[0]] if factors else met
    return [path for how, path in until if how == "added" and path in beside]


def _shared(found: list[list[str]]) -> tuple[str, ...]:
    """What is in all of several lists."""
    first = found[0] if found else []
    return tuple(path for path in first if all(path in each for each in found))


def _along(axes: Iterable[Axis], roots: np.ndarray, but: Container[int] = ()) -> set[int]:
    """The ids along some axes of a leaf; axes of one have none."""
    kept = [roots[axis.ids] for k, axis in enumerate(axes) if k not in but and axis.size > 1]
    return set(np.concatenate(kept).tolist()) if kept else set()
