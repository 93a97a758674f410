"""What networks take in time at any widths: their layers are run and timed on this machine."""

import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from jaxprune.network import Cost, Group, Leaf, Network
from jaxprune.network.costs import Term, Width, axes_of, shared_out
from jaxprune.network.cuts import cut_of
from jaxprune.network.program import all_arrays, data_of, program_of, shape_of, walked, when_removed
from jaxprune.network.small import Small, kept_of, sizes
from jaxprune.network.values import Axis, Site, Value
from jaxprune.network.walk import Walk
from jaxprune.types import wrong

_POINTS = 8
"""Widths of a group at which a layer is timed, at most, beside the whole one."""


def measure_latency(
    net: Network,
    params: Any,
    *args: Any,
    also: Any = None,
    round_to: int = 8,
    inexact: str = "pin",
    repeats: int = 20,
) -> Cost:
    """Times the layers of a network at widths of its channels, on the device at hand.

    Each product of a leaf that has one group of channels, or two, is run alone, by the shapes it
    has at widths in steps of ``round_to`` (of more where a group has many), each shape once; where
    a wider one is faster, a narrower one counts as that: no budget is met by what is slower and
    smaller. What the whole network takes beside its products, measured too, is shared out over the
    layers by the size of their outputs; where it takes less than they do, all are scaled to it.
    Between widths time is linear; layers of three groups and more take their share of the dense
    time.

    Args:
      net: what `trace` returned.
      params: the params, or arrays of their shapes.
      *args: what the network is called with, at the batch that counts; its type, too.
      also: what is no param, if the network was traced with it.
      round_to: widths that are timed, as `channels` has it.
      inexact: as in `channels`; other groups stay whole.
      repeats: runs of each shape, of which the lower quartile counts.

    Returns:
      A `Cost` in seconds, for ``net.channels(cost=...)`` and `select_units`; `save_cost` keeps it.

    Raises:
      ValueError: if the network has no function (from JSON), or ``repeats`` is below 1.

    Examples:
      >>> import jax, jax.numpy as jnp, jaxprune
      >>> params = {"first": jnp.ones((4, 8)), "head": jnp.ones((8, 2))}
      >>> def fn(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["head"]
      >>> net = jaxprune.trace(fn, params, jnp.ones((1, 4)))
      >>> cost = jaxprune.measure_latency(net, params, jnp.ones((32, 4)), repeats=2)
      >>> cost.unit, [term.grid for term in cost.terms if term.grid]
      ('seconds', [((0, 8),), ((0, 8),)])

    References:
      Shen et al., Structural Pruning via Latency-Saliency Knapsack (HALP), 2022,
      https://arxiv.org/abs/2210.06659, section 3, for tables of layers by their widths; the rest
      that is shared out, and the scale, are our reading.
    """
    if repeats < 1:
        raise ValueError(wrong("repeats", "be at least 1", repeats))
    groups = net.removable(inexact)
    given = [*all_arrays(params, also).values(), *data_of(args)]
    shapes = {path: shape_of(x) for path, x in all_arrays(params, also).items()}
    program = program_of(net.traced_from().fn, params, also, args, shapes)
    walk, axes, _ = walked(program, when_removed)
    layers = _Layers(walk, axes, {group.name: group for group in groups}, repeats)
    terms = [term for leaf in net.leaves for term in layers.terms(leaf, round_to)]
    total = _seconds(jaxpr_as_fun(program.traced), given, repeats)
    about = _machine() | {"inputs": ", ".join(str(jax.typeof(x)) for x in data_of(args))}
    terms = layers.with_rest(terms, total)
    return Cost("seconds", {g.name: g.size for g in groups}, tuple(terms), tuple(about.items()))


