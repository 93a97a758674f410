"""Latencies: what is timed, how the table is read, and what is refused. No test asserts a time."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_shrink import IMAGES, STEM, UP, traced

import jaxprune
from jaxprune import latency

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def counted(monkeypatch: Any) -> list[tuple[Any, ...]]:
    """Functions take as many seconds as their inputs have entries; the shapes that were timed."""
    timed: list[tuple[Any, ...]] = []

    def seconds(function: Any, arrays: Any, repeats: int) -> float:
        del repeats
        jax.eval_shape(function, *arrays)  # it can be run
        timed.append(tuple(x.shape for x in arrays))
        return float(sum(x.size for x in arrays))

    monkeypatch.setattr(latency, "_seconds", seconds)
    return timed


def test_layers_are_timed_at_the_shapes_that_they_have_when_cut(counted: Any) -> None:
    net, params, stats = traced()
    cost = jaxprune.measure_latency(net, params, IMAGES, also=stats, round_to=4)
    timed = counted[:-1]
    assert ((2, 8, 8, 12), (3, 3, 12, 8)) in timed  # down, whole
    assert ((2, 8, 8, 8), (3, 3, 8, 4)) in timed  # down, both groups cut
    assert ((2, 8), (8, 5)) in timed and ((2, 4), (4, 5)) in timed  # the head
    assert len({*timed}) == len(timed)
    grids = {term.layer: term.grid for term in cost.terms if term.grid}
    assert grids["down/kernel"] == ((0, 4, 8, 12), (0, 4, 8))
    assert grids["stem/kernel"] == ((0, 4, 8),)
    assert cost.sizes == {UP: 12, STEM: 8}


def test_costs_add_up_to_what_the_whole_network_takes(counted: Any) -> None:
    net, params, stats = traced()
    cost = jaxprune.measure_latency(net, params, IMAGES, also=stats, round_to=4)
    total = float(sum(np.prod(shape) for shape in counted[-1]))
    assert cost() == pytest.approx(total)
    masks = {UP: np.arange(12) < 6}  # between 4 and 8
    down = {c: 128 * c + 9 * c * 8 for c in (4, 8, 12)}  # of the data, and of the kernel
    left = cost.layers(masks)["down/kernel"] / cost.layers()["down/kernel"]
    assert left == pytest.approx((down[4] + down[8]) / 2 / down[12])


def test_what_no_group_takes_is_timed_too(counted: Any) -> None:
    """A layer that also reads what is never cut is not free where a group is gone."""

    def fn(params: Any, x: Any) -> Any:
        return jnp.concatenate([jax.nn.relu(x @ params["a"]), x], 1) @ params["b"]

    params, x = {"a": jnp.ones((8, 8)), "b": jnp.ones((16, 4))}, jnp.ones((2, 8))
    net = jaxprune.trace(fn, params, x)
    cost = jaxprune.measure_latency(net, params, x, round_to=4)
    gone = cost.layers({"a[1]": np.zeros(8, bool)})
    assert gone["a"] == 0 and gone["b"] / cost.layers()["b"] == pytest.approx(0.5)


def test_what_is_beside_the_layers_is_shared_out(monkeypatch: Any) -> None:
    net, params, stats = traced()
    times = iter([*[1.0] * 200])
    monkeypatch.setattr(
        latency, "_seconds", lambda f, arrays, n: next(times) + 9 * (len(arrays) > 3)
    )
    cost = jaxprune.measure_latency(net, params, IMAGES, also=stats, round_to=8)
    assert cost() == pytest.approx(10.0)
    half = {UP: np.arange(12) < 6, STEM: np.arange(8) < 4}
    rest = {term.layer: term for term in cost.terms if not term.grid}
    assert {"stem/kernel", "up/kernel", "down/kernel", "head/kernel"} == {*rest}
    assert rest["up/kernel"].dense / rest["down/kernel"].dense == pytest.approx(12 / 8)
    assert cost(half) < cost()


def test_a_network_is_fitted_to_a_latency(counted: Any) -> None:
    net, params, stats = traced()
    cost = jaxprune.measure_latency(net, params, IMAGES, also=stats, round_to=4)
    scores = jaxprune.pool_scores(net, jax.tree.map(jnp.square, params))
    masks = jaxprune.select_units(scores, 0.7, round_to=4, cost=cost)
    assert 0.5 * cost() < cost(masks) <= 0.7 * cost() * (1 + 1e-5)
    assert dict(cost.about)["jax"] == jax.__version__
    assert "float32[2,8,8,3]" in dict(cost.about)["inputs"]


def test_less_never_costs_more(monkeypatch: Any) -> None:
    """Narrow layers may be slower than wide ones; a budget then takes the wide ones."""
    slow = {4: 5.0, 8: 1.0, 12: 4.0}  # by the channels of what is read

    def seconds(function: Any, arrays: Any, repeats: int) -> float:
        del function, repeats
        return slow.get(arrays[0].shape[-1], 1.0) if len(arrays) == 2 else 1.0

    monkeypatch.setattr(latency, "_seconds", seconds)
    net, params, stats = traced()
    cost = jaxprune.measure_latency(net, params, IMAGES, also=stats, round_to=4)
    down = {t.layer: t for t in cost.terms if t.grid}["down/kernel"]
    table = np.reshape(down.values, (4, 3))
    assert (np.diff(table, axis=0) >= 0).all() and (np.diff(table, axis=1) >= 0).all()
    assert down.values[-1] == down.dense
    np.testing.assert_allclose(table[1:, 1:] / table[-1, -1], [[0.25, 0.25], [0.25, 0.25], [1, 1]])


def test_files_are_read_back_and_those_of_another_device_are_refused(
    counted: Any, tmp_path: Any
) -> None:
    net, params, stats = traced()
    cost = jaxprune.measure_latency(net, params, IMAGES, also=stats)
    file = tmp_path / "times.json"
    jaxprune.save_cost(file, cost)
    assert jaxprune.load_cost(file) == cost
    assert hash(jaxprune.load_cost(file)) == hash(cost)
    saved = json.loads(file.read_text())
    saved[3] = [["device", "TPU v9"], *saved[3][1:]]
    file.write_text(json.dumps(saved))
    with pytest.raises(
        ValueError, match=r"`path` must hold times of this device, .*, got 'TPU v9'"
    ):
        jaxprune.load_cost(file)
    for text in ("{", "[1, 2]", '["seconds", {}, [[1]], []]'):
        file.write_text(text)
        with pytest.raises(ValueError, match="`path` must be a file of `save_cost`"):
            jaxprune.load_cost(file)
    with pytest.raises(ValueError, match="`repeats` must be at least 1"):
        jaxprune.measure_latency(net, params, IMAGES, also=stats, repeats=0)


def test_a_small_network_is_really_timed() -> None:
    net, params, stats = traced()
    cost = jaxprune.measure_latency(net, params, IMAGES, also=stats, repeats=2)
    assert cost() > 0
    assert all(value >= 0 for term in cost.terms for value in term.values)
