"""Comparisons of methods, what they say, and the demo."""

import json
from typing import Any

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from small_runs import small_run

import jaxprune
from experiments import (
    arms,
    compare,
    data,
    demo,
    models,
    movement,
    optimizers,
    report,
    training,
)
from experiments.configs import common, compare_digits, compare_glyphs
from experiments.configs.common import Arm

# The recipes are user code, under JAX's own rules; orbax and Flax do not keep the strict ones.
pytestmark = pytest.mark.usefixtures("standard_promotion")


def small_study(data_dir, *arms, **values) -> Any:
    recipe = small_run(data_dir, "dense")
    return common.study("small", recipe, arms, **{"sparsities": (0.8,), "seeds": 2} | values)


ARMS = (
    *common.plain("dense", "magnitude_attention"),
    Arm("shuffled", "static", layers_of="magnitude_attention"),
)


@pytest.fixture(scope="module")
def comparison(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("comparison")  # each arm compiles once
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return workdir, compare.compare(small_study(data_dir, *ARMS), workdir)


def test_a_comparison_measures_each_method_at_its_sparsity(comparison):
    workdir, rows = comparison
    assert [(r["method"], r["seed"]) for r in rows] == [(a.name, s) for a in ARMS for s in (0, 1)]
    assert {r["kept"] for r in rows if r["method"] == "dense"} == {740}
    assert {r["kept"] for r in rows if r["method"] != "dense"} == {148}
    assert json.loads((workdir / "results.json").read_text()) == rows
    assert report.table(rows) in (workdir / "small.md").read_text()
    assert (workdir / "small.png").exists() and (workdir / "small_training.png").exists()
    assert [point["step"] for point in rows[0]["curve"]] == [10, 20, 30, 40]


def test_shuffled_masks_have_the_counts_of_magnitude_attention(comparison):
    layers = {(row["method"], row["seed"]): row["layers"] for row in comparison[1]}
    for seed in (0, 1):
        assert layers["shuffled", seed] == layers["magnitude_attention", seed]
    assert layers["shuffled", 0] != layers["shuffled", 1]


def test_finished_runs_are_not_run_again_for_other_studies_neither(
    comparison, data_dir, monkeypatch
):
    workdir, rows = comparison
    monkeypatch.setattr(training, "train_step", None)
    assert compare.compare(small_study(data_dir, *ARMS), workdir) == rows
    other = small_study(data_dir, ARMS[1], seeds=1)
    other.name = "other"
    assert compare.compare(other, workdir) == [rows[2]]
    assert report.table([rows[2]]) in (workdir / "other.md").read_text()


def test_a_work_directory_holds_one_recipe_and_one_meaning_of_a_name(comparison, data_dir):
    workdir, _ = comparison
    changed = Arm("shuffled", "static", {"distribution": "uniform"})
    with pytest.raises(ValueError, match=r"results of these arms.* shuffled"):
        compare.compare(small_study(data_dir, changed), workdir)
    study = small_study(data_dir, *ARMS)
    study.recipe.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match="`workdir` must hold results of this recipe"):
        compare.compare(study, workdir)


def test_seeds_share_one_compiled_step_also_where_they_draw_masks(data_dir):
    config = small_run(data_dir, "static")
    dataset = data.load(config.data, "train[:50]")
    model, tx = models.build(config.model, 10), optimizers.build(config)
    batch = next(dataset.batches(16, seed=0))
    jitted: Any = training.train_step
    drawn, before = {}, jitted._cache_size()
    for seed in (0, 1):
        config.seed = seed
        state = arms._with_random_masks(training.create(model, tx, dataset, seed), config)
        state, _ = training.train_step(state, batch)
        drawn[seed] = np.asarray(jaxprune.get_masks(state.opt_state)["dense_0"]["kernel"])
    assert jitted._cache_size() == before + 1
    assert (drawn[0] != drawn[1]).any() and drawn[0].sum() == drawn[1].sum()


@pytest.mark.parametrize(
    "arm",
    [
        Arm("other", "static", layers_of="magnitude_attention"),
        Arm("other", "static", like="magnitude_attention"),
        Arm("other", "static", flops_of="magnitude_attention"),
    ],
)
def test_an_arm_whose_reference_has_not_run_is_an_error(arm, data_dir, tmp_path):
    found = r"`arms` must hold magnitude_attention before other, got no run at 0\.8"
    with pytest.raises(ValueError, match=found):
        compare.compare(small_study(data_dir, arm), tmp_path)


def test_masks_must_keep_what_was_asked_for_and_params_no_more():
    arms._check_count({"kept": 9, "total": 100}, 10, 0.9)  # one grew in a dead unit
    for kept, of_masks in ((11, 0.9), (10, 0.89), (9, 0.91)):
        with pytest.raises(ValueError, match=r"`params` must keep 10 weights, got"):
            arms._check_count({"kept": kept, "total": 100}, 10, of_masks)


def test_values_of_an_arm_replace_those_of_the_method(data_dir):
    experiment = arms.Experiment(small_run(data_dir))
    values = {"explore_steps": 0, "measure_steps": 7}
    found = experiment.config(Arm("a", "prune_and_grow", values), 0.8).method
    assert (found.explore_steps, found.measure_steps, found.sparsity) == (0, 7, 0.8)
    with pytest.raises(KeyError, match="explore"):
        experiment.config(Arm("b", "rigl", {"explore_steps": 7}), 0.8)


