"""Pictures, as PNG files; a method has one colour in all of them."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import jaxprune
from experiments import layouts, logs, movement, states
from experiments.configs import common
from jaxprune import trees

_LINES = ("-", "--", ":", "-.")
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g} %")


class Run(NamedTuple):
    """What is drawn of a run over its training steps.

    Attributes:
      name: what the legend calls it.
      method: gives the colour.
      rows: metrics by ``step``.
      phases: when all weights were in training, ``(begin, end)`` each.
    """

    name: str
    method: str
    rows: Sequence[Mapping[str, float]]
    phases: Sequence[tuple[int, int]] = ()


def color_of(method: str) -> str:
    """The colour of a method.

    Args:
      method: a key of `common.METHODS`, or of `common.CHANNEL_METHODS`.

    Returns:
      A colour of matplotlib; ``dense`` is black.

    Examples:
      >>> from experiments import plots
      >>> plots.color_of("dense"), plots.color_of("magnitude_attention")
      ('black', 'C0')
    """
    known = [*common.METHODS, *common.CHANNEL_METHODS]
    return "black" if method == "dense" else f"C{known.index(method) - 1}"


def network_and_data(config: Any) -> str:
    """The first words of a title.

    Args:
      config: the experiment.

    Returns:
      A network, with its depth and width where it has them, and its data.

    Examples:
      >>> from experiments import plots
      >>> from experiments.configs import cifar
      >>> plots.network_and_data(cifar.wide_resnet("dense"))
      'wide_resnet-28-2 on cifar10'
    """
    model = config["model"]
    numbers = [str(model[key]) for key in ("depth", "widen") if key in model]
    return f"{'-'.join([model['name'], *numbers])} on {config['data']['name']}"


def first_layer(opt_state: Any) -> tuple[str, np.ndarray]:
    """The first pruned layer and its mask as a matrix.

    Args:
      opt_state: the optimizer state of a pruned run.

    Returns:
      The path; bool ``[inputs, outputs]``, positions of a filter among the inputs.
    """
    masks = trees.by_path(jaxprune.get_masks(opt_state))
    first = min(masks, key=lambda path: ("stem" not in path, "classifier" in path, path))
    mask = layouts.fetched(masks[first])
    return first, mask.reshape(-1, mask.shape[-1])


def keep_first_mask(workdir: pathlib.Path, opt_state: Any) -> None:
    """Keeps the mask of the first layer for the pictures; a dense run has none.

    Args:
      workdir: gets ``first_mask.npy``.
      opt_state: the optimizer state after the first update.
    """
    if states.is_pruned(opt_state):
        np.save(workdir / "first_mask.npy", first_layer(opt_state)[1])


def of_run(workdir: pathlib.Path, config: Any, result: Mapping[str, Any], opt_state: Any) -> None:
    """Draws a finished run: accuracy and density over the training, the layers, the first mask.

    Args:
      workdir: holds the logs of the run, and ``first_mask.npy`` if it is pruned; gets the pictures.
      config: the experiment.
      result: what `measures.result` measured.
      opt_state: the final optimizer state.
    """
    method, rows = result["method"], logs.read(workdir / "metrics.jsonl")
    sparse = "" if method == "dense" else f", {100 * result['sparsity']:.3g} % sparse"
    title = f"{network_and_data(config)}, {method}{sparse}, seed {result['seed']}"
    run = Run(method, method, rows, states.dense_phases(opt_state, result["steps"]))
    over_training(workdir / "accuracy.png", title, [run])
    density_per_layer(workdir / "density.png", title, result["layers"], color_of(method))
    if states.is_pruned(opt_state):
        layers = logs.read(workdir / "layers.jsonl")
        layers_over_training(workdir / "layers.png", title, layers, rows)
        if config["channels"]:
            filters = trees.by_path(jaxprune.get_masks(opt_state))
            surviving_channels(workdir / "channels.png", title, filters)
            return
        layer, last = first_layer(opt_state)
        masks = {"after the first step": np.load(workdir / "first_mask.npy"), "at the end": last}
        masks_of_layer(workdir / "first_mask.png", f"{title}\nweights of {layer}", masks)


def surviving_channels(path: pathlib.Path, title: str, masks: Mapping[str, Any]) -> None:
    """Which channels of which group stay: a row a group, dark where one stays.

    Args:
      path: the file.
      title: of the picture.
      masks: ``{group: bool[size]}``.
    """
    longest = max(mask.size for mask in masks.values())
    rows = np.full((len(masks), longest), np.nan)
    for row, mask in zip(rows, masks.values(), strict=True):
        row[: mask.size] = np.asarray(mask)
    figure = Figure(figsize=(8, 1 + 0.3 * len(masks)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(rows, aspect="auto", cmap="Greys", vmin=-0.3, vmax=1, interpolation="nearest")
    told = [f"{name}: {int(mask.sum())} of {mask.size}" for name, mask in masks.items()]
    axes.set_yticks(range(len(masks)), told, fontsize="small")
    axes.set_xlabel("channel")
    axes.set_title(title, fontsize="medium")
    save(figure, path)


def over_training(path: pathlib.Path, title: str, runs: Sequence[Run]) -> None:
    """Accuracy on training batches and on the test images, and density, over the training.

    Args:
      path: the file.
      title: of the picture.
      runs: one or several; the phases in which all weights train are shaded if it is one.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    styles = _styles([run.method for run in runs])
    for index, (run, style) in enumerate(zip(runs, styles, strict=True)):
        _line(upper, run.rows, "accuracy", **style | {"alpha": 0.3, "linewidth": 1})
        _line(upper, run.rows, "test_accuracy", marker="o", markersize=3, label=run.name, **style)
        width = 1 + 2.5 * (1 - (index + 1) / len(runs))  # so that lines under others show
        lower.plot(*density(run), drawstyle="steps-post", linewidth=width, **style)
    if len(runs) == 1 and runs[0].phases:
        for axes, (begin, end) in itertools.product((upper, lower), runs[0].phases):
            axes.axvspan(begin, end, color="0.9", zorder=0)
        lower.plot([], [], color="0.9", linewidth=8, label="all weights train")
        lower.legend(fontsize="small", loc="upper right")
    upper.set(title=title, ylabel="accuracy\n(pale: on training images)")
    upper.yaxis.set_major_formatter(PERCENT)
    upper.legend(fontsize="small", ncols=1 + len(runs) // 8)
    lower.set(xlabel="training steps", ylabel="weights in use")
    _shares_on_a_log_axis(lower)
    save(figure, path)


def density(run: Run) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The share of the weights that the network uses, over the training.

    Args:
      run: its rows hold ``step`` and ``sparsity``.

    Returns:
      Steps and shares, each of which holds until the next: what the masks keep, and 1 in the phases
      in which all weights train.

    Examples:
      >>> from experiments import plots
      >>> rows = [{"step": step, "sparsity": 0.9} for step in (2, 4, 6)]
      >>> steps, shares = plots.density(plots.Run("", "rigl", rows, [(3, 5)]))
      >>> steps, [round(share, 1) for share in shares]
      ((2, 3, 5, 6), [0.1, 1.0, 0.1, 0.1])
    """
    kept = {row["step"]: 1 - row["sparsity"] for row in run.rows}
    held = dict(kept)
    for begin, end in run.phases:
        held = {step: share for step, share in held.items() if not begin <= step <= end}
        last = max((step for step in kept if step <= end), default=min(kept))
        held |= {begin: 1.0, end: kept[last]}
    steps, shares = zip(*sorted(held.items()), strict=True)
    return steps, shares


def _styles(methods: Sequence[str]) -> list[dict[str, Any]]:
    """The colour of each method; several of one method have lines of their own."""
    return [
        {"color": color_of(method), "linestyle": _LINES[methods[:index].count(method) % 4]}
        for index, method in enumerate(methods)
    ]


def _line(axes: Axes, rows: Sequence[Mapping[str, float]], name: str, **style: Any) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _shares_on_a_log_axis(axes: Axes) -> None:
    """From just under the least share that is drawn to 100 %, with the shares as percents."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    least = min(drawn[drawn > 0], default=1.0)
    axes.set(yscale="log", ylim=(0.7 * min(least, 0.5), 1.3))
    ticks = [share for share in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01) if share > 0.7 * least]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PERCENT)


