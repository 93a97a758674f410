"""A function of params as a program: traced from shapes, and walked."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.network import calls, derivatives, elementwise, products, reductions, shapes, slices
from jaxprune.network.values import NUMBER, ZERO, Axis, Value, fixed_axis, fixed_value
from jaxprune.network.walk import Walk

FAMILIES = (calls, derivatives, elementwise, products, reductions, shapes, slices)
"""Imported for their rules."""

ALSO = "also:"
"""Before the paths of leaves that are no params, such as batch statistics."""

Masked = Callable[[str, int, int], np.ndarray]
"""What the masked network has along an axis of a leaf: ``(path, axis, size) -> states``."""


class Program(NamedTuple):
    """A traced function.

    Attributes:
      traced: the closed jaxpr; its inputs are the arrays of params, of also and of args, in order.
      leaves: shapes and types of the arrays of params and of also by path.
      outputs: from the arrays that come out to what the function returns.
    """

    traced: Any
    leaves: Mapping[str, jax.ShapeDtypeStruct]
    outputs: Callable[[list[Any]], Any]


def arrays(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree that are arrays, or shapes of them, by path."""
    leaves = {} if tree is None else trees.by_path(tree)
    return {prefix + path: x for path, x in leaves.items() if _is_array(x)}


def all_arrays(params: Any, also: Any) -> dict[str, Any]:
    """The arrays of params and of what is no params, by path."""
    return arrays(params) | arrays(also, ALSO)


def data_of(args: Any) -> list[Any]:
    """The arrays among what a function takes besides params."""
    return [node for node in jax.tree.leaves(args) if _is_array(node)]


def program_of(
    fn: Callable[..., Any], params: Any, also: Any, args: Any, shapes: Mapping[str, Any]
) -> Program:
    """A function traced.

    Args:
      fn: ``fn(params, *args)``, or ``fn(params, also, *args)`` where ``also`` is not None.
      params: a tree of params, of which the containers are taken and what is no array.
      also: the same of what is no params.
      args: the rest; what is no array is taken as it is.
      shapes: of the arrays of params and of also by path.

    Returns:
      The program.
    """
    given = (params,) if also is None else (params, also)
    nodes, structure = jax.tree.flatten(args)
    places = [k for k, node in enumerate(nodes) if _is_array(node)]
    paths = [[*arrays(params)], [*arrays(also)]][: len(given)]
    box: dict[str, Any] = {}
    own = [[shapes[path] for path in paths[0]], [shapes[ALSO + path] for path in [*arrays(also)]]]

    def call(leaves: Any, data: Any) -> Any:
        values = dict(zip(places, data, strict=True))
        whole = [
            trees.from_paths(tree, {**trees.by_path(tree), **dict(zip(names, new, strict=True))})
            for tree, names, new in zip(given, paths, leaves, strict=True)
        ]
        outputs = fn(*whole, *structure.unflatten([values.get(k, x) for k, x in enumerate(nodes)]))
        found, box["structure"] = jax.tree.flatten(outputs)
        box["rest"] = [None if _is_array(x) else (x,) for x in found]
        return [x for x in found if _is_array(x)]

    traced = jax.make_jaxpr(call)(own[: len(given)], [shape_of(nodes[k]) for k in places])

    def returned(found: list[Any]) -> Any:
        new = iter(found)
        return box["structure"].unflatten([next(new) if x is None else x[0] for x in box["rest"]])

    return Program(traced, shapes, returned)


def shape_of(x: Any, shape: tuple[int, ...] | None = None) -> Any:
    """Shape and type; of a random key the key itself, of an array on a mesh its sharding too."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    layout = jax.typeof(x).sharding if isinstance(x, jax.Array) else getattr(x, "sharding", None)
    mesh = getattr(layout, "mesh", None)
    layout = layout if mesh is not None and not mesh.empty else None
    return jax.ShapeDtypeStruct(x.shape if shape is None else shape, x.dtype, sharding=layout)


def walked(program: Program, masked: Masked) -> tuple[Walk, dict[str, list[Axis]], list[Value]]:
    """A walk through a program, the axes of its leaves, and its outputs."""
    walk, axes, inputs = Walk(), {}, []
    for path, x in program.leaves.items():
        walk.sizes[path] = x.size
        axes[path] = [_axis(walk, x, path, k, masked) for k in range(len(x.shape))]
        inputs.append(Value(tuple(axes[path]), frozenset([path])))
    for variable in program.traced.jaxpr.invars[len(inputs) :]:
        inputs.append(fixed_value(tuple(variable.aval.shape)))
    return walk, axes, walk.through(program.traced, inputs)


def when_removed(path: str, axis: int, size: int) -> np.ndarray:
    """A leaf of the params is 0 where it is removed; statistics may be anything."""
    del axis
    return np.full(size, NUMBER if path.startswith(ALSO) else ZERO)


def _axis(walk: Walk, x: Any, path: str, k: int, masked: Masked) -> Axis:
    """An axis of a leaf; one of one entry, or of what is no number, is never cut."""
    size, of = x.shape[k], ((path, k),)
    if size == 1 or not jnp.issubdtype(x.dtype, jnp.inexact):
        return fixed_axis(size, of)
    return Axis(walk.free_axis(size).ids, masked(path, k, size), of)


def _is_array(node: Any) -> bool:
    return hasattr(node, "shape") and hasattr(node, "dtype")
