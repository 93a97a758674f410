"""What the configurations share: recipes, the values of methods, and what a comparison is."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

_RAMP = {"sparsity": 0.9, "ramp": (0.0, 0.75), "every": 16, "distribution": "global"}
_ERK = {"sparsity": 0.9, "distribution": "erk", "seed": 0}
_DROP_AND_GROW = {**_ERK, "stop": 0.75, "every": 32, "drop_fraction": 0.3}

METHODS = {
    "dense": {},
    "magnitude_attention": {
        **_RAMP,
        "stop": 5 / 6,
        "strength": 1.0,
        "masked": "floor",
        "forward": True,
        "attention_on": "gradient",
        "dead_units": "hold",
    },
    "straight_through": {**_RAMP, "dead_units": "hold"},
    "gradual_magnitude": _RAMP,
    "static": _ERK,
    "prune_and_grow": {
        **_ERK,
        "stop": 0.75,
        "measure_steps": 20,
        "improve_steps": 20,
        "explore_steps": 20,
        "swap_fraction": (0.3, 0.05),
        "importance": "magnitude",
        "ranking": "leaf",
        "reactivate_from": "recent",
        "grow_from": "explored",
        "freeze_kept": True,
        "freeze_rest": False,
        "warmup": 0.0,
    },
    "rigl": _DROP_AND_GROW,
    "sparse_evolution": _DROP_AND_GROW,
    "layer_attention": {
        "sparsity": 0.9,
        "ramp": (0.0, 0.75),
        "learner_rate": 0.01,
        "alpha": 1.0,
        "gamma": 20.0,
        "attention_init": 0.99,
    },
    "soft_threshold": {"learner_rate": 0.1, "threshold_init": -8.0, "decay": 0.001},
    "movement": {**_RAMP, "learner_rate": 1.0},
}
"""The values of each method; ``ramp``, ``stop``, ``warmup`` and ``begin`` are shares of
the training, periods are in updates. Methods that end in masks of their own choice rank over the
whole network, and those that start sparse share ERK densities, so that a comparison shows the
method and not the budget of layers; layer attention learns its own."""


_PHASES = {"begin": 0.5, "attention_steps": 50, "learner_rate": 0.03, "scores": "attention"}
_SLIM = {"ramp": (0.0, 0.75), "every": 16, "strength": 1e-4, "distribution": "global"}

CHANNEL_METHODS: dict[str, dict[str, Any]] = {
    "filter_attention": {"sparsity": 0.5, **_PHASES, "scope": "global", "seed": 0},
    "slimming": {"sparsity": 0.5, **_SLIM},
}
"""Those of the methods that prune channels alone."""


def named(table: Mapping[str, Any], name: str) -> Any:
    """What a table holds under the name that follows the colon of ``--config``.

    Args:
      table: what there is, by name.
      name: what was asked for; empty where nothing followed a colon.

    Returns:
      The value.

    Raises:
      IllegalFlagValueError: if the table has no such name.

    Examples:
      >>> from experiments.configs import common
      >>> common.named({"rigl": 1}, "rigl")
      1
    """
    if name not in table:
        names = ", ".join(table)
        expected = f"end in a colon and one of {names}"
        raise flags.IllegalFlagValueError(f"`--config` must {expected}, got {name!r}")
    return table[name]


def method(name: str, **values: Any) -> ConfigDict:
    """The config of a method.

    Args:
      name: a key of `METHODS`.
      **values: what differs from the values there; an unknown one is refused.

    Returns:
      ``name`` and all values, locked.

    Raises:
      IllegalFlagValueError: if there is no method of that name.
      KeyError: if the method has no such value.

    Examples:
      >>> from experiments.configs import common
      >>> common.method("magnitude_attention", strength=0.0).strength
      0.0
    """
    known = CHANNEL_METHODS[name] if name in CHANNEL_METHODS else named(METHODS, name)
    config = ConfigDict({"name": name, **known}).lock()
    config.update(values)
    return config


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a comparison: a method, and what is different about it.

    Attributes:
      name: what tables call it.
      method: a key of `METHODS`.
      values: what differs from the method's values there.
      like: an arm that learns how sparse it becomes; this one gets as many weights as that had on
        average over its seeds.
      flops_of: an arm whose training FLOPs this one may spend: it trains longer, or shorter.
      layers_of: an arm whose number of weights in each layer, seed by seed, this one gets at random
        places; for ``static``.
      channels: what differs from the recipe's choice of channels, where it has one.
    """

    name: str
    method: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    like: str = ""
    flops_of: str = ""
    layers_of: str = ""
    channels: Mapping[str, Any] = dataclasses.field(default_factory=dict)


RANDOM = Arm("random", "static")
"""Random masks of ERK densities that never change."""

TARGET_AT_ONCE = Arm(
    "layer_attention, target at once",
    "layer_attention",
    {"attention_init": 0.5, "ramp": None, "gamma": 5.0},
)
"""The form of the authors' code."""


