"""Which channels go: those with the lowest scores, pooled over what is theirs, or the zero ones."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.knapsack import widths_within
from jaxprune.masks import global_topk
from jaxprune.masks.ranking import largest
from jaxprune.network import Cost, Group, Network, at_least, rounded, steps_of
from jaxprune.network.groups import by_root, groups_of
from jaxprune.network.program import ALSO, all_arrays, program_of, shape_of, walked
from jaxprune.network.traced import pin_outputs
from jaxprune.network.values import NUMBER, ZERO
from jaxprune.numbers import checked_share, decimal, is_traced
from jaxprune.types import one_of, wrong
from jaxprune.units.channels import pool


def pool_scores(net: Network, tree: Any, *, inexact: str = "pin") -> dict[str, jax.Array]:
    """A score for each channel: the sum over all entries that go with it.

    ``s_c = sum of the entries of every member's indices of channel c``: of squared weights that is
    the squared l2 norm of all that belongs to a channel.

    Args:
      net: what `trace` returned.
      tree: scores of entries, in the containers and shapes of the params; those of what is no param
        do not count.
      inexact: "pin" leaves out the groups over which the network sums something that is not 0 once
        a channel is removed; "allow" scores them too.

    Returns:
      ``{name of a group: float32[size]}``; works under jit.

    Raises:
      ValueError: if no channel can be removed, or a member has no leaf in the tree, or one of
        another shape.

    Examples:
      >>> import jax, jax.numpy as jnp, jaxprune
      >>> params = {"first": jnp.eye(3), "head": jnp.arange(6.0).reshape(3, 2)}
      >>> def fn(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["head"]
      >>> net = jaxprune.trace(fn, params, jnp.ones((1, 3)))
      >>> print(jaxprune.pool_scores(net, jax.tree.map(jnp.square, params))["first[1]"])
      [ 2. 14. 42.]

    References:
      Fang et al., DepGraph: Towards Any Structural Pruning, 2023,
      https://arxiv.org/abs/2301.12900, for scores of a group as a whole; the sum is our reading.
    """
    leaves = trees.by_path(tree)
    return {group.name: _pooled(group, leaves) for group in net.removable(inexact)}


def _pooled(group: Group, leaves: Mapping[str, Any]) -> jax.Array:
    members = [member for member in group.members if not member.path.startswith(ALSO)]
    for member in members:
        trees.known(member.path, leaves, "tree", "have the leaves that were traced")
        shape, size = jnp.shape(leaves[member.path]), len(member.units())
        if shape[member.axis : member.axis + 1] != (size,):
            expected = f"have {size} indices along axis {member.axis} of '{member.path}'"
            raise ValueError(wrong("tree", expected, shape))
    return pool(members, group.size, lambda path: jnp.asarray(leaves[path]))


def select_units(
    scores: Mapping[str, Any],
    density: float,
    *,
    round_to: int | Mapping[str, int] = 8,
    min_keep: int = 1,
    scope: str = "local",
    cost: Cost | None = None,
) -> dict[str, jax.Array]:
    """Keeps the channels with the highest scores.

    ``k_g = round(density n_g)`` of the n_g channels of each group, or where ``scope`` is "global"
    as many as are among the ``round(density sum_g n_g)`` highest of all scores divided by the mean
    of their group. Either is brought to the nearest multiple of ``round_to``, or to all (half up,
    no less than ``min_keep``); the highest stay, the first of equal ones. With a cost, widths are
    those whose channels are worth the most together, by the same divided scores, and whose network
    costs at most the share ``density`` of the whole one.

    Args:
      scores: ``{name of a group: float[size]}``, as `pool_scores` returns.
      density: share of the channels that is kept, in (0, 1].
      round_to: widths are multiples of it, since odd ones are slow; or ``{pattern: multiple}`` by
        groups, 1 for those that no pattern matches.
      min_keep: channels that every group keeps.
      scope: "local" ranks each group alone, "global" all together.
      cost: what ``net.cost(...)`` returned: the density is a share of it. Groups of it without
        scores stay whole.

    Returns:
      ``{name: bool[size]}``, True is kept.

    Raises:
      ValueError: if the density is not in (0, 1], a score is NaN, or ``round_to`` or ``min_keep``
        are larger than a group.

    Examples:
      >>> import jax.numpy as jnp, jaxprune
      >>> scores = {"conv[3]": jnp.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])}
      >>> jaxprune.select_units(scores, 0.5, round_to=2)["conv[3]"].tolist()
      [True, False, True, False, True, True]

    References:
      Fang et al., DepGraph: Towards Any Structural Pruning, 2023,
      https://arxiv.org/abs/2301.12900, ranks groups together and rounds widths; dividing by the
      mean of a group is our reading of its normalised importance.
    """
    one_of("scope", scope, ("local", "global"))
    share = decimal(checked_share("density", density, whole=True))
    if share == 0:
        raise ValueError(wrong("density", "lie in (0, 1]", density))
    sizes = {name: int(np.size(score)) for name, score in scores.items()}
    steps = steps_of(round_to, sizes, min_keep)
    flat = {name: jnp.asarray(score, jnp.float32) for name, score in scores.items()}
    for name, score in flat.items():
        if not is_traced(score) and bool(jnp.any(jnp.isnan(score))):
            raise ValueError(wrong(f"scores['{name}']", "have no NaN", "NaN"))
    fair = {n: score / jnp.maximum(jnp.mean(score), _LEAST) for n, score in flat.items()}
    if cost is not None:
        wanted = _within(cost, fair, steps, min_keep, float(share))
    elif scope == "global":
        chosen = global_topk(fair, float(share))
        wanted = {name: int(mask.sum()) for name, mask in chosen.items()}
    else:
        wanted = {name: round(share * size) for name, size in sizes.items()}
    found = {}
    for name, score in flat.items():
        count = rounded(wanted[name], steps[name], min_keep, sizes[name])
        found[name] = largest({name: score}, {(name,): count}).masks[name]
    return found


def _within(
    cost: Cost, scores: Mapping[str, Any], steps: Mapping[str, int], least: int, share: float
) -> dict[str, int]:
    """The widths of the groups that have scores, if all others stay whole."""
    for name in scores:
        trees.known(name, cost.sizes, "scores", "name groups of channels of the cost")
    worth = {n: scores.get(n, jnp.zeros(size)) for n, size in cost.sizes.items()}
    fewest = {
        n: at_least(least, steps[n], size) if n in scores else size
        for n, size in cost.sizes.items()
    }
    found = widths_within(cost, worth, fewest, cost.sizes, steps, share)
    return {name: int(found[name]) for name in scores}


_LEAST = jnp.finfo(jnp.float32).tiny
"""A mean that can be divided by."""


class RemovableUnits(dict[str, Any]):
    """Masks of the channels that have to stay, by group, and why they do.

    Attributes:
      why: ``{name of a group: {reason: channels}}`` of those that are not zero all the way.
    """

    def __init__(self) -> None:
        """None yet."""
        super().__init__()
        self.why: dict[str, dict[str, int]] = {}


def removable_units(net: Network, params: Any) -> RemovableUnits:
    """Which channels change nothing when they are cut, by the values of the params.

    A channel goes if wherever the network sums over it, what it sums is 0: because all that makes
    it is (kernels, biases, or the scale and the bias of the norm that follows), or all that reads
    it. Which zeros reach which sum is traced, and no guess.

    Args:
      net: what `trace` returned.
      params: the params, such as those that a method has trained.

    Returns:
      ``{name of a group: bool[size]}``, False where a channel goes; for `shrink`. Its ``.why`` says
      how many channels of each group stay for which reason.

    Raises:
      ValueError: if the network has no function (from JSON), or params have other leaves.

    Examples:
      >>> import jax, jax.numpy as jnp, jaxprune
      >>> first = jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
      >>> params = {"first": first, "head": jnp.array([[1.0], [2.0], [0.0]])}
      >>> def fn(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["head"]
      >>> net = jaxprune.trace(fn, params, jnp.ones((1, 2)))
      >>> print(jaxprune.removable_units(net, params)["first[1]"])
      [ True False False]
    """
    source = net.traced_from()
    leaves = all_arrays(params, None)
    shapes = {path: shape_of(x) for path, x in all_arrays(source.params, source.also).items()}
    for path, shape in shapes.items():
        if not path.startswith(ALSO):
            trees.known(path, leaves, "params", "have the leaves that were traced")
            if leaves[path].shape != shape.shape:
                expected = f"have the shape {shape.shape} at '{path}'"
                raise ValueError(wrong("params", expected, leaves[path].shape))

    def masked(path: str, axis: int, size: int) -> np.ndarray:
        if path.startswith(ALSO):
            return np.full(size, NUMBER)
        others = [k for k in range(leaves[path].ndim) if k != axis]
        return np.where(np.asarray(jnp.any(leaves[path] != 0, axis=others)), NUMBER, ZERO)

    program = program_of(source.fn, source.params, source.also, source.args, shapes)
    walk, axes, outputs = walked(program, masked)
    pin_outputs(walk, outputs)
    closed = walk.ids.closed()
    wrong_sums = by_root(closed, walk.notes.inexact.values())
    found = RemovableUnits()
    for group, roots in groups_of(closed, axes, net.leaves, ()):
        reasons = [wrong_sums.get(root, []) for root in roots]
        found[group.name] = np.array([bool(each) for each in reasons])
        found.why[group.name] = dict(Counter(reason for each in reasons for reason in each))
    return found
