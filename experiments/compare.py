"""Arms x sparsities x seeds under one recipe, as a study in a config says (see `common.study`).

    python -m experiments.compare --config experiments/configs/compare_glyphs.py:start_dense
        --workdir runs/glyphs

Every number is of the final params, whose sparsity is counted on them. Runs that are finished stay
in ``results.json`` and are not run again, for other studies of the same work directory neither. The
seeds of an arm run one after another on one compiled step: vmapped convolutions are several times
slower on a CPU.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import logs, plots, plots_of_results, report
from experiments.arms import Experiment, Row, told
from experiments.configs.common import Arm


def compare(study: Any, workdir: pathlib.Path) -> list[Row]:
    """Runs what is not yet in the work directory's results; writes the table and the pictures.

    Args:
      study: what is compared, as `common.study` makes it.
      workdir: gets ``results.json``, and of the study, named after it, the table and pictures.

    Returns:
      One row a run of this study.

    Raises:
      ValueError: if the work directory holds results of another recipe, or of another arm by the
        same name, an arm refers to one that has not run, or a run ends with another number of
        weights than its plan says.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    _same_recipe(workdir / "recipe.json", study.recipe)
    results = workdir / "results.json"
    rows: list[Row] = json.loads(results.read_text()) if results.exists() else []
    _same_arms(rows, study.arms)
    done = {(row["method"], row["target"], row["seed"]) for row in rows}
    planned = [
        (arm, sparsity, [s for s in range(study.seeds) if (arm.name, sparsity, s) not in done])
        for arm in study.arms
        for sparsity in ((0.0,) if arm.method == "dense" else study.sparsities)
    ]
    experiment = Experiment(study.recipe, workdir)
    progress = logs.Progress(sum(len(missing) for *_, missing in planned), "run")
    for arm, sparsity, missing in planned:
        for row in experiment.runs(arm, sparsity, missing, rows) if missing else ():
            rows.append(row)
            _write(results, json.dumps(rows, indent=1) + "\n")
            progress.advance()
            progress.tell(f"{arm.name}, {100 * sparsity:g} %, accuracy {row['accuracy']:.3f}")
    progress.close()
    own = [
        row
        for arm, sparsity, _ in planned
        for row in rows
        if (row["method"], row["target"]) == (arm.name, sparsity) and row["seed"] < study.seeds
    ]
    _report(study, workdir, own)
    if study.moving:
        _moving(study, workdir, experiment)
    return own


def _report(study: Any, workdir: pathlib.Path, rows: list[Row]) -> None:
    findings = report.findings(rows, study.subjects)
    _write(workdir / f"{study.name}.md", "\n".join([report.table(rows), "", *findings, ""]))
    title = plots.network_and_data(study.recipe)
    plots_of_results.accuracy_of_methods(
        workdir / f"{study.name}.png", f"{title}: seeds, mean and deviation", rows
    )
    if any("milliseconds" in row for row in rows):
        file = workdir / f"{study.name}_costs.png"
        plots_of_results.accuracy_over_cost(file, f"{title}: means and deviations", rows)
    hardest = max(row["target"] for row in rows)
    runs = [
        plots.Run(row["method"], row["arm"]["method"], row["curve"], row["dense_phases"])
        for row in rows
        if row["seed"] == 0 and row["target"] in (0.0, hardest)
    ]
    title = f"{title}, {100 * hardest:g} % sparse, seed 0"
    plots.over_training(workdir / f"{study.name}_training.png", title, runs)


def _moving(study: Any, workdir: pathlib.Path, experiment: Experiment) -> None:
    sparsity = study.sparsities[0]
    masks = {arm.name: (arm.method, experiment.masks(arm, sparsity)) for arm in study.arms}
    title = f"{plots.network_and_data(study.recipe)}, {100 * sparsity:g} % sparse, seed 0"
    plots.mask_movement(workdir / f"{study.name}_masks.png", title, masks)


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


def _same_arms(rows: Sequence[Row], arms: Sequence[Arm]) -> None:
    now = {arm.name: told(arm) for arm in arms}
    for row in rows:
        if row.get("arm") != now.get(row["method"], row.get("arm")):
            raise ValueError(
                f"`workdir` must hold results of these arms, got another {row['method']}, "
                f"{row.get('arm')}: choose a new one"
            )


def _write(path: pathlib.Path, text: str) -> None:
    """All or nothing, whenever the process is killed."""
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)


def main(argv: list[str]) -> None:
    """Run the comparison of the command line."""
    del argv
    logging.set_verbosity(logging.WARNING)
    study, workdir = flags.FLAGS.config, pathlib.Path(flags.FLAGS.workdir)
    rows = compare(study, workdir)
    print(report.table(rows), *report.findings(rows, study.subjects), sep="\n")
    print(f"Pictures and results: {workdir}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The study.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where results go.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
