"""ImageNet's recipes through the whole pipeline, on random images of TFDS's mock."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow_datasets as tfds
from jax import export

import jaxprune
from experiments import (
    channels,
    checkpoints,
    data,
    layouts,
    logs,
    measures,
    models,
    optimizers,
    states,
    train,
    training,
)
from experiments.configs import imagenet, resnet50_imagenet, vit_s16_imagenet
from jaxprune import trees

# The recipes are user code, under JAX's own rules; Flax does not keep the strict ones.
pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore:levels of an attention network"),
]

STEPS, STOPPED = 8, 4
_SORTED = re.compile(r"stablehlo\.sort.*?\}\) : \(tensor<([\dx]*)x", re.DOTALL)
PERIODS = {"every": 2, "measure_steps": 1, "improve_steps": 1, "explore_steps": 1}


@pytest.fixture(autouse=True)
def mocked(monkeypatch: Any) -> Iterator[None]:
    monkeypatch.setattr(data, "ENCODED", None)  # the mock cannot encode without TensorFlow
    with tfds.testing.mock_data(num_examples=21):
        yield


def small(variant: str, **values: Any) -> Any:
    """A network of width 16 on 32 pixels."""
    config: Any = resnet50_imagenet.get_config(variant)
    config.update(
        {
            "data": {"crop": 32, "workers": 0},
            "model": {"stages": (1,), "width": 16},
            "mesh": {"data": 1},
            "batch_size": 8,
            "steps": STEPS,
            "log_every": 3,
            "evaluate_every": 3,
            "checkpoint_every": 5,
        }
    )
    periods = PERIODS | {"attention_steps": 2}
    config.method.update({name: n for name, n in periods.items() if name in config.method})
    if config.channels:
        config.channels.update({"round_to": 4, "min_keep": 4})
    config.update(values)
    return config


def started(config: Any, workdir: pathlib.Path) -> tuple[train.Run, training.State]:
    """What a run needs, and its first state; as `train.train` makes them."""
    images, test = (data.opened(config.data, split) for split in ("train", "validation"))
    model, layout = models.build(config.model, images.classes), layouts.of(config.mesh)
    tx = optimizers.build(config, channels.choice(config, model, images.shape, workdir))
    state = training.create(model, tx, images, 0, training.recipe_of(config))
    state = jax.device_put(state, jax.devices()[0])  # as a restored one lies: one program for both
    step = training.step_on(layout)
    return train.Run(config, workdir, workdir, layout, model, step, images, test), state


def same_bits(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("variant", imagenet.VARIANTS)
def test_every_method_trains_ends_on_sigterm_and_goes_on_to_the_same_bits(
    variant: str, tmp_path: pathlib.Path
) -> None:
    """The signal comes between two rows of metrics, and between two checkpoints."""
    run, state = started(small(variant, ema_decay=0.9), tmp_path / "whole")
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, _ = train.trained(run, jax.tree.map(jnp.copy, state))

    def signalled(state: Any, batch: Any) -> Any:
        if int(state.step) == STOPPED - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return run.step(state, batch)

    again = run._replace(workdir=tmp_path / "parts", logs=tmp_path / "parts")
    with pytest.raises(SystemExit) as ended:
        train.trained(again._replace(step=signalled), jax.tree.map(jnp.copy, state))
    assert ended.value.code == 0
    with checkpoints.manager(again.workdir) as manager:
        assert manager.latest_step() == STOPPED
    found, accuracies = train.trained(again, state)
    same_bits(found, whole)
    rows = [logs.read(folder.logs / "metrics.jsonl") for folder in (run, again)]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [3, 6, 8]
    exported = export.export(run.step, platforms=("tpu", "cuda"))(found, next(run.test.whole(8)))
    assert exported.platforms == ("tpu", "cuda")
    shapes = _SORTED.findall(exported.mlir_module())  # a sample of the scores, at most
    assert all(np.prod([int(n) for n in dims.split("x")]) <= 2**15 for dims in shapes)
    result = measures.result(found, run.config, accuracies)
    assert {"accuracy", "ema_accuracy"} <= {*result}
    if variant == "dense":
        return
    jaxprune.verify(found.params, found.opt_state)
    averaged = trees.by_path(measures.averaged(found).params)
    support = trees.by_path(jaxprune.support_of(found.opt_state))
    for path, kept in support.items():
        assert not np.where(kept, 0, averaged[path]).any()
    assert 0 < states.sparsity(found.opt_state) < 1


def test_two_steps_of_a_resnet_50_on_224_pixels(tmp_path: pathlib.Path) -> None:
    """As it is trained on ImageNet, through the pipeline, but for the size of the batch."""
    config: Any = resnet50_imagenet.get_config("magnitude_attention")
    config.update({"batch_size": 2, "steps": 2, "data": {"workers": 0}, "mesh": {"data": 1}})
    config.method.every = 1
    run, state = started(config, tmp_path)
    for batch in itertools.islice(run.train.batches(2, seed=0, start=0, augment=True), 2):
        assert batch["image"].shape == (2, 224, 224, 3)
        state, metrics = run.step(state, batch)
        assert np.isfinite(float(metrics["loss"]))
    assert int(state.step) == 2
    jaxprune.verify(state.params, state.opt_state)
    masks = jaxprune.masks_by_path(state.opt_state).values()
    total = sum(mask.size for mask in masks)
    assert total == 25_502_912  # kernels: all but norms and the bias of the head
    kept = sum(int(mask.sum()) for mask in masks)
    assert kept == round(total * (1 - config.method.sparsity))


def test_a_batch_that_does_not_divide_the_test_images_counts_each_once() -> None:
    """21 images, in batches of 8, on a network that answers with one class."""
    config = small("dense")
    test = data.opened(config.data, "validation")
    labels = np.concatenate([b["label"] for b in test.whole(8)])
    assert len(labels) == 24 and (labels[21:] == -1).all()
    always = int(labels[0])

    def apply(variables: Any, images: Any, train: bool) -> Any:
        del variables, train
        return jax.nn.one_hot(np.full(len(images), always), 1000)

    state = training.create(models.build(config.model, 1000), optax.sgd(0.1), test, 0)
    expected = float((labels == always).sum()) / 21
    assert measures.accuracy(state.replace(apply_fn=apply), test) == pytest.approx(expected)


def test_what_decays_are_kernels() -> None:
    config = small("dense", steps=100)
    params = {"conv": {"kernel": np.ones((2, 2))}, "norm": {"scale": np.ones(2)}}
    for name in ("sgd", "adamw"):
        config.optimizer.update({"name": name, "warmup": 0.0})
        tx = optimizers.inner(config)
        zeros = jax.tree.map(np.zeros_like, params)
        updates, _ = tx.update(zeros, tx.init(params), params)
        found = {path: np.asarray(x) for path, x in trees.by_path(updates).items()}
        assert (found["conv/kernel"] < 0).all() and (found["norm/scale"] == 0).all()


def test_the_rate_and_the_length_follow_the_batch() -> None:
    config: Any = resnet50_imagenet.get_config("rigl")
    assert config.optimizer.learning_rate == pytest.approx(0.4)
    config.batch_size = 256
    assert config.optimizer.learning_rate == pytest.approx(0.1)
    assert config.steps == 100 * 1_281_167 // 256
    assert json.loads(config.to_json())["steps"] == config.steps
    config.optimizer.learning_rate = 0.3
    config.batch_size = 512
    assert config.optimizer.learning_rate == 0.3


def test_labels_are_smoothed() -> None:
    """Against the formula, by hand."""
    logits, labels = np.log([[0.7, 0.2, 0.1]]), np.array([1])

    def apply(variables: Any, images: Any, **options: Any) -> Any:
        del variables, options
        return np.float32(logits) + 0 * images.mean(), {}

    batch = {"image": np.zeros((1, 1, 1, 1), np.uint8), "label": labels}
    for share in (0.0, 0.3):
        found = training.gradients(apply, {}, {}, batch, training.Recipe(share))
        target = (1 - share) * np.eye(3)[1] + share / 3
        np.testing.assert_allclose(found.metrics["loss"], -(target * logits).sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("module", "count", "shape"),
    [(resnet50_imagenet, 25_557_032, (2, 1000)), (vit_s16_imagenet, 22_049_896, (2, 1000))],
)
def test_networks_have_the_parameters_they_should_and_compute_in_bfloat16(
    module: Any, count: int, shape: Any
) -> None:
    config = module.get_config("dense")
    model = models.build(config.model, 1000)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)

    def called(key: Any, images: Any) -> Any:
        variables = model.init(key, images, train=False)
        out, state = model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )
        return variables["params"], out, state["intermediates"]

    params, logits, inner = jax.eval_shape(called, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(params)) == count
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert logits.shape == shape and logits.dtype == np.float32
    conv = trees.by_path(inner["conv_stem"])
    assert {str(x.dtype) for x in conv.values()} == {"bfloat16"}


@pytest.mark.parametrize("module", [resnet50_imagenet, vit_s16_imagenet])
def test_a_config_says_what_it_is_and_builds_every_method(module: Any) -> None:
    for part in ("Papers", "Data:", "Command:", "Hardware and time:", "Expect:"):
        assert part in module.__doc__
    for variant in imagenet.VARIANTS:
        assert module.get_config(variant).method.name == imagenet.VARIANTS[variant][0]
    model = models.build(module.get_config("dense").model, 1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    params = jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), jax.random.key(0), images
    )["params"]
    for variant in ("rigl", "prune_and_grow_n_of_m"):
        tx = optimizers.build(module.get_config(variant))
        found = jaxprune.describe(jax.eval_shape(tx.init, params))
        assert found["method"].endswith(imagenet.VARIANTS[variant][0])
    for variant, (_, _, of_channels) in imagenet.VARIANTS.items():
        if of_channels:
            choice = channels.choice(module.get_config(variant), model, (224, 224, 3))
            assert choice is not None and len(choice.groups) > 10
            refused = (module, variant) == (vit_s16_imagenet, "slimming")
            told = pytest.raises(ValueError, match="must have norms whose scales tell")
            with told if refused else contextlib.nullcontext():
                optimizers.build(module.get_config(variant), choice)
