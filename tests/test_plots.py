"""What a run shows: a bar or lines, and pictures that say what was run."""

import io
import sys
from typing import Any

import numpy as np
import optax
import pytest
from small_runs import small_run

import jaxprune
from experiments import logs, plots, train
from experiments.configs import common

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Terminal(io.StringIO):
    """A file that says it is one."""

    def isatty(self):
        return True


@pytest.mark.parametrize("file", [io.StringIO, Terminal])
def test_a_log_gets_lines_and_a_terminal_a_bar(monkeypatch, file):
    stderr: Any = file()
    monkeypatch.setattr(sys, "stderr", stderr)
    progress = logs.Progress(total=3, unit="step", done=1)
    progress.advance()
    progress.tell("loss 0.5")
    progress.advance()
    progress.tell("loss 0.25")
    progress.close()
    written = stderr.getvalue()
    if file is Terminal:
        assert "\r" in written and "loss 0.25" in written
    else:
        assert written == "step 2 of 3: loss 0.5\nstep 3 of 3: loss 0.25\n"


def test_the_first_mask_is_that_of_the_first_layer():
    masks = {"classifier": np.ones((2, 2)), "conv_b": np.ones((3, 3)), "conv_stem": np.eye(4)}
    params = {name: {"kernel": np.asarray(mask, np.float32)} for name, mask in masks.items()}
    tx = jaxprune.static(optax.sgd(0.1), masks=jaxprune.masks.nonzero(params))
    path, found = plots.first_layer(tx.init(params))
    assert path == "conv_stem/kernel"
    np.testing.assert_array_equal(found, np.eye(4, dtype=bool))


def test_the_first_mask_of_rigl_is_the_one_it_began_with(data_dir, tmp_path):
    train.train(small_run(data_dir, "rigl", sparsity=0.8, every=8), tmp_path)
    first = np.load(tmp_path / "first_mask.npy")
    assert first.shape == (64, 10) and 0.1 < first.mean() < 0.2  # ERK, not all
    assert {path.name for path in tmp_path.glob("*.png")} >= {"layers.png", "first_mask.png"}


def test_every_method_has_a_colour_of_its_own():
    colors = [plots.color_of(method) for method in common.METHODS]
    assert len(set(colors)) == len(colors)
    first, second, other = plots._styles(["rigl", "rigl", "dense"])
    assert first["color"] == second["color"] != other["color"]
    assert first["linestyle"] != second["linestyle"]


def test_a_picture_of_a_run_says_what_was_run_and_shows_the_dense_phases(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    row = {"accuracy": 0.5, "test_accuracy": 0.5, "sparsity": 0.98}
    rows = [{"step": step, **row} for step in (10, 20, 30)]
    run = plots.Run("iee", "prune_and_grow", rows, [(12, 18)])
    plots.over_training(tmp_path / "a.png", "a title", [run])
    upper, lower = drawn[0].axes
    assert upper.get_title() == "a title" and len(upper.patches) == len(lower.patches) == 1
    line = lower.lines[0]
    assert max(line.get_ydata()) == 1.0 and min(line.get_ydata()) == pytest.approx(0.02)
    low, high = lower.get_ylim()
    assert 0.01 < low < 0.02 and high > 1
    assert (lower.get_xlabel(), lower.get_ylabel()) == ("training steps", "weights in use")
