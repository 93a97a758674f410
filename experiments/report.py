"""What the numbers of a comparison say: a table, and differences no larger than they are."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

Row = Mapping[str, Any]


def _of(rows: Sequence[Row], method: str, target: float) -> dict[int, float]:
    """Final accuracy in percent by seed."""
    return {
        row["seed"]: 100 * row["accuracy"]
        for row in rows
        if (row["method"], row["target"]) == (method, target)
    }


def _cell(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return "-"
    spread = f" ± {np.std(accuracies, ddof=1):.1f}" if len(accuracies) > 1 else ""
    return f"{np.mean(accuracies):.1f}{spread}"


def _targets(rows: Sequence[Row]) -> list[float]:
    return sorted({row["target"] for row in rows if row["target"]})


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows if row["target"]))


def _flops(rows: Sequence[Row], method: str, target: float) -> str:
    """Training and inference FLOPs; rows written before they were counted have none."""
    found = [
        (row["training_flops"], row["inference_flops"])
        for row in rows
        if (row["method"], row["target"]) == (method, target) and "training_flops" in row
    ]
    return ", ".join(f"{np.mean(shares):.3f}" for shares in zip(*found, strict=True)) or "-"


def _reached(rows: Sequence[Row], method: str, target: float) -> str:
    """Mean and standard deviation of the share that is kept."""
    found = [
        row["kept"] / row["total"]
        for row in rows
        if (row["method"], row["target"]) == (method, target)
    ]
    spread = f" ± {np.std(found, ddof=1):.4f}" if len(found) > 1 else ""
    return f"{np.mean(found):.4f}{spread}" if found else "-"


def _off_target(row: Row) -> bool:
    """Whether a run ended at another sparsity than the one it was meant to have."""
    if "kept" not in row or not row["target"]:
        return False
    return abs(row["kept"] / row["total"] - (1 - row["target"])) > 1e-3


def table(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds of the final test accuracy, and what a run costs.

    Args:
      rows: one a run: ``method``, ``target``, ``seed``, ``accuracy``; where they are known,
        ``training_flops`` and ``inference_flops`` as shares of dense.

    Returns:
      A table in Markdown: a row a method, a column a sparsity; then a column a sparsity for FLOPs,
      of training and of inference, and one for the density that was reached, where a method decided
      that itself.

    Examples:
      >>> from experiments import report
      >>> run = {"method": "random", "target": 0.9, "kept": 1, "total": 10}
      >>> rows = [run | {"seed": seed, "accuracy": 0.5 + seed / 10} for seed in (0, 1)]
      >>> print(report.table(rows))
      | final test accuracy, % | 90 % sparse | runs |
      |---|---|---|
      | random | 55.0 ± 7.1 | 2 |

    References:
      original.
    """
    targets = _targets(rows)
    heads = [
        "final test accuracy, %",
        *(f"{100 * target:g} % sparse" for target in targets),
        "runs",
    ]
    counted = any("training_flops" in row for row in rows)
    if counted:
        heads += [f"FLOPs at {100 * target:g} %: training, inference" for target in targets]
    learned = any(map(_off_target, rows))
    if learned:
        heads += [f"density at {100 * target:g} %" for target in targets]
    lines = [heads]
    dense = list(_of(rows, "dense", 0.0).values())
    if dense:
        cost = [_flops(rows, "dense", 0.0)] * len(targets) if counted else []
        cost += ["1"] * len(targets) if learned else []
        lines.append(["dense", *[_cell(dense)] * len(targets), str(len(dense)), *cost])
    for method in _methods(rows):
        found = [list(_of(rows, method, target).values()) for target in targets]
        runs = sorted({len(accuracies) for accuracies in found})
        told = " to ".join(str(n) for n in dict.fromkeys((runs[0], runs[-1])))
        cost = [_flops(rows, method, target) for target in targets] if counted else []
        cost += [_reached(rows, method, target) for target in targets] if learned else []
        lines.append([method, *map(_cell, found), told, *cost])
    written = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([written[0], "|---" * len(heads) + "|", *written[1:]])


def findings(rows: Sequence[Row]) -> list[str]:
    """Paired differences between methods, and which of them the seeds can tell from nothing.

    Seeds share initial weights and the order of the data, so differences are taken seed by seed.
    Where Student's 95 % interval of their mean holds 0, the methods are not told apart.

    Args:
      rows: one a run: ``method``, ``target``, ``seed``, ``accuracy``.

    Returns:
      Sentences, one a pair of methods and sparsity, for pairs with magnitude attention, prune and
      grow, and layer attention; of all methods when none is there. A method that trained for the
      FLOPs of another, or is as dense as another became, is compared with that one, and with those
      that did so too.

    Examples:
      >>> from experiments import report
      >>> accuracies = {"magnitude_attention": (0.9, 0.9, 0.91), "random": (0.8, 0.81, 0.8)}
      >>> rows = [
      ...     {"method": method, "target": 0.9, "seed": seed, "accuracy": accuracy}
      ...     for method, values in accuracies.items()
      ...     for seed, accuracy in enumerate(values)
      ... ]
      >>> print(report.findings(rows)[0])
      90 %: magnitude_attention - random = +10.0 points (95 % interval +7.5 to +12.5, 3 seeds):
      ahead

    References:
      original.
    """
    names = _methods(rows)
    pairs = [
        (name, other)
        for name in names
        if re.split("[@~]", name)[0] in _SUBJECTS
        for other in names
        if other != name and _comparable(name, other) and (other, name) not in _DONE
    ]
    pairs = pairs or list(itertools.combinations(names, 2))
    found = [_difference(rows, *pair, target) for target in _targets(rows) for pair in pairs]
    return [sentence for sentence in found if sentence]


_SUBJECTS = ("magnitude_attention", "prune_and_grow", "layer_attention")

_DONE = frozenset(itertools.combinations(_SUBJECTS, 2))
"""Pairs of subjects that are told from the other side already."""


def _comparable(one: str, other: str) -> bool:
    """Whether two methods are alike in what matters.

    They trained for as many updates, or for as many FLOPs; and became as dense, where one of them
    decided that itself.
    """
    costs = one.partition("@")[2], other.partition("@")[2]
    if "~" in one + other or "layer_attention" in (one, other):
        dense = one.partition("~")[2], other.partition("~")[2]
        return other == dense[0] or one == dense[1] or (dense[0] == dense[1] != "")
    return costs[0] == costs[1] or other == costs[0] or one == costs[1]


def _difference(rows: Sequence[Row], one: str, other: str, target: float) -> str:
    a, b = _of(rows, one, target), _of(rows, other, target)
    gaps = [a[seed] - b[seed] for seed in a if seed in b]
    if len(gaps) < 2:
        return ""
    mean = float(np.mean(gaps))
    reach = float(stats.t.ppf(0.975, len(gaps) - 1) * np.std(gaps, ddof=1) / np.sqrt(len(gaps)))
    verdict = "not told apart"
    if abs(mean) > reach:
        verdict = "ahead" if mean > 0 else "behind"
    interval = f"95 % interval {mean - reach:+.1f} to {mean + reach:+.1f}, {len(gaps)} seeds"
    return f"{100 * target:g} %: {one} - {other} = {mean:+.1f} points ({interval}): {verdict}"
