"""Comparisons on the glyphs, the study after the colon.

Command: python -m experiments.compare --config experiments/configs/compare_glyphs.py:start_dense
    --workdir runs/glyphs; finished runs are shared by all studies of a work directory.
Hardware and time: ``start_dense``, 125 runs, about half an hour on one CPU core.
Expect: the README has what each of them measured. ``periods`` is how periods can be chosen on the
    validation images, before the test images are looked at: it needs a work directory of its own,
    and one more for each learning rate, ``--config.recipe.optimizer.learning_rate=0.1``; so does
    ``adamw``, whose optimizer is another.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import common
from experiments.configs.common import RANDOM, Arm, as_dense, plain

HARD = (0.9, 0.95, 0.98)
LEARNS, GROWS, ATTENTION = "layer_attention", "prune_and_grow", "magnitude_attention"


def _stages(steps: int) -> Arm:
    """Prune and grow whose three stages have as many updates each."""
    names = ("measure_steps", "improve_steps", "explore_steps")
    return Arm(f"H = J = Q = {steps}", GROWS, dict.fromkeys(names, steps))


def _longer(name: str, method: str) -> Arm:
    """A method that may spend what gradual magnitude costs."""
    return Arm(f"{name}, equal FLOPs", method, flops_of="gradual_magnitude")


STUDIES: dict[str, dict[str, Any]] = {
    "start_dense": {
        "arms": (
            *plain("dense", ATTENTION),
            Arm("no attention", ATTENTION, {"strength": 0.0}),
            Arm("attention in the backward pass only", ATTENTION, {"forward": False}),
            *plain("straight_through"),
            Arm("straight_through without the guard", "straight_through", {"dead_units": "move"}),
            *plain("gradual_magnitude"),
            RANDOM,
            Arm("shuffled", "static", layers_of=ATTENTION),
        ),
        "sparsities": HARD,
        "subjects": (ATTENTION,),
    },
    "start_sparse": {
        "arms": (
            *plain("dense", "gradual_magnitude", ATTENTION, GROWS, "rigl", "sparse_evolution"),
            RANDOM,
            Arm("random_uniform", "static", {"distribution": "uniform"}),
        ),
        "sparsities": HARD,
        "subjects": (GROWS,),
    },
    "equal_flops": {
        "arms": (
            *plain("gradual_magnitude", GROWS, "rigl", "sparse_evolution"),
            RANDOM,
            _longer(GROWS, GROWS),
            _longer("rigl", "rigl"),
            _longer("sparse_evolution", "sparse_evolution"),
            _longer("random", "static"),
        ),
        "sparsities": (0.95,),
        "seeds": 3,
        "subjects": (GROWS, f"{GROWS}, equal FLOPs"),
    },
    "prune_and_grow": {
        "arms": (
            *plain(GROWS),
            Arm("without exploring", GROWS, {"explore_steps": 0}),
            Arm("without freezing the kept weights", GROWS, {"freeze_kept": False}),
            Arm("without improving", GROWS, {"improve_steps": 0}),
            Arm("grown from zero", GROWS, {"grow_from": "zero"}),
            *map(_stages, (10, 40)),
        ),
        "sparsities": (0.95,),
        "subjects": (GROWS,),
    },
    "mask_movement": {
        "arms": plain(GROWS, "rigl", "sparse_evolution"),
        "sparsities": (0.95,),
        "seeds": 1,
        "moving": True,
    },
    "layer_attention": {
        "arms": (
            *plain(LEARNS),
            *as_dense(LEARNS, "gradual_magnitude", ATTENTION, GROWS),
        ),
        "sparsities": (0.8, *HARD),
        "subjects": (LEARNS,),
    },
    "layer_attention_variants": {
        "arms": (
            *plain(LEARNS),
            *(Arm(f"gamma {gamma}", LEARNS, {"gamma": float(gamma)}) for gamma in (1, 5, 80)),
            common.TARGET_AT_ONCE,
            *plain("movement"),
        ),
        "sparsities": (0.8, *HARD),
        "seeds": 3,
    },
    "adamw": {
        "arms": (
            *plain(ATTENTION),
            Arm("attention on the update", ATTENTION, {"attention_on": "update"}),
            Arm("no attention", ATTENTION, {"strength": 0.0}),
            *plain("gradual_magnitude"),
        ),
        "sparsities": (0.95,),
        "subjects": (ATTENTION,),
    },
    "periods": {
        "arms": (
            *(Arm(f"rigl every {every}", "rigl", {"every": every}) for every in (8, 16, 32, 64)),
            *map(_stages, (5, 10, 20, 40, 80)),
        ),
        "sparsities": (0.95,),
        "seeds": 2,
    },
}


def get_config(study: str = "") -> ConfigDict:
    chosen = common.named(STUDIES, study)
    recipe = common.glyphs_resnet("dense")
    if study == "periods":
        recipe.test_split = "validation"
    if study == "adamw":
        adamw = {"name": "adamw", "learning_rate": 0.03, "weight_decay": 0.05}
        recipe.update({"optimizer": adamw})
    return common.study(study, recipe, **chosen)
