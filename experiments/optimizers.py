"""From a config to an optax transformation: the optimizer, and a pruning method around it."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import optax

import jaxprune
from experiments.configs import common
from jaxprune import trees

METHODS = {
    name: getattr(jaxprune, name)
    for name in (
        "magnitude_attention",
        "straight_through",
        "gradual_magnitude",
        "static",
        "prune_and_grow",
        "rigl",
        "sparse_evolution",
        "layer_attention",
        "soft_threshold",
        "movement",
        "filter_attention",
        "slimming",
    )
}
"""Pruning methods by the name a config gives; ``dense`` is the optimizer alone."""

_SHARES = ("ramp", "stop", "warmup", "begin")

_LEARN = ("layer_attention", "soft_threshold", "movement")
"""What learns beside the weights, by an optimizer of its own, along with them."""

_LEARN_APART = ("filter_attention",)
"""What learns while the weights stand still, by Adam."""


def build(config: Any, channels: Any = None) -> optax.GradientTransformation:
    """The optimizer of an experiment, inside its pruning method.

    Args:
      config: the experiment. ``config.method`` holds the ``name`` of the method and its keyword
        values; ``ramp``, ``stop``, ``warmup`` and ``begin`` are shares of the training
        there, not updates, so that a shorter run is the same recipe. Periods are in updates.
        ``learner_rate`` is the highest learning rate of what is learned beside the weights, by SGD
        with momentum 0.9 on the weights' own schedule; or that of Adam, where it is learned apart.
      channels: what `channels.choice` returned; None prunes weights.

    Returns:
      A gradient transformation.

    Raises:
      ValueError: if the method, the optimizer or the schedule has no such name.

    Examples:
      >>> import jax.numpy as jnp, jaxprune
      >>> from experiments import optimizers
      >>> from experiments.configs import common
      >>> config = common.digits_mlp("magnitude_attention", sparsity=0.95)
      >>> state = optimizers.build(config).init({"kernel": jnp.ones((4, 4))})
      >>> jaxprune.describe(state)["sparsity"], jaxprune.describe(state)["ramp"]
      (0.95, [0, 600])
    """
    optimizer = inner(config)
    options = in_updates(config["method"], config["steps"])
    name = options.pop("name")
    if name == "dense":
        return optimizer
    method = _of(METHODS, name, "method.name")
    if name in _LEARN:
        options["learner"] = _learner(config, options.pop("learner_rate"))
    if name in _LEARN_APART:
        options["learner"] = optax.adam(options.pop("learner_rate"))
    if channels is None and name in common.CHANNEL_METHODS:
        expected = "say which channels, as configs of channels do"
        raise ValueError(f"`config.channels` must {expected}, got none for {name}")
    where = {"where": config["where"] or None} if channels is None else {"channels": channels}
    return method(optimizer, **where, **options)


def _learner(config: Any, peak: float) -> optax.GradientTransformation:
    """Momentum on the schedule of the weights, at another height."""
    schedule = learning_rate(config["optimizer"], config["steps"])
    share = peak / config["optimizer"]["learning_rate"]
    return optax.sgd(lambda count: share * schedule(count), momentum=0.9)


def inner(config: Any) -> optax.GradientTransformation:
    """The optimizer of an experiment alone.

    Args:
      config: the experiment.

    Returns:
      A gradient transformation.

    Raises:
      ValueError: if the optimizer has no such name.

    Examples:
      >>> from experiments import optimizers
      >>> from experiments.configs import common
      >>> optimizer = optimizers.inner(common.digits_mlp("dense"))
    """
    chosen = _of({"sgd": _sgd, "adamw": _adamw}, config["optimizer"]["name"], "optimizer.name")
    return chosen(config["optimizer"], config["steps"])


def in_updates(method: Any, steps: int) -> dict[str, Any]:
    """A method's values with its times in updates instead of shares of the training.

    Args:
      method: ``name`` and values of a method.
      steps: length of the training in updates.

    Returns:
      The same names; whole updates.

    Examples:
      >>> from experiments import optimizers
      >>> optimizers.in_updates({"name": "magnitude_attention", "ramp": (0.0, 0.75)}, 1000)
      {'name': 'magnitude_attention', 'ramp': (0, 750)}
    """
    options = dict(method)
    for name in _SHARES:
        if options.get(name) is not None:
            options[name] = jax.tree.map(lambda share: round(share * steps), options[name])
    return options


def _of(table: Mapping[str, Any], name: str, argument: str) -> Any:
    if name not in table:
        raise ValueError(f"`{argument}` must be one of {', '.join(table)}, got {name!r}")
    return table[name]


def _sgd(config: Any, steps: int) -> optax.GradientTransformation:
    """Nesterov momentum; the decay joins the gradient, as an L2 penalty."""
    return optax.chain(
        optax.add_decayed_weights(config["weight_decay"], _decayed(config["decayed"])),
        optax.sgd(learning_rate(config, steps), momentum=config["momentum"], nesterov=True),
    )


def _adamw(config: Any, steps: int) -> optax.GradientTransformation:
    rate = learning_rate(config, steps)
    decay, which = config["weight_decay"], _decayed(config["decayed"])
    return optax.adamw(rate, b1=config["momentum"], weight_decay=decay, mask=which)


def _decayed(pattern: str) -> Any:
    """Which leaves decay: all, or those whose path has a pattern."""
    if not pattern:
        return None

    def decays(path: str, leaf: Any) -> bool:
        del leaf
        return bool(re.search(pattern, path))

    return functools.partial(trees.map_with_path, decays)


def learning_rate(config: Any, steps: int) -> optax.Schedule:
    """The learning rate over the updates.

    Args:
      config: ``learning_rate``, the peak; ``warmup``, the share of training in which it rises from
        ``warmup_from`` of that; ``drops``, the shares at which it is multiplied by ``drop_factor``,
        or empty for a cosine to 0.
      steps: length of the training in updates.

    Returns:
      A function of the updates completed.

    Examples:
      >>> from experiments import optimizers
      >>> config = {"learning_rate": 1.0, "warmup": 0.0, "drops": (0.5,), "drop_factor": 0.25}
      >>> rate = optimizers.learning_rate(config, steps=10)
      >>> float(rate(4)), float(rate(5))
      (1.0, 0.25)

    References:
      Loshchilov and Hutter, SGDR, 2016, https://arxiv.org/abs/1608.03983 (the cosine).
    """
    peak, warmup = config["learning_rate"], round(config["warmup"] * steps)
    main = optax.cosine_decay_schedule(peak, steps - warmup)
    if config["drops"]:
        drops = {round(share * steps) - warmup: config["drop_factor"] for share in config["drops"]}
        main = optax.piecewise_constant_schedule(peak, drops)
    if not warmup:
        return main
    return optax.join_schedules(
        [optax.linear_schedule(config["warmup_from"] * peak, peak, warmup), main], [warmup]
    )
