"""The pieces of a training loop that `train.py`, `compare.py` and `evaluate.py` share.

The params are the network, so the loop is that of any optimizer. What knows about pruning measures:
zeros, and the operations a step costs. One line more is for batch norm, whose running statistics
leave out the steps in which a method trains more of the network than its masks keep.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from jax.typing import ArrayLike

import jaxprune
from experiments import data, states
from jaxprune import flops, names, trees

_TEST_BATCH = 500


class State(train_state.TrainState):
    """Flax's training state, the running statistics of batch norm, and what training has cost.

    Attributes:
      batch_stats: the running statistics.
      flops: operations of the steps so far, as the mean fraction of a dense step's, float32: a mean
        keeps the precision that a sum over many steps would lose.
      layer_flops: operations of each leaf in a forward pass of one image; no part of the state's
        arrays, so that the step compiles once.
    """

    batch_stats: Any
    flops: Any
    layer_flops: tuple[tuple[str, float], ...] = flax.struct.field(pytree_node=False)


def create(
    model: nn.Module, tx: optax.GradientTransformation, dataset: data.Dataset, seed: int
) -> State:
    """The state before the first update.

    Args:
      model: the network.
      tx: the optimizer.
      dataset: gives the shape of an image.
      seed: of the initial weights.

    Returns:
      The state, a function of the seed alone; its buffers may be donated.

    Examples:
      >>> import numpy as np, optax
      >>> from experiments import data, models, training
      >>> toy = data.Dataset(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32), 10)
      >>> state = training.create(models.MLP(classes=10), optax.sgd(0.1), toy, seed=0)
      >>> state.params["dense_0"]["kernel"].shape
      (64, 128)
    """
    images = jnp.zeros((1, *dataset.images.shape[1:]), jnp.float32)
    variables = _initial(model, jax.random.key(seed), images)
    return State.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=tx,
        batch_stats=variables.get("batch_stats", {}),
        flops=jnp.zeros((), jnp.float32),
        layer_flops=_layer_flops(model, images.shape),
    ).replace(step=jnp.zeros((), jnp.int32))


@functools.cache
def _layer_flops(model: nn.Module, shape: tuple[int, ...]) -> tuple[tuple[str, float], ...]:
    """The operations of each leaf for images of a shape."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(functools.partial(model.init, train=False), key, images)

    def logits(params: Any, others: Any, images: jax.Array) -> Any:
        return model.apply({**others, "params": params}, images, train=False)

    others = {name: tree for name, tree in variables.items() if name != "params"}
    return tuple(flops.forward_flops(logits, variables["params"], others, images).items())


@functools.partial(jax.jit, static_argnums=0)
def _initial(model: nn.Module, key: jax.Array, images: jax.Array) -> Any:
    return model.init(key, images, train=False)


def normalized(images: ArrayLike) -> jax.Array:
    """Images as networks get them.

    Args:
      images: uint8.

    Returns:
      float32 in [-1, 1].

    Examples:
      >>> import numpy as np
      >>> from experiments import training
      >>> training.normalized(np.array([0, 255], np.uint8)).tolist()
      [-1.0, 1.0]
    """
    return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state: State, batch: data.Batch) -> tuple[State, dict[str, jax.Array]]:
    """One update; compiled once for a model and an optimizer.

    Args:
      state: the training state, donated.
      batch: uint8 ``image`` and int32 ``label``.

    Returns:
      The new state; ``loss`` and ``accuracy`` of the batch, float32 scalars on the device.
    """
    found = gradients(state.apply_fn, state.params, state.batch_stats, batch)
    return updated(state, found), found.metrics


class Gradients(NamedTuple):
    """What a batch says.

    Attributes:
      grads: the gradient of the loss, a tree like the params.
      batch_stats: the running statistics with this batch.
      metrics: ``loss`` and ``accuracy``, float32 scalars.
    """

    grads: Any
    batch_stats: Any
    metrics: dict[str, jax.Array]


