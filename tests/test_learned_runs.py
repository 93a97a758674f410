"""Runs of methods that decide themselves how sparse they become: rows, comparisons, pictures."""

import jax
import numpy as np
import pytest
from small_runs import small_run

from experiments import arms, compare, logs, report, train
from experiments.configs import common
from experiments.configs.common import Arm

pytestmark = pytest.mark.usefixtures("standard_promotion")

LEARNS, EQUAL = "learns", "gradual_magnitude, as dense"
ARMS = (
    Arm(LEARNS, "layer_attention", {"gamma": 50.0}),
    *common.as_dense(LEARNS, "gradual_magnitude"),
)


@pytest.fixture(scope="module")
def comparison(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("learned")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        recipe = small_run(data_dir, "dense")
        return compare.compare(
            common.study("learned", recipe, ARMS, sparsities=(0.8,), seeds=2), workdir
        )


def test_another_method_becomes_as_dense_as_what_was_reached(comparison):
    kept = {(row["method"], row["seed"]): row["kept"] for row in comparison}
    reached = [kept[LEARNS, seed] for seed in (0, 1)]
    assert {kept[EQUAL, seed] for seed in (0, 1)} == {round(float(np.mean(reached)))}
    assert 148 not in reached  # 20 % of 740 is what it is drawn to, no more
    assert {row["learns_sparsity"] for row in comparison if row["method"] == LEARNS} == {True}
    assert {row["learns_sparsity"] for row in comparison if row["method"] == EQUAL} == {False}
    with pytest.raises(ValueError, match="`arms` must hold nobody before mine, got no"):
        arms._sparsity_of(comparison, Arm("mine", "rigl", like="nobody"), 0.8)


def test_the_table_tells_the_density_that_was_reached(comparison):
    head, _, first, second = report.table(comparison).splitlines()
    assert head.endswith("| density at 80 % |")
    shares = [row["kept"] / row["total"] for row in comparison if row["method"] == LEARNS]
    assert first.endswith(f"| {np.mean(shares):.4f} ± {np.std(shares, ddof=1):.4f} |")
    assert second.endswith(f"| {round(740 * np.mean(shares)) / 740:.4f} ± 0.0000 |")


@pytest.mark.parametrize("method", ["layer_attention", "soft_threshold"])
def test_a_run_logs_each_layer_and_draws_it(data_dir, tmp_path, method):
    result = train.train(small_run(data_dir, method), tmp_path)
    rows = logs.read(tmp_path / "metrics.jsonl")
    assert (tmp_path / "layers.png").exists()
    for path, (kept, total) in result["layers"].items():
        assert rows[-1][f"density/{path}"] == pytest.approx(kept / total)
        assert len({row[f"learned/{path}"] for row in rows}) == len(rows)  # it moves


def test_movement_runs_at_its_sparsity(data_dir, tmp_path):
    result = train.train(small_run(data_dir, "movement", sparsity=0.8), tmp_path)
    assert (result["kept"], result["total"]) == (148, 740)
    rows = logs.read(tmp_path / "metrics.jsonl")
    assert not any("/" in name for row in rows for name in row)
