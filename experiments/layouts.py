"""Where the arrays of a run lie: on one device, on a mesh of many, or as replicas under `pmap`.

A mesh has an axis of data, one of fsdp and one of tensor; a batch lies along the first two, a
parameter along the other two where its shape allows, and everything that belongs to a parameter
(masks, dense copies, slots) as the parameter does. The training step is the same program on every
mesh; XLA puts the collectives in (Auto axes), or the types say where (Explicit axes). Under `pmap`
batch norm looks at each replica's part of a batch, and on a mesh at the whole of it.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from experiments.streams import Batch

REPLICAS = "replicas"
"""The axis of `pmap`."""


class Layout(NamedTuple):
    """What a loop has to know of where arrays lie.

    Attributes:
      seen: a network -> the same on params that lie as `placed` puts them.
      placed: a state on one device -> the same where it belongs.
      one: what `placed` gave -> what a checkpoint saves, and what `placed` takes.
      batch: this process's share of a batch -> arrays.
      compiled: a function -> compiled, with arguments to donate.
      axis: over which replicas take means of their own accord; empty where types or XLA do.
      devices: along which a batch is split, on this process.
      shared: whether the processes hold one state together, or each its own.
      within: a context in which all of that is called.
    """

    seen: Callable[[Callable[..., Any]], Callable[..., Any]]
    placed: Callable[[Any], Any]
    one: Callable[[Any], Any]
    batch: Callable[[Batch], Any]
    compiled: Callable[..., Any]
    axis: str
    devices: int
    shared: bool
    within: Callable[[], contextlib.AbstractContextManager[Any]]


def _same(x: Any) -> Any:
    return x


ALONE = Layout(_same, _same, _same, _same, jax.jit, "", 1, False, contextlib.nullcontext)
"""On one device."""


def of(config: Mapping[str, Any]) -> Layout:
    """The layout of an experiment.

    Args:
      config: ``data``, ``fsdp`` and ``tensor``, sizes of the axes, -1 for all devices that are
        left; ``mode``, "auto" or "explicit", the type of the axes, or "pmap", for data alone.

    Returns:
      The layout.

    Raises:
      ValueError: if the axes do not fit the devices, or there is no such mode.

    Examples:
      >>> from experiments import layouts
      >>> one = {"data": 1, "fsdp": 1, "tensor": 1, "mode": "auto"}
      >>> layouts.of(one) is layouts.ALONE
      True
    """
    sizes, mode = [config[axis] for axis in _AXES], config["mode"]
    known, number = math.prod(n for n in sizes if n > 0), jax.device_count()
    if sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes) or number % known:
        expected = f"have axes that divide {number} devices, at most one of them -1"
        raise ValueError(f"`config.mesh` must {expected}, got {dict(config)}")
    sizes = [number // known if n == -1 else n for n in sizes]
    used = math.prod(sizes)
    if jax.process_count() > 1 and used < number:
        expected = f"use all {number} devices of {jax.process_count()} processes"
        raise ValueError(f"`config.mesh` must {expected}, got {dict(config)}")
    if mode == "pmap" and sizes[1:] == [1, 1]:
        return _replicas(jax.devices()[:used])
    if mode not in _KINDS:
        expected = f"have as mode one of {', '.join(_KINDS)}, or pmap with data alone"
        raise ValueError(f"`config.mesh` must {expected}, got {dict(config)}")
    if used == 1:
        return ALONE
    kinds = (_KINDS[mode],) * len(_AXES)
    mesh = jax.make_mesh(tuple(sizes), _AXES, kinds, devices=jax.devices()[:used])
    processes = np.vectorize(lambda device: device.process_index)(mesh.devices)
    if (processes != processes[..., :1]).any():  # they would bring other images for the same place
        expected = "have a tensor axis that lies within each process"
        raise ValueError(f"`config.mesh` must {expected}, got {dict(config)}")
    return _on(mesh)


_AXES = ("data", "fsdp", "tensor")
_KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def _on(mesh: Mesh) -> Layout:
    """On a mesh."""
    everywhere, along_batch = NamedSharding(mesh, P()), NamedSharding(mesh, P(_AXES[:2]))
    gathering = functools.partial(_gathering, everywhere=everywhere)
    seen = gathering if mesh.are_all_axes_explicit else _same

    def placed(state: Any) -> Any:
        params, ema = (
            jax.tree.map(lambda x: jax.device_put(x, sharding_of(x, mesh)), tree)
            for tree in (state.params, state.ema)
        )
        shardings = jaxprune.state_shardings(state.tx, params)
        opt_state = jax.tree.map(jax.device_put, state.opt_state, shardings)
        others = state.replace(params=None, ema=None, opt_state=None)
        others = jax.tree.map(functools.partial(jax.device_put, device=everywhere), others)
        return others.replace(params=params, ema=ema, opt_state=opt_state)

    def batch(images: Batch) -> Any:
        made = functools.partial(jax.make_array_from_process_local_data, along_batch)
        return {name: made(x) for name, x in images.items()}

    devices = max(math.prod(mesh.devices.shape[:2]) // jax.process_count(), 1)
    within = functools.partial(jax.set_mesh, mesh)
    return Layout(seen, placed, _same, batch, jax.jit, "", devices, True, within)


def _gathering(apply: Callable[..., Any], everywhere: NamedSharding) -> Callable[..., Any]:
    """A network that computes with whole params, however they are stored; types ask for it."""

    def applied(variables: Any, *args: Any, **options: Any) -> Any:
        whole = jax.tree.map(lambda x: jax.sharding.reshard(x, everywhere), variables)
        return apply(whole, *args, **options)

    return applied


def sharding_of(x: Any, mesh: Mesh) -> NamedSharding:
    """How a parameter lies: its last axis along tensor, the largest other along fsdp.

    Args:
      x: an array or its shape; biases and scales, of one axis, lie everywhere.
      mesh: the mesh.

    Returns:
      The sharding; an axis that does not divide is not split.
    """
    spec: list[str | None] = [None] * x.ndim
    if x.ndim > 1:
        if x.shape[-1] % mesh.shape["tensor"] == 0 and mesh.shape["tensor"] > 1:
            spec[-1] = "tensor"
        for axis in sorted(range(x.ndim), key=lambda axis: -x.shape[axis]):
            if spec[axis] is None and x.shape[axis] % mesh.shape["fsdp"] == 0:
                spec[axis] = "fsdp" if mesh.shape["fsdp"] > 1 else None
                break
    while spec and spec[-1] is None and not mesh.are_all_axes_explicit:  # as jit writes outputs
        spec.pop()
    return NamedSharding(mesh, P(*spec))


def _replicas(devices: Sequence[Any]) -> Layout:
    """As replicas, each with a part of the batch."""
    number = len(devices) // jax.process_count()
    mesh = Mesh(np.array(devices), (REPLICAS,))
    sharding, everywhere = NamedSharding(mesh, P(REPLICAS)), NamedSharding(mesh, P())

    def along(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, x)

    def placed(state: Any) -> Any:
        return jax.tree.map(lambda x: along(np.stack([x] * number)), state)

    def first(x: jax.Array) -> jax.Array:
        own = x.addressable_data(0)[0]
        if jax.process_count() == 1:
            return own
        return jax.make_array_from_process_local_data(everywhere, np.asarray(own))  # to be saved

    def one(state: Any) -> Any:
        return jax.tree.map(first, state)

    def batch(images: Batch) -> Any:
        return {name: along(x.reshape(number, -1, *x.shape[1:])) for name, x in images.items()}

    compiled = functools.partial(jax.pmap, axis_name=REPLICAS, devices=devices)
    return Layout(
        _same, placed, one, batch, compiled, REPLICAS, number, False, contextlib.nullcontext
    )


def gathered(state: Any) -> Any:
    """A state that every process has as a whole, on one device of its own.

    Args:
      state: what `Layout.one` gave.

    Returns:
      The state.
    """
    return jax.tree.map(lambda x: jax.device_put(fetched(x), jax.local_devices()[0]), state)


def fetched(x: jax.Array) -> np.ndarray:
    """An array as a whole, on every process.

    Args:
      x: the array; where it is sharded over processes, all of them must ask.

    Returns:
      The array.
    """
    if not x.is_fully_addressable and not x.is_fully_replicated:
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def total(counts: Sequence[Any], layout: Layout) -> int:
    """The sum of what was counted, on all processes.

    Args:
      counts: device numbers: one of all, or of each replica of this process.
      layout: where the state lies that counted them.

    Returns:
      The sum.
    """
    if layout.shared or jax.process_count() == 1:
        return int(sum(np.sum(x) for x in jax.device_get([*counts])))
    own = sum(int(np.sum(shard.data)) for x in counts for shard in x.addressable_shards)
    return int(np.sum(multihost_utils.process_allgather(np.int64(own))))
