"""What an entry is worth: functions of `Signals`, one score for each entry of each prunable leaf.

Higher is kept. They give ``{path: array or Ranked}`` for the prunable leaves, in their shape; or by
site, in the shape of its mask.
"""

import jax
import jax.numpy as jnp

from jaxprune.trees import is_complex, uniform_like
from jaxprune.types import Leaves, Ranked, Signals, wrong
from jaxprune.units import Channels


def magnitude(signals: Signals) -> Leaves:
    """The size of each weight; of channels, what they were chosen to be worth.

    |w|.

    Args:
      signals: of which ``dense`` is read.

    Returns:
      ``{path: score}`` in the dtype of the weights (real for complex ones).

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.scores import magnitude
      >>> from jaxprune.types import Signals
      >>> w, m = jnp.array([1.0, -2.0]), jnp.ones(2, bool)
      >>> magnitude(Signals(jnp.int32(1), dense={"w": w}, mask={"w": m}))["w"].scores.tolist()
      [1.0, 2.0]

    References:
      Janowsky, "Pruning versus clipping in neural networks", 1989,
      https://doi.org/10.1103/PhysRevA.39.6600; Han et al., "Learning both weights and connections
      for efficient neural networks", 2015, https://arxiv.org/abs/1506.02626.
    """
    if isinstance(signals.units, Channels):
        return signals.units.worth(signals, lambda p: _product(signals, p))
    return {path: _size(signals.dense[path]) for path in signals.support}


def gradient(signals: Signals) -> Leaves:
    """The size of the gradient at each entry, the pruned ones included.

    |g|, with g the gradient with respect to the network that the loss saw.

    Args:
      signals: of which ``grads`` is read.

    Returns:
      ``{path: score}`` in the dtype of the gradients (real for complex ones).

    Raises:
      ValueError: if there is no gradient, as where a method stands last in a chain.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.scores import gradient
      >>> from jaxprune.types import Signals
      >>> w, g, m = jnp.array([1.0, -2.0]), jnp.array([-3.0, 0.5]), jnp.ones(2, bool)
      >>> s = Signals(step=jnp.int32(1), dense={"w": w}, mask={"w": m}, grads={"w": g})
      >>> gradient(s)["w"].scores.tolist()
      [3.0, 0.5]

    References:
      Evci et al., "Rigging the lottery: making all tickets winners", 2020,
      https://arxiv.org/abs/1911.11134, section 3: the criterion by which it grows.
    """
    return {path: _size(_gradient(signals, path)) for path in signals.support}


def saliency(signals: Signals) -> Leaves:
    """What the loss would change, to first order, if an entry were removed.

    |w g|.

    Args:
      signals: of which ``dense`` and ``grads`` are read.

    Returns:
      ``{path: score}`` in the dtype of the weights (real for complex ones).

    Raises:
      ValueError: if there is no gradient, as where a method stands last in a chain.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune.scores import saliency
      >>> from jaxprune.types import Signals
      >>> w, g, m = jnp.array([1.0, -2.0]), jnp.array([-3.0, 0.5]), jnp.ones(2, bool)
      >>> s = Signals(step=jnp.int32(1), dense={"w": w}, mask={"w": m}, grads={"w": g})
      >>> saliency(s)["w"].scores.tolist()
      [3.0, 1.0]

    References:
      Mozer & Smolensky, "Skeletonization", 1988; Lee, Ajanthan & Torr, "SNIP: single-shot network
      pruning based on connection sensitivity", 2019, https://arxiv.org/abs/1810.02340, eq. 6.
    """
    if isinstance(signals.units, Channels):
        sums = signals.units.at_gates(lambda p: _product(signals, p))
        return {name: jnp.abs(each) for name, each in sums.items()}
    return {
        path: _saliency(signals.dense[path], _gradient(signals, path)) for path in signals.support
    }


def random(signals: Signals) -> Leaves:
    """Chance: independent uniform numbers, other ones at each step and in each leaf.

    u ~ U[0, 1), from the key folded with the crc32 of the path: the same on all hosts.

    Args:
      signals: of which ``key`` and the masks' shapes are read.

    Returns:
      ``{path: float32}``.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxprune.scores import random
      >>> from jaxprune.types import Signals
      >>> key, mask = jax.random.key_data(jax.random.key(0)), {"w": jnp.ones((2, 3), bool)}
      >>> random(Signals(step=jnp.int32(1), dense={}, mask=mask, key=key))["w"].shape
      (2, 3)
    """
    return {path: uniform_like(signals.key, path, mask) for path, mask in signals.mask.items()}


def _product(signals: Signals, path: str) -> jax.Array:
    weight = signals.dense[path]
    return weight * _gradient(signals, path).astype(weight.dtype)


def _gradient(signals: Signals, path: str) -> jax.Array:
    if path not in signals.grads:
        hint = "last in a chain, as with None, updates arrive and no gradients; a view that "
        hint += "keeps a dense copy ranks new weights, which have none yet"
        raise ValueError(wrong("inner", f"give scores the gradient of '{path}'", "none", hint))
    return signals.grads[path]


def _size(x: jax.Array) -> Ranked | jax.Array:
    """Its magnitude, which selection reads without writing it out."""
    return jnp.abs(x) if is_complex(x) else Ranked(x, magnitude=True)


def _saliency(weight: jax.Array, grad: jax.Array) -> Ranked | jax.Array:
    """The product in the weights' dtype: gradients may come narrower."""
    grad = grad.astype(weight.dtype)
    return jnp.abs(weight * grad) if is_complex(weight) else Ranked(weight, True, factor=grad)
