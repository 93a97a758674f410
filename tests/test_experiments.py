"""The experiments: models, configurations, one loop that survives a kill, comparisons, the demo."""

import doctest
import importlib
import json
import pathlib
import pkgutil
import sys

import equinox as eqx
import jax
import numpy as np
import pytest
from absl import flags
from flax import nnx
from ml_collections import config_flags
from small_runs import small_run

import experiments
import jaxprune
from experiments import (
    evaluate,
    logs,
    models,
    models_equinox,
    models_nnx,
    optimizers,
    states,
    train,
    training,
)
from experiments.configs import cifar, common
from jaxprune import names, trees

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(
    path
    for path in (ROOT / "experiments" / "configs").glob("[!_]*_*.py")
    if not path.stem.startswith("compare") and not path.stem.endswith(("channels", "imagenet"))
)
MLP_CONFIG = f"{ROOT}/experiments/configs/mlp_digits.py:magnitude_attention"
MODULES = [
    f"experiments.{info.name}"
    for info in pkgutil.iter_modules(experiments.__path__)
    if info.name not in ("bench", "compat", "configs")
]

# The recipes are user code, under JAX's own rules; orbax and Flax do not keep the strict ones.
pytestmark = pytest.mark.usefixtures("standard_promotion")


# ---------------------------------------------------------------------------------------- models


def shapes(model, size, channels):
    images = jax.ShapeDtypeStruct((2, size, size, channels), np.float32)

    def called(key, images):
        variables = model.init(key, images, train=False)
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return variables["params"], logits

    params, logits = jax.eval_shape(called, jax.random.key(0), images)
    return trees.by_path(params), logits.shape


@pytest.mark.parametrize(
    ("config", "channels", "expected"),
    [  # the counts of the CIFAR networks are those of their papers: 0.27, 0.46, 0.85, 1.5 M
        ({"name": "resnet", "depth": 20}, 3, 269_722),
        ({"name": "resnet", "depth": 32}, 3, 464_154),
        ({"name": "resnet", "depth": 56}, 3, 853_018),
        ({"name": "wide_resnet", "depth": 28, "widen": 2}, 3, 1_467_610),
        ({"name": "cnn"}, 3, 24_346),
        ({"name": "mlp", "widths": [60, 30]}, 1, 63_640),
    ],
)
def test_networks_have_the_parameters_they_should(config, channels, expected):
    params, logits = shapes(models.build(config, classes=10), 32, channels)
    assert logits == (2, 10)
    assert sum(leaf.size for leaf in params.values()) == expected


def test_the_glyph_network_has_64k_prunable_weights_and_an_unpruned_classifier():
    params, logits = shapes(models.build({"name": "glyph_resnet"}, classes=62), 16, 1)
    pruned = names.prunable(params, "conv")
    assert logits == (2, 62) and not any("classifier" in path for path in pruned)
    assert sum(params[path].size for path in pruned) == 63_616


def test_the_three_mlps_are_one_network():
    linen, _ = shapes(models.MLP(classes=10), 8, 1)
    other = nnx.eval_shape(lambda: models_nnx.MLP(64, 10, rngs=nnx.Rngs(0)))
    equinox = eqx.filter_eval_shape(models_equinox.MLP, 64, 10, key=jax.random.key(0))
    sizes = sorted(leaf.size for leaf in linen.values())
    assert sorted(leaf.size for leaf in jax.tree.leaves(nnx.state(other, nnx.Param))) == sizes
    assert sorted(leaf.size for leaf in jax.tree.leaves(equinox)) == sizes
    images = jax.ShapeDtypeStruct((3, 8, 8), np.float32)
    assert nnx.eval_shape(lambda model, x: model(x), other, images).shape == (3, 10)
    assert eqx.filter_eval_shape(eqx.filter_vmap(equinox), images).shape == (3, 10)


# --------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_what_it_is_and_builds_every_method(path):
    module = importlib.import_module(f"experiments.configs.{path.stem}")
    assert module.__doc__ is not None
    for part in ("Paper", "Command:", "Hardware and time:", "Expect:", f"{path.name}:"):
        assert part in module.__doc__
    config = module.get_config("dense")
    classes = {"digits": 10, "cifar10": 10, "glyphs": 62}[config.data.name]
    size, channels = {"digits": (8, 1), "cifar10": (32, 3), "glyphs": (16, 1)}[config.data.name]
    params, _ = shapes(models.build(config.model, classes), size, channels)
    for method in common.METHODS:
        config = module.get_config(method)
        assert config.method.name == method
        tx = optimizers.build(config)
        if config.data.name == "cifar10" and method != "magnitude_attention":
            continue  # tracing deep networks takes seconds
        state = jax.eval_shape(tx.init, params)
        assert states.is_pruned(state) == (method != "dense")
        if "sparsity" in config.method:
            assert jaxprune.describe(state)["sparsity"] == config.method.sparsity == 0.9


def test_recipes_that_are_a_methods_own_stay_its_own():
    attention, other = (
        importlib.import_module("experiments.configs.resnet56_cifar10").get_config(method)
        for method in ("layer_attention", "rigl")
    )
    assert (attention.where, attention.steps, attention.optimizer.learning_rate) == ("", 64000, 0.1)
    assert (other.where, other.steps, other.optimizer.learning_rate) == ("conv", 117000, 0.2)
    wide = importlib.import_module("experiments.configs.wrn28_2_cifar10")
    assert wide.get_config("magnitude_attention").method.ramp == (0.0, 0.6)


