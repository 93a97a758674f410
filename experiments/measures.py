"""What a state is measured by: accuracy, zeros, and the operations that it has cost."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from experiments import data, layouts, states
from experiments.training import State, normalized
from jaxprune import flops, names, trees

_TEST_BATCH = 500


def averaged(state: State) -> State:
    """The state with the moving average as its params, pruned by the masks as they are now.

    Args:
      state: the training state, of a recipe with an average.

    Returns:
      The state.
    """
    if not states.is_pruned(state.opt_state):
        return state.replace(params=state.ema)
    return state.replace(params=jaxprune.project(state.ema, state.opt_state))


def _right(state: State, batch: data.Batch) -> jax.Array:
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, normalized(batch["image"]), train=False)
    return jnp.sum(logits.argmax(axis=-1) == batch["label"], dtype=jnp.int32)


@functools.cache
def _right_on(layout: layouts.Layout) -> Callable[..., jax.Array]:
    return layout.compiled(_right)


def accuracy(state: State, dataset: data.Images, layout: layouts.Layout = layouts.ALONE) -> float:
    """Share of the images that the network, with its running statistics, classifies rightly.

    Args:
      state: the training state.
      dataset: the images and labels.
      layout: where the state lies.

    Returns:
      The share, in [0, 1].
    """
    devices = layout.devices * jax.process_count()
    size = -(-min(_TEST_BATCH, len(dataset)) // devices) * devices
    right = [_right_on(layout)(state, layout.batch(batch)) for batch in dataset.whole(size)]
    return layouts.total(right, layout) / len(dataset)


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
      >>> from experiments import measures
      >>> found = measures.measure({"conv": {"kernel": jnp.array([[0.0, 1.0]])}}, "conv")
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


def mean(window: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of the metrics of several steps; waits for the device.

    Args:
      window: what `step` returned, one a step.

    Returns:
      The same names.

    Examples:
      >>> import jax.numpy as jnp
      >>> from experiments import measures
      >>> measures.mean([{"loss": jnp.float32(1)}, {"loss": jnp.float32(2)}])
      {'loss': 1.5}
    """
    taken = fetched(window)
    return {name: float(np.mean([metrics[name] for metrics in taken])) for name in taken[0]}


def fetched(window: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The metrics of several steps as numbers; waits for the device.

    Args:
      window: what `step` returned, one a step, of one device or of replicas.

    Returns:
      The same names.
    """
    taken = jax.device_get(list(window))
    return [{name: float(np.mean(x)) for name, x in metrics.items()} for metrics in taken]


def accuracies(
    state: State, test: data.Images, layout: layouts.Layout = layouts.ALONE
) -> dict[str, float]:
    """The accuracy of the params, and of their moving average.

    Args:
      state: the training state.
      test: the test images.
      layout: where the state lies.

    Returns:
      ``accuracy``; ``ema_accuracy`` where the recipe has an average.
    """
    found = {"accuracy": accuracy(state, test, layout)}
    if state.recipe.ema_decay:
        found["ema_accuracy"] = accuracy(_averaged_on(layout)(state), test, layout)
    return found


@functools.cache
def _averaged_on(layout: layouts.Layout) -> Callable[[State], State]:
    return layout.compiled(averaged)


def result(state: State, config: Any, accuracies: Mapping[str, float]) -> dict[str, Any]:
    """What a finished run has come to, measured on its final params.

    Args:
      state: the final state.
      config: the experiment.
      accuracies: on the test images.

    Returns:
      ``method``, ``seed``, ``steps``, the accuracies, the values of `measure`, and as fractions of
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
        **accuracies,
        **measure(state.params, config["where"]),
        "training_flops": float(state.flops),
        "inference_flops": inference,
    }
