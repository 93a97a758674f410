"""Comparisons on the digits, the study after the colon.

Command: python -m experiments.compare --config experiments/configs/compare_digits.py:start_sparse
    --workdir runs/digits; finished runs are shared by all studies of a work directory.
Hardware and time: seconds a run on two CPU cores. ``demo`` is what `make demo` runs.
Expect: the README has what each of them measured.
"""

from ml_collections import ConfigDict

from experiments.configs import common
from experiments.configs.common import Arm, as_dense, plain

LEARNS = "layer_attention"

STUDIES = {
    "demo": {
        "arms": (
            *plain("dense", "magnitude_attention", "straight_through", "gradual_magnitude"),
            common.RANDOM,
        ),
        "subjects": ("magnitude_attention",),
    },
    "start_sparse": {
        "arms": plain("gradual_magnitude", "prune_and_grow", "rigl", "sparse_evolution"),
        "sparsities": (0.9, 0.95, 0.98),
        "subjects": ("prune_and_grow",),
    },
    "layer_attention": {
        "arms": (
            *plain(LEARNS),
            *(Arm(f"gamma {gamma}", LEARNS, {"gamma": float(gamma)}) for gamma in (1, 5, 80)),
            common.TARGET_AT_ONCE,
            *as_dense(LEARNS, "gradual_magnitude", "magnitude_attention", "prune_and_grow"),
        ),
        "subjects": (LEARNS,),
    },
}


def get_config(study: str = "") -> ConfigDict:
    chosen = common.named(STUDIES, study)
    return common.study(study, common.digits_mlp("dense"), **chosen)
