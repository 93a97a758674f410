"""Training at the small network's cost: what is pruned is not computed.

Between two changes of its channels a network trains as the cut one, and as the whole one only where
a method trains more than its masks keep. The state stays whole: optimizer, masks and checkpoints
know nothing of it, and a run goes on from any step to the same bits.
"""

import collections
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core

import jaxprune
from experiments import channels, data, layouts, training
from jaxprune import trees
from jaxprune.network import program

Places = dict[str, dict[int, tuple[jax.Array, jax.Array]]]
"""By path and axis: the indices that are kept, and where each index of the whole axis went; one
past the last where it is gone. Statistics of batch norm have ``also:`` before their paths."""

Step = Callable[[training.State, data.Batch], tuple[training.State, dict[str, jax.Array]]]


def step_of(
    config: Any, model: nn.Module, shape: tuple[int, ...], layout: layouts.Layout = layouts.ALONE
) -> "Step | CutSteps":
    """The training step of an experiment.

    Args:
      config: the experiment; ``config.cut_steps`` asks for steps on cut networks.
      model: the network.
      shape: of an image.
      layout: where arrays lie.

    Returns:
      `training.step_on` the layout, or `CutSteps` in its place.

    Raises:
      ValueError: if cut networks are asked for where no channels are pruned, or on several devices.
    """
    if not config["cut_steps"] or config["method"]["name"] == "dense":
        return training.step_on(layout)
    if layout is not layouts.ALONE or jax.process_count() > 1:
        raise ValueError("`config.cut_steps` must be False on several devices, got True")
    if not config["channels"]:
        raise ValueError("`config.cut_steps` must be False where weights are pruned, got True")
    return CutSteps(model, shape)


class CutSteps:
    """`training.train_step` of a run that prunes channels, on those that are kept.

    A program is compiled for each cut network: where other channels of the same widths make the
    same one it is used again.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        """The steps of a network.

        Args:
          model: the network.
          shape: of an image.
        """
        self.model, self.net = model, channels.traced(model, shape)
        self.counts = {"whole": 0, "cut": 0}
        self.seconds = {"whole": 0.0, "cut": 0.0, "compiling": 0.0}
        self._compiled, self._programs = 0, collections.OrderedDict[bytes, Any]()
        self._update: Any = None
        self._last: dict[bool, tuple[bytes, Any, Places]] = {}  # of the whole network, and of a cut

    def __call__(
        self, state: training.State, batch: data.Batch
    ) -> tuple[training.State, dict[str, jax.Array]]:
        """One update, waited for.

        Args:
          state: the training state, donated.
          batch: uint8 ``image`` and int32 ``label``.

        Returns:
          The new state; ``loss`` and ``accuracy`` of the batch.
        """
        began = time.perf_counter()
        dense, masks = jax.device_get(_look(state.opt_state))
        whole = bool(dense) or all(mask.all() for mask in masks.values())
        looked = time.perf_counter()
        gradients, places = self._program({} if whole else masks, state, batch)
        ready = time.perf_counter()
        found = gradients(places, state.params, state.batch_stats, batch)
        state = jax.block_until_ready(self._update(state, found))
        kind, compiling = "whole" if whole else "cut", ready - looked
        self.seconds["compiling"] += compiling
        self.seconds[kind] += time.perf_counter() - began - compiling
        self.counts[kind] += 1
        return state, found.metrics

    def told(self) -> dict[str, Any]:
        """What the steps of this process took.

        Returns:
          ``steps``; ``seconds`` they took; ``share``, of as many steps of the whole network, None
          if fewer than three of those were seen; ``compiling``, seconds beside, and ``programs``,
          how many were compiled for that.
        """
        steps, taken = sum(self.counts.values()), self.seconds["whole"] + self.seconds["cut"]
        whole, share = self.counts["whole"], None
        if whole >= _FEWEST:
            share = taken / (steps * self.seconds["whole"] / whole)
        return {
            "steps": steps,
            "seconds": taken,
            "share": share,
            "compiling": self.seconds["compiling"],
            "programs": self._compiled,
        }

    def _program(self, masks: Any, state: training.State, batch: data.Batch) -> tuple[Any, Places]:
        """The compiled gradients of the network that these masks leave, and where it lies."""
        name, whole = b"".join(mask.tobytes() for mask in masks.values()), not masks
        if whole not in self._last or name != self._last[whole][0]:
            by = self.net.cut(masks)
            small = jaxprune.Shrunk(state.params, state.batch_stats, by, self.net)
            places = _places(small)
            given = places, state.params, state.batch_stats, batch
            traced = jax.jit(self._gradients(small, state.recipe)).trace(*given)
            if self._update is None:
                self._update = _update.lower(state, traced.out_info).compile()
            self._last[whole] = name, self._once(traced), places
        return self._last[whole][1:]

    def _once(self, traced: Any) -> Any:
        """The program of what was traced; compiled once, as long as it is among the last used."""
        key = _digest(traced.jaxpr)
        if key not in self._programs:
            self._compiled += 1
            self._programs[key] = traced.lower().compile()
        self._programs.move_to_end(key)
        if len(self._programs) > _MOST:
            self._programs.popitem(last=False)
        return self._programs[key]

    def _gradients(
        self, small: jaxprune.Shrunk, recipe: training.Recipe
    ) -> Callable[..., training.Gradients]:
        """The gradients of a cut network, of whole params and in their shape."""
        apply = channels.applied(small, self.model)

        def gradients(places: Places, params: Any, stats: Any, batch: data.Batch) -> Any:
            less = _kept(params, places), _kept(stats, places, program.ALSO)
            found = training.gradients(apply, *less, batch, recipe)
            there = jax.tree.map(lambda x: jnp.ones(x.shape, bool), less[1])
            there, new = (
                _spread(tree, places, program.ALSO) for tree in (there, found.batch_stats)
            )
            stats = jax.tree.map(jnp.where, there, new, stats)
            return found._replace(grads=_spread(found.grads, places), batch_stats=stats)

        return gradients


_FEWEST, _MOST = 3, 32
"""Steps of the whole network that are a measure of it; programs that are held."""


@jax.jit
def _look(opt_state: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether the coming step is one of the whole network, and the masks."""
    first = optax.tree.get(opt_state, "prune_count") == 0  # params are pruned by an update
    return first | jaxprune.sees_dense(opt_state), jaxprune.masks_by_path(opt_state)