class _Layers:
    """The layers of a walked network, timed at any widths of its groups."""

    def __init__(
        self,
        walk: Walk,
        axes: Mapping[str, list[Axis]],
        groups: Mapping[str, Group],
        repeats: int,
    ) -> None:
        """Nothing is timed yet."""
        self.walk, self.axes, self.groups, self.repeats = walk, axes, groups, repeats
        self.timed: dict[Any, float] = {}
        self.sizes: dict[Leaf, float] = {}
        self.known: dict[Any, np.ndarray] = {}

    def terms(self, leaf: Leaf, round_to: int) -> list[Term]:
        """What a leaf's products take."""
        products = self.walk.notes.products.items()
        sites = [site[:-2] for site, p in products if p.path == leaf.path and p.flops]
        if not sites:
            return []
        outputs = [self.walk.equations[site] for site in sites]
        self.sizes[leaf] = sum(each.times * math.prod(each.shape) for each in outputs)
        own = [g for g in self.groups.values() if any(m.path == leaf.path for m in g.members)]
        dense = self.of_leaf(leaf.path, sites, {})
        if not 1 <= len(own) <= 2:
            return shared_out(leaf.path, dense, axes_of(leaf, own))
        grid = tuple(_points(group.size, round_to) for group in own)
        names = [group.name for group in own]
        values = [
            self.of_leaf(leaf.path, sites, dict(zip(names, widths, strict=True)))
            for widths in itertools.product(*grid)
        ]
        along = tuple(Width(0, ((name, 1),)) for name in names)
        return [Term(leaf.path, dense, along, grid, _rising(values, [len(x) for x in grid]))]

    def with_rest(self, terms: Sequence[Term], total: float) -> list[Term]:
        """The terms brought to what the whole network takes."""
        layers = sum(term.dense for term in terms)
        if total <= layers:
            scale = total / layers
            return [
                term._replace(
                    dense=term.dense * scale, values=tuple(v * scale for v in term.values)
                )
                for term in terms
            ]
        of_one, rest = (total - layers) / sum(self.sizes.values()), []
        for leaf, size in self.sizes.items():
            axes = axes_of(leaf, [*self.groups.values()])
            rest += shared_out(leaf.path, of_one * size, [axes[k] for k in leaf.outputs])
        return [*terms, *rest]

    def of_leaf(self, path: str, sites: Sequence[Site], widths: Mapping[str, int]) -> float:
        """What a leaf's products take; nothing where nothing is left of the leaf."""
        keeps = Small(self.walk.labels, self.kept(widths)).keeps(Value(tuple(self.axes[path])))
        if not all(keep.any() for keep in keeps):
            return 0.0
        return sum(self.seconds(site, widths) for site in sites)

    def seconds(self, site: Site, widths: Mapping[str, int]) -> float:
        """What an equation takes if groups have these widths; each shape is run once."""
        equation, (ins, outs) = self.walk.equations[site], self.walk.labels[site]
        run = Small(self.walk.labels, self.kept(widths), inexact=True)
        given, left = ([run.keeps(value) for value in values] for values in (ins, outs))
        avals = [variable.aval for variable in equation.of.invars]
        shapes = [(sizes(x.shape, keep), x.dtype) for x, keep in zip(avals, given, strict=True)]
        key = (equation.name, str(equation.params), str(shapes))
        if key not in self.timed:
            arrays = [jnp.ones(shape, dtype) for shape, dtype in shapes]

            def layer(*arrays: Any) -> Any:
                return run.equation(equation, [*arrays], given, left)

            self.timed[key] = _seconds(layer, arrays, self.repeats)
        return equation.times * self.timed[key]

    def kept(self, widths: Mapping[str, int]) -> np.ndarray:
        """Which ids are kept, if groups have these widths and others stay whole."""
        found = self._kept("", 0)
        for name, width in widths.items():
            found = found & self._kept(name, width)
        return found

    def _kept(self, name: str, width: int) -> np.ndarray:
        if (name, width) not in self.known:
            masks = {name: np.arange(self.groups[name].size) < width} if name else {}
            by = cut_of(self.groups, masks, {})
            leaves = [Value(tuple(axes)) for axes in self.axes.values()]
            pairs = zip(self.axes, leaves, strict=True)
            keeps = [(value, by.keeps(path, value.shape)) for path, value in pairs]
            self.known[name, width] = kept_of(self.walk, keeps)
        return self.known[name, width]


