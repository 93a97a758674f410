"""Experiments that prune channels: trained, resumed, cut, written, compared and ranked."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

import jaxprune
from experiments import (
    arms,
    channels,
    compare,
    data,
    evaluate,
    models,
    optimizers,
    ranking,
    report,
    train,
)
from experiments.configs import channels as of_channels
from experiments.configs import (
    common,
    compare_channels,
    resnet20_cifar10_channels,
    resnet20_glyphs_channels,
    resnet56_cifar10_channels,
    resnet56_glyphs_channels,
)
from experiments.configs.common import Arm
from jaxprune import latency

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore:levels of an attention network"),
]


@pytest.fixture(autouse=True)
def toy(monkeypatch: Any) -> data.Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (128, 8, 8, 1)).astype(np.uint8)
    found = data.Dataset(images, rng.integers(0, 10, 128).astype(np.int32), 10)
    monkeypatch.setattr(data, "load", lambda config, split: found)
    return found


def small(config: Any, steps: int = 12) -> Any:
    config.model.width, config.model.stem, config.model.blocks = 8, 4, 1
    config.batch_size, config.steps = 16, steps
    config.log_every = config.checkpoint_every = config.evaluate_every = 4
    config.channels.round_to, config.channels.min_keep = 1, 1
    return config


def recipe(name: str, **values: Any) -> Any:
    return small(of_channels.glyphs_resnet_channels(name, **values))


def test_a_run_is_cut_and_written(tmp_path: pathlib.Path, capsys: Any) -> None:
    config = recipe("filter_attention", attention_steps=3, scope="global", scores="free")
    config.cut_steps = True
    result = train.train(config, tmp_path / "whole")
    assert "Loaded in a fresh process" in capsys.readouterr().out
    less, whole = result["parameters"]
    assert less <= 0.5 * whole and result["kept"] < result["total"]
    assert 0 < result["inference_flops"] < 1
    assert result["training_time"]["steps"] == 12 and result["training_time"]["programs"] >= 1
    tree = jaxprune.load_sparse(tmp_path / "whole" / "cut.safetensors")
    assert sum(x.size for x in jax.tree.leaves(tree["params"])) == less
    assert (tmp_path / "whole" / "channels.png").stat().st_size > 5_000
    found = evaluate.evaluate(tmp_path / "whole")
    assert found["accuracy"] == result["accuracy"]


def test_a_share_of_the_latency_is_measured_once(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(latency, "_seconds", lambda function, arrays, repeats: 1.0)
    config = recipe("gradual_magnitude")
    config.channels.cost = "latency"
    model = models.build(config.model, 10)
    choice = channels.choice(config, model, (8, 8, 1), tmp_path)
    assert choice is not None and choice.cost is not None and choice.cost.unit == "seconds"
    assert channels.choice(config, model, (8, 8, 1), tmp_path) == choice
    assert (tmp_path / "latency.json").exists()


def test_arms_are_compared_by_their_cut_networks(tmp_path: pathlib.Path) -> None:
    chosen = (
        Arm("dense", "dense"),
        Arm("gradual magnitude", "gradual_magnitude"),
        Arm("random", "static", channels={"score": "l1"}),
        Arm("shuffled", "static", layers_of="gradual magnitude"),
    )
    study = common.study("small", recipe("dense"), chosen, sparsities=(0.5,), seeds=1)
    rows = compare.compare(study, tmp_path)
    by_arm = {row["method"]: row for row in rows}
    for name in ("gradual magnitude", "random", "shuffled"):
        less, whole = by_arm[name]["parameters"]
        assert less <= 0.5 * whole
    assert by_arm["shuffled"]["layers"] == by_arm["gradual magnitude"]["layers"]
    assert "parameters" not in by_arm["dense"]
    assert "parameters left at 50 %" in report.table(rows)
    assert json.loads((tmp_path / "results.json").read_text()) == rows


def test_the_arms_of_a_study_share_one_table_of_latencies(
    toy: data.Dataset, tmp_path: pathlib.Path, monkeypatch: Any
) -> None:
    taken = iter(range(1, 10**6))
    monkeypatch.setattr(latency, "_seconds", lambda *_: float(next(taken)))
    study: Any = compare_channels.get_config("latency").unlock()
    experiment = arms.Experiment(small(study.recipe, steps=4), tmp_path)
    costs = [
        experiment.choice(experiment.config(arm, 0.5)).cost
        for arm in common.plain("static", "prune_and_grow")
    ]
    assert costs[0] == costs[1] == jaxprune.load_cost(tmp_path / "latency.json")


def test_the_studies_name_arms_that_can_be_built(toy: data.Dataset) -> None:
    for study in ("parameters", "flops"):
        config: Any = compare_channels.get_config(study)
        config.unlock()
        config.recipe = small(config.recipe, steps=120)
        experiment = arms.Experiment(config.recipe)
        for arm in config.arms:
            made = experiment.config(arm, 0.5 if arm.method != "dense" else 0.0)
            optimizers.build(made, experiment.choice(made))
    found = {
        (file.__name__.split(".")[-1], made.model.depth, made.data.name, made.method.name)
        for file in (
            *(resnet20_glyphs_channels, resnet56_glyphs_channels),
            *(resnet20_cifar10_channels, resnet56_cifar10_channels),
        )
        for name in (*common.METHODS, *common.CHANNEL_METHODS)
        if (made := file.get_config(name)).channels.cost == "parameters"
    }
    assert found == {
        (f"resnet{depth}_{data}_channels", depth, data, name)
        for depth in (20, 56)
        for data in ("glyphs", "cifar10")
        for name in (*common.METHODS, *common.CHANNEL_METHODS)
    }
    with pytest.raises(ValueError, match=r"`config\.channels` must say which channels"):
        optimizers.build(common.digits_mlp("filter_attention"))
    whole = (resnet20_glyphs_channels.get_config(name) for name in ("dense", "slimming"))
    assert not any(config.cut_steps for config in whole)
    config = resnet20_glyphs_channels.get_config("prune_and_grow")
    assert config.model.depth == 20 and config.method.warmup == 0.1 and config.cut_steps


def test_criteria_are_ranked_right_after_the_cut(monkeypatch: Any) -> None:
    monkeypatch.setattr(ranking, "SCORES", {"group l2": "l2"})
    monkeypatch.setattr(ranking, "SCOPES", {"global": "global"})
    config = recipe("dense")
    config.steps = 2
    rows = [*ranking.rank(config, seeds=1, kept=0.5, attention_steps=2)]
    criteria = ["random", *ranking.SCORES, *ranking.ATTENTION]
    assert [(r["criterion"], r["scope"]) for r in rows[1:]] == [
        (name, scope) for scope in ranking.SCOPES for name in criteria
    ]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert ranking.table(rows).count("\n") == 2 + len(criteria)
