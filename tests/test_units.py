"""Units: which entries or channels are decided about, and along which axes of their leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import trees
from jaxprune.types import Signals
from jaxprune.units import Channels, Entries, Group, Layers, units_for, units_of

LEAVES = {
    "conv/kernel": jnp.ones((3, 3, 4, 8)),
    "norm/scale": jnp.ones(8),
    "body/kernel": jnp.ones((8, 6)),
    "head/kernel": jnp.ones((6, 4)),
    "steps": jnp.zeros((2, 2), jnp.int32),
}


def masks(seed: int = 0, share: float = 0.3, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.random(shape) < share) for path, shape in shapes.items()}


# ---------------------------------------------------------------------------------------- entries


@pytest.mark.parametrize(
    ("units", "pruned"),
    [
        (Entries(), ["conv/kernel", "body/kernel", "head/kernel"]),
        (Entries(exclude="head"), ["conv/kernel", "body/kernel"]),
        (Entries(where="kernel", exclude=["conv", "head"]), ["body/kernel"]),
        (Entries(where=["body", "scale"]), ["norm/scale", "body/kernel"]),
        (Entries(where=lambda path, leaf: leaf.ndim == 2), ["body/kernel", "head/kernel"]),
        (Entries(multiple_of=4), ["conv/kernel", "body/kernel"]),
        (Entries(exclude="conv", multiple_of=8), ["body/kernel"]),
        (
            Entries(multiple_of=6, output_axis={"body": 0}),
            ["conv/kernel", "body/kernel", "head/kernel"],
        ),
    ],
)
def test_entries_of_the_chosen_leaves_are_units(units: Entries, pruned: list[str]) -> None:
    whole = units.whole(LEAVES)
    assert [*whole] == units.members(whole) == units.own(whole | {"bias": jnp.ones(3, bool)})
    assert [*whole] == pruned
    for path, mask in whole.items():
        assert mask.shape == LEAVES[path].shape and mask.dtype == bool and mask.all()
    assert [path for path, reason in units.reasons(LEAVES).items() if not reason] == pruned
    assert units.sites(LEAVES) is LEAVES
    assert units.support(whole, LEAVES) is whole
    assert units.shapes(whole) == {path: LEAVES[path].shape for path in pruned}


def test_what_is_left_out_has_its_reason() -> None:
    reasons = Entries(exclude="body", multiple_of=8).reasons(LEAVES)
    assert reasons["body/kernel"] == "left out by `exclude`"
    assert reasons["head/kernel"] == "sums 6 inputs, no multiple of 8"
    assert reasons["conv/kernel"] == "sums 36 inputs, no multiple of 8"
    assert reasons["steps"] == "not floating"


def test_a_leaf_of_unknown_inputs_is_not_left_out_by_their_number() -> None:
    leaves = {"mixer/kernel": jnp.ones((3, 5, 7)), "body/kernel": jnp.ones((8, 6))}
    assert [*Entries(multiple_of=8).whole(leaves)] == [*leaves]
    assert [*Entries(multiple_of=8, output_axis={"mixer": 2}).whole(leaves)] == ["body/kernel"]


def test_patterns_may_be_about_leaves_that_are_left_out() -> None:
    """Each must match some leaf of the params, not one of the pruned ones."""
    units = Entries(output_axis={"head": 0}, stacked={"conv": 0}, exclude=["conv", "head"])
    whole = units.whole(LEAVES)
    assert [*whole] == ["body/kernel"]
    assert units.layers(whole) == Layers({"body/kernel": (8, 6)}, {})
    assert units.contraction_axes(whole) == {"body/kernel": (0,)}
    units = Entries(["body", "head"], "conv")
    assert units.own({"body/kernel": jnp.ones((8, 6), bool)}) == ["body/kernel"]


@pytest.mark.parametrize("units", [Entries(exclude="kernel"), Entries(multiple_of=5)])
def test_nothing_to_prune_is_refused(units: Entries) -> None:
    with pytest.raises(
        ValueError, match="`params` must have at least one prunable leaf, got 'none'"
    ):
        units.whole(LEAVES)


def test_axes_come_by_name_or_as_they_are_given() -> None:
    leaves = {
        "query/kernel": jnp.ones((16, 4, 8)),
        "fused/kernel": jnp.ones((16, 2, 5)),
        "bias": jnp.ones(5),
    }
    units = Entries(output_axis={"fused": (1, -1), "bias": ()})
    assert units.output_axes(leaves) == {
        "query/kernel": (1, 2),
        "fused/kernel": (1, 2),
        "bias": (),
    }
    assert units.contraction_axes(leaves) == {
        "query/kernel": (0,),
        "fused/kernel": (0,),
        "bias": (0,),
    }
    assert units.inputs(leaves) == {"query/kernel": 16, "fused/kernel": 16, "bias": 5}
    assert Entries().output_axes(leaves)["fused/kernel"] is None
    assert Entries().contraction_axes(leaves)["fused/kernel"] is None
    assert Entries().inputs(leaves)["fused/kernel"] is None
    assert Entries().output_axes(leaves)["bias"] is None  # each entry an output, or all summed
    two = Entries(output_axis=2)
    assert two.contraction_axes({"out/kernel": jnp.ones((4, 6, 16))}) == {"out/kernel": (0, 1)}
    assert two.inputs({"out/kernel": jnp.ones((4, 6, 16))}) == {"out/kernel": 24}


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_axes_of_a_stack_are_those_of_its_slices_in_the_leaf(axis: int) -> None:
    shape = [8, 6]
    shape.insert(axis % 3, 2)
    leaves, stacked = {"layers/kernel": jnp.ones(shape)}, {"layers": axis}
    inputs, outputs = (a for a in range(3) if a != axis % 3)
    units = Entries(stacked=stacked)
    assert units.stacks(leaves) == {"layers/kernel": axis % 3}
    assert units.output_axes(leaves) == {"layers/kernel": (outputs,)}
    assert units.contraction_axes(leaves) == {"layers/kernel": (inputs,)}
    assert units.inputs(leaves) == {"layers/kernel": 8}
    turned = Entries(stacked=stacked, output_axis={"layers": 0})
    assert turned.output_axes(leaves) == {"layers/kernel": (inputs,)}
    assert turned.inputs(leaves) == {"layers/kernel": 6}
    assert [*Entries(stacked=stacked, multiple_of=8).whole(leaves)] == ["layers/kernel"]


@pytest.mark.parametrize(
    ("shape", "path", "given", "axes"),
    [
        ((3, 4), "kernel", None, (1,)),
        ((3, 4), "weight", None, (0,)),
        ((2, 2, 3, 4), "conv/kernel", None, (3,)),
        ((2, 2, 3, 4), "conv/kernel", 0, (0,)),
        ((3, 2, 4), "query/kernel", None, (1, 2)),
        ((3, 2, 4), "moe/kernel", (0, 2), (0, 2)),
        ((5,), "vector", (), ()),  # one unit
        ((5,), "vector", 0, (0,)),  # five
    ],
)
def test_a_unit_lives_while_it_has_a_kept_weight(
    shape: Any, path: str, given: Any, axes: tuple[int, ...]
) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.2
    found = np.asarray(Entries(output_axis=given).living({path: jnp.asarray(mask)})[path])
    others = tuple(a for a in range(len(shape)) if a not in axes)
    np.testing.assert_array_equal(found, mask.any(others, keepdims=True))
    assert found.size == np.prod([shape[a] for a in axes], dtype=int)


def test_units_whose_outputs_are_not_known_are_not_guarded() -> None:
    found = Entries().living(masks(**{"body/kernel": (3, 4), "fused/kernel": (2, 3, 4)}))
    assert [*found] == ["body/kernel"]


def test_masks_go_into_the_containers_of_the_params_and_back() -> None:
    params = {"body": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    units = Entries()
    packed = units.packed(units.whole(trees.by_path(params)), params)
    assert packed["body"]["kernel"].shape == (2, 3) and trees.is_hole(packed["body"]["bias"])
    units.check(packed, params)
    with pytest.raises(ValueError, match="params"):
        units.check(packed, {"body": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(3)}})


@pytest.mark.parametrize(
    ("units", "error", "message"),
    [
        (Entries(output_axis=2), ValueError, r"`output_axis` must lie in \[-2, 2\) for 'body/"),
        (Entries(output_axis={"bodi": 0}), ValueError, "`output_axis` must match at least one"),
        (Entries(output_axis=(0, 1)), ValueError, "leave an axis of 'body/kernel' for its inputs"),
        (Entries(output_axis=0.5), TypeError, "`output_axis` must be an axis or a tuple of axes"),
        (Entries(stacked={"body": 2}), ValueError, r"`stacked` must lie in \[-2, 2\) for 'body/"),
        (Entries(stacked={"body": True}), TypeError, "`stacked` must give an integer, the axis"),
        (Entries(stacked={"bodi": 0}), ValueError, "`stacked` must match at least one path"),
        (Entries(exclude="bodi"), ValueError, "`exclude` must match at least one path"),
    ],
)
def test_what_entries_cannot_be_fails_at_the_first_look(
    units: Entries, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        units.whole({"body/kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)})


def test_entries_are_compared_by_value_and_stand_in_a_static_place() -> None:
    def made(axis: int = 1) -> Entries:
        return Entries(["kernel"], ["head"], {"query": [axis, 2]}, {"layers": 0}, 4)

    assert made() == made() and hash(made()) == hash(made())
    assert made() != made(0)
    assert jax.tree.leaves(made()) == []
    assert jax.jit(lambda units: len(units.where))(made()) == 1


# --------------------------------------------------------------------------------------- channels

GROUPS = {
    "inner": Group(6, {"body/kernel": 1, "head/kernel": 0}),
    "outer": Group(8, {"conv/kernel": 3, "norm/scale": 0, "body/kernel": 0}),
}


def test_channels_are_one_unit_each() -> None:
    units = Channels(GROUPS)
    whole = units.whole(LEAVES)
    assert {name: mask.shape for name, mask in whole.items()} == {"inner": (6,), "outer": (8,)}
    assert all(mask.dtype == bool and mask.all() for mask in whole.values())
    assert sorted(units.members(whole)) == [
        "body/kernel",
        "conv/kernel",
        "head/kernel",
        "norm/scale",
    ]
    assert units.own(whole | {"other": jnp.ones(3, bool)}) == ["inner", "outer"]
    reasons = units.reasons(LEAVES)
    assert reasons["body/kernel"] == "channels of inner, outer"
    assert reasons["steps"] == "left out"
    layers = units.layers(whole)
    assert layers == Layers({"inner": (6,), "outer": (8,)}, {})
    nothing = dict.fromkeys(whole)
    assert units.output_axes(whole) == units.contraction_axes(whole) == nothing
    assert units.inputs(whole) == nothing
    assert units.stacks(whole) == units.living(whole) == {}


def test_an_entry_stays_if_all_its_channels_do() -> None:
    mask = masks(inner=(6,), outer=(8,), share=0.6)
    support = Channels(GROUPS).support(mask, LEAVES)
    inner, outer = np.asarray(mask["inner"]), np.asarray(mask["outer"])
    expected = {
        "conv/kernel": np.broadcast_to(outer, (3, 3, 4, 8)),
        "norm/scale": outer,
        "body/kernel": outer[:, None] & inner[None, :],
        "head/kernel": np.broadcast_to(inner[:, None], (6, 4)),
    }
    assert [*support] == [*expected]
    for path, found in support.items():
        assert found.ndim == LEAVES[path].ndim
        np.testing.assert_array_equal(np.broadcast_to(found, LEAVES[path].shape), expected[path])


def test_scores_of_channels_are_summed_over_members_or_given() -> None:
    rng = np.random.default_rng(1)
    scores = {
        path: rng.random(LEAVES[path].shape).astype("f4") for path in ("body/kernel", "norm/scale")
    }
    given = {path: jnp.asarray(score) for path, score in scores.items()}
    pooled = Channels(GROUPS).pooled(given)
    np.testing.assert_allclose(pooled["inner"], scores["body/kernel"].sum(0), rtol=1e-6)
    outer = scores["body/kernel"].sum(1) + scores["norm/scale"]
    np.testing.assert_allclose(pooled["outer"], outer, rtol=1e-6)
    own = jnp.arange(6.0)
    assert Channels(GROUPS).pooled(given | {"inner": own})["inner"] is own
    with pytest.raises(ValueError, match="`score` must score a member of 'inner', got"):
        Channels(GROUPS).pooled({"norm/scale": given["norm/scale"]})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "`channels` must have at least one group"),
        ({"a": Group(6, {"body/kernel": -1})}, r"`channels\['a'\]` must give the axis of 'body/"),
        ({"a": Group(5, {"body/kernel": 1})}, "'body/kernel'"),
        ({"a": Group(6, {"body/kernel": 2})}, "'body/kernel'"),
        ({"a": Group(6, {"bodi/kernel": 1})}, "bodi/kernel"),
        ({"head/kernel": Group(6, {"body/kernel": 1})}, "not name groups like leaves"),
    ],
)
def test_channels_that_leaves_do_not_have_are_refused(groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Channels(groups).whole(LEAVES)


def test_arguments_mean_entries_or_channels() -> None:
    assert units_for("kernel", "head", 0, {"conv": 0}, multiple_of=4) == Entries(
        "kernel", "head", 0, {"conv": 0}, 4
    )
    assert units_for(channels=GROUPS) == Channels(GROUPS)
    for name, value in {
        "where": "a",
        "exclude": "a",
        "output_axis": 0,
        "stacked": {"a": 0},
    }.items():
        with pytest.raises(ValueError, match=f"`{name}` must be None beside `channels`"):
            units_for(channels=GROUPS, **{name: value})
    assert units_of(Signals(jnp.int32(0), {}, {})) == Entries()
    assert units_of(Signals(jnp.int32(0), {}, {}, units=Channels(GROUPS))) == Channels(GROUPS)


# ----------------------------------------------------------------------------------------- layers


def test_a_site_is_a_layer_or_one_for_each_slice() -> None:
    layers = Layers({"a": (2, 5), "b": (3, 4)}, {"b": 1})
    assert layers.paths == {"a": "a", "b[0]": "b", "b[1]": "b", "b[2]": "b", "b[3]": "b"}
    assert layers.shapes == {"a": (2, 5)} | {f"b[{i}]": (3,) for i in range(4)}
    assert (layers.size("a"), layers.size("b")) == (10, 12)
    assert (layers.count_shape("a"), layers.count_shape("b")) == ((), (1, 4))
    assert layers.only([]) == Layers(layers.whole, {})
    assert layers.only(iter(["b", "c"])) == layers
    assert layers.split({"b": 7}) == {f"b[{i}]": 7 for i in range(4)}
    values = {"a": 1, "b[2]": 2, "b[3]": 3, "other": 4}
    assert layers.gathered(values) == {"a": [1], "b": [2, 3], "other": [4]}
    leaves = {"a": np.ones((2, 5)), "b": np.arange(12).reshape(3, 4)}
    parts = layers.each(leaves)
    assert parts["a"] is leaves["a"]
    assert parts["b[1]"].tolist() == [1, 5, 9]
    full = layers.full(0.5)
    assert {path: x.shape for path, x in full.items()} == {"a": (), "b": (1, 4)}
    assert all((x == 0.5).all() and x.dtype == jnp.float32 for x in full.values())


def test_layers_of_entries_are_those_of_their_stacks() -> None:
    mask = masks(**{"a/kernel": (2, 5), "b/kernel": (3, 4)})
    found = Entries(stacked={"b": -1}).layers(mask)
    assert found == Layers({"a/kernel": (2, 5), "b/kernel": (3, 4)}, {"b/kernel": 1})
