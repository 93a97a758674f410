"""What networks made for tests have in common: what is known of them by hand, and their values."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from jaxprune import trees

CONV = ((0, 1, 2), (3,))
"""What a convolution of Flax sums over, and what counts its outputs."""

DENSE = ((0,), (1,))
"""The same of a dense layer of Flax."""

EQUINOX_CONV = ((2, 3, 1), (0,))
EQUINOX_DENSE = ((1,), (0,))


class Case(NamedTuple):
    """A network, and what is known of it by hand.

    Attributes:
      fn: ``fn(params, *args)``, or ``fn(params, also, *args)`` if there is ``also``.
      params: its params.
      args: what it is called with.
      also: what is no param; None if there is none.
      sums: of each contracted leaf the axes it sums over and those of its outputs.
      groups: the size of each exact group of channels.
      inexact: of each group that is not exact its size, and the sums that are to blame.
      unknown: primitives without a rule.
    """

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    also: Any
    sums: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    groups: Mapping[str, int]
    inexact: Mapping[str, tuple[int, set[str]]] = {}
    unknown: tuple[str, ...] = ()


Make = Callable[[], Case]


class Networks(dict[str, Make]):
    """Networks by name.

    Attributes:
      rectified: the names of those whose derivatives are worth a look: of relu, or own rules.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rectified: list[str] = []

    def add(self, make: Make) -> Make:
        """Adds the network that a function makes, by its name."""
        self[make.__name__] = make
        return make

    def add_rectified(self, make: Make) -> Make:
        """The same for one whose derivatives are worth a look."""
        self.rectified.append(make.__name__)
        return self.add(make)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Data."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def everywhere(kind: Any, *paths: str) -> dict[str, Any]:
    """The same sums for several kernels."""
    return {f"{path}/kernel": kind for path in paths}


def filled(tree: Any) -> Any:
    """Values in place of the shapes of a tree: no scale is 1, no bias 0."""

    def value(path: str, x: Any) -> Any:
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        noise = rng.normal(size=x.shape)
        if path.endswith("var"):
            made = 0.5 + np.abs(noise)
        elif path.endswith("scale") or (path.endswith("weight") and len(x.shape) == 1):
            made = 1 + 0.3 * noise
        elif len(x.shape) < 2:
            made = 0.5 * noise
        else:
            made = noise * np.sqrt(1.5 * x.shape[-1] / x.size)
        return jnp.asarray(made, x.dtype)

    return trees.map_with_path(value, tree)


def plain(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Params of a plain function."""
    return filled({name: jax.ShapeDtypeStruct(n, jnp.float32) for name, n in shapes.items()})


def of_linen(module: linen.Module, *args: Any, **rngs: Any) -> tuple[Any, ...]:
    """The function, params, arguments and statistics of a Linen module."""

    def init() -> Any:
        keys = {"params": jax.random.key(0), **rngs}
        return module.init(keys, *args)

    variables = filled(jax.eval_shape(init))
    params = variables.pop("params")
    if not variables:
        return lambda p, *args: module.apply({"params": p}, *args), params, args, None
    return lambda p, s, *args: module.apply({"params": p, **s}, *args), params, args, variables


def of_nnx(make: Callable[[nnx.Rngs], Any], *args: Any) -> tuple[Any, ...]:
    """The function, params, arguments and statistics of an NNX module."""
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, params, rest = nnx.split(module, (nnx.Param, nnx.LoRAParam), ...)
    if not jax.tree.leaves(rest):
        return lambda p, *args: nnx.merge(graph, p, rest)(*args), filled(params), args, None
    return lambda p, s, *args: nnx.merge(graph, p, s)(*args), filled(params), args, filled(rest)


def of_equinox(make: Callable[[Any], Any], *args: Any) -> tuple[Any, ...]:
    """The function, params and arguments of an Equinox module, for a batch."""
    module = eqx.filter_eval_shape(make, jax.random.key(0))
    shapes, static = eqx.partition(module, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    return lambda p, *args: jax.vmap(eqx.combine(p, static))(*args), filled(shapes), args, None
