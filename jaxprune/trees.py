"""Leaves by path, and back: the door between the users' containers and the flat dicts inside.

A path is ``keystr(path, simple=True, separator="/")`` without a trailing ``value``: a box (an NNX
variable, a Linen `Partitioned`) counts as its array. An unpruned leaf is a *hole*, `MaskedNode`, in
place of the whole box, as `optax.masked` leaves it.
"""

import difflib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.types import Leaves, wrong

Tree = Any
Where = str | Sequence[str] | Callable[[str, Any], bool]

HOLE = optax.MaskedNode()

_UNPRUNED_NAMES = frozenset({"bias", "scale", "embedding"})
_EMBEDDING = re.compile(r"(token_?|pos_?|position_?|word_?)?embed(s|ding|dings|der)?_?\d*")
_NORM = re.compile(r"(layer_?|batch_?|group_?|rms_?|instance_?)?norm(alization)?_?\d*|[lbg]n_?\d*")


def is_hole(node: Any) -> bool:
    """Whether a node stands for a leaf that is left out."""
    return isinstance(node, optax.MaskedNode)


def is_box(node: Any) -> bool:
    """Whether a node is a box around one array: an NNX variable, a Linen `Partitioned`."""
    level = jax.tree_util.default_registry.flatten_one_level_with_keys(node)
    if level is None:
        return False
    children = list(level[0])
    if len(children) != 1:
        return False
    key, child = children[0]
    named_value = isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"
    return named_value and jax.tree_util.treedef_is_leaf(jax.tree.structure(child))


def _name(key_path: Any) -> str:
    parts = jax.tree_util.keystr(key_path, simple=True, separator="/").split("/")
    return "/".join(parts[:-1] if parts[-1] == "value" and len(parts) > 1 else parts)


def _flatten(tree: Tree) -> tuple[list[tuple[str, Any]], Any]:
    nodes, structure = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: is_hole(node) or is_box(node)
    )
    return [(_name(path), node) for path, node in nodes], structure


def unbox(node: Any) -> Any:
    """The array in a box; anything else as it is."""
    return jax.tree.leaves(node)[0] if is_box(node) else node


def by_path(tree: Tree) -> dict[str, Any]:
    """The leaves of a tree by path; boxes opened, holes left out.

    Args:
      tree: any tree of arrays.

    Returns:
      ``{path: leaf}`` in the order of the tree; a bare array has the path ``""``.
    """
    return {path: unbox(node) for path, node in _flatten(tree)[0] if not is_hole(node)}


def all_paths(tree: Tree) -> list[str]:
    """The paths of a tree, those of holes included."""
    return [path for path, _ in _flatten(tree)[0]]


def from_paths(like: Tree, leaves: Leaves) -> Tree:
    """A tree with the containers and boxes of another, and holes where no leaf is given.

    Args:
      like: the tree whose containers are taken.
      leaves: ``{path: leaf}``; a path that is not in it becomes a hole in place of its box.

    Returns:
      The tree, the inverse of `by_path`.
    """
    return map_with_path(lambda path, leaf: leaves.get(path, HOLE), like)


