"""Methods x sparsities x seeds under one recipe, with dense, random and shuffled-mask controls.

    python -m experiments.compare --config experiments/configs/glyph_resnet_glyphs_dense.py
        --workdir runs/glyphs --sparsities 0.9,0.95,0.98 --seeds 5

Every number is of the final params, whose sparsity is counted on them. Runs that are finished stay
in ``results.json`` and are not run again. The seeds of a method run one after another on one
compiled step: vmapped convolutions are several times slower on a CPU.

A method's values follow its name: ``--methods rigl:every=8,rigl:every=32:stop=0.5``. What follows
an ``@`` is a finished method whose training FLOPs a method may spend: ``rigl@gradual_magnitude``
trains for more updates, or fewer. What follows a ``~`` is a finished method that learns how sparse
it becomes: ``rigl~layer_attention`` is as dense as that was on average.
``--moving rigl,prune_and_grow`` draws how their masks move.
"""

import ast
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

import jaxprune
from experiments import data, models, optimizers, plots, report, training
from experiments.configs import common
from jaxprune import distributions, trees

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "magnitude_attention": ("magnitude_attention", {}),
    "magnitude_attention_strength_0": ("magnitude_attention", {"strength": 0.0}),
    "magnitude_attention_backward_only": ("magnitude_attention", {"forward": False}),
    "straight_through": ("straight_through", {}),
    "straight_through_without_guard": ("straight_through", {"dead_units": "move"}),
    "gradual_magnitude": ("gradual_magnitude", {}),
    "random": ("static", {}),
    "random_uniform": ("static", {"distribution": "uniform"}),
    "shuffled": ("static", {}),
    "sparse_evolution": ("sparse_evolution", {}),
    "rigl": ("rigl", {}),
    "prune_and_grow": ("prune_and_grow", {}),
    "prune_and_grow_without_exploring": ("prune_and_grow", {"explore_steps": 0}),
    "prune_and_grow_without_improving": ("prune_and_grow", {"improve_steps": 0}),
    "prune_and_grow_without_freezing": ("prune_and_grow", {"freeze_kept": False}),
    "prune_and_grow_from_zero": ("prune_and_grow", {"grow_from": "zero"}),
    "layer_attention": ("layer_attention", {}),
    "layer_attention_after_norm": ("layer_attention", {"site": "after_norm"}),
    "layer_attention_target_at_once": (
        "layer_attention",
        {"attention_init": 0.5, "target_anneal": None, "gamma": 5.0},
    ),
    "movement": ("movement", {}),
    **{
        f"prune_and_grow_{steps}": (
            "prune_and_grow",
            dict.fromkeys(("measure_steps", "improve_steps", "explore_steps"), steps),
        )
        for steps in (10, 40)
    },
}
"""What is compared, by name: a method and the values that differ from the common ones. ``random``
draws masks of ERK densities, ``random_uniform`` of one density everywhere; ``shuffled`` has as many
weights in each layer as the final mask of magnitude attention of the same seed, elsewhere, and
trains from scratch. ``layer_attention_target_at_once`` has the form of its authors' code.
``prune_and_grow_10`` has stages of 10 updates each, not of 20."""

_LONGEST = 4.0
"""Training for equal FLOPs stops at so many times the recipe's updates."""