def layers_over_training(
    path: pathlib.Path,
    title: str,
    layers: Sequence[Mapping[str, float]],
    rows: Sequence[Mapping[str, float]],
) -> None:
    """How dense each layer is over the training, and beside it what is learned of the layer.

    Args:
      path: the file.
      title: of the picture.
      layers: ``step``, and the density by path.
      rows: metrics; ``learned/<path>`` where a number is learned of each layer.
    """
    names = [name for name in layers[-1] if name != "step"]
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(names)))
    learns = any(f"learned/{name}" in rows[-1] for name in names)
    figure = Figure(figsize=(11 if learns else 8, 4), layout="constrained")
    panels = figure.subplots(1, 1 + learns, squeeze=False)[0]
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        style = {"color": color, "linestyle": _LINES[index % 4]}  # some lie on one another
        _line(panels[0], layers, name, drawstyle="steps-post", label=name, **style)
        _line(panels[-1], rows, f"learned/{name}", **style)
    for axes in panels:
        axes.set_xlabel("training steps")
    panels[-1].set_ylabel("number learned of each layer")
    panels[0].set_ylabel("weights kept in each layer")
    _shares_on_a_log_axis(panels[0])
    figure.legend(loc="outside right upper", fontsize="x-small", ncols=1 + len(names) // 24)
    figure.suptitle(title, fontsize="medium")
    save(figure, path)


def density_per_layer(
    path: pathlib.Path, title: str, layers: Mapping[str, Sequence[int]], color: str
) -> None:
    """Share of the weights kept in each layer at the end.

    Args:
      path: the file.
      title: of the picture.
      layers: ``{path: (kept, total)}``.
      color: of the bars.
    """
    figure = Figure(figsize=(8, 1.5 + 0.3 * len(layers)), layout="constrained")
    axes = figure.subplots()
    shares = [kept / total for kept, total in layers.values()]
    bars = axes.barh(list(layers), shares, color=color, alpha=0.6)
    told = [f"{kept:,} of {total:,}" for kept, total in layers.values()]
    axes.bar_label(bars, told, padding=3)
    axes.invert_yaxis()
    axes.set(title=title, xlabel="weights kept at the end", xlim=(0, 1.3 * max(*shares, 0.01)))
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1])
    axes.xaxis.set_major_formatter(PERCENT)
    save(figure, path)