def plain(*methods: str) -> tuple[Arm, ...]:
    """Arms of methods by their own names, with the values of `METHODS`.

    Args:
      *methods: the names.

    Returns:
      An arm each.

    Examples:
      >>> from experiments.configs import common
      >>> [arm.name for arm in common.plain("dense", "rigl")]
      ['dense', 'rigl']
    """
    return tuple(Arm(name, name) for name in methods)


def as_dense(learns: str, *methods: str) -> tuple[Arm, ...]:
    """Arms of methods that become as dense as an arm that learns how dense it becomes.

    Args:
      learns: name of that arm.
      *methods: the names of the methods.

    Returns:
      An arm each.

    Examples:
      >>> from experiments.configs import common
      >>> common.as_dense("layer_attention", "rigl")[0].name
      'rigl, as dense'
    """
    return tuple(Arm(f"{name}, as dense", name, like=learns) for name in methods)


def study(
    name: str,
    recipe: ConfigDict,
    arms: Sequence[Arm],
    *,
    sparsities: Sequence[float] = (0.9,),
    seeds: int = 5,
    subjects: Sequence[str] = (),
    moving: bool = False,
) -> ConfigDict:
    """The config of a comparison.

    Args:
      name: of its files.
      recipe: what all arms share; its method and seed are replaced.
      arms: what is compared, in the order of the runs: an arm comes after those it refers to.
      sparsities: targets; ``dense`` runs once.
      seeds: number of seeds, counted from 0.
      subjects: names of the arms that are told from all others; none: every pair.
      moving: whether one run more of each arm shows how its masks move, at the first sparsity.

    Returns:
      The config, locked.

    Examples:
      >>> from experiments.configs import common
      >>> arms = common.Arm("dense", "dense"), common.Arm("random", "static")
      >>> common.study("small", common.digits_mlp("dense"), arms).seeds
      5
    """
    return ConfigDict(
        {
            "name": name,
            "recipe": recipe,
            "arms": tuple(arms),
            "sparsities": tuple(sparsities),
            "seeds": seeds,
            "subjects": tuple(subjects),
            "moving": moving,
        }
    ).lock()


def base(chosen: ConfigDict, **values: Any) -> ConfigDict:
    """A config with what every experiment has.

    Args:
      chosen: the method.
      **values: what the experiment has besides, or otherwise.

    Returns:
      The config, locked.
    """
    common = {
        "seed": 0,
        "train_split": "train",
        "test_split": "test",
        "augment": False,
        "label_smoothing": 0.0,
        "ema_decay": 0.0,  # of a moving average of the params, beside them; 0 keeps none
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1, "mode": "auto"},  # see `layouts.of`
        "where": "",  # empty: the default rule of jaxprune
        "channels": {},  # empty: weights; else what `network.channels` takes
        "cut_steps": False,  # whether steps compute only the channels that are kept
        "method": chosen,
        "log_every": 20,
        "evaluate_every": 100,
        "checkpoint_every": 100,
        "tensorboard": False,
    }
    return ConfigDict(common | values).lock()


def sgd(rate: float, decay: float, **values: Any) -> dict[str, Any]:
    """The values of SGD with Nesterov momentum 0.9.

    Args:
      rate: the peak of the learning rate.
      decay: L2 penalty.
      **values: the schedule, see `optimizers.learning_rate`; ``decayed``, a regex of the leaves
        that decay, empty for all.

    Returns:
      What configs have as ``optimizer``.
    """
    schedule = {"warmup": 0.0, "warmup_from": 0.5, "drops": (), "drop_factor": 0.1} | values
    return {
        "name": "sgd",
        "learning_rate": rate,
        "momentum": 0.9,
        "weight_decay": decay,
        "decayed": "",
        **schedule,
    }


def digits_mlp(name: str, **values: Any) -> ConfigDict:
    """The MLP on the 8x8 digits: seconds a run.

    Args:
      name: the method.
      **values: values of the method.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import common
      >>> common.digits_mlp("dense").model.name
      'mlp'
    """
    return base(
        method(name, **values),
        data={"name": "digits", "data_dir": ""},
        model={"name": "mlp", "widths": (60, 30)},
        batch_size=64,
        steps=800,
        optimizer=sgd(0.1, 5e-4),
    )


def glyphs_resnet(name: str, **values: Any) -> ConfigDict:
    """The small ResNet on 16x16 glyphs: 1,280 updates of 64 images.

    Args:
      name: the method.
      **values: values of the method.

    Returns:
      The config.

    Examples:
      >>> from experiments.configs import common
      >>> common.glyphs_resnet("straight_through", sparsity=0.95).method.sparsity
      0.95
    """
    return base(
        method(name, **values),
        data={
            "name": "glyphs",
            "data_dir": "",
            "size": 16,
            "difficulty": 1.0,
            "seed": 0,
            "train": 32_000,
            "validation": 6_000,
            "test": 10_000,
        },
        model={"name": "glyph_resnet", "stem": 16, "width": 40, "blocks": 2},
        where="conv",
        batch_size=64,
        steps=1280,
        optimizer=sgd(0.3, 5e-4),
        evaluate_every=320,
        checkpoint_every=320,
    )
