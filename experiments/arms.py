"""Trains one arm of a comparison after another: another method, all else the same."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import jaxprune
from experiments import channels, cut_steps, data, measures, models, optimizers, states, training
from experiments.configs import common
from experiments.configs.common import Arm
from jaxprune import trees
from jaxprune.state import PRNG

Row = dict[str, Any]
Changes = list[tuple[int, np.ndarray]]

_LONGEST = 4.0
"""Training for equal FLOPs stops at so many times the recipe's updates."""


def told(arm: Arm) -> dict[str, Any]:
    """An arm as results hold it.

    Args:
      arm: the arm.

    Returns:
      Its attributes, as JSON has them.

    Examples:
      >>> from experiments import arms
      >>> from experiments.configs.common import Arm
      >>> arms.told(Arm("a", "rigl", {"every": 8}))["values"]
      {'every': 8}
    """
    return json.loads(json.dumps(dataclasses.asdict(arm)))


class Experiment:
    """The data and the network of a recipe, ready to train one arm after another."""

    def __init__(self, recipe: Any, workdir: pathlib.Path | None = None) -> None:
        """Load the data.

        Args:
          recipe: the config that all arms share; its method and seed are replaced.
          workdir: keeps latencies, so that all arms have one table.
        """
        self.recipe, self.workdir = recipe, workdir
        self.train = data.load(recipe.data, recipe.train_split)
        self.test = data.load(recipe.data, recipe.test_split)
        self.model = models.build(recipe.model, self.train.classes)

    def config(self, arm: Arm, sparsity: float) -> Any:
        """The config of an arm.

        Args:
          arm: the arm.
          sparsity: its target; 0 for ``dense``.

        Returns:
          A copy of the recipe with that method.
        """
        config: Any = ConfigDict(self.recipe.to_dict())
        target = {"sparsity": sparsity} if sparsity else {}
        config.method = common.method(arm.method, **arm.values, **target)
        if config.channels:
            config.channels.update(arm.channels)
        return config

    def choice(self, config: Any) -> Any:
        """The channels that a config prunes; None where it prunes weights, or nothing.

        Args:
          config: what `config` returned.

        Returns:
          What methods take as ``channels``.
        """
        if config.method.name == "dense":
            return None
        return channels.choice(config, self.model, self.train.shape, self.workdir)

    def masks(self, arm: Arm, sparsity: float) -> Changes:
        """Trains once, from seed 0, and takes the masks whenever they have changed.

        Args:
          arm: the arm.
          sparsity: its target.

        Returns:
          ``(step, mask)`` of every change, those after the first step included; all leaves as one
          vector.
        """
        found: Changes = []

        def watch(step: int, state: training.State) -> None:
            leaves = jax.tree.leaves(jaxprune.get_masks(state.opt_state))
            mask = np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])
            if not found or (mask != found[-1][1]).any():
                found.append((step, mask))

        config = self.config(arm, sparsity)
        choice = self.choice(config)
        state = training.create(self.model, optimizers.build(config, choice), self.train, seed=0)
        self._trained(_with_random_masks(state, config, choice), config, watch)
        return found

    def runs(
        self, arm: Arm, sparsity: float, seeds: Iterable[int], finished: Sequence[Row]
    ) -> Iterable[Row]:
        """Trains an arm at one sparsity from several seeds, on one compiled step.

        Args:
          arm: the arm.
          sparsity: its target.
          seeds: of initial weights, order of the data and random masks.
          finished: results so far, where an arm finds what it refers to.

        Yields:
          A row of results for each seed.
        """
        config = self.config(arm, _sparsity_of(finished, arm, sparsity))
        longer = _steps_at_equal_flops(finished, arm, sparsity)
        config.steps = round(longer * self.recipe.steps)
        choice = self.choice(config)
        tx = optimizers.build(config, choice)
        if arm.layers_of:  # all kept, and masks of each seed below
            state = training.create(self.model, tx, self.train, 0)
            whole = jax.tree.map(jnp.ones_like, jaxprune.get_masks(state.opt_state))
            rule: dict[str, Any] = (
                {"where": config.where or None} if choice is None else {"channels": choice}
            )
            tx = jaxprune.static(optimizers.inner(config), masks=whole, **rule)
        for seed in seeds:
            config.seed, began = seed, time.perf_counter()
            state = training.create(self.model, tx, self.train, seed)
            counted = sparsity and choice is None
            expected = jaxprune.plan(tx, state.params).kept if counted else None
            if arm.layers_of:
                layers = _layers(finished, arm, sparsity, seed)
                expected = sum(kept for kept, _ in layers.values()) if counted else None
                state = _with_shuffled_masks(state, layers, seed)
            else:
                state = _with_random_masks(state, config, choice)
            state, curve = self._trained(state, config)
            result = measures.result(state, config, measures.accuracies(state, self.test))
            if expected is not None:
                _check_count(result, expected, states.sparsity(state.opt_state))
            if choice is not None:
                result |= channels.of_cut(self.model, state, self.test)[0]
            result["training_flops"] *= longer  # of a dense run as long as the recipe
            yield result | {
                "method": arm.name,
                "arm": told(arm),
                "target": sparsity,
                "learns_sparsity": bool(sparsity) and choice is None and expected is None,
                "seconds": round(time.perf_counter() - began, 2),
                "curve": curve,
                "dense_phases": states.dense_phases(state.opt_state, config.steps),
            }

    def _trained(
        self, state: training.State, config: Any, watch: Callable[[int, Any], None] | None = None
    ) -> tuple[training.State, list[dict[str, float]]]:
        """The state after all updates; waited for where the curve is taken, or channels are cut."""
        curve, window = [], []
        train_step = cut_steps.step_of(config, self.model, self.train.shape)
        batches = self.train.batches(config.batch_size, seed=config.seed, augment=config.augment)
        for step, batch in zip(range(1, config.steps + 1), batches, strict=False):
            state, metrics = train_step(state, batch)
            window.append(metrics)
            if watch:
                watch(step, state)
            last = step == config.steps
            if step % config.log_every == 0 or last:
                row = measures.mean(window) | {"sparsity": states.sparsity(state.opt_state)}
                if step % config.evaluate_every == 0 or last:
                    row["test_accuracy"] = measures.accuracy(state, self.test)
                curve.append({"step": step, **row})
                window = []
        return state, curve


