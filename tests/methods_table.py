"""The methods that the battery of `test_contract*.py` trains: one line each, and that is all."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
import tiny
from tiny import Loop, kept, on_support, theirs

import jaxprune

SPARSITY, RAMP, EVERY = 0.7, (0, 4), 2
STEPS = 6
TARGET = {"body/kernel": 10, "head/kernel": 12}  # round(0.3 * 32), round(0.3 * 40); 22 together


class Row(NamedTuple):
    """What the battery has to know of a method."""

    method: Callable[..., Any]
    ramp: bool = True  # takes `ramp` and `every`; without it, the masks are drawn at once
    by_leaf: bool = False  # each leaf has a count of its own, as in `TARGET`
    magnitude: bool = True  # masks rank |w|
    gradients: bool = False  # masks rank by gradients, so it cannot stand last in a chain

    def __call__(self, inner: Any, **values: Any) -> Any:
        return self.method(inner, **({"sparsity": SPARSITY} | self.times | values))

    @property
    def times(self) -> dict[str, Any]:
        return {"ramp": RAMP, "every": EVERY} if self.ramp else {}

    def takes(self, argument: str) -> bool:
        return argument in inspect.signature(self.method).parameters

    def kept(self, n: int) -> dict[str, int]:
        """Entries kept after update n: of each leaf, or over the tree."""

        def at(total: int, target: int) -> int:
            return tiny.scheduled(total, target, n, RAMP[1], EVERY) if self.ramp else target

        if self.by_leaf:
            return {path: at(tiny.size(path), target) for path, target in TARGET.items()}
        return {"*": at(sum(map(tiny.size, TARGET)), sum(TARGET.values()))}

    def kept_as_scheduled(self, state: Any, n: int) -> None:
        """After update n exactly as many entries are kept as scheduled."""
        found = kept(state)
        assert (found if self.by_leaf else {"*": sum(found.values())}) == self.kept(n)
        assert int(optax.tree.get(state, "prune_count")) == n

    def check(self, params: Any, state: Any, n: int) -> None:
        """After update n: exact counts, exact support, and `verify` has nothing to say."""
        self.kept_as_scheduled(state, n)
        on_support(params, state)
        jaxprune.verify(params, state)


METHODS = {
    "gradual_magnitude": Row(jaxprune.gradual_magnitude, by_leaf=True),
    "magnitude_attention": Row(jaxprune.magnitude_attention),
    "straight_through": Row(jaxprune.straight_through),
    "static": Row(jaxprune.static, ramp=False, magnitude=False),
}

every_method = pytest.mark.parametrize("row", METHODS.values(), ids=METHODS)

one_program = pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=pytest.mark.xdist_group(name)) for name, row in METHODS.items()],
    ids=METHODS,
)
"""For tests that run the compiled step of `shared`: one worker gets all of them."""


def adamw() -> Any:
    return optax.adamw(0.05, weight_decay=0.1)


CORE = {
    "adamw": adamw,
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "lion": lambda: optax.lion(0.01),
    "adafactor": lambda: optax.adafactor(0.05, min_dim_size_to_factor=2),
}
"""The optimizers that every check of the core is run with."""


@functools.cache
def shared(row: Row) -> Loop:
    """One compiled step under adamw, for all the tests that need no other."""
    return Loop(row(theirs(adamw())))


def begin(row: Row, params: Any = None) -> tuple[Loop, Any, Any]:
    step, params = shared(row), tiny.params() if params is None else params
    return step, params, step.tx.init(params)


def train_and_resume(row: Row, step: Loop, dtype: Any = jnp.float32, calls: int = 1) -> Any:
    """Trains with a check after each update, goes on from each save, and compiles once."""
    params = tiny.params(dtype)
    state = step.tx.init(params)
    before = tiny.layout((params, state))
    trail = []
    for n in range(1, STEPS + 1):
        trail.append(tiny.saved((params, state)))
        for _ in range(calls):
            old = params
            params, state = step(params, state)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old)), "not donated"
        row.check(params, state, n)
    assert tiny.layout((params, state)) == before
    for n, again in enumerate(trail):
        for _ in range((STEPS - n) * calls):
            again = step(*again)
        tiny.same_bits(again, (params, state))
    assert (step.traces, step.compiled) == (1, 1)
    return params, state
