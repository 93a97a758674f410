"""Leaves by path and back; patterns, slots and keys."""

import zlib
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
import tiny
from flax import linen, nnx
from flax.core import FrozenDict

from jaxprune import trees


class Pair(NamedTuple):
    """A module of one's own."""

    kernel: Any
    bias: Any


def boxed(names: Any = ("a", None)) -> Any:
    return linen.Partitioned(jnp.ones((2, 3)), names=names)


TREES = {
    "dict": ({"a": {"b": jnp.ones(2)}, "c": jnp.ones(3)}, ["a/b", "c"]),
    "frozen": (FrozenDict({"a": {"b": jnp.ones(2)}}), ["a/b"]),
    "sequence": ([jnp.ones(2), (jnp.ones(3), {"x": jnp.ones(1)})], ["0", "1/0", "1/1/x"]),
    "named": (Pair(jnp.ones(2), jnp.ones(3)), ["kernel", "bias"]),
    "array": (jnp.ones(2), [""]),
    "nothing": ({}, []),
    "none": ({"a": None, "b": jnp.ones(2)}, ["b"]),
    "boxed": ({"kernel": boxed()}, ["kernel"]),
    "box alone": (boxed(), [""]),
    "value": ({"value": jnp.ones(2), "a": {"value": jnp.ones(2)}}, ["a", "value"]),
    "module": (nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), ["bias", "kernel"]),
    "equinox": (eqx.nn.Linear(2, 3, key=jax.random.key(0)), ["weight", "bias"]),
    "hole": ({"a": trees.HOLE, "b": jnp.ones(2)}, ["b"]),
}
every_tree = pytest.mark.parametrize(("tree", "paths"), TREES.values(), ids=TREES)


@every_tree
def test_leaves_go_by_path_and_come_back(tree: Any, paths: list[str]) -> None:
    leaves = trees.by_path(tree)
    assert [*leaves] == paths
    assert all(hasattr(leaf, "shape") for leaf in leaves.values())
    back = trees.from_paths(tree, leaves)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    tiny.same_bits(back, tree)


@every_tree
def test_a_leaf_that_is_left_out_is_a_hole_for_its_whole_box(tree: Any, paths: list[str]) -> None:
    holes = trees.from_paths(tree, {})
    assert jax.tree.leaves(holes) == []
    assert trees.by_path(holes) == {}
    nodes = jax.tree.leaves(holes, is_leaf=trees.is_hole)
    there = sum(map(trees.is_hole, jax.tree.leaves(tree, is_leaf=trees.is_hole)))
    assert sum(map(trees.is_hole, nodes)) == len(paths) + there
    assert not any(map(trees.is_box, nodes))


def test_boxes_are_told_from_containers() -> None:
    assert trees.is_box(boxed())
    assert trees.is_box(nnx.Param(jnp.ones(2)))
    for other in ({"value": jnp.ones(2)}, Pair(1, 2), jnp.ones(2), [1], trees.HOLE, None, 3):
        assert not trees.is_box(other)
    again = trees.rebox(boxed(), jnp.zeros((2, 3), bool))
    assert (again.names, again.value.dtype) == (("a", None), bool)


def test_a_pattern_without_a_match_names_near_paths() -> None:
    paths = ["encoder/kernel", "decoder/kernel"]
    assert trees.matching("coder/k", paths, "where") == paths
    assert trees.by_pattern({"^enc": 1, "coder": 2}, paths, "x") == {paths[0]: 1, paths[1]: 2}
    with pytest.raises(ValueError, match=r"`overrides` must match.*did you mean 'decoder/kernel'"):
        trees.by_pattern({"decodr/kernel": 1}, paths, "overrides")


def test_structures_are_compared_by_path_hole_and_shape() -> None:
    like = {"a": jnp.ones((2, 3)), "b": trees.HOLE}

    def check(tree: Any) -> None:
        trees.check_structure("params", tree, like, "`init`")

    check({"a": jnp.zeros((2, 3)), "b": jnp.ones(7)})  # a leaf may stand where a hole was
    check({"a": jnp.zeros((2, 3), bool), "b": trees.HOLE})
    for tree, message in [
        ({"b": jnp.ones(7)}, "`params` must have the leaves of `init`, got no leaf 'a'"),
        ({"a": trees.HOLE, "b": trees.HOLE}, "got no leaf 'a'"),
        ({"a": jnp.ones((2, 3)), "b": jnp.ones(7), "c": jnp.ones(1)}, "got a new leaf 'c'"),
        ({"a": jnp.ones((3, 2)), "b": jnp.ones(7)}, r"shape \(2, 3\) at 'a', as `init` had"),
    ]:
        with pytest.raises(ValueError, match=message):
            check(tree)


def test_slots_are_found_by_suffix_and_shape() -> None:
    leaves = {"kernel": jnp.ones((4, 8)), "head/kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
    find = trees.parameter_of
    assert find("0/trace/kernel", (4, 8), leaves) == "kernel"
    assert find("0/mu/head/kernel", (4, 8), leaves) == "head/kernel"
    assert find("0/v_row/head/kernel", (4, 1), leaves) == "head/kernel"
    assert find("0/v_row/head/kernel", (4,), leaves) is None
    assert find("0/nu/subhead/kernel", (4, 8), leaves) == "kernel"
    assert find("count", (), leaves) is None
    assert find("0/mu", (3,), {"": jnp.ones(3)}) == ""


def test_every_slot_of_adam_belongs_to_its_parameter() -> None:
    params = trees.by_path(tiny.params())
    slots = trees.by_path(optax.adam(0.1).init(tiny.params()))
    found = {s: trees.parameter_of(s, leaf.shape, params) for s, leaf in slots.items()}
    assert sorted(filter(None, found.values())) == sorted([*params] * 2)
    assert all(path is None or slot.endswith(path) for slot, path in found.items())


def test_a_key_depends_on_the_path_alone() -> None:
    raw = jax.random.key_data(jax.random.key(3, impl="threefry2x32"))
    typed = trees.path_key(jax.random.key(3, impl="threefry2x32"), "a/b")
    expected = jax.random.fold_in(jax.random.key(3), zlib.crc32(b"a/b"))
    assert trees.path_key(raw, "a/b") == typed == expected
    assert trees.path_key(raw, "a/c") != typed
