"""Pruning once: any score, by output, in groups and in blocks, against NumPy references."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny

import jaxprune
from jaxprune import trees


def network(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    shapes = {"body": (8, 6), "head": (6, 4), "norm": (6,)}
    leaf = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }
    return {
        "body": {"kernel": leaf["body"]},
        "head": {"kernel": leaf["head"]},
        "norm": {"scale": leaf["norm"]},
    }


def once(*values: Any, params: Any = None, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Params and masks by path, after what holds for any of them."""
    params = network() if params is None else params
    pruned, masks = jaxprune.prune_once(params, *values, **options)
    before, after = trees.by_path(params), trees.by_path(pruned)
    found = {path: np.asarray(mask) for path, mask in trees.by_path(masks).items()}
    assert [*after] == [*before]
    for path, leaf in before.items():
        if path not in found:
            tiny.same_bits(after[path], leaf)
            continue
        assert not tiny.bits(after[path])[~found[path]].any()
        np.testing.assert_array_equal(after[path][found[path]], leaf[found[path]])
    return after, found


def sizes(params: Any) -> dict[str, np.ndarray]:
    return {path: np.abs(np.asarray(leaf)) for path, leaf in trees.by_path(params).items()}


@pytest.mark.parametrize("distribution", ["global", "uniform"])
def test_the_highest_of_any_score_stay(distribution: Any) -> None:
    """Wanda's: each weight by the norm of what meets it."""
    params, rng = network(), np.random.default_rng(1)
    norms = {path: rng.random((x.shape[0], 1)).astype("f4") for path, x in sizes(params).items()}
    _, found = once(0.75, score=lambda path, w: jnp.abs(w) * norms[path], distribution=distribution)
    paths = ["body/kernel", "head/kernel"]
    scores = [sizes(params)[path] * norms[path] for path in paths]
    together = distribution == "global"
    counts, groups = ([18], [0, 0]) if together else ([12, 6], [0, 1])
    expected = oracle.keep_largest(scores, counts, groups)
    assert [*found] == paths
    for path, mask in zip(paths, expected, strict=True):
        np.testing.assert_array_equal(found[path], mask)


def test_each_output_keeps_the_same_share_of_its_inputs() -> None:
    params = network()
    params["conv"] = {
        "weight": jnp.asarray(np.random.default_rng(2).normal(size=(5, 4, 3, 3)), "f4")
    }
    params["query"] = {
        "kernel": jnp.asarray(np.random.default_rng(3).normal(size=(16, 2, 4)), "f4")
    }
    _, found = once(0.75, params=params, distribution="output")
    outputs = {
        "body/kernel": (1,),
        "head/kernel": (1,),
        "conv/weight": (0,),
        "query/kernel": (1, 2),
    }
    assert sorted(found) == sorted(outputs)
    for path, axes in outputs.items():
        rows = np.moveaxis(sizes(params)[path], axes, range(len(axes)))
        mask = np.moveaxis(found[path], axes, range(len(axes)))
        number = int(np.prod(rows.shape[: len(axes)]))
        rows, mask = rows.reshape(number, -1), mask.reshape(number, -1)
        count = oracle.kept(rows.shape[1], 0.25)
        np.testing.assert_array_equal(
            mask, oracle.keep_largest([*rows], [count] * number, range(number))
        )


def test_outputs_may_be_said_and_those_of_slices_are_their_own() -> None:
    params = network()
    _, found = once(
        0.5, params=params, distribution="output", output_axis={"body": 0}, exclude="head"
    )
    assert [*found] == ["body/kernel"]
    assert found["body/kernel"].sum(1).tolist() == [3] * 8
    stacked = {
        "layers": {"kernel": jnp.asarray(np.random.default_rng(4).normal(size=(3, 8, 2)), "f4")}
    }
    _, found = once(0.5, params=stacked, distribution="output", stacked={"layers": 0})
    assert found["layers/kernel"].sum(1).tolist() == [[4, 4]] * 3


@pytest.mark.parametrize("n", [1, 3])
def test_groups_are_those_of_the_oracle(n: int) -> None:
    params = network()
    _, found = once(n=n, m=4, exclude="head")
    assert [*found] == ["body/kernel"]
    expected = oracle.n_of_m(sizes(params)["body/kernel"], n, 4, 0)
    np.testing.assert_array_equal(found["body/kernel"], expected)


def test_what_groups_do_not_fit_is_refused_or_left_dense() -> None:
    with pytest.raises(ValueError, match=r"multiples of m = 4 .* got \{'head/kernel': 6\}"):
        once(n=2, m=4)
    _, found = once(n=2, m=4, unfit="skip")
    assert [*found] == ["body/kernel"]
    with pytest.raises(ValueError, match="`unfit` must be 'refuse' or 'skip', got 'drop'"):
        once(n=2, m=4, unfit="drop")


