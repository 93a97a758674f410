"""Checkpoints of a work directory: plain orbax, asynchronous and atomic."""

import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

import jaxprune
from experiments import states
from experiments.training import State

# What may change between two calls of the same run.
_FREE = (
    *("data.data_dir", "data.workers", "tensorboard"),
    *("evaluate_every", "checkpoint_every", "log_every"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.mode"),
)
_PARTS = ("step", "params", "batch_stats", "opt_state", "flops", "ema")

Window = list[dict[str, Any]]
"""Metrics of the steps since the last row of the log."""


def manager(workdir: pathlib.Path) -> ocp.CheckpointManager:
    """The checkpoints of a work directory; the two newest are kept.

    Args:
      workdir: the work directory.

    Returns:
      A manager; close it, or use it in a ``with``.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def _tree(state: State) -> dict[str, Any]:
    return {name: getattr(state, name) for name in _PARTS}


def rules(state: State, config: Any) -> dict[str, Any]:
    """What a run must share with the checkpoint it goes on from, as JSON.

    Args:
      state: the training state.
      config: the experiment, a `ConfigDict`.

    Returns:
      ``config``, and ``method`` as `jaxprune.describe` gives it (None for a dense run).
    """
    method = jaxprune.describe(state.opt_state) if states.is_pruned(state.opt_state) else None
    return {"method": method, "config": json.loads(config.to_json())}


def save(
    checkpoints: ocp.CheckpointManager, state: State, config: Any, window: Window | None = None
) -> None:
    """Starts to write a checkpoint; a killed one leaves the one before it.

    Args:
      checkpoints: the manager.
      state: the training state.
      config: the experiment.
      window: metrics that no row of the log holds yet.
    """
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(_tree(state)),
        rules=ocp.args.JsonSave(rules(state, config) | {"window": [*(window or [])]}),
    )
    checkpoints.save(int(state.step), args=items)


def restore(checkpoints: ocp.CheckpointManager, state: State, config: Any) -> tuple[State, Window]:
    """The newest checkpoint, or the state as it is where there is none.

    Args:
      checkpoints: the manager.
      state: a fresh state; gives types, shapes and where arrays lie.
      config: the experiment.

    Returns:
      The state to go on from, and the metrics that were saved with it.

    Raises:
      ValueError: if the checkpoint was made by other rules or another config.
    """
    step = checkpoints.latest_step()
    if step is None:
        return state, []
    saved = saved_rules(checkpoints)
    _check(saved, state, config)
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _tree(state))
    items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    return state.replace(**checkpoints.restore(step, args=items)["state"]), saved["window"]


def saved_rules(checkpoints: ocp.CheckpointManager) -> dict[str, Any]:
    """The rules beside the newest checkpoint (see `rules`).

    Args:
      checkpoints: the manager.

    Returns:
      ``method``, ``config`` and ``window``.
    """
    items = ocp.args.Composite(rules=ocp.args.JsonRestore())
    return checkpoints.restore(checkpoints.latest_step(), args=items)["rules"]


def _check(saved: dict[str, Any], state: State, config: Any) -> None:
    if saved["method"] is not None and states.is_pruned(state.opt_state):
        jaxprune.check_rules(saved["method"], state.opt_state)
    old, new = (
        _flat(rules["config"]) for rules in (saved, {"config": json.loads(config.to_json())})
    )
    differing = [key for key in old | new if old.get(key) != new.get(key) and key not in _FREE]
    if differing:
        told = ", ".join(
            f"{key} {old.get(key)!r} there, {new.get(key)!r} here" for key in differing
        )
        raise ValueError(
            f"`workdir` must hold a run of this config, got another ({told}): choose a new one"
        )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
