"""A tiny problem to prune, and what must hold after each of its updates."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from jaxprune import trees

SHAPES = {"body": {"kernel": (4, 8), "bias": (8,)}, "head": {"kernel": (8, 5)}}
PRUNED = ("body/kernel", "head/kernel")


def normal(seed: int, dtype: Any = jnp.float32) -> Any:
    """A tree like the params, of standard normal numbers; new buffers at each call."""
    rng = np.random.default_rng(seed)
    leaf = {path: jnp.asarray(rng.normal(size=shape), dtype) for path, shape in _shapes().items()}
    return {
        "body": {"kernel": leaf["body/kernel"], "bias": leaf["body/bias"]},
        "head": {"kernel": leaf["head/kernel"]},
    }


def _shapes() -> dict[str, tuple[int, ...]]:
    return {
        f"{module}/{name}": shape for module, one in SHAPES.items() for name, shape in one.items()
    }


def params(dtype: Any = jnp.float32) -> Any:
    return normal(0, dtype)


def zeros_like(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def pull(tree: Any, strength: float = 0.1) -> Any:
    """Gradient of ``strength / 2 |p - target|^2``: it depends on the network that is seen."""
    target = normal(1)
    return jax.tree.map(lambda p, t: p.dtype.type(strength) * (p - t.astype(p.dtype)), tree, target)


def theirs(tx: Any) -> optax.GradientTransformationExtraArgs:
    """Code of optax, some of which relies on JAX's usual promotion of dtypes and ranks."""
    return _under("standard", "allow", tx)


def ours(tx: Any) -> optax.GradientTransformationExtraArgs:
    """A method inside code of optax: strict again."""
    return _under("strict", "raise", tx)


def _under(dtypes: str, ranks: str, tx: Any) -> optax.GradientTransformationExtraArgs:
    tx = optax.with_extra_args_support(tx)

    def within(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **extra: Any) -> Any:
            with jax.numpy_dtype_promotion(dtypes), jax.numpy_rank_promotion(ranks):
                return function(*args, **extra)

        return call

    return optax.GradientTransformationExtraArgs(within(tx.init), within(tx.update))


class Loop:
    """A compiled training step of one transformation that counts its traces."""

    def __init__(self, tx: Any, cast: Callable[[Any], Any] = lambda grads: grads, **jit: Any):
        self.tx, self.traces = tx, 0

        def step(params: Any, state: Any, strength: Any, push: Any) -> tuple[Any, Any]:
            self.traces += 1
            grads = jax.tree.map(
                lambda pulled, more: strength.astype(pulled.dtype) * pulled + more,
                pull(params),
                push,
            )
            updates, state = tx.update(cast(grads), state, params, unknown=strength)
            for update, param in zip(
                jax.tree.leaves(updates), jax.tree.leaves(params), strict=True
            ):
                assert update.dtype == param.dtype
            return optax.apply_updates(params, updates), state

        self.jitted: Any = jax.jit(step, donate_argnums=(0, 1), **jit)

    def __call__(self, params: Any, state: Any, strength: float = 1.0, push: Any = None) -> Any:
        push = zeros_like(params) if push is None else push
        return jax.block_until_ready(self.jitted(params, state, jnp.float32(strength), push))

    @property
    def compiled(self) -> int:
        """Programs of the step; jax drops the oldest of a process's thousands, so at least one."""
        return max(self.jitted._cache_size(), 1)


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Options of jit, none where XLA has given one of them another name."""
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


@functools.cache
def quick() -> dict[str, Any]:
    """Options of jit for a fifth of the compile time, for programs of which only the trace matters.

    Most of that time XLA:CPU optimizes loops over 72 numbers. `conftest` sets these for all tests
    where it can.
    """
    return _known({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})


@functools.cache
def fused() -> dict[str, Any]:
    """Options of jit for programs whose loops are joined as users have them."""
    return _known({"xla_cpu_use_fusion_emitters": True})


@functools.cache
def optimized() -> dict[str, Any]:
    """Options of jit for programs as users have them: `conftest` sets others for the rest."""
    return {"xla_backend_optimization_level": 3} | fused()


def updater(tx: Any) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """A compiled ``(grads, state, params) -> (params, state)`` for trees of any shape."""

    def step(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, compiler_options=quick())


def saved(tree: Any) -> Any:
    """A copy of a tree of arrays, in memory of its own."""
    return jax.tree.map(jnp.copy, tree)


def bits(x: Any) -> np.ndarray:
    return np.asarray(x).view(f"u{np.asarray(x).dtype.itemsize}")


def same_bits(a: Any, b: Any) -> None:
    """Two trees of arrays are equal bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(bits(x), bits(y))


def close(a: Any, b: Any) -> None:
    """Two trees are equal as far as two programs of the same arithmetic are."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-6)


def part(tree: Any, index: int) -> Any:
    """One replica, or one run of a sweep."""
    return jax.tree.map(lambda x: x[index], tree)


def masks_of(state: Any) -> dict[str, np.ndarray]:
    masks = trees.by_path(jaxprune.get_masks(state))
    return {path: np.asarray(mask) for path, mask in masks.items()}


def kept(state: Any) -> dict[str, int]:
    return {path: int(mask.sum()) for path, mask in masks_of(state).items()}


def on_support(params: Any, state: Any, whole: bool = True) -> None:
    """Pruned entries are +0.0 bit for bit; where it is whole, kept ones are not 0."""
    leaves = trees.by_path(params)
    for path, mask in masks_of(state).items():
        leaf = np.asarray(leaves[path])
        assert not bits(leaf)[~mask].any(), f"{path} has entries off the mask"
        assert not whole or (leaf[mask] != 0).all(), f"{path} has zeros on the mask"


def layout(tree: Any) -> Any:
    """Shape, dtype, weak type and sharding of each array."""

    def of(x: jax.Array) -> tuple[Any, ...]:
        spec = getattr(x.sharding, "spec", ())
        return x.shape, x.dtype, x.weak_type, tuple(spec) + (None,) * (x.ndim - len(spec))

    return jax.tree.map(of, tree)


def scheduled(total: int, target: int, n: int, end: int, every: int) -> int:
    """Entries kept after update n along a cubic ramp from (0, total) to (end, target)."""
    last = end if n >= end else n - n % every
    return total - round((total - target) * (1 - (1 - last / end) ** 3))


def size(path: str) -> int:
    return math.prod(_shapes()[path])