def masks_of_layer(path: pathlib.Path, title: str, masks: Mapping[str, np.ndarray]) -> None:
    """Masks of one layer at several moments; kept weights are dark.

    Args:
      path: the file.
      title: of the picture.
      masks: bool ``[inputs, outputs]`` by what they are.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    for axes, (when, mask) in zip(figure.subplots(1, len(masks)), masks.items(), strict=True):
        axes.imshow(mask, cmap="Greys", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        told = f"{when}: {mask.mean():.1%} kept (dark)"
        axes.set_title(told, fontsize="medium")
        axes.set(xlabel="output of the layer", ylabel="input of the layer")
    figure.suptitle(title, fontsize="medium")
    save(figure, path)


def mask_movement(
    path: pathlib.Path,
    title: str,
    runs: Mapping[str, tuple[str, Sequence[tuple[int, np.ndarray]]]],
) -> None:
    """How masks move: how long grown weights stay, and how alike successive masks are.

    Left, of all that grew in one change, the share that is kept so many steps later, as the mean
    over the changes; right, the overlap ``|a and b| / |a or b|`` of the masks after successive
    changes, and dotted that with the last mask. Changes in which nothing grows are passed over.

    Args:
      path: the file.
      title: of the picture.
      runs: by name, the method, and ``(step, mask)`` of every change of masks, bool vectors.

    References:
      A picture of this kind is in Sun et al., 2025, https://arxiv.org/abs/2502.03658.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (method, changes) in runs.items():
        color, moved = color_of(method), movement.after_growth(changes)
        left.plot(*zip(*movement.survival(moved), strict=True), color=color, label=name)
        steps = [step for step, _ in moved]
        overlaps = [movement.overlap(a, b) for (_, a), (_, b) in itertools.pairwise(moved)]
        right.plot(steps[1:], overlaps, color=color)
        last = [movement.overlap(mask, moved[-1][1]) for _, mask in moved]
        right.plot(steps, last, color=color, linestyle=":")
    right.plot([], [], "k-", label="with the mask before")
    right.plot([], [], "k:", label="with the last mask")
    left.set(xlabel="training steps since a weight grew", ylabel="grown weights still kept")
    right.set(xlabel="training steps", ylabel="overlap of two masks\n(100 %: the same weights)")
    for axes in (left, right):
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PERCENT)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    save(figure, path)


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a picture.

    Args:
      figure: the picture.
      path: the file.
    """
    figure.savefig(path, dpi=120)
