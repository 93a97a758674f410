"""What a traced network is, leaf by leaf, as a static value."""

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.network import calls, elementwise, products, reductions, shapes, slices
from jaxprune.network.ids import FIXED
from jaxprune.network.values import ZERO, Axis, Value, fixed_axis, fixed_value
from jaxprune.network.walk import Product, Walk
from jaxprune.types import wrong

FAMILIES = (calls, elementwise, products, reductions, shapes, slices)
"""Imported for their rules."""

ALSO = "also:"
"""Before the paths of leaves that are no params, such as batch statistics."""


Met = tuple[tuple[str, str], ...]
"""What a layer's output has met: how, and which leaf."""


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


class Network(NamedTuple):
    """What a network is, as far as its trace tells: hashable, comparable, without arrays.

    Attributes:
      leaves: what each leaf of the params is.
      unknown: primitives without a rule, with their lines.
    """

    leaves: tuple[Leaf, ...]
    unknown: tuple[str, ...] = ()

    def leaf(self, path: str) -> Leaf:
        """What a leaf is; a path that the traced params have not is an error."""
        found = {leaf.path: leaf for leaf in self.leaves}
        trees.known(path, found, "params", "have the leaves that `network` was traced with")
        return found[path]

    def structure(self) -> "Network":
        """What decides masks: without costs and lines, which change with the batch and the file."""
        leaves = (leaf._replace(flops=0.0, lines=()) for leaf in self.leaves)
        return Network(tuple(leaves))

    def to_json(self) -> str:
        """The network as JSON, for `network_from_json`."""
        return json.dumps([[leaf._asdict() for leaf in self.leaves], self.unknown])

    def __str__(self) -> str:
        """A table of the leaves."""
        total = sum(leaf.flops for leaf in self.leaves) or 1.0
        rows = [("leaf", "shape", "is", "sums", "outputs", "FLOPs", "norm")]
        rows += [
            (
                leaf.path,
                "x".join(map(str, leaf.shape)),
                leaf.use,
                ", ".join(map(str, leaf.contracted)),
                ", ".join(map(str, leaf.outputs)),
                f"{leaf.flops / total:.1%}" if leaf.flops else "",
                next(iter(leaf.norm), ""),
            )
            for leaf in self.leaves
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        if self.unknown:
            lines.append(f"without a rule: {', '.join(self.unknown)}")
        return "\n".join(lines)


def network_from_json(text: str) -> Network:
    """The network that `Network.to_json` wrote.

    Args:
      text: what it returned.

    Returns:
      An equal network.

    Examples:
      >>> import jax.numpy as jnp, jaxprune
      >>> net = jaxprune.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones((1, 3)))
      >>> jaxprune.network_from_json(net.to_json()) == net
      True
    """
    leaves, unknown = json.loads(text)
    return Network(tuple(Leaf(**_tuples(leaf)) for leaf in leaves), tuple(unknown))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}


def trace(fn: Callable[..., Any], params: Any, *args: Any, also: Any = None) -> Network:
    """Knows a network by tracing it once: what is contracted, looked up, normed.

    Nothing is computed: arrays are read for their shapes alone, and may be `jax.ShapeDtypeStruct`.

    Args:
      fn: ``fn(params, *args) -> outputs``, or ``fn(params, also, *args)`` where ``also`` is given;
        return what the loss reads, not updated statistics.
      params: the params, as the optimizer gets them.
      *args: the rest of what it takes; what is no array is taken as it is.
      also: other arrays of the network that are no params, such as batch statistics.

    Returns:
      The `Network`.

    Raises:
      ValueError: if the params hold no array.

    Examples:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"table": jnp.ones((9, 4)), "head": jnp.ones((2, 4))}
      >>> def fn(params, tokens):
      ...     return params["table"][tokens] @ params["head"].T
      >>> net = jaxprune.trace(fn, params, jnp.zeros(5, int))
      >>> print(net)
      leaf   shape  is          sums  outputs  FLOPs   norm
      head   2x4    contracted  1     0        100.0%
      table  9x4    table
    """
    leaves, others = _arrays(params), {ALSO + p: x for p, x in _arrays(also).items()}
    if not leaves:
        raise ValueError(wrong("params", "hold an array", params))
    program = _program(fn, params, args, also)
    walk, axes, inputs = Walk(), {}, []
    for path, x in [*leaves.items(), *others.items()]:
        axes[path] = [_axis(walk, x, path, k) for k in range(x.ndim)]
        inputs.append(Value(tuple(axes[path]), frozenset([path])))
    rest = program.jaxpr.invars[len(inputs) :]
    inputs += [fixed_value(tuple(variable.aval.shape)) for variable in rest]
    outputs = walk.through(program, inputs)
    walk.ended(*outputs)
    for value in outputs:
        walk.used(value, "other")
        for axis in value.axes:
            walk.ids.pin(axis.ids, lambda: "an output of the network")
    return _network(walk, leaves, axes)


