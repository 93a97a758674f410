"""Where the arrays of a state lie: masks, copies and slots like the parameters they belong to."""

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune import trees
from jaxprune.types import wrong


def state_shardings(tx: optax.GradientTransformation, abstract_params: Any) -> Any:
    """The shardings of ``tx.init(params)``: masks, copies and slots like their parameters.

    For ``jax.jit(tx.init, out_shardings=state_shardings(tx, params))``: on a mesh of Auto axes the
    masks would be replicated without it.

    Args:
      tx: the whole transformation.
      abstract_params: the params, or `jax.ShapeDtypeStruct` leaves with a ``sharding``.

    Returns:
      A tree like the state, of shardings; what belongs to no parameter is replicated.

    Raises:
      ValueError: if a leaf of the params has no sharding.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, jaxprune
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> tx = jaxprune.gradual_magnitude(optax.adam(0.1), sparsity=0.5, ramp=(0, 9))
      >>> shardings = jaxprune.state_shardings(tx, params)
      >>> state = jax.jit(tx.init, out_shardings=shardings)(params)
    """
    params = trees.by_path(abstract_params)
    for path, leaf in params.items():
        if getattr(leaf, "sharding", None) is None:
            raise ValueError(wrong("abstract_params", "have a sharding on every leaf", path))
    anywhere = next(iter(params.values())).sharding

    def sharding(path: str, leaf: Any) -> Any:
        if trees.is_hole(leaf) or not isinstance(anywhere, NamedSharding):
            return leaf if trees.is_hole(leaf) else anywhere
        if anywhere.mesh.are_all_axes_explicit:  # the types tell, in full rank
            spec = () if leaf.sharding is None else leaf.sharding.spec
            return NamedSharding(anywhere.mesh, PartitionSpec(*_padded(spec, leaf.ndim)))
        owner = trees.parameter_of(path, leaf.shape, params)
        if owner is None:
            return NamedSharding(anywhere.mesh, PartitionSpec())
        spec = _padded(params[owner].sharding.spec, leaf.ndim)
        sizes = zip(spec, leaf.shape, params[owner].shape, strict=True)
        kept = [axis if size == whole else None for axis, size, whole in sizes]
        while kept and kept[-1] is None:  # as jit writes outputs: else the step compiles twice
            kept.pop()
        return NamedSharding(anywhere.mesh, PartitionSpec(*kept))

    return trees.map_with_path(sharding, jax.eval_shape(tx.init, abstract_params))


def _padded(spec: Any, ndim: int) -> tuple[Any, ...]:
    return (*spec, *[None] * ndim)[:ndim]
