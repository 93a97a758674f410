"""The streaming pipeline on eight devices: the same masks as on one, in every layout."""

import pathlib
import re
from typing import Any

import jax
import numpy as np
import optax
import pytest
from test_imagenet import mocked, same_bits, small, started

import jaxprune
from experiments import layouts, train, training
from jaxprune import trees

pytestmark = [
    pytest.mark.usefixtures("standard_promotion", "mocked"),
    pytest.mark.filterwarnings("ignore:levels of an attention network"),
    pytest.mark.several_devices,
]

mocked = mocked  # the fixture

SPLIT = {"data": 2, "fsdp": 2, "tensor": 2}
CASES = [("magnitude_attention", SPLIT), ("gradual_magnitude", SPLIT | {"mode": "explicit"})]
"""All methods in all layouts were run once: each takes half a minute."""


def run(variant: str, mesh: Any, workdir: pathlib.Path) -> tuple[train.Run, Any, dict[str, Any]]:
    """A run in a layout: what it needs, its final state, its masks and accuracy."""
    workdir.mkdir()
    # In float32: of bfloat16 the sums over devices differ by more than masks can bear.
    of, state = started(small(variant, mesh=mesh, model={"dtype": "float32"}), workdir)
    steps: list[Any] = []

    def compiled(function: Any, **options: Any) -> Any:
        steps.append(of.layout.compiled(function, **options))
        return steps[-1]

    if of.layout.shared:
        of = of._replace(step=training.step_on(of.layout._replace(compiled=compiled)))
    with of.layout.within():
        state, found = train.trained(of, state)
        masks = jaxprune.masks_by_path(of.layout.one(state.opt_state))
    assert [step._cache_size() for step in steps] == [1] * len(steps)  # with its refreshes
    return of, state, found | {path: np.asarray(mask) for path, mask in masks.items()}


@pytest.mark.parametrize(("variant", "mesh"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_masks_and_accuracy_are_those_of_one_device(
    variant: str, mesh: Any, tmp_path: pathlib.Path
) -> None:
    _, _, alone = run(variant, {"data": 1}, tmp_path / "alone")
    of, state, found = run(variant, mesh, tmp_path / "many")
    assert found.keys() == alone.keys() and found.pop("accuracy") == alone.pop("accuracy")
    for path, mask in found.items():
        np.testing.assert_array_equal(mask, alone[path])
    params = trees.by_path(state.params)
    for path, mask in trees.by_path(jaxprune.get_masks(state.opt_state)).items():
        if path in params:  # masks of channels lie everywhere
            assert mask.sharding.is_equivalent_to(params[path].sharding, mask.ndim)
    with of.layout.within():
        jaxprune.verify(state.params, state.opt_state)


def test_a_cut_network_is_written_at_the_end_of_a_run_on_many(tmp_path: pathlib.Path) -> None:
    """With every device along the data, as ImageNet's recipes have it."""
    config = small("slimming", mesh={"data": -1}, steps=4, evaluate_every=3)
    config.model.dtype = "float32"
    result = train.train(config, tmp_path)
    assert result["inference_flops"] <= 0.6 and (tmp_path / "cut.jax_export").exists()


def test_replicas_agree(tmp_path: pathlib.Path) -> None:
    of, state, _ = run("rigl", {"data": 8, "mode": "pmap"}, tmp_path / "mean")
    first, *others = [jax.tree.map(lambda x, n=n: x[n], state) for n in range(8)]
    for other in others:
        same_bits(other, first)
    turned = jax.tree.map(lambda m: m.at[3].set(~m[3]), jaxprune.get_masks(state.opt_state))
    other = optax.tree.set(state.opt_state, prune_mask=turned)
    with pytest.raises(ValueError, match="average the gradients before the update"):
        train._check_replicas(of.layout, other)


def test_no_step_gathers_params(tmp_path: pathlib.Path) -> None:
    """With params whole on each device nothing is gathered; fsdp gathers what computes."""
    config = small("magnitude_attention", mesh={"data": 8}, model={"dtype": "float32"})
    of, state = started(config, tmp_path)
    with of.layout.within():
        state = of.layout.placed(state)
        batch = of.layout.batch(next(of.train.batches(8, seed=0)))
        text = str(training.train_step.lower(state, batch).compile().as_text())
    sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in _GATHERED.findall(text)]
    assert "all-reduce" in text and all(int(size) < 256 for size in sizes)


_GATHERED = re.compile(r"= [a-z0-9]+\[([\d,]+)\]\S* all-gather")


@pytest.mark.parametrize(
    ("mesh", "told"),
    [
        ({"data": 3}, "have axes that divide 8 devices"),
        ({"data": -1, "fsdp": -1}, "at most one of them -1"),
        ({"data": 2, "fsdp": 2, "mode": "pmap"}, "pmap with data alone"),
        ({"data": 2, "mode": "magic"}, "have as mode one of auto, explicit"),
    ],
    ids=str,
)
def test_a_mesh_that_does_not_fit_gets_one_sentence(mesh: Any, told: str) -> None:
    whole = {"data": 1, "fsdp": 1, "tensor": 1, "mode": "auto"} | mesh
    with pytest.raises(ValueError, match=rf"`config.mesh` must .*{told}"):
        layouts.of(whole)


def test_a_batch_that_does_not_fit_the_devices_gets_one_sentence(tmp_path: pathlib.Path) -> None:
    config = small("dense", mesh={"data": 8}, batch_size=12)
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of the 8 devices"):
        train.train(config, tmp_path)


def test_a_tensor_axis_across_processes_is_refused(monkeypatch: Any) -> None:
    """They would bring other images for one place."""

    class Device:
        def __init__(self, number: int) -> None:
            self.process_index = number // 4

    class Mesh:
        devices = np.array([Device(n) for n in range(8)]).reshape(1, 1, 8)

    monkeypatch.setattr(jax, "make_mesh", lambda *args, **options: Mesh)
    with pytest.raises(ValueError, match="have a tensor axis that lies within each process"):
        layouts.of({"data": 1, "fsdp": 1, "tensor": 8, "mode": "auto"})
