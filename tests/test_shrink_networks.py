"""Real networks, small: what is known of them by hand, and that cut ones are the masked ones."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import networks_of_images
import networks_of_sequences
import networks_of_vectors
import networks_with_norms
import numpy as np
import pytest
from networks import Case

import jaxprune
from jaxprune import trees
from jaxprune.network import Network
from jaxprune.network.program import all_arrays
from jaxprune.shrinking import Shrunk

pytestmark = pytest.mark.usefixtures("standard_promotion")

MODULES = (networks_of_images, networks_of_sequences, networks_of_vectors, networks_with_norms)
NETWORKS = {name: make for module in MODULES for name, make in module.NETWORKS.items()}
RECTIFIED = [name for module in MODULES for name in module.NETWORKS.rectified]
TOLERANCE = 1e-6

Masks = dict[str, np.ndarray]


class Traced:
    """A network of a test, traced, and compiled once."""

    def __init__(self, name: str):
        self.case: Case = NETWORKS[name]()
        case = self.case
        self.net: Network = jaxprune.trace(case.fn, case.params, *case.args, also=case.also)
        self.exact = [group for group in self.net.groups if not group.inexact]
        self.compiled: Callable[..., Any] = jax.jit(case.fn)

    def trees(self, params: Any, also: Any) -> tuple[Any, ...]:
        return (params,) if self.case.also is None else (params, also)

    def shrunk(self, masks: Masks) -> Shrunk:
        return jaxprune.shrink(self.net, self.case.params, masks, also=self.case.also)

    def masked(self, small: Shrunk) -> tuple[Any, ...]:
        """The trees of the masked network."""
        return tuple(map(small.restore, self.trees(small.params, small.also)))

    def reads_its_input(self, small: Shrunk) -> bool:
        """Whether the masked network says something else of other inputs."""
        masked = self.masked(small)
        ours = self.compiled(*masked, *self.case.args)
        theirs = self.compiled(*masked, *jax.tree.map(_other, self.case.args))
        return distance(theirs, ours) > 1e-3


traced = functools.cache(Traced)


def _other(x: Any) -> Any:
    """Another input of its kind; a key stays."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return jnp.sin(3 * x) if jnp.issubdtype(x.dtype, jnp.inexact) else x[::-1]


def distance(ours: Any, theirs: Any) -> float:
    """The largest difference beside the largest entry; 0 of two that are 0."""
    off, largest = jnp.max(jnp.abs(ours - theirs)), jnp.max(jnp.abs(theirs))
    return float(off / jnp.where(off > 0, largest, 1))


