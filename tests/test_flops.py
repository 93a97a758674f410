"""What training and inference cost, as shares of what a dense network costs."""

import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import updater

import jaxprune
from experiments import bench
from experiments import flops as resnet50_flops
from jaxprune import flops, keep, schedules, scores, views
from jaxprune.selection import as_array

WEIGHTS = {"body/kernel": 32, "head/kernel": 40}
FLOPS = {path: 2.0 * size for path, size in WEIGHTS.items()}
"""Those of one row of inputs through the kernels of `tiny`."""


# --------------------------------------------------------------------------- shares of dense steps


def half_masks() -> Any:
    """A quarter of the body, half of the head."""
    body, head = np.arange(32).reshape(4, 8) % 4 == 0, np.arange(40).reshape(8, 5) % 2 == 0
    return {"body": {"kernel": jnp.asarray(body)}, "head": {"kernel": jnp.asarray(head)}}


SPARSE = (0.25 * 32 + 0.5 * 40) / 72
"""What the network of `half_masks` costs."""


def started(method: Any, **values: Any) -> Any:
    """The state of a method with the masks `half_masks`."""
    return method(optax.sgd(0.1), **values).init(tiny.params())


def at(state: Any, step: int) -> Any:
    """The state as it stands after so many updates, with the same masks."""
    return state._replace(prune_count=jnp.int32(step))


def cost(state: Any, step: int, of: Any = None) -> float:
    return float(flops.step_cost(at(state, step), of or FLOPS))


def test_a_static_network_costs_its_density() -> None:
    state = started(jaxprune.static, masks=half_masks())
    assert cost(state, 3) == pytest.approx(SPARSE)
    assert float(flops.inference_cost(state, FLOPS)) == pytest.approx(SPARSE)
    unpruned = FLOPS | {"body/bias": 72.0}  # as much as a third of all
    assert cost(state, 3, unpruned) == pytest.approx((SPARSE * 144 + 72) / 216)
    assert float(flops.inference_cost(state, unpruned)) == pytest.approx((SPARSE * 144 + 72) / 216)


def test_before_the_first_update_all_are_kept() -> None:
    state = jaxprune.snip(optax.sgd(0.1), sparsity=0.5).init(tiny.params())
    assert cost(state, 0) == 1.0
    assert float(flops.inference_cost(state, FLOPS)) == 1.0


def test_rigl_needs_the_dense_gradient_where_its_masks_change() -> None:
    state = started(jaxprune.rigl, sparsity=None, start=half_masks(), every=4, stop=10)
    ordinary, changing = SPARSE, (2 * SPARSE + 1) / 3
    found = [cost(state, step) for step in range(12)]
    expected = [changing if step in (3, 7) else ordinary for step in range(12)]
    assert found == pytest.approx(expected)


def test_sparse_evolution_never_needs_a_gradient_of_pruned_weights() -> None:
    state = started(jaxprune.sparse_evolution, sparsity=None, start=half_masks(), every=2, stop=9)
    assert [cost(state, step) for step in range(9)] == pytest.approx([SPARSE] * 9)


def test_a_straight_through_gradient_is_dense() -> None:
    state = started(jaxprune.straight_through, sparsity=0.9, ramp=(0, 40), start=half_masks())
    assert cost(state, 3) == pytest.approx((2 * SPARSE + 1) / 3)


def test_magnitude_attention_explores_at_the_cost_of_a_dense_gradient() -> None:
    values = {"sparsity": 0.9, "ramp": (0, 8), "stop": 8, "start": half_masks()}
    state = started(jaxprune.magnitude_attention, **values)
    assert cost(state, 3) == pytest.approx((2 * SPARSE + 1) / 3)
    assert cost(state, 9) == pytest.approx(SPARSE)


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_prune_and_grow_explores_the_dense_network(importance: Any) -> None:
    lengths = {"measure_steps": 2, "improve_steps": 3, "explore_steps": 4, "stop": 18}
    values = {"importance": importance, "start": half_masks()} | lengths
    state = started(jaxprune.prune_and_grow, **values)
    frozen = (2 + 1 - SPARSE) / 3  # forward through all, the gradient of P alone
    stages = [SPARSE] * 5 + [frozen] * 4
    assert [cost(state, step) for step in range(20)] == pytest.approx(
        [*stages, *stages, SPARSE, SPARSE]
    )
    state = started(jaxprune.prune_and_grow, freeze_kept=False, **values)
    assert cost(state, 6) == 1.0


