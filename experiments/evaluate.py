"""Load the newest checkpoint of a work directory and measure it: a fresh process, plain orbax.

python -m experiments.evaluate --workdir runs/example
"""

import json
import pathlib
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments import channels, checkpoints, data, measures, models, optimizers, training


def restored(workdir: pathlib.Path) -> tuple[Any, data.Images, training.State]:
    """The newest checkpoint of a work directory, on one device; its config lies beside it.

    Args:
      workdir: the work directory.

    Returns:
      The config, the test images and the state.

    Raises:
      ValueError: if there is no checkpoint.
    """
    with checkpoints.manager(workdir) as manager:
        if manager.latest_step() is None:
            raise ValueError(f"`workdir` must hold a checkpoint, got {str(workdir)!r} without one")
        config: Any = ConfigDict(checkpoints.saved_rules(manager)["config"])
        test = data.opened(config.data, config.test_split)
        model = models.build(config.model, test.classes)
        choice = channels.choice(config, model, test.shape, workdir)
        tx = optimizers.build(config, choice)
        fresh = training.create(model, tx, test, config.seed, training.recipe_of(config))
        return config, test, checkpoints.restore(manager, fresh, config)[0]


def evaluate(workdir: pathlib.Path) -> dict[str, Any]:
    """Measures the newest checkpoint on the test images.

    Args:
      workdir: the work directory.

    Returns:
      What `measures.result` measures.

    Raises:
      ValueError: if there is no checkpoint, or its params are not the network its masks say.
    """
    config, test, state = restored(workdir)
    return measures.result(state, config, measures.accuracies(state, test))


def main(argv: list[str]) -> None:
    """Print the measurements as JSON."""
    del argv
    logging.set_verbosity(logging.WARNING)  # orbax tells of every file
    print(json.dumps(evaluate(pathlib.Path(flags.FLAGS.workdir))))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The work directory of a run of train.py.")
    flags.mark_flags_as_required(["workdir"])
    app.run(main)
