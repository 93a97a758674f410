"""The methods that the battery of `test_contract*.py` trains: one line each, and that is all."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import Loop, kept, on_support, theirs

import jaxprune
from jaxprune import trees
from jaxprune.state import states_of

SPARSITY, RAMP, EVERY = 0.7, (0, 4), 2
STEPS = 6
TARGET = {"body/kernel": 10, "head/kernel": 12}  # round(0.3 * 32), round(0.3 * 40); 22 together


RAMPED = (("ramp", RAMP), ("every", EVERY))
GROUPS = (("n", 1), ("m", 4))
_A_LITTLE_MORE = 1.0001  # pruned than the sparsity says: a product that is whole is not rounded off


class Row(NamedTuple):
    """What the battery has to know of a method."""

    method: Callable[..., Any]
    values: tuple[tuple[str, Any], ...] = RAMPED  # what it is given beside a sparsity
    by_leaf: bool = False  # each leaf has a count of its own, as in `target`
    magnitude: bool = True  # the last masks rank |w| alone
    gradients: bool = False  # it reads gradients, so it cannot stand last in a chain
    refreshes: bool = True  # masks change after the first update, too
    grows: bool = False  # pruned weights come back, at 0 until they have a gradient
    dense_after: tuple[int, ...] = ()  # updates after which everything is kept
    swapping_after: tuple[int, ...] = ()  # updates after which some are dropped, others not grown
    explores_after: tuple[int, ...] = ()  # updates after which the network seen is dense
    counted: Callable[[Any], dict[str, int]] | None = None  # state -> counts, which no value tells

    def __call__(self, inner: Any, **values: Any) -> Any:
        return self.method(inner, **self.given(**values))

    def given(self, **values: Any) -> dict[str, Any]:
        """The keyword values of a call; without a sparsity where N:M says it."""
        found = {"sparsity": SPARSITY} | self.times | values
        if self.takes("attention_init"):
            found = {"attention_init": 1 - _A_LITTLE_MORE * found["sparsity"]} | found
        return {name: found[name] for name in found if name != "sparsity" or self.takes(name)}

    @property
    def times(self) -> dict[str, Any]:
        return dict(self.values)

    @property
    def ramp(self) -> bool:
        return self.times.get("ramp") is not None

    def takes(self, argument: str) -> bool:
        return argument in inspect.signature(self.method).parameters

    @property
    def traceable(self) -> dict[str, Any]:
        """What is said beside a traced sparsity: ERK needs one that is known."""
        erk = self.takes("distribution") and "distribution" not in self.times
        default = inspect.signature(self.method).parameters.get("distribution")
        return {"distribution": "uniform"} if erk and default and default.default == "erk" else {}

    @property
    def target(self) -> dict[str, int]:
        """Entries of each leaf that are kept in the end."""
        if self.takes("sparsity"):
            return TARGET
        return {path: self.kept_of(tiny.size(path), SPARSITY) for path in TARGET}

    def kept_of(self, total: int, sparsity: float, state: Any = None) -> int:
        """Entries of so many that are kept in the end."""
        if self.counted:
            return sum(self.counted(state).values())
        if self.takes("attention_init"):
            return total - int(total * _A_LITTLE_MORE * sparsity)
        if self.takes("sparsity"):
            return round(total * (1 - sparsity))
        return total * self.times["n"] // self.times["m"]

    def kept(self, n: int) -> dict[str, int]:
        """Entries kept after update n: of each leaf, or over the tree."""

        def at(total: int, target: int) -> int:
            if n in self.dense_after:
                return total
            if n in self.swapping_after:
                return target - int(SWAPPED * target)
            if not self.ramp:
                return target
            count = tiny.scheduled(total, target, n, RAMP[1], EVERY)
            groups = 1 if self.takes("sparsity") else total // self.times["m"]
            return -(-count // groups) * groups

        if self.by_leaf:
            return {path: at(tiny.size(path), target) for path, target in self.target.items()}
        return {"*": at(sum(map(tiny.size, TARGET)), sum(TARGET.values()))}

    def kept_as_scheduled(self, state: Any, n: int) -> None:
        """After update n exactly as many entries are kept as scheduled."""
        found = kept(state)
        wanted = self.counted(state) if self.counted else self.kept(n)
        assert (found if self.by_leaf else {"*": sum(found.values())}) == wanted
        assert int(optax.tree.get(state, "prune_count")) == n

    def first_entries(self) -> np.ndarray:
        """The mask of equal scores, leaf after leaf: the lower index wins."""
        if not self.takes("sparsity"):  # groups lie along the rows
            rows = [np.arange(tiny.SHAPES[part]["kernel"][0]) for part in ("body", "head")]
            firsts = [row % self.times["m"] < self.times["n"] for row in rows]
            return np.concatenate([np.repeat(firsts[0], 8), np.repeat(firsts[1], 5)])
        if self.by_leaf:
            return np.concatenate([np.arange(tiny.size(p)) < k for p, k in TARGET.items()])
        return np.arange(72) < sum(TARGET.values())

    def check(self, params: Any, state: Any, n: int) -> None:
        """After update n: exact counts, exact support, and `verify` has nothing to say."""
        self.kept_as_scheduled(state, n)
        if n not in self.explores_after:
            on_support(params, state, whole=not self.grows)
        jaxprune.verify(params, state)


SWAPPED = 0.3
STAGES = (("measure_steps", 2), ("improve_steps", 1), ("explore_steps", 2), ("stop", 5))
SWAPS = (("every", EVERY), ("stop", 5))
TURNS = (("begin", 1), ("sparse_steps", 1), ("dense_steps", 2), ("stop", 4))

AT_REST = (("learner", optax.sgd(1e-9, momentum=0.9)), ("ramp", None))
"""An optimizer with slots whose steps are too small for float32: counts are known beforehand."""

RISING = (
    ("learner", optax.sgd(1.0, momentum=0.5)),
    ("threshold_init", -4.0),  # lower than the first step of a zero leaf
    ("decay", 0.1),
)


def above_thresholds(state: Any) -> dict[str, int]:
    """Entries of each leaf that exceed its threshold, in NumPy."""
    (found,) = states_of(state)
    dense = trees.by_path(found.prune_dense)
    thresholds = {p: 1 / (1 + np.exp(-np.asarray(s))) for p, s in found.prune_learned.items()}
    return {p: int((np.abs(np.asarray(dense[p])) > t).sum()) for p, t in thresholds.items()}


METHODS = {
    "gradual_magnitude": Row(jaxprune.gradual_magnitude, by_leaf=True),
    "magnitude_attention": Row(jaxprune.magnitude_attention),
    "straight_through": Row(jaxprune.straight_through),
    "static": Row(jaxprune.static, (), magnitude=False, refreshes=False),
    "rigl": Row(jaxprune.rigl, SWAPS, magnitude=False, gradients=True, grows=True),
    "sparse_evolution": Row(jaxprune.sparse_evolution, SWAPS, magnitude=False, grows=True),
    "snip": Row(
        jaxprune.snip,
        (("min_density", 0.05),),  # a zero leaf has no saliency
        magnitude=False,
        gradients=True,
        refreshes=False,
    ),
    "granet": Row(jaxprune.granet, gradients=True, grows=True),
    "acdc": Row(
        jaxprune.acdc,
        (*TURNS, ("distribution", "uniform")),
        by_leaf=True,
        grows=True,
        dense_after=(2, 3),
    ),
    "n_of_m": Row(jaxprune.n_of_m, (*GROUPS, ("every", EVERY)), by_leaf=True, refreshes=False),
    "n_of_m, gradual and straight-through": Row(
        jaxprune.n_of_m, (*GROUPS, *RAMPED, ("view", "straight_through")), by_leaf=True
    ),
    "prune_and_grow": Row(
        jaxprune.prune_and_grow,
        (*STAGES, ("distribution", "uniform"), ("swap_fraction", (SWAPPED, SWAPPED))),
        by_leaf=True,
        magnitude=False,
        gradients=True,
        grows=True,
        swapping_after=(2, 3, 4),
        explores_after=(3, 4),
    ),
    "layer_attention": Row(
        jaxprune.layer_attention, AT_REST, by_leaf=True, magnitude=False, gradients=True
    ),
    "movement": Row(jaxprune.movement, magnitude=False, gradients=True),
    "soft_threshold": Row(
        jaxprune.soft_threshold,
        RISING,
        by_leaf=True,
        magnitude=False,
        gradients=True,
        counted=above_thresholds,
    ),
    "sr_ste": Row(jaxprune.sr_ste, (*GROUPS, ("every", EVERY)), by_leaf=True, gradients=True),
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


ONE_OF_A_KIND = {
    "gradual_magnitude",
    "magnitude_attention",
    "straight_through",
    "static",
    "rigl",
    "prune_and_grow",
    "layer_attention",
}
"""Methods that differ in what they ask of an optimizer; the others are like one of these."""


def every_method_with(optimizers: Iterable[str], rest: tuple[str, ...]) -> Any:
    """Each method of a kind of its own with all of some optimizers, the others with the rest."""
    pairs = [
        pytest.param(row, optimizer, id=f"{optimizer}-{name}")
        for name, row in METHODS.items()
        for optimizer in optimizers
        if name in ONE_OF_A_KIND or optimizer in rest
    ]
    return pytest.mark.parametrize(("row", "optimizer"), pairs)


@functools.cache
def shared(row: Row) -> Loop:
    """One compiled step under adamw, for all the tests that need no other."""
    return Loop(row(theirs(adamw())), compiler_options=tiny.optimized())


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
