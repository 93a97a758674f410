"""Steps that run on the channels that are kept: the same training, at the small network's cost."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from experiments import channels, cut_steps, data, models, optimizers, training
from experiments.configs import channels as of_channels
from jaxprune import trees

pytestmark = pytest.mark.usefixtures("standard_promotion")

SHAPE = (8, 8, 1)


def toy() -> data.Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (128, *SHAPE)).astype(np.uint8)
    return data.Dataset(images, rng.integers(0, 10, 128).astype(np.int32), 10)


def glyph_resnet(name: str, **values: Any) -> Any:
    config: Any = of_channels.glyphs_resnet_channels(name, **values)
    config.model.width, config.model.stem, config.model.blocks = 8, 4, 1
    config.optimizer.learning_rate, config.steps, config.label_smoothing = 0.05, 24, 0.1
    config.channels.round_to, config.channels.min_keep = 1, 1
    return config


def begun(config: Any) -> tuple[Any, training.State, Iterator[data.Batch]]:
    model = models.build(config.model, 10)
    tx = optimizers.build(config, channels.choice(config, model, SHAPE))
    state = training.create(model, tx, toy(), 0, training.recipe_of(config))
    return model, state, toy().batches(16, seed=0)


def close(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4)


def same(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def parts(state: training.State) -> tuple[Any, ...]:
    return state.step, state.params, state.batch_stats, state.opt_state, state.flops


GROWS = {"measure_steps": 2, "improve_steps": 2, "explore_steps": 2, "swap_fraction": (0.2, 0.2)}
RUNS = {
    "static": {"distribution": "uniform", "sparsity": 0.5},
    "prune_and_grow": GROWS,
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_cut_networks_is_that_on_masked_ones(name: str) -> None:
    config = glyph_resnet(name, **RUNS[name])
    model, whole, batches = begun(config)
    net = channels.traced(model, SHAPE)
    cut, step = jax.tree.map(jnp.copy, whole), cut_steps.CutSteps(model, SHAPE)
    for n, batch in zip(range(config.steps), batches, strict=False):
        before, masks = jax.device_get(
            jax.tree.map(jnp.copy, (cut.batch_stats, jaxprune.masks_by_path(cut.opt_state)))
        )
        dense = n == 0 or bool(jaxprune.sees_dense(cut.opt_state))
        whole, expected = training.train_step(whole, batch)
        cut, metrics = step(cut, batch)
        close(metrics, expected)
        close(cut.params, whole.params)
        same(jaxprune.get_masks(cut.opt_state), jaxprune.get_masks(whole.opt_state))
        if not dense:  # what is not there has no statistics, and keeps those it had
            old, new = (trees.by_path(tree) for tree in (before, cut.batch_stats))
            for kept in net.cut(masks).kept:
                path = kept.path.removeprefix("also:")
                if path in old:
                    moved = np.flatnonzero(old[path] != np.asarray(new[path]))
                    assert moved.size and {*moved} <= {*kept.indices}
    assert step.counts["cut"] > 5 and sum(step.counts.values()) == config.steps
    told, looks = step.told(), step.counts["whole"]
    assert told["steps"] == config.steps and (told["share"] is None) == (looks < 3)
    assert told["programs"] == {"static": 2}.get(name, told["programs"])


def test_it_goes_on_from_any_step_to_the_same_bits() -> None:
    config = glyph_resnet("prune_and_grow", **GROWS)
    model, state, batches = begun(config)
    seen = [batch for _, batch in zip(range(12), batches, strict=False)]
    step, halfway = cut_steps.CutSteps(model, SHAPE), []
    for batch in seen:
        halfway.append(jax.tree.map(jnp.copy, state))
        state, _ = step(state, batch)
    again, later = halfway[5], cut_steps.CutSteps(model, SHAPE)  # in the middle of a stage
    for batch in seen[5:]:
        again, _ = later(again, batch)
    same(parts(again), parts(state))


def masked(state: training.State, masks: Any) -> training.State:
    masks = jax.tree.map(jnp.asarray, masks)
    opt_state = optax.tree.set(state.opt_state, prune_mask=masks, prune_count=jnp.int32(1))
    params = jaxprune.active_params(state.params, opt_state)
    return state.replace(params=params, opt_state=opt_state)


def test_equal_widths_share_a_program_where_it_is_the_same() -> None:
    config = glyph_resnet("static", distribution="uniform", sparsity=0.5)
    config.model = {"name": "resnet", "depth": 8}  # its shortcuts pad: which channels stay matters
    model, state, batches = begun(config)
    batch, step = next(batches), cut_steps.CutSteps(model, SHAPE)
    names = {name: m.size for name, m in jaxprune.masks_by_path(state.opt_state).items()}
    padded = [n for n in names if n.startswith(("conv_stem", "stage_1_block_0/conv_1"))]
    first = {name: np.arange(size) % 2 == 0 for name, size in names.items()}
    inner = {name: m if name in padded else m[::-1] for name, m in first.items()}
    outer = {name: np.arange(m.size) < m.size // 2 for name, m in first.items()}
    for masks, programs in ((first, 1), (inner, 1), (outer, 2)):
        whole = masked(jax.tree.map(jnp.copy, state), masks)
        new, metrics = step(jax.tree.map(jnp.copy, whole), batch)
        expected, theirs = training.train_step(whole, batch)
        close(metrics, theirs)
        close(new.params, expected.params)
        assert step.told()["programs"] == programs


def test_nothing_pruned_is_the_whole_network() -> None:
    config = glyph_resnet("gradual_magnitude")
    config.steps = 320
    model, state, batches = begun(config)
    step, batch = cut_steps.CutSteps(model, SHAPE), next(batches)
    expected, _ = training.train_step(jax.tree.map(jnp.copy, state), batch)
    state, _ = step(state, batch)
    close(parts(state), parts(expected))
    assert step.counts == {"whole": 1, "cut": 0}
    assert step.told()["share"] is None  # one step is no measure


def test_programs_are_told_apart_by_constants_within() -> None:
    def digest(kept: Any, wrap: Any) -> bytes:
        inner = wrap(lambda y: jnp.sin(jnp.take(y, np.array(kept))))
        return cut_steps._digest(jax.jit(lambda y: inner(2 * y)).trace(jnp.ones(5)).jaxpr)

    for wrap in (lambda f: f, jax.jit, jax.checkpoint, lambda f: jax.jit(jax.jit(f))):
        assert digest([0, 2], wrap) == digest([0, 2], wrap) != digest([0, 3], wrap)


def test_a_group_may_go_whole() -> None:
    config = glyph_resnet("static", distribution="uniform", sparsity=0.5)
    model, state, batches = begun(config)
    masks = {name: np.ones(m.size, bool) for name, m in masks_of(state).items()}
    masks["block_0/conv_0/kernel[3]"] &= False
    state, batch = masked(state, masks), next(batches)
    new, metrics = cut_steps.CutSteps(model, SHAPE)(jax.tree.map(jnp.copy, state), batch)
    expected, theirs = training.train_step(state, batch)
    close(metrics, theirs)
    close(new.params, expected.params)


def masks_of(state: training.State) -> dict[str, Any]:
    return jaxprune.masks_by_path(state.opt_state)