def _digest(of: Any) -> bytes:
    """What tells programs apart: their text and all their constants."""
    found = hashlib.sha256(str(of).encode())
    for constant in _constants(of):
        found.update(np.asarray(constant).tobytes())
    return found.digest()


def _constants(of: Any) -> Iterator[Any]:
    yield from getattr(of, "consts", ())
    for equation in getattr(of, "jaxpr", of).eqns:
        inner = jax.tree.leaves([*equation.params.values()], is_leaf=_is_program)
        for each in filter(_is_program, inner):
            yield from _constants(each)


def _is_program(x: Any) -> bool:
    return isinstance(x, core.ClosedJaxpr | core.Jaxpr)


_update = jax.jit(training.updated, donate_argnums=0)


def _places(small: jaxprune.Shrunk) -> Places:
    found: Places = {}
    for each in small.by.kept:
        number = len(each.indices)
        went = np.full(each.size, number, np.int32)
        went[each.indices] = np.arange(number)
        places = jnp.asarray(each.indices, jnp.int32), jnp.asarray(went)
        found.setdefault(each.path, {})[each.axis] = places
    return found


def _kept(tree: Any, places: Places, prefix: str = "") -> Any:
    """A whole tree, cut."""

    def one(path: str, x: Any) -> Any:
        for axis, (kept, _) in places.get(prefix + path, {}).items():
            x = jnp.take(x, kept, axis=axis)
        return x

    return trees.map_with_path(one, tree)


def _spread(tree: Any, places: Places, prefix: str = "") -> Any:
    """A cut tree at full size, with zeros where something went."""

    def one(path: str, x: Any) -> Any:
        for axis, (_, went) in places.get(prefix + path, {}).items():
            behind = [(0, int(axis == k)) for k in range(x.ndim)]
            x = jnp.take(jnp.pad(x, behind), went, axis=axis, mode="clip")
        return x

    return trees.map_with_path(one, tree)