@pytest.fixture
def parsed(monkeypatch):
    """Parses a command line; ml_collections looks for its overrides in `sys.argv` itself."""

    def parse(*arguments):
        command = ["program", f"--config={MLP_CONFIG}", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
        values(command)
        return values.config

    return parse


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections
def test_the_command_line_changes_values_and_refuses_unknown_keys_and_other_types(parsed):
    assert parsed("--config.method.ramp=(0.1,0.5)").method.ramp == (0.1, 0.5)
    with pytest.raises((AttributeError, flags.Error), match="sparsty"):
        parsed("--config.method.sparsty=0.5")
    with pytest.raises(flags.IllegalFlagValueError, match="steps"):
        parsed("--config.steps=many")


def test_a_method_refuses_values_it_does_not_have():
    with pytest.raises(KeyError, match="strength"):
        common.method("gradual_magnitude", strength=1.0)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections
@pytest.mark.parametrize(("told", "got"), [("", "''"), (":rigle", "'rigle'")])
def test_a_missing_or_unknown_method_gets_one_sentence(monkeypatch, told, got):
    command = ["program", f"--config={ROOT}/experiments/configs/mlp_digits.py{told}"]
    monkeypatch.setattr(sys, "argv", command)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    with pytest.raises(flags.Error) as raised:
        values(command)
    sentence = str(raised.value)
    assert sentence.startswith("`--config` must end in a colon and one of dense, ")
    assert sentence.endswith(f"movement, got {got}") and "\n" not in sentence


def test_shares_of_the_training_become_updates():
    found = optimizers.in_updates(common.method("magnitude_attention"), 1280)
    assert found["ramp"] == (0, 960) and found["stop"] == 1067
    found = optimizers.in_updates(common.method("rigl", every=8), 1280)
    assert found["stop"] == 960 and found["every"] == 8


def test_the_learning_rate_warms_up_and_drops_where_the_recipe_says():
    config = cifar.resnet(20, "dense")
    rate, epoch = optimizers.learning_rate(config.optimizer, config.steps), 390
    found = [float(rate(epoch * e)) for e in (0, 5, 149, 150, 224, 225)]
    np.testing.assert_allclose(found, [0.1, 0.2, 0.2, 0.02, 0.02, 0.002], rtol=1e-6)


# ------------------------------------------------------------------------------------- train


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """A run of 40 updates and what it returned."""
    workdir = tmp_path_factory.mktemp("finished")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return workdir, train.train(small_run(data_dir), workdir)


def test_a_run_ends_exactly_sparse_with_metrics_and_pictures(finished):
    workdir, result = finished
    assert (result["kept"], result["total"], result["sparsity"]) == (74, 740, 0.9)
    rows = rows_of(workdir)
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert rows[-1]["sparsity"] == pytest.approx(0.9) and rows[-1]["test_accuracy"] > 0.15
    assert json.loads((workdir / "result.json").read_text()) == result
    assert [row["step"] for row in logs.read(workdir / "layers.jsonl")] == [10, 20, 30, 40]
    names = ["accuracy.png", "density.png", "first_mask.png", "layers.png"]
    assert sorted(path.name for path in workdir.glob("*.png")) == names
    assert all((workdir / name).read_bytes()[:4] == b"\x89PNG" for name in names)


def test_a_finished_run_is_measured_again_and_not_trained(finished, data_dir, monkeypatch):
    workdir, result = finished
    monkeypatch.setattr(training, "train_step", None)
    assert train.train(small_run(data_dir), workdir) == result
    assert evaluate.evaluate(workdir) == result


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"method.sparsity": 0.8}, "sparsity"),
        ({"method.every": 8}, "every"),
        ({"optimizer.learning_rate": 0.2}, "optimizer.learning_rate 0.1 there, 0.2 here"),
        ({"seed": 1}, "seed 0 there, 1 here"),
    ],
)
def test_going_on_with_other_rules_is_an_error(finished, data_dir, change, named):
    config = small_run(data_dir)
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=named):
        train.train(config, finished[0])


def test_a_dense_run_is_no_start_for_a_pruned_one(finished, data_dir):
    with pytest.raises(ValueError, match=r"method\.name 'magnitude_attention' there, 'dense' here"):
        train.train(small_run(data_dir, "dense"), finished[0])


def test_evaluations_fall_on_rows_of_metrics(data_dir, tmp_path):
    config = small_run(data_dir)
    config.evaluate_every = 15
    with pytest.raises(ValueError, match="`evaluate_every` must be a multiple of log_every, 10"):
        train.train(config, tmp_path)


def test_rows_behind_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = logs.Log(path, after=0)
    for step in (1, 2, 3):
        log.write(step, loss=float(step))
    log.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # as a kill in the middle of a row leaves it
    logs.Log(path, after=2).close()
    assert logs.read(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]


def test_tensorboard_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        logs.Log(tmp_path / "metrics.jsonl", after=0, tensorboard=True)
    assert any("jaxprune[tensorboard]" in note for note in raised.value.__notes__)


# ------------------------------------------------------------------------------------------ docs


@pytest.mark.parametrize("name", [*MODULES, "experiments.configs.common"])
def test_examples_of_the_experiments_run(name):
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert not failed