def gradients(
    apply_fn: Callable[..., Any], params: Any, batch_stats: Any, batch: data.Batch
) -> Gradients:
    """The gradient of the loss on a batch.

    Args:
      apply_fn: the network, as flax's ``model.apply``.
      params: its params.
      batch_stats: its running statistics.
      batch: uint8 ``image`` and int32 ``label``.

    Returns:
      Gradient, statistics and metrics.
    """

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {"params": params, "batch_stats": batch_stats}
        images = normalized(batch["image"])
        logits, new = apply_fn(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), (logits, new.get("batch_stats", {}))

    (loss, (logits, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    right = jnp.mean(logits.argmax(axis=-1) == batch["label"], dtype=jnp.float32)
    return Gradients(grads, stats, {"loss": loss, "accuracy": right})


def updated(state: State, found: Gradients) -> State:
    """The state after an update.

    Args:
      state: the training state.
      found: what `gradients` returned of it.

    Returns:
      The new state.
    """
    stats = found.batch_stats
    if states.is_pruned(state.opt_state):  # statistics of the dense network would mislead
        dense = jaxprune.sees_dense(state.opt_state)  # read before the update
        stats = jax.tree.map(functools.partial(jnp.where, dense), state.batch_stats, stats)
    cost = _mean_cost(state)
    return state.apply_gradients(grads=found.grads, batch_stats=stats, flops=cost)


def _mean_cost(state: State) -> jax.Array:
    """The mean cost of the steps so far and the coming one."""
    layers = dict(state.layer_flops)
    cost = flops.step_cost(state.opt_state, layers) if states.is_pruned(state.opt_state) else 1.0
    return state.flops + (cost - state.flops) / (state.step + 1)


@jax.jit
def _right(state: State, batch: data.Batch) -> jax.Array:
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, normalized(batch["image"]), train=False)
    return jnp.sum(logits.argmax(axis=-1) == batch["label"], dtype=jnp.int32)


def accuracy(state: State, dataset: data.Dataset) -> float:
    """Share of the images that the network, with its running statistics, classifies rightly.

    Args:
      state: the training state.
      dataset: the images and labels.

    Returns:
      The share, in [0, 1].
    """
    size = min(_TEST_BATCH, len(dataset.labels))
    right = [_right(state, batch) for batch in data.whole(dataset, size)]
    return int(np.sum(jax.device_get(right))) / len(dataset.labels)


def measure(params: Any, where: str) -> dict[str, Any]:
    """How sparse the params are, counted on them and not read from masks.

    Args:
      params: the network.
      where: which leaves are prunable, a regex, or empty for jaxprune's default rule.

    Returns:
      ``sparsity``, ``kept`` and ``total`` over all prunable leaves; ``layers``, ``{path: [kept,
      total]}``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from experiments import training
      >>> found = training.measure({"conv": {"kernel": jnp.array([[0.0, 1.0]])}}, "conv")
      >>> found["sparsity"], found["layers"]
      (0.5, {'conv/kernel': [1, 2]})
    """
    leaves = trees.by_path(params)
    layers = {
        path: [int(np.count_nonzero(leaves[path])), int(leaves[path].size)]
        for path in names.prunable(leaves, where or None)
    }
    kept, total = (sum(layer[i] for layer in layers.values()) for i in (0, 1))
    return {"sparsity": (total - kept) / total, "kept": kept, "total": total, "layers": layers}


def mean(window: Sequence[Mapping[str, jax.Array]]) -> dict[str, float]:
    """Means of the metrics of several steps; waits for the device.

    Args:
      window: what `train_step` returned, one a step.

    Returns:
      The same names.

    Examples:
      >>> import jax.numpy as jnp
      >>> from experiments import training
      >>> training.mean([{"loss": jnp.float32(1)}, {"loss": jnp.float32(2)}])
      {'loss': 1.5}
    """
    taken = jax.device_get(list(window))
    return {name: float(np.mean([metrics[name] for metrics in taken])) for name in taken[0]}


def result(state: State, test: data.Dataset, config: Any) -> dict[str, Any]:
    """What a finished run has come to, measured on its final params.

    Args:
      state: the final state.
      test: the test images.
      config: the experiment.

    Returns:
      ``method``, ``seed``, ``steps``, ``accuracy``, the values of `measure`, and as fractions of
      dense ``training_flops``, over all steps, and ``inference_flops``.

    Raises:
      ValueError: if the params are not the network that the method's state says they are.
    """
    inference = 1.0
    if states.is_pruned(state.opt_state):
        jaxprune.verify(state.params, state.opt_state)
        inference = float(flops.inference_cost(state.opt_state, dict(state.layer_flops)))
    return {
        "method": config["method"]["name"],
        "seed": config["seed"],
        "steps": int(state.step),
        "accuracy": accuracy(state, test),
        **measure(state.params, config["where"]),
        "training_flops": float(state.flops),
        "inference_flops": inference,
    }
