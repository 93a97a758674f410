"""Every optimizer of optax and optax.contrib, with every method: what holds.

    python -m experiments.compat

The optimizers are found by listing the modules: public functions that take a ``learning_rate`` and
return a gradient transformation. Each trains a tiny network under each method. A cell says ok where
after every update the pruned entries are exactly +0.0, at the end exactly the target is kept and
`verify` is silent; else the reason, as for optimizers that cannot be built or run in such a loop by
themselves (the column ``alone``).
"""

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

_RAMP = {"sparsity": 0.75, "ramp": (0, 8), "every": 4}
METHODS: Mapping[str, Callable[[Any], Any]] = {
    "alone": lambda inner: inner,
    "gradual_magnitude": lambda inner: jaxprune.gradual_magnitude(inner, **_RAMP),
    "straight_through": lambda inner: jaxprune.straight_through(inner, **_RAMP),
    "magnitude_attention": lambda inner: jaxprune.magnitude_attention(inner, **_RAMP),
    "static": lambda inner: jaxprune.static(inner, sparsity=0.75),
}


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
    return make(learning_rate=1e-2, **needed)


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


def outcome(tx: optax.GradientTransformation, pruned: bool) -> str:
    """Whether a transformation trains the network, and keeps exactly what it should."""
    key = jax.random.key(0)
    params = {"a": {"kernel": jax.random.normal(key, (8, 12)), "bias": jnp.zeros(12)}}
    params["b"] = {"kernel": jax.random.normal(key, (12, 4))}
    inputs = jax.random.normal(jax.random.key(1), (16, 8))

    def loss(params: Any) -> jax.Array:
        hidden = jnp.tanh(inputs @ params["a"]["kernel"] + params["a"]["bias"])
        return jnp.mean((hidden @ params["b"]["kernel"] - 1.0) ** 2)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        value, grads = jax.value_and_grad(loss)(params)
        wide = optax.with_extra_args_support(tx)
        updates, state = wide.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(12):
        params, state = step(params, state)
        if pruned:
            _check_zeros(params, jaxprune.get_masks(state))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        return "not finite"
    if pruned:
        jaxprune.verify(params, state)
        summary = jaxprune.summarize(params, state)
        if 4 * summary.kept != summary.total:
            return f"keeps {summary.kept} of {summary.total}"
    return "ok"


def _check_zeros(params: Any, masks: Any) -> None:
    for layer in params:
        weights, mask = np.asarray(params[layer]["kernel"]), np.asarray(masks[layer]["kernel"])
        if weights.view(np.uint32)[~mask].any():
            raise ValueError(f"pruned entries of {layer} are not +0.0")


def cell(make: Callable[..., Any], method: str) -> str:
    """What the table says of an optimizer under a method."""
    try:
        return outcome(METHODS[method](built(make)), pruned=method != "alone")
    except Exception as error:  # whatever a foreign optimizer raises is what the table reports
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"


def main() -> None:
    """Prints the table."""
    rows = []
    for name, make in tqdm([*optimizers()], unit="optimizer"):
        alone = cell(make, "alone")
        others = [cell(make, each) if alone == "ok" else "-" for each in METHODS if each != "alone"]
        rows.append([name, alone, *others])
    versions = ", ".join(f"{each} {metadata.version(each)}" for each in ("jax", "optax"))
    print(f"With {versions}:\n")
    print(f"| optimizer | {' | '.join(METHODS)} |\n|{'---|' * (len(METHODS) + 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