def custom(**values: Any) -> Any:
    """A method whose masks may choose pruned weights by what was remembered of their gradients."""
    grow = jaxprune.MaskUpdate(
        when=schedules.every(4),
        score=lambda s: s.memory,
        keep=keep.largest(30),
        **values,
    )
    memory = jaxprune.Memory(
        init=lambda s: {path: jnp.zeros(m.shape) for path, m in s.mask.items()},
        update=lambda s: {path: as_array(x) for path, x in scores.gradient(s).items()},
        at="step",
    )
    tx = jaxprune.prune(optax.sgd(0.1), [grow], views.hard, start=half_masks(), memory=memory)
    return tx.init(tiny.params())


def test_a_memory_of_gradients_needs_those_of_pruned_weights_if_they_may_be_chosen() -> None:
    assert cost(custom(), 1) == pytest.approx((2 * SPARSE + 1) / 3)
    grown = custom(candidates=jaxprune.Candidates.PRUNED)
    assert cost(grown, 1) == pytest.approx((2 * SPARSE + 1) / 3)
    assert cost(custom(candidates=jaxprune.Candidates.KEPT), 1) == pytest.approx(SPARSE)


def test_costs_are_float32_scalars_that_jit_keeps() -> None:
    state = started(jaxprune.rigl, sparsity=None, start=half_masks(), every=4, stop=10)
    for measure in (flops.step_cost, flops.inference_cost):
        jitted: Any = jax.jit(measure)
        for step in (2, 3):
            found = jitted(at(state, step), FLOPS)
            assert (found.shape, found.dtype) == ((), np.dtype("float32"))
            np.testing.assert_allclose(found, measure(at(state, step), FLOPS), rtol=1e-6)
        assert jitted._cache_size() == 1


def test_costs_follow_training() -> None:
    tx, params = jaxprune.rigl(optax.sgd(0.1), sparsity=0.5, every=3, stop=9), tiny.params()
    state, step = tx.init(params), updater(tx)
    for n in range(1, 5):
        params, state = step(tiny.pull(params), state, params)
        dense = (n + 1) % 3 == 0
        kept = sum(tiny.kept(state).values()) / 72
        assert float(flops.inference_cost(state, FLOPS)) == pytest.approx(kept)
        expected = (2 * kept + 1) / 3 if dense else kept
        assert float(flops.step_cost(state, FLOPS)) == pytest.approx(expected)


def test_two_methods_side_by_side_are_one_network() -> None:
    start = half_masks()
    tx = optax.multi_transform(
        {
            "a": jaxprune.static(optax.sgd(0.1), masks={"body": start["body"]}),
            "b": jaxprune.static(optax.sgd(0.1), masks={"head": start["head"]}),
        },
        {"body": "a", "head": "b"},
    )
    state = tx.init(tiny.params())
    assert float(flops.step_cost(state, FLOPS)) == pytest.approx(SPARSE)
    assert flops.stage_costs(state, FLOPS) == {"train": pytest.approx(SPARSE)}


def test_each_stage_has_its_cost_under_the_masks_of_now() -> None:
    state = at(started(jaxprune.rigl, sparsity=None, start=half_masks(), every=4, stop=10), 3)
    expected = {"train": SPARSE, "mask step": (2 * SPARSE + 1) / 3}
    assert flops.stage_costs(state, FLOPS) == pytest.approx(expected)
    lengths = {"measure_steps": 2, "improve_steps": 0, "explore_steps": 4, "stop": 18}
    state = started(jaxprune.prune_and_grow, start=half_masks(), **lengths)
    expected = {"measure": SPARSE, "explore": (3 - SPARSE) / 3, "train": SPARSE}
    assert flops.stage_costs(state, FLOPS) == pytest.approx(expected)


