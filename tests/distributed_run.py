"""One process of several: trains a small network on a mesh of all their devices, prints digests.

    python distributed_run.py <processes> <this one> <port> <Auto or Explicit>

With one process, the same run without `jax.distributed`. The environment gives the devices.
"""

import functools
import hashlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune

STEPS = 16
METHODS = {
    "prune_and_grow": lambda inner: jaxprune.prune_and_grow(
        inner, sparsity=0.75, stop=14, measure_steps=3, improve_steps=2, explore_steps=2
    ),
    "rigl": lambda inner: jaxprune.rigl(inner, sparsity=0.75, stop=14, every=3),
}


def train(method: str, kind: str, kernel: Any, batch: Any) -> dict[str, np.ndarray]:
    """Masks and weights after a run with these layouts of kernels and batch."""
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType[kind],))
    rng = np.random.default_rng(0)

    def placed(array: np.ndarray, spec: Any) -> jax.Array:
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    with jax.set_mesh(mesh):
        params = {
            f"layer{i}": {"kernel": placed(rng.normal(size=(16, 16)).astype(np.float32), kernel)}
            for i in range(2)
        }
        inputs = placed(rng.normal(size=(32, 16)).astype(np.float32), batch)
        tx = METHODS[method](optax.adam(0.01))
        shardings, options = jaxprune.state_shardings(tx, params), tiny.quick()
        state = jax.jit(tx.init, out_shardings=shardings, compiler_options=options)(params)

        def loss(params: Any, hidden: jax.Array) -> jax.Array:
            for layer in params.values():
                out = P(batch[0], None) if kind == "Explicit" else None
                hidden = jnp.tanh(
                    jnp.einsum("bi,io->bo", hidden, layer["kernel"], out_sharding=out)
                )
            return jnp.mean((hidden - 0.5) ** 2)

        @functools.partial(jax.jit, compiler_options=options)
        def step(params: Any, state: Any, inputs: jax.Array) -> tuple[Any, Any]:
            updates, state = tx.update(jax.grad(loss)(params, inputs), state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(STEPS):
            params, state = jax.block_until_ready(step(params, state, inputs))
        found = {"params": params, "masks": jaxprune.get_masks(state)}
        found = jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), found)
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(found)}


def main() -> None:
    """Prints a line for each array."""
    processes, rank, port, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, rank)
    for method in METHODS:
        for name, kernel, batch in (("data", P(), P("x")), ("sharded", P(None, "x"), P(None))):
            for path, array in train(method, kind, kernel, batch).items():
                digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
                print(method, name, path, int(np.count_nonzero(array)), digest, flush=True)


if __name__ == "__main__":
    main()
