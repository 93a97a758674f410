"""Comparisons of methods, what they say, and the demo."""

import json
from typing import Any

import jax
import numpy as np
import pytest
from small_runs import small_run

import jaxprune
from experiments import compare, data, demo, models, optimizers, plots, report, training

# The recipes are user code, under JAX's own rules; orbax and Flax do not keep the strict ones.
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def comparison(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("comparison")
    methods = ["dense", "magnitude_attention", "shuffled"]  # each compiles once
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows = compare.compare(
            small_run(data_dir, "dense"), workdir, methods=methods, sparsities=[0.8], seeds=2
        )
    return workdir, methods, rows


def test_a_comparison_measures_each_method_at_its_sparsity(comparison):
    workdir, methods, rows = comparison
    assert [(r["method"], r["seed"]) for r in rows] == [(m, s) for m in methods for s in (0, 1)]
    assert {r["kept"] for r in rows if r["method"] == "dense"} == {740}
    assert {r["kept"] for r in rows if r["method"] != "dense"} == {148}
    assert json.loads((workdir / "results.json").read_text()) == rows
    assert report.table(rows) in (workdir / "results.md").read_text()
    assert (workdir / "results.png").exists() and (workdir / "accuracy.png").exists()


def test_shuffled_masks_have_the_counts_of_magnitude_attention(comparison):
    layers = {(row["method"], row["seed"]): row["layers"] for row in comparison[2]}
    for seed in (0, 1):
        assert layers["shuffled", seed] == layers["magnitude_attention", seed]
    assert layers["shuffled", 0] != layers["shuffled", 1]


def test_finished_runs_are_not_run_again(comparison, data_dir, monkeypatch):
    workdir, methods, rows = comparison
    monkeypatch.setattr(training, "train_step", None)
    config = small_run(data_dir, "dense")
    again = compare.compare(config, workdir, methods=methods, sparsities=[0.8], seeds=2)
    assert again == rows
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match="`workdir` must hold results of this recipe"):
        compare.compare(config, workdir, methods=methods, sparsities=[0.8], seeds=2)


def test_seeds_share_one_compiled_step_also_where_they_draw_masks(data_dir):
    config = small_run(data_dir, "static")
    dataset = data.load(config.data, "train[:50]")
    model, tx = models.build(config.model, 10), optimizers.build(config)
    batch = next(data.batches(dataset, 16, seed=0))
    jitted: Any = training.train_step
    drawn, before = {}, jitted._cache_size()
    for seed in (0, 1):
        config.seed = seed
        state = compare._with_random_masks(training.create(model, tx, dataset, seed), config)
        state, _ = training.train_step(state, batch)
        drawn[seed] = np.asarray(jaxprune.get_masks(state.opt_state)["dense_0"]["kernel"])
    assert jitted._cache_size() == before + 1
    assert (drawn[0] != drawn[1]).any() and drawn[0].sum() == drawn[1].sum()


def test_shuffled_without_what_it_shuffles_is_an_error(data_dir, tmp_path):
    with pytest.raises(ValueError, match="must name magnitude_attention before shuffled"):
        compare.compare(
            small_run(data_dir), tmp_path, methods=["shuffled"], sparsities=[0.8], seeds=1
        )


def test_an_unknown_method_is_named(data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"`methods` must be among dense, .*, got 'rigle'"):
        compare.compare(small_run(data_dir), tmp_path, methods=["rigle"], sparsities=[0.8], seeds=1)


def test_masks_must_keep_what_was_asked_for_and_params_no_more():
    compare._check_count({"kept": 9, "total": 100}, 0.9, 0.9)  # one grew in a dead unit
    for kept, of_masks in ((11, 0.9), (10, 0.89), (9, 0.91)):
        with pytest.raises(ValueError, match=r"`params` must keep 10 weights at 0\.9, got"):
            compare._check_count({"kept": kept, "total": 100}, 0.9, of_masks)


def test_values_after_a_name_replace_those_of_the_method(data_dir):
    experiment = compare.Experiment(small_run(data_dir))
    found = experiment.recipe("prune_and_grow_without_exploring:measure_steps=7", 0.8).method
    assert (found.explore_steps, found.measure_steps, found.sparsity) == (0, 7, 0.8)
    with pytest.raises(KeyError, match="explore"):
        experiment.recipe("rigl:explore_steps=7", 0.8)


