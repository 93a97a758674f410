"""Views: how dense weights and masks make the network that the loss sees."""

import jax
import jax.numpy as jnp

from jaxprune.fences import cut
from jaxprune.types import Leaves, Memory, Signals, View
from jaxprune.units import units_of


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
    """
    return {
        path: through(cut(weights[path], m), jnp.where(m, weights[path], 0))
        for path, m in mask.items()
    }


def _hard(signals: Signals) -> Leaves:
    return masked(signals.dense, signals.support)


hard = View(apply=_hard, copy=False)
"""``e = m * w``. The parameters are the weights: nothing is stored beside the mask."""


at_rest = View(apply=_hard, update_scale=lambda signals: signals.support)
"""``e = m * w``, of weights that are remembered: pruned ones stand still, and grow from there."""


def guarded() -> Memory:
    """Remembers under ``"alive"`` which output units have a weight left: a guard against collapse.

    Returns:
      The memory ``{"alive": {path: bool array}}`` of the leaves whose outputs are known, renewed at
      each refresh (`units.Entries.living` says what for).

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import views
      >>> from jaxprune.types import Signals
      >>> s = Signals(jnp.int32(0), {}, {"kernel": jnp.array([[True, False], [True, False]])})
      >>> print(views.guarded().init(s)["alive"]["kernel"])
      [[ True False]]
    """

    def remember(s: Signals) -> Leaves:
        return {"alive": units_of(s).living(s.mask)}

    return Memory(init=remember, update=remember)