class Experiment:
    """The data and the network of a recipe, ready to train one method after another."""

    def __init__(self, config: Any) -> None:
        """Load the data.

        Args:
          config: the recipe; its method and seed are replaced.
        """
        self.config = config
        self.train = data.load(config.data, config.train_split)
        self.test = data.load(config.data, config.test_split)
        self.model = models.build(config.model, self.train.classes)

    def recipe(self, method: str, sparsity: float) -> Any:
        """The config of a method.

        Args:
          method: a key of `METHODS`.
          sparsity: its target; 0 for ``dense``.

        Returns:
          A copy of the config with that method.
        """
        name, values = _method(method)
        config: Any = ConfigDict(self.config.to_dict())
        config.method = common.method(name, **values | ({"sparsity": sparsity} if sparsity else {}))
        return config

    def masks(
        self, method: str, sparsity: float, seed: int = 0
    ) -> list[tuple[int, np.ndarray[Any, np.dtype[np.bool_]]]]:
        """Trains once and takes the masks whenever they have changed.

        Args:
          method: a key of `METHODS`, and values.
          sparsity: its target.
          seed: of the run.

        Returns:
          ``(step, mask)`` of every change, the first masks included; all leaves as one vector.
        """
        found: list[tuple[int, np.ndarray]] = []

        def watch(step: int, state: training.State) -> None:
            leaves = jax.tree.leaves(jaxprune.get_masks(state.opt_state))
            mask = np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])
            if not found or (mask != found[-1][1]).any():
                found.append((step, mask))

        config = self.recipe(method, sparsity)
        config.seed = seed
        state = training.create(self.model, optimizers.build(config), self.train, seed)
        state = _with_random_masks(state, config) if "seed" in config.method else state
        self._trained(state, config, watch)
        return found

    def runs(
        self, method: str, sparsity: float, seeds: Iterable[int], finished: Sequence[Mapping]
    ) -> Iterable[dict[str, Any]]:
        """Trains a method at one sparsity from several seeds, on one compiled step.

        Args:
          method: a key of `METHODS`.
          sparsity: its target.
          seeds: of initial weights, order of the data and random masks.
          finished: results so far; ``shuffled`` finds its densities there, a method with an ``@``
            what it and the other cost, and one with a ``~`` how dense the other became.

        Yields:
          A row of results for each seed.
        """
        reach = _reached(finished, method, sparsity)
        config = self.recipe(method, reach)
        longer = _steps_at_equal_flops(finished, method, sparsity)
        config.steps = round(longer * self.config.steps)
        tx = optimizers.build(config)
        if method == "shuffled":
            params = training.create(self.model, tx, self.train, 0).params
            whole = jaxprune.masks.nonzero(jax.tree.map(np.ones_like, params))
            tx = jaxprune.static(optimizers.inner(config), masks=whole, where=config.where or None)
        for seed in seeds:
            config.seed, began = seed, time.perf_counter()
            state = training.create(self.model, tx, self.train, seed)
            if method == "shuffled":
                state = _with_shuffled_masks(state, _layers(finished, sparsity, seed), seed)
            elif "seed" in config.method:
                state = _with_random_masks(state, config)
            state, curve = self._trained(state, config)
            result = training.result(state, self.test, config)
            masked = training.sparsity(state, config.method.name)
            if config.method.name not in training.ONE_A_LAYER:  # a target is what draws these
                _check_count(result, reach, masked)
            if "training_flops" in result:  # of a dense run as long as the recipe
                result["training_flops"] *= longer
            yield result | {
                "method": method,
                "target": sparsity,
                "seconds": round(time.perf_counter() - began, 2),
                "curve": curve,
            }

    def _trained(
        self, state: training.State, config: Any, watch: Callable[[int, Any], None] | None = None
    ) -> tuple[training.State, list[dict[str, float]]]:
        """The state after all updates; no device is waited for but where the curve is taken."""
        curve, window = [], []
        batches = data.batches(
            self.train, config.batch_size, seed=config.seed, augment=config.augment
        )
        for step, batch in zip(range(1, config.steps + 1), batches, strict=False):
            state, metrics = training.train_step(state, batch)
            window.append(metrics)
            if watch:
                watch(step, state)
            if step % config.evaluate_every == 0 or step == config.steps:
                curve.append(
                    {
                        "step": step,
                        **training.mean(window),
                        "sparsity": training.sparsity(state, config.method.name),
                        "test_accuracy": training.accuracy(state, self.test),
                    }
                )
                window = []
        return state, curve


