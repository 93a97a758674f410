"""The first run: five methods on real digits at 90 %, then a saved network in a fresh process.

python -m experiments.demo
"""

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

from absl import app, flags, logging

from experiments import compare, report, train
from experiments.configs import common, compare_digits


def demo(workdir: pathlib.Path, seeds: int, steps: int | None = None) -> list[dict[str, Any]]:
    """Compares methods on the digits, then saves, loads and checks a pruned network.

    Args:
      workdir: emptied of an earlier demo; gets ``results.json``, the table and pictures.
      seeds: number of seeds of each method.
      steps: updates of each run, if not the recipe's.

    Returns:
      The rows of ``results.json``, one a run.

    Raises:
      RuntimeError: if the network that a fresh process loads is not the one that was trained.
    """
    _emptied(workdir)
    study: Any = compare_digits.get_config("demo")
    config: Any = common.digits_mlp("magnitude_attention")
    study.recipe.steps = config.steps = steps or config.steps
    study.seeds = seeds
    rows = compare.compare(study, workdir)
    print("\n" + report.table(rows) + "\n\nDifferences, seed by seed:")
    print(*report.findings(rows, study.subjects), sep="\n")
    _caution(rows)

    saved = workdir / "magnitude_attention"
    print(f"\nTraining magnitude attention once more, with checkpoints in {saved}:")
    trained = train.train(config, saved)
    _check(trained, _in_a_fresh_process(saved))
    pictures = sorted(workdir.rglob("*.png"))
    print("\nPictures:", *pictures, sep="\n  ")
    print(f"\nAll numbers: {workdir / 'results.json'}, {workdir / 'demo.md'}")
    return rows


def _emptied(workdir: pathlib.Path) -> None:
    """Start anew where an earlier demo left its mark, and only there."""
    mark = workdir / ".demo"
    if mark.exists():
        shutil.rmtree(workdir)
    elif workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"`workdir` must be new or hold an earlier demo, got {str(workdir)!r}")
    workdir.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _caution(rows: list[dict[str, Any]]) -> None:
    seeds = len({row["seed"] for row in rows})
    print(
        f"\nThe task is small: {seeds} seeds, and one test image is 0.2 points. It shows that the "
        "methods run and\nend exactly at their sparsity; which is best, only as far as the "
        "intervals say, and on this task.\nMasks make a network sparse, not fast: ordinary "
        "hardware multiplies the zeros too."
    )


def _in_a_fresh_process(workdir: pathlib.Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.evaluate", "--workdir", str(workdir)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def _check(trained: dict[str, Any], loaded: dict[str, Any]) -> None:
    if loaded != trained:
        raise RuntimeError(
            f"the loaded network must measure as the trained one, {loaded} {trained}"
        )
    if 10 * loaded["kept"] != loaded["total"]:
        raise RuntimeError(f"the network must be 90 % sparse, {loaded['sparsity']:.6%} is")
    print(
        f"Loaded in a fresh process: {loaded['kept']:,} of {loaded['total']:,} weights kept, "
        f"exactly 90 % sparse; test accuracy {loaded['accuracy']:.2%}, as when it was saved."
    )


def main(argv: list[str]) -> None:
    """Run the demo."""
    del argv
    logging.set_verbosity(logging.WARNING)
    demo(pathlib.Path(flags.FLAGS.workdir), flags.FLAGS.seeds)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/demo", "Where results go.")
    flags.DEFINE_integer("seeds", 5, "Number of seeds of each method.")
    app.run(main)
