"""What a training run of the experiments has cost, and the batch statistics that it keeps."""

import itertools
from typing import Any

import jax
import numpy as np
import optax
import pytest
from small_runs import small_run

import jaxprune
from experiments import data, measures, models, states, training

# The recipes are user code, under JAX's own rules; Flax does not keep the strict ones.
pytestmark = pytest.mark.usefixtures("standard_promotion")

LEARNS = {"learner": optax.sgd(0.1), "ramp": None}
SCORES = "learner"
CYCLES = {"sparsity": 0.5, "measure_steps": 1, "improve_steps": 1, "explore_steps": 2, "stop": 4}


def run(tx: Any, data_dir: str, model: Any, steps: int) -> list[training.State]:
    """The states of a run, the first one included."""
    config = small_run(data_dir, "dense")
    dataset = data.load(config.data, "train[:64]")
    state = training.create(model, tx, dataset, seed=0)
    states = [jax.tree.map(np.copy, state)]
    for _, batch in zip(range(steps), dataset.batches(8, seed=0), strict=False):
        state, _ = training.train_step(state, batch)
        states.append(jax.tree.map(np.copy, state))
    return states


def result(state: training.State, method: str, data_dir: str) -> dict[str, Any]:
    config = small_run(data_dir, "dense")
    config.method.name = method
    test = data.load(config.data, "test[:20]")
    return measures.result(state, config, measures.accuracies(state, test))


def test_a_run_costs_the_mean_of_its_steps(data_dir: str) -> None:
    """Masks are drawn before the first step; MLPs pay for each weight once."""
    model = models.MLP(classes=10, widths=(10,))
    tx = jaxprune.static(optax.sgd(0.1), sparsity=0.8)
    states = run(tx, data_dir, model, steps=4)
    found = result(states[-1], "static", data_dir)
    assert dict(states[0].layer_flops) == {"dense_0/kernel": 1280.0, "classifier/kernel": 200.0}
    assert found["inference_flops"] == pytest.approx(0.2)
    assert found["training_flops"] == pytest.approx(0.2)
    means = [float(state.flops) for state in states]
    assert means == pytest.approx([0, 0.2, 0.2, 0.2, 0.2])


def test_a_dense_run_costs_itself(data_dir: str) -> None:
    states = run(optax.sgd(0.1), data_dir, models.MLP(classes=10, widths=(10,)), steps=3)
    found = result(states[-1], "dense", data_dir)
    assert (found["training_flops"], found["inference_flops"]) == (1.0, 1.0)


def means(state: training.State) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.batch_stats)])


@pytest.mark.parametrize(
    ("tx", "changes"),
    [
        (jaxprune.prune_and_grow(optax.sgd(0.1), **CYCLES), [True, True, False, False, True]),
        (
            jaxprune.magnitude_attention(optax.sgd(0.1), sparsity=0.5, ramp=(0, 4)),
            [True] * 5,  # exploring too: its network is the sparse one
        ),
    ],
    ids=["prune_and_grow", "magnitude_attention"],
)
def test_batch_statistics_leave_out_the_dense_network_of_exploring(
    tx: Any, changes: list[bool], data_dir: str
) -> None:
    states = run(tx, data_dir, models.CNN(classes=10, widths=(4,)), steps=5)
    stats = [means(state) for state in states]
    found = [bool((a != b).any()) for a, b in itertools.pairwise(stats)]
    assert found == changes


def test_the_phases_in_which_all_weights_train_are_known_from_any_state() -> None:
    params = {"kernel": np.ones((4, 4), np.float32)}
    for tx, expected in (
        (jaxprune.prune_and_grow(optax.sgd(0.1), **CYCLES | {"stop": 8}), [(2, 4), (6, 8)]),
        (jaxprune.prune_and_grow(optax.sgd(0.1), **CYCLES | {"explore_steps": 0}), []),
        (jaxprune.magnitude_attention(optax.sgd(0.1), sparsity=0.5, ramp=(0, 4)), []),
        (jaxprune.layer_attention(optax.sgd(0.1), sparsity=0.5, **LEARNS), []),
        (optax.sgd(0.1), []),
    ):
        assert states.dense_phases(tx.init(params), steps=12) == expected


def test_what_is_learned_is_told_where_it_is_one_number_a_layer() -> None:
    params = {"kernel": np.ones((4, 4), np.float32)}
    attention = jaxprune.layer_attention(optax.sgd(0.1), sparsity=0.5, **LEARNS).init(params)
    assert states.learned(attention) == {
        "learned/kernel": pytest.approx(0.99),
        "density/kernel": 1.0,
    }
    for tx in (
        jaxprune.movement(optax.sgd(0.1), sparsity=0.5, ramp=(0, 4), **{SCORES: optax.sgd(0.1)}),
        jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=0.5, ramp=(0, 4)),
        optax.sgd(0.1),
    ):
        assert states.learned(tx.init(params)) == {}
