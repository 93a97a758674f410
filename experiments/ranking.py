"""Which criterion finds the channels that matter: accuracy right after a cut, nothing retrained.

python -m experiments.ranking --workdir runs/ranking

A network is trained dense; of its inner filters a share stays, chosen by one criterion, within each
layer or over all; statistics of batch norm are gathered anew, and it is measured. After retraining
such differences are mostly gone: this is what tells criteria apart.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from tqdm import tqdm

import jaxprune
from experiments import channels, data, measures, models, optimizers, training
from experiments.configs import common

SCORES = {"group l2": "l2", "group l1": "l1", "batch-norm scale": "scale", "taylor": "taylor"}
SCOPES = {"layer": "uniform", "global": "global"}
ATTENTION = {
    "attention network": {"scores": "attention", "learner": 3e-2},
    "free scores": {"scores": "free", "learner": 1e-1},
}

Row = dict[str, Any]


def rank(recipe: Any, seeds: int, kept: float, attention_steps: int = 50) -> Iterator[Row]:
    """Measures every criterion on networks that are trained dense.

    Args:
      recipe: the config of the dense training.
      seeds: how many networks.
      kept: the share of the filters that stays.
      attention_steps: updates of the scores of filter attention.

    Yields:
      ``criterion``, ``scope``, ``seed`` and ``accuracy``; the dense network's first.
    """
    train, test = (data.load(recipe.data, split) for split in ("train", "test"))
    model = models.build(recipe.model, train.classes)
    net = channels.traced(model, train.shape)
    for seed in range(seeds):
        state = training.create(model, optimizers.inner(recipe), train, seed)
        batches = train.batches(recipe.batch_size, seed=seed)
        for _ in tqdm(range(recipe.steps), desc=f"seed {seed}", unit="step", leave=False):
            state, _ = training.train_step(state, next(batches))
        yield _row("dense", "", seed, measures.accuracy(state, test))
        for scope in SCOPES:
            for name, masks in _chosen(net, state, batches, 1 - kept, scope, attention_steps):
                small = jaxprune.shrink(net, state.params, masks, also=state.batch_stats)
                masked = state.replace(params=small.restore(small.params))
                cut = channels.recalibrated(masked, train)
                yield _row(name, scope, seed, measures.accuracy(cut, test))


def _row(criterion: str, scope: str, seed: int, accuracy: float) -> Row:
    return {"criterion": criterion, "scope": scope, "seed": seed, "accuracy": accuracy}


def _chosen(
    net: jaxprune.Network,
    state: training.State,
    batches: Iterator[data.Batch],
    sparsity: float,
    scope: Any,
    attention_steps: int,
) -> Iterator[tuple[str, Any]]:
    """The masks of each criterion."""
    rule: dict[str, Any] = {"round_to": 1, "min_keep": 1, "residual": "internal"}
    of_layers: dict[str, Any] = {"sparsity": sparsity, "distribution": SCOPES[scope]}
    grads = gradients(state, [next(batches) for _ in range(10)])
    chance = int(next(batches)["label"].sum())  # another one for each network
    tx = jaxprune.static(optax.sgd(0.0), channels=net.channels(**rule), seed=chance, **of_layers)
    yield "random", _after(tx, state.params, grads)
    for name, score in SCORES.items():
        choice = net.channels(score=score, **rule)
        tx = jaxprune.gradual_magnitude(optax.sgd(0.0), ramp=(0, 1), channels=choice, **of_layers)
        yield name, _after(tx, state.params, grads)
    for name, given in ATTENTION.items():
        tx = jaxprune.filter_attention(
            optax.sgd(0.0),
            channels=net.channels(**rule),
            begin=0,
            attention_steps=attention_steps,
            scope=scope,
            scores=given["scores"],
            learner=optax.adam(given["learner"]),
            sparsity=sparsity,
        )
        own = jax.tree.map(jnp.copy, state).replace(tx=tx, opt_state=tx.init(state.params))
        for _ in range(attention_steps):
            own, _ = training.train_step(own, next(batches))
        yield name, jaxprune.get_masks(own.opt_state)


def gradients(state: training.State, batches: Sequence[data.Batch]) -> Any:
    """The mean gradient of a network in training mode over some batches.

    Args:
      state: its training state.
      batches: of images and labels.

    Returns:
      A tree like the params.
    """

    @jax.jit
    def one(batch: data.Batch) -> Any:
        def loss(params: Any) -> jax.Array:
            variables = {"params": params, "batch_stats": state.batch_stats}
            images = training.normalized(batch["image"])
            logits, _ = state.apply_fn(variables, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

        return jax.grad(loss)(state.params)

    return jax.tree.map(lambda *g: sum(g) / len(g), *map(one, batches))


def _after(tx: Any, params: Any, grads: Any) -> Any:
    """The masks after one update."""
    return jaxprune.get_masks(jax.jit(tx.update)(grads, tx.init(params), params)[1])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean and deviation over the networks, a row a criterion, a column a scope.

    Args:
      rows: what `rank` yields.

    Returns:
      A table in Markdown.

    Examples:
      >>> from experiments import ranking
      >>> rows = [{"criterion": "random", "scope": "layer", "seed": 0, "accuracy": 0.5}]
      >>> print(ranking.table(rows))
      | accuracy right after the cut, % | layer |
      |---|---|
      | random | 50.0 |
    """
    scopes = list(dict.fromkeys(row["scope"] for row in rows if row["scope"]))
    lines = [["accuracy right after the cut, %", *scopes]]
    for name in dict.fromkeys(row["criterion"] for row in rows):
        cells = []
        for scope in scopes:
            found = [
                100 * row["accuracy"]
                for row in rows
                if row["criterion"] == name and row["scope"] in ("", scope)
            ]
            spread = f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
            cells.append(f"{np.mean(found):.1f}{spread}")
        lines.append([name, *cells])
    lines.insert(1, ["---"] * (len(scopes) + 1))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(" --- ", "---")


def main(argv: list[str]) -> None:
    """Runs the ranking test."""
    del argv
    logging.set_verbosity(logging.WARNING)
    workdir, rows = pathlib.Path(flags.FLAGS.workdir), []
    workdir.mkdir(parents=True, exist_ok=True)
    recipe = common.glyphs_resnet("dense")
    for row in rank(recipe, flags.FLAGS.seeds, flags.FLAGS.kept):
        rows.append(row)
        (workdir / "ranking.json").write_text(json.dumps(rows, indent=1) + "\n")
    (workdir / "ranking.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/ranking", "Where results go.")
    flags.DEFINE_integer("seeds", 5, "Networks.")
    flags.DEFINE_float("kept", 0.3, "The share of the filters that stays.")
    app.run(main)
