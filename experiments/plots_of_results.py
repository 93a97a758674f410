"""Pictures of a comparison's results: accuracy of all arms, and beside what a cut network costs."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import channels
from experiments.plots import PERCENT, color_of, save


def accuracy_of_methods(path: pathlib.Path, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Final accuracy of every run: a dot a seed; of three or more, mean and standard deviation.

    Args:
      path: the file.
      title: of the picture.
      rows: one a run: ``method`` (the name of its arm), ``arm``, ``target``, ``accuracy``.
    """
    targets = sorted({row["target"] for row in rows if row["target"]})
    names = {row["method"]: row["arm"]["method"] for row in rows if row["target"]}
    dense = [row["accuracy"] for row in rows if not row["target"]]
    size = (3 + 3 * len(targets), 1.5 + 0.35 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, max(len(targets), 1), sharey=True, squeeze=False)[0]
    for axes, target in zip(panels, targets, strict=False):
        for index, (name, method) in enumerate(names.items()):
            found = [r["accuracy"] for r in rows if (r["method"], r["target"]) == (name, target)]
            _dots(axes, found, index, color_of(method))
        if dense:
            axes.axvline(float(np.mean(dense)), color="black", linestyle="--", label="dense")
            axes.legend(fontsize="small")
        axes.set(title=f"{100 * target:g} % sparse", xlabel="final test accuracy")
        axes.xaxis.set_major_formatter(PERCENT)
        axes.margins(x=0.1)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.suptitle(title, fontsize="medium")
    save(figure, path)


def _dots(axes: Axes, found: Sequence[float], height: int, color: str) -> None:
    axes.plot(found, [height] * len(found), "o", color=color, alpha=0.4, markersize=4)
    if len(found) > 2:
        spread = float(np.std(found, ddof=1))
        axes.errorbar(np.mean(found), height, xerr=spread, fmt="|", color=color, capsize=4)


def accuracy_over_cost(path: pathlib.Path, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy of cut networks over their parameters and over their time; means and deviations.

    Args:
      path: the file.
      title: of the picture.
      rows: one a run: ``method``, ``arm``, ``target``, ``accuracy``, and of those that were cut
        ``parameters`` and ``milliseconds``, ``[cut, dense]`` each.
    """
    cut = [row for row in rows if "parameters" in row]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = ("parameters", f"milliseconds for {channels.TIMED_BATCH} images")
    for axes, key, label in zip(panels, ("parameters", "milliseconds"), labels, strict=True):
        dense = [row["accuracy"] for row in rows if not row["target"]]
        if dense:
            whole = float(np.mean([row[key][1] for row in cut]))
            _point(axes, [whole] * len(dense), dense, label="dense", color="black", marker="*")
        arms = {row["method"]: row["arm"]["method"] for row in cut}
        for number, (name, method) in enumerate(arms.items()):
            for target in sorted({row["target"] for row in cut}):
                found = [r for r in cut if (r["method"], r["target"]) == (name, target)]
                if found:
                    style = {"color": color_of(method), "marker": _MARKERS[number % len(_MARKERS)]}
                    costs, accuracies = ([_of(r, k) for r in found] for k in (key, "accuracy"))
                    _point(axes, costs, accuracies, label=name, **style)
        axes.set_xlabel(label)
    panels[0].set_ylabel("test accuracy of the cut network")
    panels[0].yaxis.set_major_formatter(PERCENT)
    handles = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, loc="outside right center", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    save(figure, path)


_MARKERS = "os^vDPX"


def _of(row: Mapping[str, Any], key: str) -> float:
    return row[key] if key == "accuracy" else row[key][0]


def _point(axes: Axes, costs: Sequence[float], accuracies: Sequence[float], **style: Any) -> None:
    """The mean of some runs, with the deviation of both."""
    spreads = [float(np.std(x, ddof=1)) if len(x) > 1 else 0.0 for x in (costs, accuracies)]
    means = [float(np.mean(x)) for x in (costs, accuracies)]
    axes.errorbar(*means, xerr=spreads[0], yerr=spreads[1], linestyle="", capsize=2, **style)
