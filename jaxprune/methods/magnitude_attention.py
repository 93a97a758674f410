"""Magnitude attention-based dynamic pruning (MAP): every weight counts as much as its magnitude."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import keep, scores
from jaxprune.distributions import Budget, Distribution
from jaxprune.fences import cut
from jaxprune.methods.common import Schedule, end_of, refreshes, refuse_channels, schedule_of
from jaxprune.names import OutputAxis
from jaxprune.network import Network
from jaxprune.numbers import is_traced
from jaxprune.schedules import When, cycles
from jaxprune.selection import largest_of
from jaxprune.transform import Start, method, prune
from jaxprune.trees import Where
from jaxprune.types import Leaves, MaskUpdate, Memory, Signals, View, one_of, wrong
from jaxprune.units import Stacked, units_for
from jaxprune.views import through

_LEAST_FLOOR = 1e-3  # at 0 an exact zero would never come back, a zero-initialised leaf never move

_ON_GRADIENT = (
    "Attention is on the gradient and in the forward pass; of the former Adam-like optimizers keep "
    'little. attention_on="update" scales their update instead: the README has both, measured.'
)


@method
def magnitude_attention(
    inner: optax.GradientTransformation | None,
    *,
    sparsity: Any,
    ramp: tuple[int, int] | None = None,
    every: int = 16,
    stop: int | None = None,
    strength: Any = 1.0,
    masked: Literal["floor", "own"] = "floor",
    forward: bool = True,
    attention_on: Literal["gradient", "update"] | None = None,
    dead_units: Literal["hold", "move"] = "hold",
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    distribution: Distribution = "global",
    overrides: Mapping[str, float] | None = None,
    min_density: float = 0.0,
    stacked: Stacked = None,
    channels: None = None,
    start: Start = None,
    output_axis: OutputAxis = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """MAP: weights enter the forward and the backward pass by an attention from their magnitude.

    With lb = (1 - s_n)^strength and top = max |w| of the layer (a leaf, or a slice of a stacked
    one), both taken at each refresh,

    - attention ``a = lb + (1 - lb) min(|w| / top, 1)``; 1 on an all-zero leaf, 1 everywhere while
      the network is dense;
    - moving masks (updates completed < ``stop``): ``e = m a w``; the gradient of kept weights is
      ``a g``, that of masked ones ``lb g``; every ``every`` updates the mask keeps the largest
      ``|w|`` at the scheduled sparsity;
    - fixed masks (from ``stop`` on): mask, top and lb are frozen; the gradient of kept weights is
      ``a g``, masked weights do not move, by momentum and decay neither.

    `phase_of` tells "moving" from "fixed": the paper's exploration and exploitation.

    Attention on the gradient is the paper's form. Adam-like optimizers divide a factor on the
    gradient out again, but not the attention in the forward pass; ``attention_on="update"`` scales
    the finished update instead, weight decay included. Under adamw the two could not be told apart
    in our one experiment, and both were far ahead of no attention (README).

    Args:
      inner: the optimizer; or None, written out, to stand last in a chain (attention is then on the
        update).
      sparsity: the share to prune, in [0, 1), or a schedule: updates completed -> sparsity.
      ramp: (begin, end) of the cubic ramp, in updates; needed with a number.
      every: updates between two refreshes; there is one at the ramp's end too.
      stop: the last refresh, in updates; by default the ramp's end (never, for a schedule).
      strength: z, the exponent of the floor; 0 is no attention, infinity a = |w| / top.
      masked: what scales the gradient of masked weights, the "floor" lb or their "own" a.
      forward: whether attention is in the forward pass too; False gives ``e = m w``.
      attention_on: "gradient" (the default with an optimizer) or "update" (without).
      dead_units: "hold": masked weights of an output unit without any kept weight get no gradient
        (no update, with attention on the update), a guard against collapse under batch norm;
        "move": they do.
      where: which leaves are pruned; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      distribution: "global", "uniform", "erk", densities, or a function that returns them.
      overrides: ``{pattern: sparsity}``, counted in the total.
      min_density: least share kept in each leaf under a global ranking.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      channels: refused: a channel that is 0 all over has no gradient, by which this method would
        find it again.
      start: first masks, by path, or a function of the first update's `Signals`; the ramp begins at
        the sparsity of masks that are given.
      output_axis: the axes that count a leaf's outputs, where its name says it wrongly or not at
        all: an integer, a tuple, or ``{pattern: either}``.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the pruned network, attention multiplied in.

    Raises:
      ValueError: if a sparsity lies outside [0, 1), comes without its ramp, or the ramp ends before
        it begins; if ``stop`` comes before the ramp's end; if ``strength`` is negative; if a
        choice is none of its values; if ``attention_on="gradient"`` without an optimizer.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.magnitude_attention(optax.sgd(0.1), sparsity=0.5, ramp=(0, 1))
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> zeros = {"kernel": jnp.zeros((2, 2))}
      >>> updates, state = tx.update(zeros, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])  # 3 a = 3 (0.5 + 0.5 * 3 / 4)
      [[ 0.    -4.   ]
       [ 2.625  0.   ]]

    References:
      Back, Ahn and Kim, Magnitude Attention-based Dynamic Pruning, 2023,
      https://arxiv.org/abs/2306.05056. From the paper: attention in both passes, exploration, then
      exploitation. The formula of a, the floor on masked gradients, its hold between refreshes, the
      guard and the update form are our reading.
    """
    refuse_channels(channels)
    units = units_for(where, exclude, output_axis, stacked, network=network)
    schedule = schedule_of(sparsity, ramp, start, units)
    stop = end_of(schedule) if stop is None else stop
    attention_on = attention_on or ("update" if inner is None else "gradient")
    one_of("masked", masked, ("floor", "own"))
    one_of("attention_on", attention_on, ("gradient", "update"))
    if inner is None and attention_on == "gradient":
        hint = "what reaches a method that stands last in a chain are updates"
        raise ValueError(
            wrong("attention_on", "be 'update' where `inner` is None", "gradient", hint)
        )
    if not is_traced(strength) and not strength >= 0:
        raise ValueError(wrong("strength", "be at least 0", strength))
    one_of("dead_units", dead_units, ("hold", "move"))
    when = refreshes(every, schedule, stop)
    attention = _Attention(
        when,
        schedule,
        stop,
        strength,
        own=masked == "own",
        forward=forward,
        on_update=attention_on == "update",
        hold=dead_units == "hold",
    )
    budget = Budget(schedule, distribution, overrides, min_density)
    return prune(
        inner,
        [MaskUpdate(when, scores.magnitude, keep.largest(budget))],
        View(
            attention.seen,
            attention.update_scale,
            inverse=attention.inverse if forward else None,
        ),
        units=units,
        start=start,
        memory=Memory(attention.blank, attention.remember),
        phases=cycles(*([("moving", stop)] if stop else []), then="fixed" if stop else "moving"),
        note="" if attention.on_update else _ON_GRADIENT,
        seed=seed,
    )


class _Attention(NamedTuple):
    """How much each weight counts, in the forward pass and in the backward pass or the update."""

    when: When
    schedule: Schedule
    stop: int | None
    strength: Any
    own: bool
    forward: bool
    on_update: bool
    hold: bool

    def of_weights(self, s: Signals) -> dict[str, jax.Array]:
        """``a = lb + (1 - lb) min(|w| / top, 1)``; the backward pass takes it as given."""
        attention = {}
        for path in s.support:
            floor, top = self.held(s, path)
            a = floor + (1 - floor) * share_of_maximum(s.dense[path], top)
            attention[path] = jax.lax.stop_gradient(a)
        return attention

    def held(self, s: Signals, path: str) -> tuple[jax.Array, jax.Array]:
        """Lb and the maximum of a leaf, in the type of its magnitudes."""
        dtype = s.dense[path].real.dtype
        return s.memory["floor"].astype(dtype), s.memory["top"][path].astype(dtype)

    def of_changes(self, s: Signals, path: str, a: jax.Array) -> jax.Array:
        """A on kept weights; on masked ones the floor, or nothing where the whole unit is dead."""
        lower = a if self.own else self.held(s, path)[0]
        if self.hold and path in s.memory["alive"]:
            lower = jnp.where(s.memory["alive"][path], lower, 0)
        return jnp.where(s.support[path], a, lower)

    def seen(self, s: Signals) -> Leaves:
        """``e = m a w``."""
        leaves = {}
        for path, a in self.of_weights(s).items():
            w = s.dense[path]
            factor = self.of_changes(s, path, a).astype(w.dtype)
            # Selected, not only multiplied: a factor 0 must hold an infinite gradient off, too.
            backward = w if self.on_update else jnp.where(factor != 0, factor * w, 0)
            value = a.astype(w.dtype) * w if self.forward else w
            leaves[path] = through(cut(value, s.support[path]), backward)
        return leaves

    def update_scale(self, s: Signals) -> Leaves:
        """Kept weights always move, masked ones while masks do."""
        moving = True if self.stop is None else s.step < self.stop
        if not self.on_update:
            return {path: m | moving for path, m in s.support.items()}
        return {
            path: jnp.where(s.support[path] | moving, self.of_changes(s, path, a), 0)
            for path, a in self.of_weights(s).items()
        }

    def inverse(self, s: Signals) -> Leaves:
        """The weights of which seen values are the view."""
        return {path: without_attention(s.dense[path], *self.held(s, path)) for path in s.support}

    def blank(self, s: Signals) -> dict[str, Any]:
        """Before the first update the network is dense: a is 1 everywhere."""
        top = s.units.layers(s.mask).full(1.0)
        return {"floor": jnp.ones((), jnp.float32), "top": top, "alive": s.units.living(s.mask)}

    def remember(self, s: Signals) -> dict[str, Any]:
        """lb, maxima and living units of this refresh; on the first update, of the start."""
        age = jnp.where(self.when(s.step), s.step, 0)
        density = 1 - jnp.asarray(self.schedule(age), jnp.float32)
        stacks = s.units.stacks(s.mask)
        return {
            "floor": jnp.maximum(density**self.strength, _LEAST_FLOOR),
            "top": {p: largest_magnitude(s.dense[p], stacks.get(p)) for p in s.support},
            "alive": s.units.living(s.mask),
        }


def largest_magnitude(w: jax.Array, stack: int | None = None) -> jax.Array:
    """The largest finite ``|w|`` of a leaf, or of each slice along the axis of a stack."""
    sizes = jnp.where(jnp.isfinite(w), jnp.abs(w), 0)
    if stack is None:
        return largest_of(sizes)
    return jnp.max(sizes, axis=[a for a in range(w.ndim) if a != stack], keepdims=True)


def share_of_maximum(w: jax.Array, top: jax.Array) -> jax.Array:
    """``min(|w| / top, 1)``; 1 on an all-zero leaf."""
    return jnp.where(top > 0, jnp.minimum(jnp.abs(w) / jnp.where(top > 0, top, 1), 1), 1)


def without_attention(seen: jax.Array, floor: jax.Array, top: jax.Array) -> jax.Array:
    """The w of which ``(floor + (1 - floor) min(|w| / top, 1)) w`` is the seen value."""
    size = jnp.abs(seen)
    curve = (1 - floor) / jnp.where(top > 0, top, 1)  # size = floor |w| + curve |w|^2 below top
    below = 2 * size / (floor + jnp.sqrt(floor**2 + 4 * curve * size))
    return jnp.sign(seen) * jnp.where((size >= top) | (top == 0), size, below)
