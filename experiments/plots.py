"""Pictures, as PNG files."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxprune
from experiments import logs
from jaxprune import trees


def first_mask(opt_state: Any, method: str) -> np.ndarray | None:
    """The mask of the first pruned layer as a matrix, or None for a dense run.

    Args:
      opt_state: the optimizer state.
      method: name of the method.

    Returns:
      bool ``[inputs, outputs]``, positions of a filter among the inputs.

    References:
      original.
    """
    if method == "dense":
        return None
    masks = trees.by_path(jaxprune.get_masks(opt_state))
    first = min(masks, key=lambda path: ("stem" not in path, "classifier" in path, path))
    mask = np.asarray(jax.device_get(masks[first]))
    return mask.reshape(-1, mask.shape[-1])


def of_run(
    workdir: pathlib.Path, result: Mapping[str, Any], before: Any, after: Any
) -> list[pathlib.Path]:
    """Draws a finished run: accuracy over steps, density per layer, the first layer's mask.

    Of a method that learns a number a layer, also these numbers and the densities over the updates.

    Args:
      workdir: holds ``metrics.jsonl``; the pictures go there.
      result: what `training.result` measured.
      before: mask of the first layer before training, or None.
      after: and after.

    Returns:
      The files.

    References:
      original.
    """
    rows = {result["method"]: logs.read(workdir / "metrics.jsonl")}
    files = [accuracy_over_steps(workdir / "accuracy.png", rows)]
    files.append(density_per_layer(workdir / "density.png", result["layers"]))
    if any(name.startswith("learned/") for row in rows[result["method"]] for name in row):
        files.append(layers_over_steps(workdir / "layers.png", rows[result["method"]]))
    if after is not None:
        files.append(mask_before_and_after(workdir / "first_mask.png", before, after))
    return files


def accuracy_over_steps(
    path: pathlib.Path, runs: Mapping[str, Sequence[Mapping[str, float]]]
) -> pathlib.Path:
    """Accuracy on training batches and on the test images, and sparsity, over the updates.

    Args:
      path: the file.
      runs: rows of metrics by name.

    Returns:
      The file.

    References:
      original.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for index, (name, rows) in enumerate(runs.items()):
        color = f"C{index}"
        _line(upper, rows, "accuracy", color=color, alpha=0.35, linewidth=1)
        _line(upper, rows, "test_accuracy", color=color, marker="o", markersize=3, label=name)
        _line(lower, rows, "sparsity", color=color)
    upper.set_ylabel("accuracy\n(pale: training batches)")
    upper.legend(fontsize="small", ncols=1 + len(runs) // 8)
    lower.set(ylabel="sparsity", xlabel="updates", ylim=(-0.05, 1.05))
    return _save(figure, path)


def _line(axes: Axes, rows: Sequence[Mapping[str, float]], name: str, **style: Any) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def layers_over_steps(path: pathlib.Path, rows: Sequence[Mapping[str, float]]) -> pathlib.Path:
    """What is learned of each layer, and how dense the layer is, over the updates.

    Args:
      path: the file.
      rows: metrics with ``learned/<layer>`` and ``density/<layer>``.

    Returns:
      The file.

    References:
      original.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = dict(zip(("learned", "density"), figure.subplots(1, 2, sharex=True), strict=True))
    layers = [name.partition("/")[2] for name in rows[-1] if name.startswith("learned/")]
    for index, layer in enumerate(layers):
        for kind, axes in panels.items():
            _line(axes, rows, f"{kind}/{layer}", color=f"C{index}", label=layer)
    panels["learned"].set(xlabel="updates", ylabel="what is learned of a layer")
    panels["density"].set(xlabel="updates", ylabel="density of the layer", ylim=(-0.02, 1.02))
    panels["density"].legend(fontsize="x-small", ncols=1 + len(layers) // 12)
    return _save(figure, path)


def density_per_layer(path: pathlib.Path, layers: Mapping[str, Sequence[int]]) -> pathlib.Path:
    """Share of the weights kept in each layer.

    Args:
      path: the file.
      layers: ``{path: (kept, total)}``.

    Returns:
      The file.

    References:
      original.
    """
    figure = Figure(figsize=(7, 1.5 + 0.3 * len(layers)), layout="constrained")
    axes = figure.subplots()
    shares = [kept / total for kept, total in layers.values()]
    bars = axes.barh(list(layers), shares)
    told = [f"{kept:,} of {total:,}" for kept, total in layers.values()]
    axes.bar_label(bars, told, padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="density", xlim=(0, 1.3 * max(shares)))
    return _save(figure, path)


def mask_before_and_after(
    path: pathlib.Path, before: np.ndarray, after: np.ndarray
) -> pathlib.Path:
    """The mask of one layer before and after training; kept weights are dark.

    Args:
      path: the file.
      before: bool ``[inputs, outputs]``.
      after: the same.

    Returns:
      The file.

    References:
      original.
    """
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    for axes, mask, when in zip(
        figure.subplots(1, 2), (before, after), ("before", "after"), strict=True
    ):
        axes.imshow(mask, cmap="Greys", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.set(title=f"{when}: {mask.mean():.1%} kept", xlabel="outputs", ylabel="inputs")
    return _save(figure, path)


def accuracy_of_methods(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> pathlib.Path:
    """Final accuracy of every run: a dot a seed, a bar the mean and standard deviation.

    Args:
      path: the file.
      rows: one a run: ``method``, ``target`` (its sparsity), ``accuracy``.

    Returns:
      The file.

    References:
      original.
    """
    targets = sorted({row["target"] for row in rows if row["target"]})
    names = list(dict.fromkeys(row["method"] for row in rows if row["target"]))
    dense = [row["accuracy"] for row in rows if not row["target"]]
    size = (2.5 + 3 * len(targets), 1.2 + 0.35 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, max(len(targets), 1), sharey=True, squeeze=False)[0]
    for axes, target in zip(panels, targets, strict=False):
        for index, name in enumerate(names):
            found = [r["accuracy"] for r in rows if (r["method"], r["target"]) == (name, target)]
            color = f"C{index}"
            axes.plot(found, [index] * len(found), "o", color=color, alpha=0.4, markersize=4)
            if found:
                spread = float(np.std(found, ddof=min(1, len(found) - 1)))
                axes.errorbar(np.mean(found), index, xerr=spread, fmt="|", color=color, capsize=4)
        if dense:
            axes.axvline(float(np.mean(dense)), color="black", linestyle="--", label="dense")
            axes.legend(fontsize="small")
        axes.set(title=f"{target:.0%} sparse", xlabel="final test accuracy")
        axes.margins(x=0.1)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return _save(figure, path)


def mask_movement(
    path: pathlib.Path, runs: Mapping[str, Sequence[tuple[int, np.ndarray]]]
) -> pathlib.Path:
    """How masks move: how long grown weights stay, and how alike successive masks are.

    Left, of all that grew in one change, the share that is kept so many updates later, as the mean
    over the changes; right, the overlap ``|a and b| / |a or b|`` of the masks after successive
    changes, and dotted that with the last mask. Changes in which nothing grows are passed over.

    Args:
      path: the file.
      runs: ``(step, mask)`` of every change of masks, bool vectors, by name.

    Returns:
      The file.

    References:
      original; a picture of this kind is in Sun et al., 2025, https://arxiv.org/abs/2502.03658.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (name, changes) in enumerate(runs.items()):
        color, moved = f"C{index}", after_growth(changes)
        left.plot(*zip(*survival(moved), strict=True), color=color, label=name)
        steps = [step for step, _ in moved]
        overlaps = [overlap(a, b) for (_, a), (_, b) in itertools.pairwise(moved)]
        right.plot(steps[1:], overlaps, color=color, label=name)
        last = [overlap(mask, moved[-1][1]) for _, mask in moved]
        right.plot(steps, last, color=color, linestyle=":")
    left.set(xlabel="updates since growth", ylabel="share of grown weights still kept")
    right.set(xlabel="updates", ylabel="overlap with the mask before\n(dotted: with the last mask)")
    for axes in (left, right):
        axes.set_ylim(0, 1.03)
    left.legend()
    return _save(figure, path)


def after_growth(changes: Sequence[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """The first masks, and those after each change in which something grew.

    Args:
      changes: ``(step, mask)`` of every change, bool vectors.

    Returns:
      Some of them: what only prunes is passed over, so that a cycle counts once.

    Examples:
      >>> import numpy as np
      >>> from experiments import plots
      >>> masks = [[1, 1, 0], [1, 0, 0], [1, 0, 1]]
      >>> changes = [(step, np.array(mask, bool)) for step, mask in enumerate(masks)]
      >>> [step for step, _ in plots.after_growth(changes)]
      [0, 2]

    References:
      original.
    """
    grown = [now for before, now in itertools.pairwise(changes) if (now[1] & ~before[1]).any()]
    return [*changes[:1], *grown]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard's index of two masks, ``|a and b| / |a or b|``.

    Args:
      a: bool, any shape.
      b: the same.

    Returns:
      A share in [0, 1].

    Examples:
      >>> import numpy as np
      >>> from experiments import plots
      >>> plots.overlap(np.array([True, True, False]), np.array([True, False, False]))
      0.5

    References:
      Jaccard, The distribution of the flora in the alpine zone, 1912.
    """
    return float(np.sum(a & b) / np.sum(a | b))


def survival(moved: Sequence[tuple[int, np.ndarray]]) -> list[tuple[int, float]]:
    """How much of what grew is still kept, by the updates since.

    Args:
      moved: what `after_growth` returns.

    Returns:
      ``(updates, share)``: the mean over all growths so many updates before another change. It
      begins with (0, 1.0).

    Examples:
      >>> import numpy as np
      >>> from experiments import plots
      >>> masks = [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]]
      >>> moved = [(10 * i, np.array(mask, bool)) for i, mask in enumerate(masks)]
      >>> plots.survival(moved)
      [(0, 1.0), (10, 0.5)]

    References:
      original.
    """
    shares: dict[int, list[float]] = {}
    for index, ((_, before), (born, mask)) in enumerate(itertools.pairwise(moved), start=1):
        grown = mask & ~before
        for step, later in moved[index:]:
            shares.setdefault(step - born, []).append(float(np.mean(later[grown])))
    return [(updates, float(np.mean(found))) for updates, found in sorted(shares.items())]


def _save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    figure.savefig(path, dpi=120)
    return path