def _points(size: int, step: int) -> tuple[int, ...]:
    """From 0 to all, in steps of a multiple of a step."""
    step *= -(-size // (_POINTS * step))
    return (*range(0, size, step), size)


def _rising(values: Sequence[float], shape: Sequence[int]) -> tuple[float, ...]:
    """Of each width the least that it or a wider one takes, so that less never costs more."""
    table = np.reshape(values, shape)
    for axis in range(table.ndim):
        table = np.flip(np.minimum.accumulate(np.flip(table, axis), axis), axis)
    return tuple(table.ravel().tolist())


def _seconds(function: Callable[..., Any], arrays: Sequence[Any], repeats: int) -> float:
    """What a function takes once it is compiled: the lower quartile of some runs."""
    compiled, taken = jax.jit(function), []
    jax.block_until_ready(compiled(*arrays))
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        taken.append(time.perf_counter() - began)
    return float(np.quantile(taken, 0.25))


def _machine() -> dict[str, str]:
    """What decides how long something takes: the device, and the version of its compiler."""
    device = jax.devices()[0]
    names = [device.device_kind]
    if device.platform == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        names += [*models[:1], platform.machine(), f"{os.cpu_count()} cores"]
    return {"device": ", ".join(names), "jax": jax.__version__}


def save_cost(path: str | os.PathLike[str], cost: Cost) -> None:
    """Writes what `measure_latency` has measured, as JSON: the device, the input, all times.

    Args:
      path: of the file; it is there as a whole or not at all.
      cost: the cost.

    Examples:
      >>> import json, pathlib, tempfile, jax.numpy as jnp, jaxprune
      >>> params = {"first": jnp.ones((4, 8)), "head": jnp.ones((8, 2))}
      >>> net = jaxprune.trace(lambda p, x: x @ p["first"] @ p["head"], params, jnp.ones((1, 4)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder, "parameters.json")
      ...     jaxprune.save_cost(file, net.cost("parameters"))
      ...     json.loads(file.read_text())[:2]
      ['parameters', {'first[1]': 8}]
    """
    text = json.dumps([cost.unit, dict(cost.sizes), cost.terms, cost.about], indent=1)
    beside = Path(f"{os.fspath(path)}.part")
    beside.write_text(text)
    beside.replace(path)


def load_cost(path: str | os.PathLike[str]) -> Cost:
    """Reads what `save_cost` wrote; times of another device are refused.

    Args:
      path: of the file.

    Returns:
      An equal `Cost`.

    Raises:
      ValueError: if it was measured on another device, or is no such file.

    Examples:
      >>> import os, tempfile, jax.numpy as jnp, jaxprune
      >>> params = {"first": jnp.ones((4, 8)), "head": jnp.ones((8, 2))}
      >>> net = jaxprune.trace(lambda p, x: x @ p["first"] @ p["head"], params, jnp.ones((1, 4)))
      >>> cost = jaxprune.measure_latency(net, params, jnp.ones((2, 4)), repeats=1)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = os.path.join(folder, "times.json")
      ...     jaxprune.save_cost(file, cost)
      ...     jaxprune.load_cost(file) == cost
      True
    """
    try:
        unit, sizes_of, terms, about = json.loads(Path(path).read_text())
        found = Cost(unit, sizes_of, tuple(map(_term, terms)), tuple(map(tuple, about)))
    except (ValueError, TypeError) as error:
        raise ValueError(wrong("path", "be a file of `save_cost`", os.fspath(path))) from error
    here, there = _machine()["device"], dict(found.about).get("device", "")
    if there and there != here:
        hint = "measure it here, by `measure_latency`"
        raise ValueError(wrong("path", f"hold times of this device, {here}", there, hint))
    return found


def _term(fields: Any) -> Term:
    layer, dense, widths, grid, values = fields
    along = [Width(fixed, tuple((name, each) for name, each in groups)) for fixed, groups in widths]
    return Term(layer, dense, tuple(along), tuple(map(tuple, grid)), tuple(values))
