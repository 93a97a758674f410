"""Network slimming: a price on the scales of norms, and the channels with the smallest go."""

from typing import Any

import jax.numpy as jnp
import optax

from jaxprune import keep, trees, views
from jaxprune.distributions import Budget, Distribution
from jaxprune.methods.common import end_of, refreshes, schedule_of
from jaxprune.network import ChannelChoice
from jaxprune.transform import method, prune
from jaxprune.types import KEPT, Leaves, MaskUpdate, Signals, check_optimizer, wrong
from jaxprune.units import Channels, units_for
from jaxprune.units.channels import pool


@method
def slimming(
    inner: optax.GradientTransformation,
    *,
    channels: ChannelChoice,
    sparsity: Any,
    ramp: tuple[int, int] | None = None,
    every: int = 16,
    strength: float = 1e-4,
    distribution: Distribution = "global",
    min_density: float = 0.0,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Prunes the channels whose norms have the smallest scales, which a penalty makes small.

    The loss is ``L + strength sum |gamma|`` over the scales of the norms that follow the layers
    of all groups, so ``strength sign(gamma)`` joins their gradients. At update n of a refresh the
    channels of largest ``|gamma|`` stay, along a cubic ramp as in `gradual_magnitude`; a ramp of
    one update is the one-shot form.

    Args:
      inner: the optimizer.
      channels: what ``network.channels(...)`` returned, with norms; its ``score`` is not read.
      sparsity: the share of channels to prune, in [0, 1), or a schedule: updates -> sparsity; of
        the cost, where channels have one.
      ramp: (begin, end) of the cubic ramp, in updates; needed with a number.
      every: updates between two refreshes; there is one at the ramp's end too.
      strength: what the sum of ``|gamma|`` is multiplied by.
      distribution: "global" ranks all scales together, as they are; "uniform" each group's alone;
        beside a cost it is not read.
      min_density: least share kept in each group under a global ranking.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the pruned network after each update.

    Raises:
      ValueError: if a group has no norm, a sparsity lies outside [0, 1) or comes without its ramp.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, jaxprune
      >>> scale = jnp.array([0.1, 2.0, 1.0, 0.2])
      >>> params = {"w": jnp.eye(4), "scale": scale, "head": jnp.ones((4, 1))}
      >>> def fn(params, x):
      ...     h = x @ params["w"]
      ...     h = h - h.mean(0, keepdims=True)
      ...     h = h / jnp.sqrt(h.var(0, keepdims=True) + 1e-5)
      ...     return jax.nn.relu(h * params["scale"][None]) @ params["head"]
      >>> channels = jaxprune.trace(fn, params, jnp.ones((3, 4))).channels(round_to=1)
      >>> tx = jaxprune.slimming(optax.sgd(0.0), channels=channels, sparsity=0.5, ramp=(0, 1))
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["scale"])
      [0. 2. 1. 0.]

    References:
      Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017,
      https://arxiv.org/abs/1708.06519, section 3: the penalty, its subgradient, one threshold over
      all layers. There channels are cut once, after training; the ramp is ours.
    """
    check_optimizer("inner", inner)
    units = units_for(channels=channels)
    groups = units.groups if isinstance(units, Channels) else {}
    plain = [name for name, group in groups.items() if not group.scales]
    if plain or not groups:
        hint = "leave others out by `where`"
        raise ValueError(wrong("channels", "have norms whose scales tell", plain, hint))
    scales = {path for group in groups.values() for path, _ in group.scales}

    def priced(updates: Any, state: Any, params: Any = None) -> Any:
        def one(path: str, update: Any) -> Any:
            return update + strength * jnp.sign(weights[path]) if path in scales else update

        weights = trees.by_path(params)
        return trees.map_with_path(one, updates), state

    price = optax.GradientTransformation(lambda params: optax.EmptyState(), priced)
    schedule = schedule_of(sparsity, ramp, None, units)
    budget = Budget(schedule, distribution, None, min_density)

    def sizes(s: Signals) -> Leaves:
        found = {}
        for name, group in groups.items():
            own = [each for each in group.members if (each.path, each.axis) in group.scales]
            found[name] = pool(own, group.size, lambda path: jnp.abs(s.dense[path]))
        return found

    smallest_go = MaskUpdate(
        refreshes(every, schedule, end_of(schedule)),
        sizes,
        keep.within(budget, units, additive=False),
        KEPT,
    )
    return prune(optax.chain(price, inner), [smallest_go], views.hard, units=units, seed=seed)
