"""Every optimizer of optax and optax.contrib, with every method: what holds.

    python -m experiments.compat

The optimizers are found by listing the modules: public functions that take a ``learning_rate`` and
return a gradient transformation. Each trains a tiny network under each method. A cell says ok where

- after every update the pruned entries are exactly +0.0 (but while a method explores);
- at the end exactly the target is kept, and `verify` is silent;
- what restarts of slots change is entries that begin to grow, and no others;
- no such entry moves more than two learning rates in any later step, where the optimizer alone
  moves no weight further than one and a half (Adam and its like);
- where a method shows the optimizer other weights than those it moves, so that they decay
  (`layer_attention`), the weights stand still without a gradient as they do under it alone.

Else it gives the reason, as for optimizers that cannot be built or run in such a loop by themselves
(the column ``alone``).
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from tqdm import tqdm

import jaxprune
from jaxprune import slots, trees

RATE = 0.01
_RAMP = {"sparsity": 0.75, "ramp": (0, 8), "every": 2}
_SWAPS = {"sparsity": 0.75, "every": 3, "stop": 9}
METHODS: Mapping[str, Callable[[Any], Any]] = {
    "alone": lambda inner: inner,
    "gradual_magnitude": lambda inner: jaxprune.gradual_magnitude(inner, **_RAMP),
    "straight_through": lambda inner: jaxprune.straight_through(inner, **_RAMP),
    "magnitude_attention": lambda inner: jaxprune.magnitude_attention(inner, **_RAMP),
    "static": lambda inner: jaxprune.static(inner, sparsity=0.75),
    "snip": lambda inner: jaxprune.snip(inner, sparsity=0.75),
    "sparse_evolution": lambda inner: jaxprune.sparse_evolution(inner, **_SWAPS),
    "rigl": lambda inner: jaxprune.rigl(inner, **_SWAPS),
    "granet": lambda inner: jaxprune.granet(inner, **_RAMP),
    "acdc": lambda inner: jaxprune.acdc(
        inner, sparsity=0.75, begin=2, sparse_steps=2, dense_steps=2, stop=8
    ),
    "n_of_m": lambda inner: jaxprune.n_of_m(inner, n=1, m=4),
    "sr_ste": lambda inner: jaxprune.sr_ste(inner, n=1, m=4),
    "prune_and_grow": lambda inner: jaxprune.prune_and_grow(
        inner, sparsity=0.75, stop=9, measure_steps=2, improve_steps=1, explore_steps=1
    ),
    "layer_attention": lambda inner: jaxprune.layer_attention(
        inner, sparsity=0.75, learner=optax.sgd(0.1), ramp=(0, 8)
    ),
    "soft_threshold": lambda inner: jaxprune.soft_threshold(
        inner, learner=optax.sgd(0.1), threshold_init=-1.5, decay=0.01
    ),
    "movement": lambda inner: jaxprune.movement(inner, learner=optax.sgd(1.0), **_RAMP),
}

OWN_COUNT = ("layer_attention", "soft_threshold")
"""Methods that decide themselves how many weights they keep."""


def optimizers() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The optimizers by name, as the modules list them."""
    for module in (optax, optax.contrib):
        for name, value in sorted(vars(module).items()):
            if name.startswith(("_", "scale_by_")) or not inspect.isfunction(value):
                continue
            if "learning_rate" in inspect.signature(value).parameters:
                yield f"{module.__name__}.{name}", value


def built(make: Callable[..., Any]) -> optax.GradientTransformation:
    """An optimizer with a learning rate of 0.01 and its own defaults for the rest."""
    needed = {
        name: _VALUES[name]
        for name, parameter in inspect.signature(make).parameters.items()
        if name != "learning_rate" and parameter.default is inspect.Parameter.empty
    }
    return make(learning_rate=RATE, **needed)


_QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""Compiling is most of the work here."""

_VALUES: Mapping[str, Any] = {
    "base_optimizer": optax.sgd(1e-2),
    "eta": 0.01,
    "gamma": 0.55,
    "key": 0,
    "l2_norm_clip": 1.0,
    "noise_multiplier": 0.0,
    "seed": 0,
}
"""What some optimizers cannot do without."""


def outcome(
    tx: optax.GradientTransformation, pruned: bool, counted: bool, bounded: bool
) -> tuple[str, float]:
    """Whether a transformation trains the network and keeps exactly what it should.

    Args:
      tx: the optimizer alone, or within a method.
      pruned: whether it is within one.
      counted: whether that keeps a number that it was told.
      bounded: whether the optimizer alone moves no weight further than one and a half rates.

    Returns:
      "ok" or what is wrong, and the largest move of a weight in any step.
    """
    key = jax.random.key(0)
    params = {"a": {"kernel": jax.random.normal(key, (8, 12)), "bias": jnp.zeros(12)}}
    params["b"] = {"kernel": jax.random.normal(key, (12, 4))}
    inputs = jax.random.normal(jax.random.key(1), (16, 8))

    def loss(params: Any) -> jax.Array:
        hidden = jnp.tanh(inputs @ params["a"]["kernel"] + params["a"]["bias"])
        return jnp.mean((hidden @ params["b"]["kernel"] - 1.0) ** 2)

    @functools.partial(jax.jit, compiler_options=_QUICK)
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        value, grads = jax.value_and_grad(loss)(params)
        wide = optax.with_extra_args_support(tx)
        updates, state = wide.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state

    state, furthest, late = tx.init(params), 0.0, _Latecomers()
    for n in range(12):
        before = params
        params, state = step(params, state)
        moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)), params, before)
        furthest = max(furthest, *(float(leaf.max()) for leaf in jax.tree.leaves(moved)))
        if pruned:
            late.follow(n, params, state)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        return "not finite", furthest
    if pruned:
        jaxprune.verify(params, state)
        summary = jaxprune.summarize(params, state)
        if counted and 4 * summary.kept != summary.total:
            return f"keeps {summary.kept} of {summary.total}", furthest
        if bounded and late.furthest > 2 * RATE:
            return f"a grown entry moves {late.furthest / RATE:.1f} learning rates", furthest
    return "ok", furthest


def reads_params(alone: optax.GradientTransformation, tx: Any) -> bool:
    """Whether dense weights move without a gradient, further than the optimizer alone moves them.

    It happens where a view shows the optimizer other weights than those it moves (`View.decay_on`),
    and the optimizer measures from them.
    """
    params = {"kernel": jax.random.normal(jax.random.key(2), (8, 12))}
    parts = tx.init(params).prune_spec.parts
    if parts.view.decay_on is None:
        return False
    learner = parts.learner

    def pruning(mask: Any) -> Any:  # attentions at which most weights are pruned
        return jax.tree.map(lambda a: jnp.full_like(a, 0.3), learner.init(mask))

    held = learner._replace(init=pruning, optimizer=optax.set_to_zero())
    tx = jaxprune.prune(alone, parts.mask_updates, parts.view, learner=held)

    def moved(tx: Any, dense: Callable[[Any, Any], Any]) -> float:
        weights, state = params, tx.init(params)
        wide = optax.with_extra_args_support(tx)
        zeros = jax.tree.map(jnp.zeros_like, params)
        for _ in range(3):
            given = {"value": jnp.ones(()), "grad": zeros, "value_fn": lambda _: jnp.ones(())}
            updates, state = wide.update(zeros, state, weights, **given)
            weights = optax.apply_updates(weights, updates)
        return float(np.abs(np.asarray(dense(weights, state)["kernel"] - params["kernel"])).max())

    own = moved(alone, lambda weights, _: weights)
    return moved(tx, lambda _, state: state.prune_dense) > 1.01 * own + 1e-6


class _Latecomers:
    """Entries that come to life after the first update: how they begin, and how far they move."""

    def __init__(self) -> None:
        self.furthest = 0.0
        self.masks: dict[str, np.ndarray] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.late: dict[str, np.ndarray] = {}

    def follow(self, n: int, params: Any, state: Any) -> None:
        """Looks at the network after an update."""
        leaves = trees.by_path(params)
        weights = {
            p: np.asarray(w) for p, w in {**leaves, **trees.by_path(state.prune_dense)}.items()
        }
        masks = {path: np.asarray(m) for path, m in trees.by_path(state.prune_mask).items()}
        exploring = bool(jaxprune.sees_dense(state))
        for path, mask in masks.items():
            pruned = np.asarray(leaves[path]).view(np.uint32)[~mask]
            if pruned.any() and not exploring:
                raise ValueError(f"pruned entries of {path} are not +0.0")
        grows = state.prune_spec.parts.grows
        if n and grows:
            begin = {path: m & ~self.masks[path] for path, m in masks.items()}
            _check_slots(state.prune_inner, begin, masks, leaves)
            for path in masks:
                was = self.late.get(path, np.zeros_like(masks[path]))
                moves = np.abs(weights[path] - self.weights[path])[was & masks[path]]
                self.furthest = max(self.furthest, moves.max(initial=0))
                self.late[path] = was | begin[path] | (~masks[path] & exploring)
        self.masks, self.weights = masks, weights


def _check_slots(inner: Any, begin: Any, masks: Any, leaves: Any) -> None:
    """What a restart changes in the slots lies at the entries that begin."""
    before = jax.tree.leaves(inner)
    after = jax.tree.leaves(slots.restarted(inner, jax.tree.map(jnp.asarray, begin), masks, leaves))
    for old, new in zip(before, after, strict=True):
        if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            continue
        changed = np.asarray(old) != np.asarray(new)
        for mask in begin.values():
            changed = changed & ~mask if mask.shape == changed.shape else changed
        if changed.any():
            raise ValueError("a restart of slots changes entries that do not begin")


def cell(make: Callable[..., Any], method: str, bounded: bool = False) -> tuple[str, float]:
    """What the table says of an optimizer under a method, and the largest move of a weight."""
    try:
        wrapped, pruned = METHODS[method](built(make)), method != "alone"
        said, furthest = outcome(wrapped, pruned, method not in OWN_COUNT, bounded)
        if said == "ok" and pruned and reads_params(built(make), wrapped):
            return "measures from its params", furthest
        return said, furthest
    except Exception as error:  # whatever a foreign optimizer raises is what the table reports
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}", float("inf")


def main() -> None:
    """Prints the table."""
    rows = []
    for name, make in tqdm([*optimizers()], unit="optimizer"):
        alone, furthest = cell(make, "alone")
        bounded = furthest <= 1.5 * RATE
        methods = [each for each in METHODS if each != "alone"]
        found = [cell(make, each, bounded)[0] if alone == "ok" else "-" for each in methods]
        rows.append([name, f"{alone}, bounded" if bounded else alone, *found])
    versions = ", ".join(f"{each} {metadata.version(each)}" for each in ("jax", "optax"))
    print(f"With {versions}:\n")
    print(f"| optimizer | {' | '.join(METHODS)} |\n|{'---|' * (len(METHODS) + 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
