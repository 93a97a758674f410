"""Comparisons of methods that prune channels of the small ResNet on glyphs, study after the colon.

Command: python -m experiments.compare --config experiments/configs/compare_channels.py:parameters
    --workdir runs/channels_parameters; each study has a work directory of its own. ``validation``
    compares hyper-parameters, on images that are neither trained on nor tested on.
Hardware and time: 12 to 35 s a run on one CPU core; a study has 60 to 115 runs.
Expect: the README has what was measured. A sparsity is the share of the network's parameters, or
    FLOPs, that goes; ``milliseconds`` are those of the cut network.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import channels, common
from experiments.configs.common import Arm, plain

PAAM, GROWS = "filter_attention", "prune_and_grow"
AT_ONCE = {"ramp": (0.1, 0.1)}
BY_LAYER, FREE = {"scope": "layer"}, {"scores": "free"}

ARMS = (
    *plain("dense", PAAM),
    Arm(f"{PAAM}, by layer", PAAM, BY_LAYER),
    Arm("free scores", PAAM, FREE | {"learner_rate": 0.1}),
    Arm(GROWS, GROWS, channels.GROWING_CHANNELS),
    Arm("taylor, at once", "gradual_magnitude", AT_ONCE, channels={"score": "taylor"}),
    Arm("gradual magnitude", "gradual_magnitude"),
    Arm("gradual taylor", "gradual_magnitude", channels={"score": "taylor"}),
    Arm("slimming", "slimming"),
    Arm("random", "static"),
    Arm("random, at once", "gradual_magnitude", AT_ONCE, channels={"score": "random"}),
    Arm("shuffled", "static", layers_of="gradual magnitude"),
)

CHOICES = (
    *(
        Arm(f"{name}, {rate}", PAAM, values | {"learner_rate": rate})
        for name, values in ((PAAM, {}), (f"{PAAM}, by layer", BY_LAYER), ("free scores", FREE))
        for rate in (0.01, 0.03, 0.1)
    ),
    *(
        Arm(f"{GROWS}, {steps}", GROWS, channels.GROWING_CHANNELS | {"explore_steps": steps})
        for steps in (5, 20)
    ),
    *(Arm(f"slimming, {price}", "slimming", {"strength": price}) for price in (1e-5, 1e-4, 1e-3)),
)
"""Hyper-parameters to choose from, on images that are neither trained on nor tested on."""

_MAIN = {"arms": ARMS, "sparsities": (0.5, 0.833), "subjects": (PAAM, GROWS)}

STUDIES: dict[str, dict[str, Any]] = {
    "parameters": _MAIN,
    "flops": _MAIN,
    "latency": _MAIN | {"sparsities": (0.5,)},  # its narrowest network takes a quarter of the time
    "validation": {"arms": CHOICES, "sparsities": (0.5, 0.833), "seeds": 2},
}


def get_config(study: str = "") -> ConfigDict:
    chosen = common.named(STUDIES, study)
    recipe: Any = channels.glyphs_resnet_channels("gradual_magnitude")
    if study == "validation":
        recipe.test_split = "validation"
    else:
        recipe.channels.cost = {"flops": "FLOPs"}.get(study, study)
    return common.study(study, recipe, **chosen)