def test_phases_of_ones_own_tell_the_present_one() -> None:
    def phases(step: Any) -> jaxprune.Phase:
        return jaxprune.Phase(jnp.int32(1), step, jnp.int32(-1), ("one", "two"))

    tx = jaxprune.prune(optax.sgd(0.1), [], views.hard, start=half_masks(), phases=phases)
    assert flops.stage_costs(tx.init(tiny.params()), FLOPS) == {"two": pytest.approx(SPARSE)}


@pytest.mark.parametrize("measure", [flops.step_cost, flops.inference_cost, flops.stage_costs])
def test_operations_of_another_network_are_refused(measure: Any) -> None:
    state = started(jaxprune.static, masks=half_masks())
    with pytest.raises(
        ValueError, match=r"`flops` must have only paths .* near paths are body/kern"
    ):
        measure(state, {"body/kernal": 1.0})
    with pytest.raises(ValueError, match=r"`flops` must have an operation, got \{\}"):
        measure(state, {})
    with pytest.raises(ValueError, match="`opt_state` must hold the state of a jaxprune method"):
        measure(optax.sgd(0.1).init(tiny.params()), FLOPS)


# ------------------------------------------------------------------------------- of a ResNet-50


def positions() -> dict[str, int]:
    """Outputs of each layer of a ResNet-50 at 224 x 224, written down by hand."""
    found = {"head/kernel": 1, "stem/kernel": 112**2}
    for stage, (blocks, side) in enumerate(zip((3, 4, 6, 3), (56, 28, 14, 7), strict=True)):
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            before = 2 * side if stage and not block else side
            found |= {f"{name}_a/kernel": before**2, f"{name}_b/kernel": side**2}
            found[f"{name}_c/kernel"] = side**2
            if not block:
                found[f"{name}_skip/kernel"] = side**2
    return found


def test_the_convolutions_of_a_resnet50_are_counted_as_by_hand() -> None:
    shapes, found = resnet50_flops.layers()
    expected = {
        path: 2.0 * math.prod(shape) * positions()[path]
        for path, shape in bench.resnet50_shapes().items()
    }
    assert found == expected and len(found) == len(shapes) == 54
    assert sum(found.values()) == pytest.approx(8.2e9, rel=0.005)  # the dense network of the paper


@pytest.mark.parametrize(
    ("kind", "sparsity", "training", "printed"),
    [
        ("uniform", 0.8, 0.226, 0.23),
        ("uniform", 0.9, 0.129, 0.13),
        ("erk", 0.8, 0.416, 0.42),
        ("erk", 0.9, 0.244, 0.25),
    ],
)
def test_rigl_on_a_resnet50_costs_what_the_literature_prints(
    kind: str, sparsity: float, training: float, printed: float
) -> None:
    row = resnet50_flops.rows()[kind, sparsity]
    assert row["RigL"] == pytest.approx(training, abs=0.002)
    assert row["RigL"] == pytest.approx(printed, abs=0.0075)
    assert row["test"] == row["static, SET"] < row["RigL"]


def test_the_densities_are_those_that_rigl_keeps() -> None:
    shapes, _ = resnet50_flops.layers()
    density = resnet50_flops.densities(shapes, "erk", 0.9)
    plan = jaxprune.plan(jaxprune.rigl(optax.sgd(0.1), sparsity=0.9, stop=1000), shapes)
    assert {leaf.path: leaf.kept_end for leaf in plan.leaves} == {
        path: pytest.approx(density[path] * math.prod(leaf.shape), abs=1)
        for path, leaf in shapes.items()
    }


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("experiments.flops").main()
    assert "| uniform | 80% | 0.223 | 0.223 | 0.226 |" in capsys.readouterr().out
