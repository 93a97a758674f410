"""What a network costs at any widths of its channels: parameters, operations, or time."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.network.groups import NOBODY, Group
from jaxprune.network.leaves import Leaf
from jaxprune.types import hashable, wrong

UNITS = ("parameters", "FLOPs")
"""What a trace can count."""


class Width(NamedTuple):
    """How long an axis of a layer is: ``fixed + sum_g each_g kept_g``.

    Attributes:
      fixed: indices that are of no group.
      groups: ``((name of a group, indices of each of its channels), ...)``.
    """

    fixed: int
    groups: tuple[tuple[str, int], ...]


class Term(NamedTuple):
    """What one layer costs: its dense cost times the shares that are left of its axes, or a table.

    Attributes:
      layer: the path of its leaf.
      dense: what it costs whole.
      widths: of those of its axes that channels may leave.
      grid: the widths at which it was measured, of each axis, rising; none where it is a product.
      values: what was measured at each of them, the last axis fastest; between them it is linear.
    """

    layer: str
    dense: float
    widths: tuple[Width, ...]
    grid: tuple[tuple[int, ...], ...] = ()
    values: tuple[float, ...] = ()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Cost:
    """What a network costs at any widths: ``sum_l cost_l(widths of layer l)``; static.

    Attributes:
      unit: what is counted: "parameters", "FLOPs" or "seconds".
      sizes: ``{name of a group: its channels}``.
      terms: the cost of each layer.
      about: where and how it was measured, as ``((what, which), ...)``; empty of what is counted.

    Examples:
      >>> import jax, jax.numpy as jnp, jaxprune
      >>> params = {"first": jnp.ones((4, 8)), "head": jnp.ones((8, 2))}
      >>> def fn(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["head"]
      >>> cost = jaxprune.trace(fn, params, jnp.ones((1, 4))).cost("parameters")
      >>> cost.layers()
      {'first': 32.0, 'head': 16.0}
      >>> cost({"first[1]": jnp.arange(8) < 4})
      24.0
    """

    unit: str
    sizes: Any
    terms: tuple[Term, ...]
    about: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Brings sizes into a form that can be hashed."""
        object.__setattr__(self, "sizes", hashable(dict(self.sizes)))

    def __call__(self, masks: Mapping[str, Any] | None = None) -> float:
        """What the network costs that is left by some masks; the whole one by none.

        Args:
          masks: ``{name of a group: bool[size]}``; groups that are not named stay whole.
        """
        return sum(self.layers(masks).values())

    def layers(self, masks: Mapping[str, Any] | None = None) -> dict[str, float]:
        """What each layer costs, by the path of its leaf; a leaf used twice costs twice.

        Args:
          masks: as for the whole.
        """
        for name in masks or {}:
            trees.known(name, self.sizes, "masks", "name groups of channels of the cost")
        kept = [
            int(np.sum(masks[name])) if masks and name in masks else size
            for name, size in self.sizes.items()
        ]
        found: dict[str, float] = {}
        for term, value in zip(self.terms, self.values(np.array(kept)), strict=True):
            found[term.layer] = found.get(term.layer, 0.0) + float(value)
        return found

    def values(self, kept: Any) -> Any:
        """What each layer costs, ``[L]``, if so many channels of each group are kept, ``[G]``."""
        parts = self.parts
        return self.at(np.arange(len(self.terms)), parts.fixed + parts.each @ kept)

    def at(self, terms: np.ndarray, widths: Any) -> Any:
        """What some layers cost at widths of their axes.

        Args:
          terms: which layers, ``[P]``.
          widths: of their axes, ``[P, K]``.
        """
        parts = self.parts
        numbers: Any = np if isinstance(widths, np.ndarray) else jnp
        value = parts.dense[terms] * numbers.prod(widths / parts.whole[terms], axis=-1)
        if not parts.tables.size:
            return value
        table = parts.table[terms]
        grid, tables = numbers.asarray(parts.grid[table]), numbers.asarray(parts.tables)
        low = numbers.sum(widths[:, :, None] >= grid[:, :, 1:], axis=-1)
        low = numbers.minimum(low, parts.last[table])
        places, rows = np.arange(len(terms))[:, None], np.arange(widths.shape[1])[None]
        begins, ends = (grid[places, rows, low + k] for k in (0, 1))
        way = (widths - begins) / numbers.maximum(ends - begins, 1)
        between: Any = 0.0
        for corner in np.ndindex(*(2,) * widths.shape[1]):
            weight = numbers.prod(
                numbers.where(np.array(corner, bool)[None], way, 1 - way), axis=-1
            )
            index = tuple(low[:, k] + step for k, step in enumerate(corner))
            between += weight * tables[(table, *index)]
        return numbers.where(parts.measured[terms], between, value)

    @functools.cached_property
    def parts(self) -> "_Parts":
        """The terms as arrays."""
        names, count = {name: k for k, name in enumerate(self.sizes)}, len(self.terms)
        most = max((len(term.widths) for term in self.terms), default=0)
        fixed, whole = np.ones((count, most)), np.ones((count, most))
        each = np.zeros((count, most, len(names)))
        for t, term in enumerate(self.terms):
            for k, width in enumerate(term.widths):
                fixed[t, k] = width.fixed
                for name, number in width.groups:
                    each[t, k, names[name]] = number
        whole = fixed + each @ np.array([*self.sizes.values()], float)
        dense = np.array([term.dense for term in self.terms])
        return _Parts(dense, fixed, each, whole, *_tables(self.terms, most))


class _Parts(NamedTuple):
    """The terms of a cost as arrays: L layers of K axes, G groups, and M tables.

    Attributes:
      dense: costs of whole layers, `[L]`.
      fixed: what no channel leaves, `[L, K]`.
      each: indices of each channel, `[L, K, G]`.
      whole: the widths of whole layers, `[L, K]`.
      measured: which layers have a table, `[L]`.
      table: the table of each layer, `[L]`.
      grid: widths that were measured, `[M, K, W]`; infinite behind the last.
      last: where the last interval begins, `[M, K]`.
      tables: what was measured, `[M, W, ...]`.
    """

    dense: np.ndarray
    fixed: np.ndarray
    each: np.ndarray
    whole: np.ndarray
    measured: np.ndarray
    table: np.ndarray
    grid: np.ndarray
    last: np.ndarray
    tables: np.ndarray


def _tables(terms: Sequence[Term], axes: int) -> tuple[np.ndarray, ...]:
    """What `_Parts` has of the tables; equal ones once."""
    distinct = [*dict.fromkeys((term.grid, term.values) for term in terms if term.grid)]
    longest = max((len(points) for grid, _ in distinct for points in grid), default=1)
    grid = np.full((len(distinct), axes, longest), np.inf)
    last = np.zeros((len(distinct), axes), int)
    tables = np.zeros((len(distinct), *(longest,) * axes))
    grid[:, :, 0] = 1.0  # an axis that a table has not
    for m, (points, values) in enumerate(distinct):
        shape = [len(each) for each in points]
        for k, each in enumerate(points):
            grid[m, k, : len(each)] = each
            last[m, k] = max(len(each) - 2, 0)
        part = np.reshape(values, (*shape, *(1,) * (axes - len(shape))))
        tables[(m, *map(slice, part.shape))] = part
    numbers = {each: m for m, each in enumerate(distinct)}
    table = [numbers.get((term.grid, term.values), 0) for term in terms]
    measured = np.array([bool(term.grid) for term in terms], bool)
    return measured, np.array(table, int), grid, last, tables


def cost_of(leaves: Iterable[Leaf], groups: Sequence[Group], unit: str) -> Cost:
    """The cost of a network as a function of the widths of some groups.

    Args:
      leaves: of the network.
      groups: whose channels may go.
      unit: "parameters" or "FLOPs".
    """
    sizes = {group.name: group.size for group in groups}
    found: list[Term] = []
    for leaf in leaves:
        dense = float(math.prod(leaf.shape)) if unit == "parameters" else leaf.flops
        if dense:
            found += shared_out(leaf.path, dense, axes_of(leaf, groups))
    if not found:
        raise ValueError(wrong("cost", f"find {unit} in the network", "none"))
    return Cost(unit, sizes, tuple(found))


Part = tuple[float, tuple[Width, ...]]
"""A share of an axis' indices, and the widths whose product they are."""


def shared_out(layer: str, dense: float, axes: Iterable[list[Part]]) -> list[Term]:
    """What a layer costs by the shares that are left of axes: a term for each choice of parts."""
    return [
        Term(
            layer,
            dense * math.prod(part for part, _ in parts),
            tuple(width for _, own in parts for width in own),
        )
        for parts in itertools.product(*(axis for axis in axes if axis))
    ]


def axes_of(leaf: Leaf, groups: Sequence[Group]) -> list[list[Part]]:
    """Of each axis of a leaf its parts; none of one that channels never leave.

    An index stays if the channels do that it has of each group: indices of one group each make an
    axis together, and those of several at once a grid of them, such as heads by groups of heads.
    """
    found: list[list[Part]] = []
    for k, size in enumerate(leaf.shape):
        has: dict[str, np.ndarray] = {}
        sizes: dict[str, int] = {}
        for group in groups:
            for member in group.members:
                if (member.path, member.axis) == (leaf.path, k):
                    has[group.name], sizes[group.name] = member.units() != NOBODY, group.size
        number = sum(has.values(), np.zeros(size, int))
        plain = [(g, int((own & (number == 1)).sum()) // sizes[g]) for g, own in has.items()]
        plain = tuple((g, each) for g, each in plain if each)
        left = int((number < 2).sum())
        parts: list[Part] = []
        if left and has:
            fixed = int((number == 0).sum())
            parts.append((left / size, (Width(fixed, plain),)))
        grids = np.stack([*has.values()], axis=1)[number > 1] if has else np.zeros((0, 0))
        for own in np.unique(grids, axis=0) if len(grids) else ():
            share = float((grids == own).all(axis=1).sum()) / size
            names = [name for name, one in zip(has, own, strict=True) if one]
            parts.append((share, tuple(Width(0, ((name, 1),)) for name in names)))
        found.append(parts)
    return found