def map_with_path(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """A tree with ``function(path, leaf)`` in place of each leaf, in its box; holes are leaves."""
    nodes, structure = _flatten(tree)
    return structure.unflatten([rebox(node, function(path, unbox(node))) for path, node in nodes])


def check_structure(argument: str, tree: Tree, like: Tree, named: str) -> None:
    """Raises unless a tree has the leaves of another: its paths, holes included, and its shapes.

    Args:
      argument: the name of the argument the tree came in.
      tree: the tree.
      like: the other; where that has a hole, a leaf may stand.
      named: what to call the other.

    Raises:
      ValueError: naming the first leaf that is new, missing or of another shape.
    """
    leaves, others = dict(_flatten(tree)[0]), dict(_flatten(like)[0])
    for path in [*others, *leaves]:
        ours, theirs = unbox(leaves.get(path, HOLE)), unbox(others.get(path, HOLE))
        missing = path not in leaves or (is_hole(ours) and not is_hole(theirs))
        if missing or path not in others:
            came = f"{'no' if missing else 'a new'} leaf '{path}'"
            raise ValueError(f"`{argument}` must have the leaves of {named}, got {came}")
        if not is_hole(theirs) and jnp.shape(ours) != jnp.shape(theirs):
            expected = f"have the shape {jnp.shape(theirs)} at '{path}', as {named} had"
            raise ValueError(wrong(argument, expected, jnp.shape(ours)))


def rebox(node: Any, leaf: Any) -> Any:
    """A leaf in the box of another, if that has one; a hole replaces the whole box."""
    return leaf if is_hole(leaf) or not is_box(node) else jax.tree.structure(node).unflatten([leaf])


def parameter_of(slot: str, shape: tuple[int, ...], leaves: Leaves) -> str | None:
    """Which parameter an array of a foreign optimizer state belongs to.

    Args:
      slot: path of the array in that state, such as ``0/trace/Dense_0/kernel``.
      shape: its shape.
      leaves: the parameters by path.

    Returns:
      The longest parameter path that ends the slot's path and has its shape, or broadcasts from it
      (a sum over some axes); None if none does.
    """

    def fits(path: str, leaf: Any) -> bool:
        same = len(shape) == leaf.ndim and all(
            n in (m, 1) for n, m in zip(shape, leaf.shape, strict=True)
        )
        return same and f"/{slot}".endswith(f"/{path}" if path else "")

    return max((p for p, leaf in leaves.items() if fits(p, leaf)), key=len, default=None)


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is an array of floating or complex numbers."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def is_complex(leaf: Any) -> bool:
    """Whether a leaf is an array of complex numbers."""
    return jnp.issubdtype(leaf.dtype, jnp.complexfloating)


def cast(leaf: Any, dtype: Any) -> Any:
    """A floating leaf in another type; anything else as it is."""
    return leaf.astype(dtype) if is_floating(leaf) else leaf


def pruning_reasons(leaves: Leaves, where: Where | None = None) -> dict[str, str]:
    """Why each leaf is pruned or not: an empty string for those that are pruned.

    The default rule prunes floating leaves of two dimensions or more, but no bias, scale, embedding
    or norm. ``where`` replaces it; integers, booleans and empty leaves are never pruned.

    Args:
      leaves: ``{path: leaf}``.
      where: a regex, or several, searched in the path; or ``(path, leaf) -> bool``.

    Returns:
      ``{path: reason}``.

    Raises:
      ValueError: if a pattern of ``where`` matches no path.
    """
    if where is not None and not callable(where):
        if not isinstance(where, str | list | tuple):
            raise TypeError(wrong("where", "be regexes or a function (path, leaf) -> bool", where))
        for pattern in [where] if isinstance(where, str) else where:
            matching(pattern, leaves, "where")
    return {path: _reason(path, leaf, where) for path, leaf in leaves.items()}


def _reason(path: str, leaf: Any, where: Where | None) -> str:
    if not is_floating(leaf):
        return "not floating"
    if leaf.size == 0:
        return "empty"
    if callable(where):
        return "" if where(path, leaf) else "left out by `where`"
    if where is not None:
        patterns = [where] if isinstance(where, str) else where
        return "" if any(re.search(p, path) for p in patterns) else "left out by `where`"
    if leaf.ndim < 2:
        return "fewer than two dimensions"
    *parents, last = path.lower().split("/")
    if last in _UNPRUNED_NAMES:
        return last
    if parents and _EMBEDDING.fullmatch(parents[-1]):
        return "embedding"
    if parents and _NORM.fullmatch(parents[-1]):
        return "norm"
    return ""


def prunable(leaves: Leaves, where: Where | None = None) -> list[str]:
    """The paths of the leaves that are pruned (see `pruning_reasons`)."""
    return [path for path, reason in pruning_reasons(leaves, where).items() if not reason]


def matching(pattern: str, paths: Iterable[str], argument: str) -> list[str]:
    """The paths in which a regex is found.

    Args:
      pattern: a regex, searched anywhere in a path.
      paths: all paths.
      argument: the name of the argument the pattern came in, for the error.

    Returns:
      The matching paths, in order.

    Raises:
      ValueError: if there is none; the sentence names near paths.
    """
    paths = list(paths)
    try:
        found = [path for path in paths if re.search(pattern, path)]
    except re.error as error:
        raise ValueError(wrong(argument, "be a valid regex", pattern, str(error))) from error
    if not found:
        near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or paths[:3]
        hint = "did you mean " + " or ".join(f"'{path}'" for path in near) + "?" if near else ""
        raise ValueError(wrong(argument, "match at least one path", pattern, hint))
    return found


def known(path: str, paths: Iterable[str], argument: str, expected: str) -> None:
    """Raises a ValueError that names near paths, unless a path is among others."""
    if path not in paths:
        near = difflib.get_close_matches(path, [*paths], n=3) or [*paths][:3]
        raise ValueError(wrong(argument, expected, path, "near paths are " + ", ".join(near)))


def by_pattern(values: Mapping[str, Any], paths: Iterable[str], argument: str) -> dict[str, Any]:
    """Values given by pattern, resolved to paths; the first pattern that matches wins.

    Args:
      values: ``{pattern: value}``.
      paths: all paths.
      argument: the name of the argument, for the error.

    Returns:
      ``{path: value}`` for the paths that a pattern matches.

    Raises:
      ValueError: if a pattern matches no path.
    """
    paths, found = list(paths), {}
    for pattern, value in values.items():
        for path in matching(pattern, paths, argument):
            found.setdefault(path, value)
    return found


def path_key(key: jax.Array, path: str) -> jax.Array:
    """A key of its own for a leaf, the same on all hosts (as Python's `hash` is not).

    Args:
      key: typed key, or raw uint32 key data.
      path: of the leaf.

    Returns:
      A typed key, folded with the crc32 of the path.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        # Two words are threefry's, whatever the user's default is.
        key = jax.random.wrap_key_data(key, impl="threefry2x32" if key.shape == (2,) else None)
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def uniform_like(key: jax.Array, path: str, leaf: Any) -> jax.Array:
    """Uniform numbers for a leaf, in its shape and with its sharding.

    Args:
      key: typed key, or raw uint32 key data.
      path: of the leaf.
      leaf: an array, or its shape and type.

    Returns:
      float32 in [0, 1), the same numbers on every layout of devices.
    """
    chance = jax.random.uniform(path_key(key, path), leaf.shape, jnp.float32)
    layout = jax.typeof(leaf).sharding if isinstance(leaf, jax.Array) else None
    if layout is None or layout.mesh.empty or not layout.mesh.are_all_axes_explicit:
        return chance  # on Auto axes the compiler lays them out
    return jax.sharding.reshard(chance, layout)


OutputAxis = int | Mapping[str, int] | None


def output_axes(leaves: Leaves, given: OutputAxis = None) -> dict[str, int]:
    """Which axis of each leaf counts its outputs (filters, neurons).

    The first for a leaf named ``weight`` (Equinox, PyTorch), the last for every other name.

    Args:
      leaves: ``{path: leaf}``.
      given: one axis for all leaves, or ``{pattern: axis}``, where the rule is wrong.

    Returns:
      ``{path: axis}``, each in ``[0, ndim)``.

    Raises:
      ValueError: if an axis is out of range, or a pattern matches no path.
    """
    chosen = {path: 0 if path.split("/")[-1] == "weight" else -1 for path in leaves}
    if isinstance(given, Mapping):
        chosen |= by_pattern(given, leaves, "output_axis")
    elif given is not None:
        chosen = dict.fromkeys(leaves, given)
    for path, axis in chosen.items():
        ndim = leaves[path].ndim
        if not -ndim <= axis < ndim and ndim:
            raise ValueError(wrong("output_axis", f"lie in [-{ndim}, {ndim}) for '{path}'", axis))
    return {path: axis % max(leaves[path].ndim, 1) for path, axis in chosen.items()}