def test_blocks_stay_whole() -> None:
    params = network()
    _, found = once(0.5, block=(2, 3), distribution="uniform")
    for path in ("body/kernel", "head/kernel"):
        expected = oracle.block(sizes(params)[path], 0.5, (2, 3))
        np.testing.assert_array_equal(found[path], expected)
    _, found = once(0.75, block=(2, 2), exclude="head")
    expected = oracle.block(sizes(params)["body/kernel"], 0.25, (2, 2))
    np.testing.assert_array_equal(found["body/kernel"], expected)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({}, ValueError, "`sparsity` must be given unless `n` and `m` are, which say it, got None"),
        ({"sparsity": 0.5, "n": 2, "m": 4}, ValueError, "`sparsity` must be given unless"),
        ({"n": 2}, ValueError, "`sparsity` must be given unless `n` and `m` are"),
        ({"m": 4}, ValueError, "`sparsity` must be given unless `n` and `m` are"),
        ({"sparsity": 1.0}, ValueError, r"`sparsity` must lie in \[0, 1\)"),
        ({"sparsity": 90}, ValueError, r"`sparsity` .* did you mean 0.9\?"),
        ({"sparsity": 90, "distribution": "output"}, ValueError, r"`sparsity` .* mean 0.9\?"),
        ({"n": 5, "m": 4, "exclude": "head"}, ValueError, r"`n` must lie in \[0, m\] with m = 4"),
        ({"n": 2, "m": 4, "block": (2, 2)}, ValueError, "`n` must stand without .*`block`"),
        ({"n": 2, "m": 4, "distribution": "erk"}, ValueError, "`n` must stand without"),
        ({"n": 2, "m": 4, "min_density": 0.1}, ValueError, "`n` must stand without"),
        ({"n": 2, "m": 4, "overrides": {"body": 0.5}}, ValueError, "`n` must stand without"),
        (
            {"sparsity": 0.5, "distribution": "output", "block": (2,)},
            ValueError,
            "`distribution` must stand without .* and `block`, got 'output'",
        ),
        ({"sparsity": 0.5, "distribution": "outputs"}, ValueError, "`distribution` must be global"),
        ({"sparsity": 0.5, "block": (0,)}, ValueError, "`block` must be made of numbers"),
        ({"sparsity": 0.5, "exclude": "haed"}, ValueError, "`exclude` must match at least one"),
        ({"sparsity": 0.5, "exclude": "kernel"}, ValueError, "at least one prunable leaf"),
        (
            {"sparsity": 0.5, "score": lambda path, w: jnp.abs(w).sum(0)},
            ValueError,
            r"`score` must return the shape \(8, 6\) for 'body/kernel', got \(6,\)",
        ),
    ],
)
def test_what_cannot_be_pruned_once_is_refused(values: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        jaxprune.prune_once(network(), **values)


@pytest.mark.parametrize("options", [{"sparsity": 0.5, "distribution": "output"}, {"n": 1, "m": 2}])
def test_outputs_that_are_not_known_are_named(options: Any) -> None:
    params = {"fused": {"kernel": jnp.ones((4, 2, 2))}, "body": {"kernel": jnp.ones((4, 2))}}
    with pytest.raises(ValueError, match=r"`output_axis` .* got \{'fused/kernel': \(4, 2, 2\)\}"):
        jaxprune.prune_once(params, **options)
    jaxprune.prune_once(params, **options, output_axis={"fused": (1, 2)})
    jaxprune.prune_once(params, 0.5)  # who ranks by entries need not know them


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_block_of_a_stack_lies_in_one_layer(axis: int) -> None:
    weights = np.random.default_rng(3).normal(size=(3, 8, 8)).astype("f4")
    stack = {"layers": {"kernel": jnp.asarray(np.moveaxis(weights, 0, axis))}}
    options = {"distribution": "uniform", "block": (4, 2)}
    _, found = once(0.5, params=stack, stacked={"layers": axis}, **options)
    for layer, mask in zip(weights, np.moveaxis(found["layers/kernel"], axis, 0), strict=True):
        _, alone = once(0.5, params={"kernel": jnp.asarray(layer)}, **options)
        np.testing.assert_array_equal(mask, alone["kernel"])


def test_a_score_that_is_no_number_is_refused() -> None:
    def norms(path: str, w: Any) -> Any:
        return jnp.abs(w) * jnp.where(jnp.arange(w.shape[1]) == 1, jnp.nan, 1.0)[None]

    for options in ({"score": norms}, {"score": norms, "distribution": "output"}):
        with pytest.raises(ValueError, match="`score` must have no NaN"):
            jaxprune.prune_once(network(), 0.5, **options)


@pytest.mark.parametrize("score", [{}, 3, "l2"])
def test_a_score_that_is_no_function_is_refused(score: Any) -> None:
    with pytest.raises(TypeError, match="`score` must be None or a function of a path and a weig"):
        jaxprune.prune_once(network(), 0.5, score=score)
