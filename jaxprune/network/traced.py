"""A traced network as a static value."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxprune import trees
from jaxprune.network.choice import ChannelChoice, choice_of
from jaxprune.network.costs import UNITS, Cost, cost_of
from jaxprune.network.cuts import Cut, cut_of
from jaxprune.network.groups import Group, Member, groups_of
from jaxprune.network.leaves import Leaf, Pin, leaves_of
from jaxprune.network.program import all_arrays, arrays, program_of, shape_of, walked, when_removed
from jaxprune.network.values import Value
from jaxprune.network.walk import Walk
from jaxprune.types import one_of, wrong

OUTPUT = "an output of the network"
"""Why what is returned is pinned."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Network:
    """What a network is, as far as its trace tells: hashable, comparable, without arrays.

    Attributes:
      leaves: what each leaf of the params is.
      groups: the channels that live and die together.
      shapes: of all arrays by path; ``also:`` stands before those that are no params.
      unknown: primitives without a rule, with their lines.
      source: the traced function and what it took; None of a network that was read from JSON. No
        part of what is compared.
    """

    leaves: tuple[Leaf, ...]
    groups: tuple[Group, ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    unknown: tuple[str, ...] = ()
    source: Any = dataclasses.field(default=None, compare=False, repr=False)

    def leaf(self, path: str) -> Leaf:
        """What a leaf is; a path that the traced params have not is an error."""
        trees.known(path, self._leaves, "params", "have the leaves that `network` was traced with")
        return self._leaves[path]

    def group(self, name: str) -> Group:
        """The group of a name; one that the network has not is an error."""
        trees.known(name, self._groups, "masks", "name groups of channels of the network")
        return self._groups[name]

    def removable(self, inexact: str) -> tuple[Group, ...]:
        """The groups, but inexact ones unless allowed; without any, what to return instead."""
        one_of("inexact", inexact, ("pin", "allow"))
        if self.groups:
            return tuple(g for g in self.groups if inexact == "allow" or not g.inexact)
        pins = [pin.why for leaf in self.leaves for k in leaf.outputs for pin in leaf.pinned
                if pin.axis == k]  # fmt: skip
        hint = "print the network: it says what is pinned, and why"
        if pins and all(why == OUTPUT for why in pins):
            hint = "all channels reach what the function returns, which keeps its shape: return "
            hint += "the logits alone, without updated statistics or hidden values"
        raise ValueError(wrong("network", "have a channel that can be removed", "none", hint))

    def cut(self, masks: Mapping[str, Any]) -> Cut:
        """The cut by which channels go: ``{group: bool[size]}``, True is kept."""
        for name in masks:
            self.group(name)
        return cut_of(self._groups, masks, dict(self.shapes))

    def channels(
        self,
        *,
        round_to: int | Mapping[str, int] = 8,
        min_keep: int = 1,
        where: trees.Where | None = None,
        residual: str = "tied",
        inexact: str = "pin",
        score: Any = "l2",
        cost: str | Cost | None = None,
    ) -> ChannelChoice:
        """Channels for a method to prune: its argument ``channels``.

        Args:
          round_to: widths are multiples of it, since odd ones are slow; or ``{pattern: multiple}``
            by the names of groups, 1 for those that no pattern matches.
          min_keep: channels that every group keeps.
          where: which groups: a regex, searched in their names and in the paths of their members,
            several, or ``(name, group) -> bool``; all by default.
          residual: "tied" prunes residual streams too, whose channels all layers that write to them
            share; "internal" leaves out the groups in which outputs of several layers are added.
          inexact: "pin" leaves out groups over which the network sums something that is not 0 once
            a channel is removed; "allow" prunes them too.
          score: what a channel is worth where a method ranks magnitudes: "l1" or "l2" of all that
            belongs to it, "scale", the l1 of the scales of the norms that follow (of the layers
            where none does), "taylor", the size of the sum of w g over all that belongs to it, or
            ``signals -> {name of a group: scores}``. Sizes are divided by their mean over the
            group's kept channels, so that groups of different fan may be ranked together.
          cost: what a method's sparsity is a share of: None counts channels; "parameters" and
            "FLOPs" those of the whole network, or any `Cost`. Whatever the ``distribution``, as
            many then stay as fit, the highest of all groups first; where scores add up, as Taylor's
            changes of the loss do, those that are worth the most together beside what they cost.

        Returns:
          What ``channels`` of a method takes; static.

        Raises:
          ValueError: if no channel can be removed, a pattern matches nothing, or a group is smaller
            than ``round_to`` or ``min_keep``.
        """
        groups = self.removable(inexact)
        one_of("residual", residual, ("tied", "internal"))
        if residual == "internal":
            groups = tuple(group for group in groups if not group.added)
        if not callable(score):
            one_of("score", score, ("l1", "l2", "scale", "taylor"))
        found = choice_of(groups, round_to, min_keep, where, score)
        if isinstance(cost, str):
            one_of("cost", cost, UNITS)
            cost = cost_of(self.leaves, found.groups, cost)
        return dataclasses.replace(found, cost=cost)

    def cost(self, unit: str = "parameters", *, inexact: str = "pin") -> Cost:
        """What the network costs at any widths of its channels.

        Args:
          unit: "parameters", of all leaves of the params; or "FLOPs", of the products of leaves in
            the call that was traced.
          inexact: as in `channels`; other groups stay whole.

        Returns:
          A `Cost`: called with masks it is what is left, and its ``layers`` tell of each.

        Raises:
          ValueError: if the unit is another, or the network has none of it.
        """
        one_of("unit", unit, UNITS)
        return cost_of(self.leaves, self.removable(inexact), unit)

    def traced_from(self) -> "Source":
        """The function and what it was traced with; a network that was read from JSON has none."""
        if self.source is None:
            hint = "`trace` it again, or `bind` another function to what was cut"
            raise ValueError(wrong("net", "have the function it was traced from", None, hint))
        return self.source

    def structure(self) -> "Network":
        """What decides masks: no costs, lines and pins, which change with the file."""
        leaves = (leaf._replace(flops=0.0, lines=(), pinned=()) for leaf in self.leaves)
        return Network(tuple(leaves))

    def to_json(self) -> str:
        """The network as JSON, for `network_from_json`."""
        return json.dumps([self.leaves, self.groups, self.shapes, self.unknown])

    def __str__(self) -> str:
        """A table of the leaves, the groups of channels, and what is never cut."""
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
        lines = _aligned(rows)
        if self.groups:
            lines += ["", *_aligned([("channels", "", "of"), *map(_of_group, self.groups)])]
        pins = [(f"{x.path}[{p.axis}]", _share(x, p), p.why) for x in self.leaves for p in x.pinned]
        if pins:
            lines += ["", *_aligned([("pinned", "", "why"), *pins])]
        if self.unknown:
            lines.append(f"without a rule: {', '.join(self.unknown)}")
        return "\n".join(lines)

    @functools.cached_property
    def _leaves(self) -> dict[str, Leaf]:
        return {leaf.path: leaf for leaf in self.leaves}

    @functools.cached_property
    def _groups(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}


@dataclasses.dataclass(frozen=True)
class Source:
    """A traced function.

    Attributes:
      fn: ``fn(params, *args)``, or ``fn(params, also, *args)`` where ``also`` is not None.
      params: shapes of the params, in their containers.
      also: shapes of what is no params; None if there is none.
      args: what it was traced with; shapes of arrays.
    """

    fn: Callable[..., Any]
    params: Any
    also: Any
    args: Any


_SHOWN = 6
"""How many members of a group a table shows."""


def _of_group(group: Group) -> tuple[str, str, str]:
    axes = [f"{member.path}[{member.axis}]" for member in group.members]
    more = f" and {len(axes) - _SHOWN} more" if len(axes) > _SHOWN else ""
    inexact = f"; not exact: {'; '.join(group.inexact)}" if group.inexact else ""
    return group.name, str(group.size), ", ".join(axes[:_SHOWN]) + more + inexact


def _share(leaf: Leaf, pin: Pin) -> str:
    size = leaf.shape[pin.axis]
    return "all" if pin.number == size else f"{pin.number} of {size}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def network_from_json(text: str) -> Network:
    """The network that `Network.to_json` wrote.

    Args:
      text: what it returned.

    Returns:
      An equal network; it has no function, which `shrink` and `removable_units` are to be given.

    Examples:
      >>> import jax.numpy as jnp, jaxprune
      >>> net = jaxprune.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones((1, 3)))
      >>> jaxprune.network_from_json(net.to_json()) == net
      True
    """
    leaves, groups, shapes, unknown = _tuples(json.loads(text))
    return Network(tuple(map(_leaf, leaves)), tuple(map(_group, groups)), shapes, unknown)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _leaf(fields: Any) -> Leaf:
    leaf = Leaf(*fields)
    return leaf._replace(pinned=tuple(Pin(*pin) for pin in leaf.pinned))


def _group(fields: Any) -> Group:
    group = Group(*fields)
    return group._replace(members=tuple(Member(*member) for member in group.members))


def trace(fn: Callable[..., Any], params: Any, *args: Any, also: Any = None) -> Network:
    """Knows a network by tracing it once: what is contracted, looked up, normed, cut together.

    Nothing is computed: arrays are read for their shapes alone, and may be `jax.ShapeDtypeStruct`.

    Args:
      fn: ``fn(params, *args) -> outputs``, or ``fn(params, also, *args)`` where ``also`` is given;
        return what the loss reads, not updated statistics: outputs keep all their channels.
      params: the params, as the optimizer gets them.
      *args: the rest of what it takes; what is no array is taken as it is.
      also: other arrays of the network that are no params, such as batch statistics.

    Returns:
      The `Network`.

    Raises:
      ValueError: if the params hold no array.

    Examples:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"first": jnp.ones((4, 8)), "head": jnp.ones((8, 2))}
      >>> def fn(params, x):
      ...     return jnp.maximum(x @ params["first"], 0) @ params["head"]
      >>> net = jaxprune.trace(fn, params, jnp.ones((1, 4)))
      >>> print(net)  # doctest: +ELLIPSIS
      leaf   shape  is          sums  outputs  FLOPs  norm
      first  4x8    contracted  0     1        66.7%
      head   8x2    contracted  0     1        33.3%
      <BLANKLINE>
      channels     of
      first[1]  8  first[1], head[0]
      <BLANKLINE>
      pinned         why
      first[0]  all  dot_general at ...
      head[1]   all  an output of the network
    """
    leaves = arrays(params)
    if not leaves:
        raise ValueError(wrong("params", "hold an array", params))
    shapes = {path: shape_of(x) for path, x in all_arrays(params, also).items()}
    program = program_of(fn, params, also, args, shapes)
    walk, axes, outputs = walked(program, when_removed)
    pin_outputs(walk, outputs)
    closed = walk.ids.closed()
    found = leaves_of(walk.notes, closed, axes, leaves)
    notes = walk.notes
    groups = groups_of(closed, axes, found, notes.inexact.values(), notes.added.values())
    unknown = tuple(dict.fromkeys(walk.notes.unknown.values()))
    source = Source(fn, _shapes(params), None if also is None else _shapes(also), _shapes(args))
    plain = tuple((path, tuple(x.shape)) for path, x in shapes.items())
    return Network(found, tuple(group for group, _ in groups), plain, unknown, source)


def pin_outputs(walk: Walk, outputs: list[Value]) -> None:
    """What a network returns keeps its shape."""
    walk.ended(*outputs)
    for value in outputs:
        walk.used(value, "other")
        for axis in value.axes:
            walk.ids.pin(axis.ids, lambda: OUTPUT)


def _shapes(tree: Any) -> Any:
    """A tree with shapes in place of its arrays."""

    def shape(x: Any) -> Any:
        return shape_of(x) if hasattr(x, "shape") and hasattr(x, "dtype") else x

    return jax.tree.map(shape, tree)