def told(arm, **values):
    return {"method": arm.name, "arm": arms.told(arm), "target": 0.9, **values}


def test_equal_flops_mean_more_updates_of_what_costs_less():
    costs = {"gradual_magnitude": 0.3, "rigl": 0.2, "static": 0.01, "prune_and_grow": 0.6}
    rows = [told(Arm(f"my {name}", name), training_flops=cost) for name, cost in costs.items()]
    rows.append(told(Arm("rigl", "rigl", {"every": 64}), training_flops=0.15))
    longer = {
        name: arms._steps_at_equal_flops(
            rows, Arm("longer", name, flops_of="my gradual_magnitude"), 0.9
        )
        for name in costs
    }
    assert longer == pytest.approx(
        {"gradual_magnitude": 1, "rigl": 1.5, "static": 4, "prune_and_grow": 0.5}
    )
    assert arms._steps_at_equal_flops(rows, Arm("a", "rigl"), 0.9) == 1
    other = Arm("a", "rigl", {"every": 8}, flops_of="my gradual_magnitude")
    with pytest.raises(ValueError, match="must hold a at equal steps before a, got no"):
        arms._steps_at_equal_flops(rows, other, 0.9)


def test_masks_are_taken_when_they_change(data_dir):
    experiment = arms.Experiment(small_run(data_dir))
    changes = experiment.masks(Arm("a", "rigl", {"every": 8}), 0.8)
    assert [step for step, _ in changes] == [1, 8, 16, 24]  # none comes at `stop`, update 30
    assert {int(mask.sum()) for _, mask in changes} == {148}


@pytest.mark.parametrize("module", [compare_digits, compare_glyphs])
def test_the_arms_of_a_study_have_names_of_their_own_and_methods_that_build(module):
    """And arms of one name mean the same in all studies of a work directory."""
    known: dict[str, Arm] = {}
    for study in module.STUDIES:
        config = module.get_config(study)
        names = [arm.name for arm in config.arms]
        assert len(set(names)) == len(names)
        assert set(config.subjects) <= set(names)
        for place, arm in enumerate(config.arms):
            assert known.setdefault(arm.name, arm) == arm
            assert {arm.like, arm.flops_of, arm.layers_of} <= {"", *names[:place]}
            recipe = ConfigDict(config.recipe.to_dict())
            recipe.method = common.method(arm.method, **arm.values)
            optimizers.build(recipe)


def test_the_periods_are_chosen_on_the_validation_images():
    chosen: Any = compare_glyphs.get_config("periods")
    compared: Any = compare_glyphs.get_config("start_dense")
    assert (chosen.recipe.test_split, compared.recipe.test_split) == ("validation", "test")


def test_a_study_that_is_not_there_is_named():
    with pytest.raises(flags.IllegalFlagValueError, match=r"one of demo, .*, got 'demos'"):
        compare_digits.get_config("demos")


def test_how_long_grown_weights_stay_is_averaged_over_growths():
    rows = ([1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1])
    changes = [(10 * step, np.array(row, bool)) for step, row in enumerate(rows)]
    moved = movement.after_growth(changes)
    assert [step for step, _ in moved] == [0, 20, 30, 40]  # only pruned at 10
    assert movement.survival(moved) == [(0, 1.0), (10, 1.0), (20, 0.0)]
    assert movement.overlap(moved[0][1], moved[1][1]) == pytest.approx(1 / 3)


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
    found = report.findings(rows, ["magnitude_attention"])
    verdicts = [sentence.rsplit(": ")[-1] for sentence in found]
    assert verdicts == ["ahead", "behind", "not told apart"]
    assert len(report.findings(rows)) == 6  # every pair


def test_two_seeds_are_too_few_for_a_verdict():
    (found,) = report.findings(scored(a=(0.8, 0.8), b=(0.4, 0.4)))
    assert found == "90 %: a - b = +40.0 points (2 seeds: too few for a verdict)"
    (found,) = report.findings(scored(a=(0.8,), b=(0.4, 0.4)))
    assert found.endswith("(1 seed: too few for a verdict)")


def test_findings_compare_like_with_like():
    subjects = (Arm("grows", "prune_and_grow"), Arm("learns", "layer_attention"))
    others = (
        Arm("random", "static"),
        Arm("rigl, longer", "rigl", flops_of="random"),
        Arm("set, longer", "sparse_evolution", flops_of="random"),
        Arm("rigl, as dense", "rigl", like="learns"),
    )
    rows = [
        told(arm, seed=0, accuracy=0.5, learns_sparsity=arm.name == "learns")
        for arm in (*others, *subjects)
    ]

    def pairs(*names):
        found = report.findings(rows, names)
        return [sentence.split(": ")[1].split(" = ")[0] for sentence in found]

    assert pairs("grows", "random") == [
        "grows - random",
        "random - rigl, longer",
        "random - set, longer",
    ]
    assert pairs("rigl, longer") == ["rigl, longer - random", "rigl, longer - set, longer"]
    assert pairs("learns") == ["learns - rigl, as dense"]


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
