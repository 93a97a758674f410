"""What the numbers of a comparison say: a table, and differences no larger than they are."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

Row = Mapping[str, Any]

_FEWEST = 3
"""Seeds without which no verdict is given."""


def _of(rows: Sequence[Row], method: str, target: float) -> list[Row]:
    return [row for row in rows if (row["method"], row["target"]) == (method, target)]


def _by_seed(rows: Sequence[Row], method: str, target: float) -> dict[int, float]:
    """Final accuracy in percent by seed."""
    return {row["seed"]: 100 * row["accuracy"] for row in _of(rows, method, target)}


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean, and standard deviation if there are several."""
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _flops(rows: Sequence[Row]) -> str:
    """Training and inference FLOPs."""
    found = [
        (row["training_flops"], row["inference_flops"]) for row in rows if "training_flops" in row
    ]
    return ", ".join(f"{np.mean(shares):.3f}" for shares in zip(*found, strict=True)) or "-"


def _left(name: str) -> Callable[[Sequence[Row]], str]:
    """The mean share of the dense network's parameters, or time, that cut networks have."""

    def told(rows: Sequence[Row]) -> str:
        found = [row[name][0] / row[name][1] for row in rows if name in row]
        return _spread(found, 3) if found else "-"

    return told


def _kept(rows: Sequence[Row]) -> str:
    return _spread([row["kept"] / row["total"] for row in rows], 4)


def _off_target(row: Row) -> bool:
    """Whether a run ended at another sparsity than the one it was meant to have."""
    if "kept" not in row or not row["target"]:
        return False
    return abs(row["kept"] / row["total"] - (1 - row["target"])) > 1e-3


def table(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds of the final test accuracy, and what a run costs.

    Args:
      rows: one a run: ``method``, ``target``, ``seed``, ``accuracy``; where they are known,
        ``training_flops`` and ``inference_flops`` as shares of dense, ``kept`` and ``total``.

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
    """
    targets = sorted({row["target"] for row in rows if row["target"]})
    columns = {}
    if any("training_flops" in row for row in rows):
        columns["FLOPs at {} %: training, inference"] = _flops
    if any(map(_off_target, rows)):
        columns["density at {} %"] = _kept
    if any("parameters" in row for row in rows):
        columns["parameters left at {} %"] = _left("parameters")
        columns["time left at {} %"] = _left("milliseconds")
    percents = [f"{100 * target:.3g}" for target in targets]
    heads = ["final test accuracy, %", *(f"{percent} % sparse" for percent in percents), "runs"]
    heads += [head.format(percent) for head in columns for percent in percents]
    lines = [heads]
    for method in sorted(_methods(rows), key=lambda name: name != "dense"):
        found = [_of(rows, method, 0.0 if method == "dense" else target) for target in targets]
        runs = sorted({len(cell) for cell in found})
        accuracies = [_spread([100 * row["accuracy"] for row in cell], 1) for cell in found]
        count = " to ".join(str(n) for n in dict.fromkeys((runs[0], runs[-1])))
        cells = [told(cell) for told in columns.values() for cell in found]
        lines.append([method, *accuracies, count, *cells])
    written = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([written[0], "|---" * len(heads) + "|", *written[1:]])


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def findings(rows: Sequence[Row], subjects: Sequence[str] = ()) -> list[str]:
    """Paired differences between methods, and which of them the seeds can tell from nothing.

    Seeds share initial weights and the order of the data, so differences are taken seed by seed.
    Where Student's 95 % interval of their mean holds 0, the methods are not told apart; fewer than
    three seeds tell nothing.

    Args:
      rows: one a run: ``method``, ``target``, ``seed``, ``accuracy``; ``arm`` and
        ``learns_sparsity`` where arms differ in what they cost or how dense they become.
      subjects: methods that are compared with all others; none: every pair.

    Returns:
      Sentences, one a pair of methods and sparsity. An arm that trained for the FLOPs of another,
      or is as dense as another became, is compared with that one, and with those that did so too.

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
    """
    pruned = [row for row in rows if row["target"]]
    one_of = {row["method"]: row for row in pruned}
    names = [name for name in subjects if name in one_of]
    names += [name for name in one_of if name not in names]
    pairs = [
        (one, other)
        for one, other in itertools.combinations(names, 2)
        if (not subjects or one in subjects) and _alike(one_of[one], one_of[other])
    ]
    targets = sorted({row["target"] for row in pruned})
    found = [_difference(rows, *pair, target) for target in targets for pair in pairs]
    return [sentence for sentence in found if sentence]


def _alike(one: Row, other: Row) -> bool:
    """Whether two arms trained as long, or at the same cost, and are equally dense."""

    def costs_as(row: Row) -> str:
        return row.get("arm", {}).get("flops_of", "")

    def dense_as(row: Row) -> str:
        itself = row["method"] if row.get("learns_sparsity") else ""
        return row.get("arm", {}).get("like") or itself

    cost = costs_as(one) == costs_as(other)
    cost |= one["method"] == costs_as(other) or costs_as(one) == other["method"]
    return cost and dense_as(one) == dense_as(other)


def _difference(rows: Sequence[Row], one: str, other: str, target: float) -> str:
    a, b = _by_seed(rows, one, target), _by_seed(rows, other, target)
    gaps = [a[seed] - b[seed] for seed in a if seed in b]
    if not gaps:
        return ""
    mean = float(np.mean(gaps))
    told = f"{100 * target:g} %: {one} - {other} = {mean:+.1f} points"
    if len(gaps) < _FEWEST:
        return f"{told} ({len(gaps)} seed{'s' * (len(gaps) > 1)}: too few for a verdict)"
    reach = float(stats.t.ppf(0.975, len(gaps) - 1) * np.std(gaps, ddof=1) / np.sqrt(len(gaps)))
    verdict = "not told apart"
    if abs(mean) > reach:
        verdict = "ahead" if mean > 0 else "behind"
    interval = f"95 % interval {mean - reach:+.1f} to {mean + reach:+.1f}, {len(gaps)} seeds"
    return f"{told} ({interval}): {verdict}"