def test_equal_flops_mean_more_updates_of_what_costs_less():
    cost = {"gradual_magnitude": 0.3, "rigl": 0.2, "random": 0.01, "prune_and_grow": 0.6}
    rows = [{"method": name, "target": 0.9, "training_flops": c} for name, c in cost.items()]
    longer = {
        name: compare._steps_at_equal_flops(rows, f"{name}@gradual_magnitude", 0.9) for name in cost
    }
    assert longer == pytest.approx(
        {"gradual_magnitude": 1, "rigl": 1.5, "random": 4, "prune_and_grow": 0.5}
    )
    assert compare._steps_at_equal_flops(rows, "rigl", 0.9) == 1
    with pytest.raises(ValueError, match="must name rigl before rigl@gradual_magnitude, got no"):
        compare._steps_at_equal_flops(rows[:1], "rigl@gradual_magnitude", 0.9)


def test_masks_are_taken_when_they_change(data_dir):
    experiment = compare.Experiment(small_run(data_dir))
    changes = experiment.masks("rigl:every=8", 0.8)
    assert [step for step, _ in changes] == [1, 8, 16, 24]  # none comes at `stop`, update 30
    assert {int(mask.sum()) for _, mask in changes} == {148}


def test_how_long_grown_weights_stay_is_averaged_over_growths():
    rows = ([1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1])
    changes = [(10 * step, np.array(row, bool)) for step, row in enumerate(rows)]
    moved = plots.after_growth(changes)
    assert [step for step, _ in moved] == [0, 20, 30, 40]  # only pruned at 10
    assert plots.survival(moved) == [(0, 1.0), (10, 1.0), (20, 0.0)]
    assert plots.overlap(moved[0][1], moved[1][1]) == pytest.approx(1 / 3)


def scored(**accuracies):
    return [
        {"method": method, "target": 0.9, "seed": seed, "accuracy": accuracy}
        for method, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


def test_findings_claim_no_more_than_the_numbers():
    rows = scored(
        magnitude_attention=(0.80, 0.81, 0.82),
        a=(0.70, 0.71, 0.73),
        b=(0.9, 0.92, 0.92),
        c=(0.7, 0.9, 0.8),
    )
    verdicts = [sentence.rsplit(": ")[-1] for sentence in report.findings(rows)]
    assert verdicts == ["ahead", "behind", "not told apart"]


def test_findings_compare_like_with_like():
    names = (
        "random",
        "prune_and_grow",
        "magnitude_attention",
        "rigl@random",
        "prune_and_grow@random",
        "rigl@prune_and_grow",
    )
    found = report.findings(scored(**dict.fromkeys(names, (0.5, 0.6))))
    assert [sentence.split(": ")[1].split(" = ")[0] for sentence in found] == [
        "prune_and_grow - random",
        "prune_and_grow - rigl@prune_and_grow",
        "magnitude_attention - random",
        "magnitude_attention - prune_and_grow",
        "prune_and_grow@random - random",
        "prune_and_grow@random - rigl@random",
    ]


def test_flops_stand_in_the_table_where_they_were_counted():
    run = scored(random=(0.5,))[0]
    new = run | {"seed": 1, "training_flops": 0.25, "inference_flops": 0.125}
    assert report.table([run, new]).splitlines()[-1].endswith("| 2 | 0.250, 0.125 |")
    other = run | {"method": "rigl"}
    assert report.table([new, other]).splitlines()[-1] == "| rigl | 50.0 | 1 | - |"


def test_a_table_of_several_sparsities_leaves_gaps_visible():
    rows = [*scored(random=(0.5, 0.6)), scored(random=(0.4,))[0] | {"target": 0.95}]
    assert report.table(rows).splitlines()[-1] == "| random | 55.0 ± 7.1 | 40.0 | 1 to 2 |"


def test_the_demo_empties_only_what_is_a_demo(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    (mine / "recipe.json").touch()  # a comparison is hours of work, and no demo
    with pytest.raises(ValueError, match="`workdir` must be new or hold an earlier demo"):
        demo.demo(mine, seeds=1)
    assert (mine / "thesis.tex").exists()
    (mine / ".demo").touch()
    demo._emptied(mine)
    assert [path.name for path in mine.iterdir()] == [".demo"]


def test_the_demo_notices_a_network_that_is_not_the_one_it_saved():
    good = {"accuracy": 0.9, "kept": 10, "total": 100, "sparsity": 0.9}
    demo._check(good, dict(good))
    with pytest.raises(RuntimeError, match="must measure as the trained one"):
        demo._check(good, good | {"accuracy": 0.8})
    dense = good | {"kept": 11, "sparsity": 0.89}
    with pytest.raises(RuntimeError, match="must be 90 % sparse"):
        demo._check(dense, dict(dense))