def _method(told: str) -> tuple[str, dict[str, Any]]:
    """The method that a row is of, and the values that differ from the common ones."""
    name, *values = re.split("[@~]", told)[0].split(":")
    if name not in METHODS:
        raise ValueError(f"`methods` must be among {', '.join(METHODS)}, got {told!r}")
    base, common_values = METHODS[name]
    read = (value.partition("=") for value in values)
    return base, common_values | {key: ast.literal_eval(value) for key, _, value in read}


def _with_random_masks(state: training.State, config: Any) -> training.State:
    """Random masks of the run's own seed: the key is part of the state, so nothing recompiles."""
    seeded: Any = ConfigDict(config.to_dict())
    seeded.method.seed = config.seed
    key = optax.tree.get(optimizers.build(seeded).init(state.params), "prune_key")
    return state.replace(opt_state=optax.tree.set(state.opt_state, prune_key=key))


def _with_shuffled_masks(
    state: training.State, layers: Mapping[str, Sequence[int]], seed: int
) -> training.State:
    """Masks with given counts at random places; masks are part of the state as well."""
    masks = jaxprune.get_masks(state.opt_state)
    shares = {path: kept / total for path, (kept, total) in layers.items()}
    density = trees.from_paths(masks, shares)
    shuffled = jaxprune.masks.random(jax.random.key(seed), masks, density)
    return state.replace(opt_state=optax.tree.set(state.opt_state, prune_mask=shuffled))


def _layers(finished: Sequence[Mapping], sparsity: float, seed: int) -> Mapping[str, Sequence[int]]:
    wanted = ("magnitude_attention", sparsity, seed)
    for row in finished:
        if (row["method"], row["target"], row["seed"]) == wanted:
            return row["layers"]
    raise ValueError(
        f"`methods` must name magnitude_attention before shuffled, got no run of it at {sparsity} "
        f"with seed {seed}: shuffled masks take its counts"
    )


def _reached(finished: Sequence[Mapping], told: str, sparsity: float) -> float:
    """The sparsity that a method is to reach: the target, or what another reached on average."""
    _, at, other = told.partition("~")
    if not at:
        return sparsity
    kept = [row["kept"] for row in finished if (row["method"], row["target"]) == (other, sparsity)]
    total = next((row["total"] for row in finished if row["method"] == other), 0)
    if not kept:
        raise ValueError(
            f"`methods` must name {other} before {told}, got no run of it at {sparsity}: what it "
            "reached is the target"
        )
    return (total - round(float(np.mean(kept)))) / total


def _steps_at_equal_flops(finished: Sequence[Mapping], told: str, sparsity: float) -> float:
    """How many times as long a method may train as the recipe; 1 where it names no other."""
    method, at, other = told.partition("@")
    if not at:
        return 1.0
    cost = {
        row["method"]: row["training_flops"]
        for row in finished
        if row["target"] in (0.0, sparsity) and "training_flops" in row
    }
    missing = [name for name in (method, other) if name not in cost]
    if missing:
        raise ValueError(
            f"`methods` must name {' and '.join(missing)} before {told}, got no run at {sparsity}: "
            "what they cost decides how long it trains"
        )
    return min(cost[other] / cost[method], _LONGEST)


def _check_count(result: Mapping[str, Any], sparsity: float, of_masks: float) -> None:
    """Masks keep as many as asked for; params may keep fewer: what grows in a dead unit stays 0."""
    expected = distributions.exact_count(result["total"], sparsity)
    masked = round(result["total"] * (1 - of_masks))
    if masked != expected or result["kept"] > expected:
        came = f"{result['kept']} of {result['total']}, and masks that keep {masked}"
        raise ValueError(f"`params` must keep {expected} weights at {sparsity}, got {came}")