def _with_random_masks(state: training.State, config: Any, choice: Any = None) -> training.State:
    """Random masks of the run's own seed: they are part of the state, so nothing recompiles."""
    if not states.is_pruned(state.opt_state):
        return state
    if "seed" not in config.method:  # scores may be random all the same
        key = jax.random.key_data(jax.random.key(config.seed, impl=PRNG))
        return state.replace(opt_state=optax.tree.set(state.opt_state, prune_key=key))
    seeded: Any = ConfigDict(config.to_dict())
    seeded.method.seed = config.seed
    drawn = optimizers.build(seeded, choice).init(state.params)
    drawn_parts = ("prune_key", "prune_mask", "prune_learned")
    own = {name: optax.tree.get(drawn, name) for name in drawn_parts}
    return state.replace(opt_state=optax.tree.set(state.opt_state, **own))


def _with_shuffled_masks(
    state: training.State, layers: Mapping[str, Sequence[int]], seed: int
) -> training.State:
    """Masks with given counts at random places; masks are part of the state as well."""
    masks = jaxprune.get_masks(state.opt_state)
    shares = {path: kept / total for path, (kept, total) in layers.items()}
    density = trees.from_paths(masks, shares)
    shuffled = jaxprune.masks.random(jax.random.key(seed), masks, density)
    return state.replace(opt_state=optax.tree.set(state.opt_state, prune_mask=shuffled))


def _referred(finished: Sequence[Row], name: str, arm: Arm, sparsity: float) -> list[Row]:
    """The runs of another arm that this one refers to; a dense run is one at every sparsity."""
    found = [r for r in finished if r["method"] == name and r["target"] in (0.0, sparsity)]
    if not found:
        raise ValueError(f"`arms` must hold {name} before {arm.name}, got no run at {sparsity}")
    return found


def _layers(
    finished: Sequence[Row], arm: Arm, sparsity: float, seed: int
) -> Mapping[str, Sequence[int]]:
    for row in _referred(finished, arm.layers_of, arm, sparsity):
        if row["seed"] == seed:
            return row["layers"]
    raise ValueError(f"`seeds` must be at most those of {arm.layers_of}, got {seed}")


def _sparsity_of(finished: Sequence[Row], arm: Arm, sparsity: float) -> float:
    """The sparsity that an arm is to reach: the target, or what another reached on average."""
    if not arm.like:
        return sparsity
    rows = _referred(finished, arm.like, arm, sparsity)
    total = rows[0]["total"]
    return (total - round(float(np.mean([row["kept"] for row in rows])))) / total


def _steps_at_equal_flops(finished: Sequence[Row], arm: Arm, sparsity: float) -> float:
    """How many times as long an arm may train as the recipe; 1 where it names no other."""
    if not arm.flops_of:
        return 1.0
    other = _referred(finished, arm.flops_of, arm, sparsity)
    itself = told(dataclasses.replace(arm, flops_of=""))
    names = [row["method"] for row in finished if row["arm"] | {"name": arm.name} == itself]
    own = _referred(finished, names[0] if names else f"{arm.name} at equal steps", arm, sparsity)
    return min(other[-1]["training_flops"] / own[-1]["training_flops"], _LONGEST)


def _check_count(result: Mapping[str, Any], expected: int, sparsity: float) -> None:
    """Masks keep as many as asked for; params may keep fewer: what grows in a dead unit stays 0."""
    masked = round(result["total"] * (1 - sparsity))
    if masked != expected or result["kept"] > expected:
        came = f"{result['kept']} of {result['total']}, and masks that keep {masked}"
        raise ValueError(f"`params` must keep {expected} weights, got {came}")