def half(network: Traced) -> Masks:
    """The first half of each group goes."""
    return {g.name: np.arange(g.size) >= g.size // 2 for g in network.exact}


def some(network: Traced) -> Masks:
    """Of each group a random part goes, at least one and never all."""
    rng = np.random.default_rng(1)
    masks = {g.name: rng.random(g.size) < 0.6 for g in network.exact}
    for mask in masks.values():
        mask[rng.permutation(len(mask))[:2]] = True, False
    return masks


def whole(network: Traced) -> Masks:
    """One group goes: the largest without which the network still reads its input."""

    def order(masks: Masks) -> tuple[bool, int]:
        ((name, mask),) = masks.items()
        return network.reads_its_input(network.shrunk({name: mask})), len(mask)

    return max(({g.name: np.zeros(g.size, bool)} for g in network.exact), key=order)


CUTS = {"half": half, "some": some, "whole": whole}

ONE_PATH = {
    *("vgg", "decoder", "resnext", "channel_shuffle", "linen_group_norm", "linen_instance_norm"),
    *("equinox_convolutions", "equinox_group_norm", "packed_and_reshaped", "gated_linear_unit"),
    *("linen_gru", "linen_lstm", "equinox_gru", "equinox_lstm", "branches_and_loops"),
    *("rematerialized", "plain_function", "own_forward_rule", "own_backward_rule"),
    *("dropout_in_training", "experts", "weight_norm", "fourier", "softmax_over_channels"),
}
"""Networks of which no whole group can go: nothing reads the input then."""


# ------------------------------------------------------------------------------------ what is known


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_known_as_by_hand(name: str) -> None:
    network = traced(name)
    layers = [leaf for leaf in network.net.leaves if leaf.use == "contracted"]
    assert {leaf.path: (leaf.contracted, leaf.outputs) for leaf in layers} == network.case.sums
    assert {group.name: group.size for group in network.exact} == network.case.groups


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_not_exact_or_not_known_names_its_line(name: str) -> None:
    network = traced(name)
    found: dict[str, tuple[int, set[str]]] = {}
    for group in network.net.groups:
        if group.inexact:
            blamed = {without_line(each) for each in group.inexact}
            found[group.name] = group.size, blamed
    assert found == network.case.inexact
    assert tuple(map(without_line, network.net.unknown)) == network.case.unknown


def without_line(text: str) -> str:
    """What stands before the line of a file; there is one."""
    what, where = text.split(" at ")
    assert re.fullmatch(r"\w+\.py:\d+", where)
    return what


@pytest.mark.parametrize("name", ["equinox_group_norm", "vit_two_passes", "softmax_over_channels"])
def test_channels_of_sums_that_are_not_exact_are_refused(name: str) -> None:
    network = traced(name)
    for group, (size, _) in network.case.inexact.items():
        with pytest.raises(ValueError, match=r"summed where they are not 0.*reduce_"):
            network.shrunk({group: np.arange(size) > 0})


# --------------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_network_is_the_masked_one(name: str, cut: str) -> None:
    network = traced(name)
    masks = CUTS[cut](network)
    small = network.shrunk(masks)
    sizes_fit(network, small, masks)
    ours = jax.jit(small.fn)(*network.trees(small.params, small.also), *network.case.args)
    theirs = network.compiled(*network.masked(small), *network.case.args)
    assert ours.shape == theirs.shape
    assert distance(ours, theirs) < TOLERANCE
    assert network.reads_its_input(small) == (cut != "whole" or name not in ONE_PATH)


def sizes_fit(network: Traced, small: Shrunk, masks: Masks) -> None:
    """Each axis of each leaf lost as many indices as belong to a unit that is gone."""
    before = all_arrays(network.case.params, network.case.also)
    after = all_arrays(small.params, small.also)
    gone: dict[tuple[str, int], set[int]] = {}
    for name, mask in masks.items():
        for member in network.net.group(name).members:
            units = member.units()
            lost = np.flatnonzero((units >= 0) & ~mask[units])
            gone.setdefault((member.path, member.axis), set()).update(lost.tolist())
    assert all(gone.values())  # each cut is one of each member
    for path, x in before.items():
        left = [n - len(gone.get((path, k), ())) for k, n in enumerate(x.shape)]
        assert list(after[path].shape) == left
    assert trees.by_path(small.restore(small.params)).keys() == trees.by_path(small.params).keys()


# -------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("name", RECTIFIED)
def test_gradients_of_a_cut_network_are_those_of_the_masked_one(name: str) -> None:
    network = traced(name)
    small = network.shrunk(half(network))
    params, *rest = network.trees(small.params, small.also)
    ours = gradient(small.fn)(params, *rest, *network.case.args)
    masked, *rest = network.masked(small)
    theirs = small.cut(gradient(network.case.fn)(masked, *rest, *network.case.args))
    pairs = [*compared(ours, theirs)]
    largest = max(np.max(np.abs(b)) for _, _, b in pairs)
    assert largest > 0
    for path, a, b in pairs:
        assert a.shape == b.shape
        # What cancels to 0, as of a bias before a norm, is rounding beside the other leaves.
        allowed = 1e-5 * np.max(np.abs(b), initial=0) + 1e-6 * largest
        assert np.max(np.abs(a - b), initial=0) <= allowed, path


def gradient(fn: Callable[..., Any]) -> Callable[..., Any]:
    """That of a smooth loss."""
    return jax.jit(jax.grad(lambda params, *args: jnp.sin(fn(params, *args)).sum()))


def compared(ours: Any, theirs: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Leaf by leaf."""
    others = trees.by_path(theirs)
    for path, x in trees.by_path(ours).items():
        yield path, np.asarray(x), np.asarray(others[path])
