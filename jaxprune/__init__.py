"""Pruning for JAX: the parameters you hold are the network you ship."""

from jaxprune import distributions as distributions
from jaxprune import flops as flops
from jaxprune import keep as keep
from jaxprune import masks as masks
from jaxprune import schedules as schedules
from jaxprune import scores as scores
from jaxprune import units as units
from jaxprune import views as views
from jaxprune.checks import check_rules as check_rules
from jaxprune.checks import describe as describe
from jaxprune.checks import rebase as rebase
from jaxprune.checks import verify as verify
from jaxprune.files import load_plan as load_plan
from jaxprune.files import load_sparse as load_sparse
from jaxprune.files import save_sparse as save_sparse
from jaxprune.latency import load_cost as load_cost
from jaxprune.latency import measure_latency as measure_latency
from jaxprune.latency import save_cost as save_cost
from jaxprune.methods.acdc import acdc as acdc
from jaxprune.methods.filter_attention import filter_attention as filter_attention
from jaxprune.methods.gradual_magnitude import gradual_magnitude as gradual_magnitude
from jaxprune.methods.granet import granet as granet
from jaxprune.methods.layer_attention import layer_attention as layer_attention
from jaxprune.methods.magnitude_attention import magnitude_attention as magnitude_attention
from jaxprune.methods.movement import movement as movement
from jaxprune.methods.n_of_m import n_of_m as n_of_m
from jaxprune.methods.prune_and_grow import prune_and_grow as prune_and_grow
from jaxprune.methods.prune_once import prune_once as prune_once
from jaxprune.methods.rigl import rigl as rigl
from jaxprune.methods.slimming import slimming as slimming
from jaxprune.methods.snip import snip as snip
from jaxprune.methods.soft_threshold import soft_threshold as soft_threshold
from jaxprune.methods.sparse_evolution import sparse_evolution as sparse_evolution
from jaxprune.methods.sr_ste import sr_ste as sr_ste
from jaxprune.methods.static import static as static
from jaxprune.methods.straight_through import straight_through as straight_through
from jaxprune.network import Network as Network
from jaxprune.network import network_from_json as network_from_json
from jaxprune.network import register_rule as register_rule
from jaxprune.network import trace as trace
from jaxprune.readers import get_learned as get_learned
from jaxprune.readers import get_masks as get_masks
from jaxprune.readers import masks_by_path as masks_by_path
from jaxprune.readers import metrics as metrics
from jaxprune.readers import phase_of as phase_of
from jaxprune.readers import sees_dense as sees_dense
from jaxprune.readers import sparsity_of as sparsity_of
from jaxprune.readers import support_of as support_of
from jaxprune.replicas import check_replicas as check_replicas
from jaxprune.replicas import mask_digest as mask_digest
from jaxprune.report import Plan as Plan
from jaxprune.report import Summary as Summary
from jaxprune.report import plan as plan
from jaxprune.report import summarize as summarize
from jaxprune.shardings import state_shardings as state_shardings
from jaxprune.shipped import active_params as active_params
from jaxprune.shipped import eval_params as eval_params
from jaxprune.shipped import project as project
from jaxprune.shipped import view_params as view_params
from jaxprune.shrinking import Shrunk as Shrunk
from jaxprune.shrinking import pool_scores as pool_scores
from jaxprune.shrinking import removable_units as removable_units
from jaxprune.shrinking import select_units as select_units
from jaxprune.shrinking import shrink as shrink
from jaxprune.shrinking import shrunk_from_plan as shrunk_from_plan
from jaxprune.shrinking import verify_shrink as verify_shrink
from jaxprune.stages import next_stage as next_stage
from jaxprune.starts import AtRandom as AtRandom
from jaxprune.state import PruneState as PruneState
from jaxprune.transform import method as method
from jaxprune.transform import prune as prune
from jaxprune.types import Candidates as Candidates
from jaxprune.types import Learner as Learner
from jaxprune.types import MaskUpdate as MaskUpdate
from jaxprune.types import Memory as Memory
from jaxprune.types import Phase as Phase
from jaxprune.types import Signals as Signals
from jaxprune.types import View as View

__all__ = [
    "AtRandom",
    "Candidates",
    "Learner",
    "MaskUpdate",
    "Memory",
    "Network",
    "Phase",
    "Plan",
    "PruneState",
    "Shrunk",
    "Signals",
    "Summary",
    "View",
    "acdc",
    "active_params",
    "check_replicas",
    "check_rules",
    "describe",
    "distributions",
    "eval_params",
    "filter_attention",
    "flops",
    "get_learned",
    "get_masks",
    "gradual_magnitude",
    "granet",
    "keep",
    "layer_attention",
    "load_cost",
    "load_plan",
    "load_sparse",
    "magnitude_attention",
    "mask_digest",
    "masks",
    "masks_by_path",
    "measure_latency",
    "method",
    "metrics",
    "movement",
    "n_of_m",
    "network_from_json",
    "next_stage",
    "phase_of",
    "plan",
    "pool_scores",
    "project",
    "prune",
    "prune_and_grow",
    "prune_once",
    "rebase",
    "register_rule",
    "removable_units",
    "rigl",
    "save_cost",
    "save_sparse",
    "schedules",
    "scores",
    "sees_dense",
    "select_units",
    "shrink",
    "shrunk_from_plan",
    "slimming",
    "snip",
    "soft_threshold",
    "sparse_evolution",
    "sparsity_of",
    "sr_ste",
    "state_shardings",
    "static",
    "straight_through",
    "summarize",
    "support_of",
    "trace",
    "units",
    "verify",
    "verify_shrink",
    "view_params",
    "views",
]


def __dir__() -> list[str]:
    """What users call; rooms inside are not among it."""
    return __all__
