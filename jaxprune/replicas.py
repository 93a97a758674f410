"""Whether replicas that each hold a copy of the masks hold the same ones.

Under jit a sharded or replicated array is one array, and there is nothing to ask. Under `pmap`, or
where processes train on their own, each replica has a state; its masks are the same on all as long
as each refresh reads the same gradients. Who forgets to average these trains as many networks.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from jaxprune.readers import masks_by_path
from jaxprune.selection.counting import counts_of
from jaxprune.types import wrong


def mask_digest(opt_state: Any) -> jax.Array:
    """Two numbers that tell masks apart: one read of the masks, and nothing else.

    Args:
      opt_state: an optimizer state that holds a pruning state.

    Returns:
      ``uint32[2]``, under jit and `pmap` too: equal for equal masks, and different for others but
      by a chance of ``2**-64``.

    Raises:
      ValueError: if ``opt_state`` holds no pruning state.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> jaxprune.mask_digest(tx.init({"kernel": jnp.ones((2, 2))})).shape
      (2,)
    """
    found = jnp.zeros(2, jnp.uint32)
    for site, mask in masks_by_path(opt_state).items():
        place = jnp.full((), zlib.crc32(site.encode()), jnp.uint32)
        for axis, size in enumerate(mask.shape):
            place = place * np.uint32(size) + lax.broadcasted_iota(jnp.uint32, mask.shape, axis)
        weights = [jnp.where(mask, _mixed(place * odd), np.uint32(0)) for odd in _ODD]
        found += counts_of(weights)
    return found


_ODD = (np.uint32(0x9E3779B1), np.uint32(0x85EBCA77))


def _mixed(x: jax.Array) -> jax.Array:
    """A permutation of 32 bits after which near numbers are far apart."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def check_replicas(digests: Any) -> None:
    """Compares the masks of all replicas, on all processes; every process must call it.

    Args:
      digests: of `mask_digest`, one a row: what a function under `jax.pmap` returned, or that of
        this process.

    Raises:
      ValueError: if they are not all equal.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.static(optax.sgd(0.1), masks={"kernel": jnp.eye(2, dtype=bool)})
      >>> state = tx.init({"kernel": jnp.ones((2, 2))})
      >>> replicas = jax.tree.map(lambda x: jnp.stack([x] * jax.local_device_count()), state)
      >>> jaxprune.check_replicas(jax.pmap(jaxprune.mask_digest)(replicas))
    """
    own = np.asarray(digests).reshape(-1, 2)
    every = np.asarray(multihost_utils.process_allgather(own)).reshape(-1, 2)
    number = len(np.unique(every, axis=0))
    if number > 1:
        expected = (
            "be equal on all replicas: average the gradients before the update, as "
            "jax.lax.pmean(grads, axis_name) does"
        )
        raise ValueError(wrong("digests", expected, f"{number} masks on {len(every)} replicas"))