def compare(
    config: Any,
    workdir: pathlib.Path,
    *,
    methods: Sequence[str],
    sparsities: Sequence[float],
    seeds: int,
    moving: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Runs what is not yet in the work directory's results; writes the table and the plot.

    Args:
      config: the recipe.
      workdir: gets ``results.json``, ``results.md``, ``results.png`` and ``accuracy.png``.
      methods: keys of `METHODS`, each with ``:name=value`` for values of its own, and with
        ``@other`` to train for the FLOPs of another, or ``~other`` to be as dense as it became.
      sparsities: targets; ``dense`` runs once.
      seeds: number of seeds, counted from 0.
      moving: methods of which one more run, at the first sparsity, shows how masks move, in
        ``mask_movement.png``.

    Returns:
      One row a run, also what is in ``results.json``.

    Raises:
      ValueError: if a method is unknown, the work directory holds results of another recipe, or a
        run does not end exactly at its sparsity.

    References:
      original.
    """
    for method in (*methods, *moving):
        _method(method)
    workdir.mkdir(parents=True, exist_ok=True)
    _same_recipe(workdir / "recipe.json", config)
    results = workdir / "results.json"
    rows = json.loads(results.read_text()) if results.exists() else []
    done = {(row["method"], row["target"], row["seed"]) for row in rows}
    planned = [
        (method, sparsity, [s for s in range(seeds) if (method, sparsity, s) not in done])
        for method in methods
        for sparsity in ((0.0,) if method == "dense" else sparsities)
    ]
    experiment = Experiment(config)
    with tqdm(total=sum(len(missing) for *_, missing in planned), unit="run") as bar:
        for method, sparsity, missing in planned:
            bar.set_description(f"{method} {sparsity:g}")
            for row in experiment.runs(method, sparsity, missing, rows) if missing else ():
                rows.append(row)
                _write(results, json.dumps(rows, indent=1) + "\n")
                bar.set_postfix_str(f"last accuracy {row['accuracy']:.3f}")
                bar.update()
    _write(workdir / "results.md", report.table(rows) + "\n\n" + "\n".join(report.findings(rows)))
    plots.accuracy_of_methods(workdir / "results.png", rows)
    hardest = max((row["target"] for row in rows), default=0.0)
    first = [row for row in rows if row["seed"] == 0 and row["target"] in (0.0, hardest)]
    plots.accuracy_over_steps(workdir / "accuracy.png", {r["method"]: r["curve"] for r in first})
    if moving:
        masks = {method: experiment.masks(method, sparsities[0]) for method in moving}
        plots.mask_movement(workdir / "mask_movement.png", masks)
    return rows


def _same_recipe(path: pathlib.Path, config: Any) -> None:
    recipe = json.loads(config.to_json())
    for name in ("method", "seed", "log_every", "checkpoint_every", "tensorboard"):
        del recipe[name]
    del recipe["data"]["data_dir"]
    if path.exists() and json.loads(path.read_text()) != recipe:
        raise ValueError(
            f"`workdir` must hold results of this recipe, got another in {path}: choose a new one"
        )
    _write(path, json.dumps(recipe, indent=1) + "\n")


def _write(path: pathlib.Path, text: str) -> None:
    """All or nothing, whenever the process is killed."""
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)


def main(argv: list[str]) -> None:
    """Run the comparison of the command line."""
    del argv
    logging.set_verbosity(logging.WARNING)
    workdir = pathlib.Path(flags.FLAGS.workdir)
    sparsities = [float(sparsity) for sparsity in flags.FLAGS.sparsities]
    rows = compare(
        flags.FLAGS.config,
        workdir,
        methods=flags.FLAGS.methods,
        sparsities=sparsities,
        seeds=flags.FLAGS.seeds,
        moving=flags.FLAGS.moving,
    )
    print(report.table(rows), *report.findings(rows), f"Pictures and results: {workdir}", sep="\n")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The recipe.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where results go.")
    flags.DEFINE_list("methods", list(METHODS), "What to compare.")
    flags.DEFINE_list("sparsities", ["0.9"], "Target sparsities.")
    flags.DEFINE_integer("seeds", 5, "Number of seeds.")
    flags.DEFINE_list("moving", [], "Methods whose masks' movement is drawn, at a first sparsity.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
