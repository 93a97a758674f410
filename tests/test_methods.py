"""The four methods against small NumPy formulas, and what is theirs alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import Loop, theirs

import jaxprune

RATE, MOMENTUM = 0.1, 0.9
SIZE, STEPS, EXPLOIT = 72, 8, 6


def kernels(tree: Any) -> np.ndarray:
    """The pruned entries of a tree, one after another."""
    parts = tree["body"]["kernel"], tree["head"]["kernel"]
    return np.concatenate([np.asarray(part).ravel() for part in parts])


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def living(mask: np.ndarray) -> np.ndarray:
    """Whether the output unit (last axis) of each entry has a kept weight."""
    body, head = mask[:32].reshape(4, 8), mask[32:].reshape(8, 5)
    return np.concatenate([np.tile(part.any(0), (len(part), 1)).ravel() for part in (body, head)])


def tops(w: np.ndarray) -> np.ndarray:
    return np.repeat([np.abs(w[:32]).max(), np.abs(w[32:]).max()], [32, 40])


class Oracle:
    """Magnitude attention under SGD with momentum, as papers and docstring define it.

    ``z=None`` with ``exploit=None`` is straight-through: no attention, no end.
    """

    def __init__(
        self,
        z: float | None = 1.0,
        exploit: float = EXPLOIT,
        masked: str = "floor",
        forward: bool = True,
        on: str = "gradient",
        guard: bool = True,
        sparsity: float = 0.7,
    ):
        self.z, self.exploit, self.masked, self.forward = z, exploit, masked, forward
        self.on, self.guard, self.sparsity = on, guard, sparsity
        self.w = kernels(tiny.params())
        self.mask = self.alive = np.ones(SIZE, bool)
        self.top, self.floor = tops(self.w), 1.0
        self.trace = np.zeros(SIZE)

    def attention(self) -> np.ndarray:
        if self.z is None:
            return np.ones(SIZE)
        return self.floor + (1 - self.floor) * np.minimum(np.abs(self.w) / self.top, 1)

    def factor(self) -> np.ndarray:
        a = self.attention()
        lower = a if self.masked == "own" else np.full(SIZE, self.floor)
        return np.where(self.mask, a, np.where(self.alive | (not self.guard), lower, 0.0))

    def seen(self) -> np.ndarray:
        return np.where(self.mask, (self.attention() if self.forward else 1.0) * self.w, 0.0)

    def update(self, g: np.ndarray, n: int) -> None:
        """Update n, which the gradient at age n - 1 brings."""
        factor, moves = self.factor(), self.mask | (n - 1 < self.exploit)
        pulled = np.where(moves, factor * g if self.on == "gradient" else (factor != 0) * g, 0.0)
        self.trace = pulled + MOMENTUM * self.trace
        scale = factor if self.on == "update" else 1.0
        self.w = np.where(moves, self.w - RATE * scale * self.trace, self.w)
        if n <= self.exploit and (n % 2 == 0 or n in (4, self.exploit)):
            target = round(SIZE * (1 - self.sparsity))
            kept = tiny.scheduled(SIZE, target, n, 4, 2)
            self.mask = highest(np.abs(self.w), kept)
            self.alive, self.top = living(self.mask), tops(self.w)
            if self.z is not None:
                now = self.sparsity * (1 - (1 - min(n / 4, 1)) ** 3)
                self.floor = max((1 - now) ** self.z, 1e-3)


def follow(method: Any, oracle: Oracle, steps: int = STEPS, **values: Any) -> list[Any]:
    """Trains a method beside its oracle; both see the same dense gradients."""
    inner = theirs(optax.sgd(RATE, momentum=MOMENTUM))
    step = Loop(method(inner, sparsity=oracle.sparsity, ramp=(0, 4), every=2, **values))
    params, states = tiny.params(), []
    state = step.tx.init(params)
    for n in range(1, steps + 1):
        push = tiny.normal(n)
        oracle.update(kernels(push), n)
        params, state = step(params, state, 0.0, push)
        np.testing.assert_array_equal(kernels(jaxprune.get_masks(state)), oracle.mask)
        np.testing.assert_allclose(kernels(state.prune_dense), oracle.w, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(kernels(params), oracle.seen(), rtol=2e-5, atol=1e-6)
        states.append(tiny.saved(state))
    assert step.traces == 1
    return states


@pytest.mark.parametrize(
    ("values", "formula"),
    [
        ({}, {}),
        ({"strength": 0.0}, {"z": 0.0}),
        ({"strength": jnp.inf}, {"z": np.inf}),
        ({"masked": "own"}, {"masked": "own"}),
        ({"forward": False}, {"forward": False}),
        ({"attention_on": "update"}, {"on": "update"}),
        ({"dead_units": "move"}, {"guard": False}),
        ({"attention_on": "update", "masked": "own", "dead_units": "move", "forward": False},
         {"on": "update", "masked": "own", "guard": False, "forward": False}),
    ],
)  # fmt: skip
def test_magnitude_attention_is_its_formula(values: dict, formula: dict) -> None:
    oracle = Oracle(sparsity=0.9, **formula)
    follow(jaxprune.magnitude_attention, oracle, exploit_at=EXPLOIT, **values)
    assert not oracle.alive.all(), "no unit died: the guard was not seen"


@pytest.mark.parametrize("dead_units", ["hold", "move"])
def test_straight_through_is_its_formula(dead_units: str) -> None:
    oracle = Oracle(None, np.inf, guard=dead_units == "hold", sparsity=0.9)
    follow(jaxprune.straight_through, oracle, dead_units=dead_units)
    assert not oracle.alive.all(), "no unit died: the guard was not seen"


def test_attention_of_strength_0_is_straight_through_until_it_freezes() -> None:
    """Both without the guard; masks exactly, weights closely."""
    values = {"dead_units": "move"}
    ours = follow(
        jaxprune.magnitude_attention, Oracle(0.0, guard=False), EXPLOIT,
        exploit_at=EXPLOIT, strength=0.0, **values,
    )  # fmt: skip
    theirs = follow(jaxprune.straight_through, Oracle(None, np.inf, guard=False), EXPLOIT, **values)
    for a, b in zip(ours, theirs, strict=True):
        tiny.same_bits(a.prune_mask, b.prune_mask)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7),
            a.prune_dense,
            b.prune_dense,
        )
