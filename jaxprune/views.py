"""Views: how dense weights and masks make the network that the loss sees."""

import jax
import jax.numpy as jnp

from jaxprune.distributions import Stacked, stack_axes
from jaxprune.selection import cut
from jaxprune.trees import OutputAxis, output_axes
from jaxprune.types import Leaves, Memory, Signals, View


@jax.custom_jvp
def through(value: jax.Array, x: jax.Array) -> jax.Array:
    """The value of one array with the derivative of another.

    ``through(v, x) = v`` forward, bit for bit, also where x is infinite; its derivative is that of
    ``x``: a straight-through estimator for any pair.

    Args:
      value: what is returned, of any shape.
      x: what is differentiated, of the same shape.

    Returns:
      ``value``.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import views
      >>> print(jax.grad(lambda x: views.through(jnp.round(x), 2 * x))(0.7))
      2.0

    References:
      Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013,
      https://arxiv.org/abs/1308.3432 (the straight-through estimator).
    """
    del x
    return value


@through.defjvp
def _through_jvp(primals: tuple, tangents: tuple) -> tuple:
    return primals[0], tangents[1]


def masked(weights: Leaves, mask: Leaves) -> dict[str, jax.Array]:
    """Weights where the mask keeps them and exactly +0.0 elsewhere; the gradient is cut alike.

    Args:
      weights: ``{path: array}``.
      mask: ``{path: bool array}``, the leaves to cut.

    Returns:
      ``{path: m * w}`` for the paths of the mask; a pruned infinity or NaN is 0 too.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import views
      >>> w, m = jnp.array([1.0, jnp.nan]), jnp.array([True, False])
      >>> print(views.masked({"w": w}, {"w": m})["w"])
      [1. 0.]

    References:
      original.
    """
    return {
        path: through(cut(weights[path], m), jnp.where(m, weights[path], 0))
        for path, m in mask.items()
    }


def _hard(signals: Signals) -> Leaves:
    return masked(signals.dense, signals.mask)


hard = View(apply=_hard)
"""``e = m * w``. The parameters are the weights: nothing is stored beside the mask."""


def living_units(
    mask: Leaves, output_axis: OutputAxis = None, stacked: Stacked = None
) -> dict[str, jax.Array]:
    """Which output units (filters, neurons) of each leaf have a weight left.

    Args:
      mask: ``{path: bool array}``, True = kept.
      output_axis: the axis that counts the outputs, where the default rule is wrong. Where the rule
        says the stack's own axis, it means its neighbour: the first or the last of a slice.
      stacked: ``{pattern: axis}`` of scanned layers: each slice has units of its own.

    Returns:
      ``{path: bool array}`` of length 1 along every axis but the outputs' and the stack's.

    Raises:
      ValueError: if an axis is out of range, or a pattern matches no path.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import views
      >>> print(views.living_units({"kernel": jnp.array([[True, False], [True, False]])})["kernel"])
      [[ True False]]

    References:
      original.
    """
    units, stacks = output_axes(mask, output_axis), stack_axes(mask, stacked)
    for path, stack in stacks.items():
        if units[path] == stack:
            units[path] = abs(stack - 1) if mask[path].ndim > 1 else stack
    return {
        path: jnp.any(m, axis=_others(m, units[path], stacks.get(path)), keepdims=True)
        for path, m in mask.items()
    }


def _others(array: jax.Array, *axes: int | None) -> list[int]:
    return [axis for axis in range(array.ndim) if axis not in axes]


def guard(output_axis: OutputAxis = None, stacked: Stacked = None) -> Memory:
    """Remembers under ``"alive"`` which output units have a weight left: a guard against collapse.

    Under batch norm a filter without a kept weight outputs 0, its variance is 0, and the backward
    pass is multiplied by ``1 / sqrt(eps)``; were its masked weights to learn from that gradient,
    they would rise into the ranking and other filters would die in their place.

    Args:
      output_axis: the axis that counts the outputs, where the default rule is wrong.
      stacked: ``{pattern: axis}`` of scanned layers: each slice has units of its own.

    Returns:
      The memory ``{"alive": living units}``, renewed at each refresh.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import views
      >>> memory = views.guard().init({"kernel": jnp.eye(2, dtype=bool)})
      >>> print(memory["alive"]["kernel"])
      [[ True  True]]

    References:
      original.
    """

    def remember(mask: Leaves) -> Leaves:
        return {"alive": living_units(mask, output_axis, stacked)}

    return Memory(init=remember, update=lambda signals: remember(signals.mask))
