"""The pieces of a training loop that `train.py`, `compare.py` and `evaluate.py` share.

The params are the network, so the loop is that of any optimizer. What knows about pruning measures:
zeros, and the operations a step costs. One line more is for batch norm, whose running statistics
leave out the steps in which a method trains more of the network than its masks keep.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state
from jax.typing import ArrayLike

import jaxprune
from experiments import data, layouts, states
from jaxprune import flops


class Recipe(NamedTuple):
    """What a training step does beside the optimizer's part.

    Attributes:
      label_smoothing: the share of a label that all classes get.
      ema_decay: how much of the params' moving average stays at each update; 0 keeps none.
    """

    label_smoothing: float = 0.0
    ema_decay: float = 0.0


PLAIN = Recipe()
"""Nothing beside."""


def recipe_of(config: Any) -> Recipe:
    """The recipe of an experiment.

    Args:
      config: the experiment.

    Returns:
      Its values.

    Examples:
      >>> from experiments import training
      >>> from experiments.configs import common
      >>> training.recipe_of(common.digits_mlp("dense"))
      Recipe(label_smoothing=0.0, ema_decay=0.0)
    """
    return Recipe(**{name: config[name] for name in Recipe._fields})


class State(train_state.TrainState):
    """Flax's training state, the running statistics of batch norm, and what training has cost.

    Attributes:
      batch_stats: the running statistics.
      flops: operations of the steps so far, as the mean fraction of a dense step's, float32: a mean
        keeps the precision that a sum over many steps would lose.
      ema: a moving average of the params; empty where the recipe has none.
      recipe: what the step does beside the optimizer's.
      layer_flops: operations of each leaf in a forward pass of one image; no part of the state's
        arrays, so that the step compiles once.
    """

    batch_stats: Any
    flops: Any
    ema: Any
    recipe: Recipe = flax.struct.field(pytree_node=False)
    layer_flops: tuple[tuple[str, float], ...] = flax.struct.field(pytree_node=False)


def create(
    model: nn.Module,
    tx: optax.GradientTransformation,
    dataset: data.Images,
    seed: int,
    recipe: Recipe = PLAIN,
) -> State:
    """The state before the first update.

    Args:
      model: the network.
      tx: the optimizer.
      dataset: gives the shape of an image.
      seed: of the initial weights.
      recipe: what a step does beside.

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
    images = jnp.zeros((1, *dataset.shape), jnp.float32)
    variables = _initial(model, jax.random.key(seed), images)
    return State.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=tx,
        batch_stats=variables.get("batch_stats", {}),
        flops=jnp.zeros((), jnp.float32),
        ema=jax.tree.map(jnp.copy, variables["params"]) if recipe.ema_decay else {},
        recipe=recipe,
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


def step(state: State, batch: data.Batch, axis: str = "") -> tuple[State, dict[str, jax.Array]]:
    """One update.

    Args:
      state: the training state.
      batch: uint8 ``image`` and int32 ``label``.
      axis: of `pmap`, over which replicas take the mean.

    Returns:
      The new state; ``loss`` and ``accuracy`` of the batch, float32 scalars on the device.
    """
    found = gradients(state.apply_fn, state.params, state.batch_stats, batch, state.recipe)
    if axis:
        found = jax.lax.pmean(found, axis)
    return updated(state, found), found.metrics


train_step = jax.jit(step, donate_argnums=0)
"""`step` of a state that is donated; compiled once for a model, an optimizer and a layout."""


def step_on(layout: layouts.Layout) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """The training step of a layout.

    Args:
      layout: where arrays lie.

    Returns:
      `step`, compiled once; the state is donated, and the new one lies as it did.
    """
    if layout.axis:
        return layout.compiled(functools.partial(step, axis=layout.axis), donate_argnums=0)
    if not layout.shared:
        return train_step
    compiled: list[Callable[..., tuple[State, dict[str, jax.Array]]]] = []

    def on_mesh(state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        if not compiled:  # left to itself XLA shares out what was whole, and compiles again
            lies = jax.tree.map(lambda x: x.sharding, state), None
            compiled.append(layout.compiled(step, donate_argnums=0, out_shardings=lies))
        return compiled[0](state, batch)

    return on_mesh


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
    apply_fn: Callable[..., Any],
    params: Any,
    batch_stats: Any,
    batch: data.Batch,
    recipe: Recipe = PLAIN,
) -> Gradients:
    """The gradient of the loss on a batch.

    Args:
      apply_fn: the network, as flax's ``model.apply``.
      params: its params.
      batch_stats: its running statistics.
      batch: uint8 ``image`` and int32 ``label``.
      recipe: how labels are smoothed.

    Returns:
      Gradient, statistics and metrics.
    """

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {"params": params, "batch_stats": batch_stats}
        images = normalized(batch["image"])
        logits, new = apply_fn(variables, images, train=True, mutable=["batch_stats"])
        losses = _losses(logits, batch["label"], recipe.label_smoothing)
        return losses.mean(), (logits, new.get("batch_stats", {}))

    (loss, (logits, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    right = jnp.mean(logits.argmax(axis=-1) == batch["label"], dtype=jnp.float32)
    return Gradients(grads, stats, {"loss": loss, "accuracy": right})


def _losses(logits: jax.Array, labels: Any, smoothing: float) -> jax.Array:
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


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
    cost, decay = _mean_cost(state), state.recipe.ema_decay
    new = state.apply_gradients(grads=found.grads, batch_stats=stats, flops=cost)
    if not decay:
        return new
    mix = functools.partial(jax.tree.map, lambda old, x: decay * old + (1 - decay) * x)
    return new.replace(ema=mix(state.ema, new.params))


def _mean_cost(state: State) -> jax.Array:
    """The mean cost of the steps so far and the coming one."""
    layers = dict(state.layer_flops)
    cost = flops.step_cost(state.opt_state, layers) if states.is_pruned(state.opt_state) else 1.0
    return state.flops + (cost - state.flops) / (state.step + 1)