def _arrays(tree: Any) -> dict[str, Any]:
    leaves = {} if tree is None else trees.by_path(tree)
    return {path: x for path, x in leaves.items() if hasattr(x, "shape") and hasattr(x, "dtype")}


def _axis(walk: Walk, x: Any, path: str, k: int) -> Axis:
    """An axis of a leaf, which is 0 in the masked network where it is removed; but statistics."""
    of = ((path, k),)
    if x.shape[k] == 1 or not jnp.issubdtype(x.dtype, jnp.inexact):
        return fixed_axis(x.shape[k], of)
    axis = walk.free_axis(x.shape[k])._replace(of=of)
    return axis if path.startswith(ALSO) else axis._replace(masked=np.full(axis.size, ZERO))


def _program(fn: Callable[..., Any], params: Any, args: Any, also: Any) -> Any:
    """The traced program, whose inputs are the arrays of params, also and args."""
    given = (params,) if also is None else (params, also)
    nodes, structure = jax.tree.flatten(args)
    places = [k for k, node in enumerate(nodes) if hasattr(node, "shape")]
    leaves = [_arrays(tree) for tree in given]

    def call(arrays: Any, data: Any) -> Any:
        values = dict(zip(places, data, strict=True))
        filled = [values.get(k, node) for k, node in enumerate(nodes)]
        whole = [
            trees.from_paths(tree, {**trees.by_path(tree), **dict(zip(own, new, strict=True))})
            for tree, own, new in zip(given, leaves, arrays, strict=True)
        ]
        outputs = fn(*whole, *structure.unflatten(filled))
        return [x for x in jax.tree.leaves(outputs) if hasattr(x, "shape")]

    arrays = [[*map(_shape, own.values())] for own in leaves]  # lists keep the order of paths
    return jax.make_jaxpr(call)(arrays, [_shape(nodes[k]) for k in places])


def _shape(x: Any) -> Any:
    """Shape and type; of a random key the key itself, of a sharded array its sharding too."""
    if isinstance(x, jax.ShapeDtypeStruct) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    layout = jax.typeof(x).sharding if isinstance(x, jax.Array) else None
    known = layout is not None and not layout.mesh.empty
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout if known else None)


# -------------------------------------------------------------------------------- what leaves are


def _network(walk: Walk, leaves: Mapping[str, Any], axes: Mapping[str, list[Axis]]) -> Network:
    roots, uses, ends = walk.ids.closed().roots, walk.notes.uses, walk.notes.ends
    sites: dict[str, dict[Any, Product]] = defaultdict(dict)
    for site, product in walk.notes.products.items():
        sites[product.path][site] = product
    sizes = {path: x.size for path, x in leaves.items()}
    stacks = {path: _stacks(uses.get(path, set())) for path in leaves}
    along = {p: _along(axes[p], roots, stacks[p]) for p in leaves}
    found = []
    for path, x in leaves.items():
        made = [*sites[path].values()]
        leaf = _leaf(path, tuple(x.shape), uses.get(path, set()), made, sizes)
        if leaf.use == "contracted":
            met = [each for at in sites[path] for each in ends.get(at[:-2], ())]
            outputs = _along([axes[path][k] for k in leaf.outputs], roots) | {FIXED}
            leaf = _behind(leaf, met, {p for p in leaves if along[p] and along[p] <= outputs})
        found.append(leaf)
    return Network(tuple(found), tuple(dict.fromkeys(walk.notes.unknown.values())))


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
