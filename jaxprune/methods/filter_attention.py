"""Filter attention (PAAM): filters are scored by how they attend to each other, and so pruned."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import keep, trees
from jaxprune.distributions import Budget
from jaxprune.keep import within
from jaxprune.network import ChannelChoice
from jaxprune.numbers import checked_share, is_traced, step_number
from jaxprune.schedules import Cycles, constant, cycles
from jaxprune.transform import method, prune
from jaxprune.types import (
    Keep,
    Learner,
    Leaves,
    MaskUpdate,
    Signals,
    View,
    check_optimizer,
    one_of,
    wrong,
)
from jaxprune.units import Channels, units_for
from jaxprune.views import masked

_LEAK, _LOWEST, _ROWS = 0.01, -20.0, 256
"""The slope of scores above 1; where the exponent is clipped; filters that attend at once."""

Scores = dict[str, jax.Array]


@method
def filter_attention(
    inner: optax.GradientTransformation,
    *,
    channels: ChannelChoice,
    sparsity: Any,
    learner: optax.GradientTransformation,
    begin: int,
    attention_steps: int = 50,
    weight_steps: int | None = None,
    stop: int | None = None,
    scores: Literal["attention", "free"] = "attention",
    scope: Literal["global", "layer", "cumulative"] = "global",
    penalty: Literal["budget", "mean"] = "budget",
    strength: Any = 1.0,
    width: int = 32,
    min_density: float | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """PAAM: an attention network scores filters by their weights; those of high score stay.

    Of a layer with n filters the rows of ``W``, ``[n, m]``, are the sizes ``|K|`` of the weights of
    each, less their mean over the layer and divided by their deviation. With ``q = W Wq``,
    ``k = W Wk`` of ``width`` entries a filter, and no gradient to the weights,

    - ``h_i = mean_j tanh(q_i + k_j + b)`` and ``z_i = (h_i - mean_i h) . v + u``: additive
      attention of each filter to all of its layer;
    - ``s = exp(z)`` below 0 and ``1 + z / 100`` above, clipped at -20. v and u begin at 0, so all
      scores at 1, bit for bit: the network is the dense one.

    Scores multiply the feature maps: they scale the norm that follows a filter (scale and bias), or
    its kernel and bias where none does. Phases take turns:

    - "train": ``begin`` updates of the dense network;
    - "attention": ``attention_steps`` updates of the scores alone, all filters present. The loss is
      that of the task plus ``strength R(s)``. Weights and the whole state of ``inner`` are held
      bit for bit (but slots of filters that come back at the end of a later one, which begin
      anew); its schedules count updates of weights. Leave out what batch norm gathers in
      these steps: ``jnp.where(jaxprune.sees_dense(opt_state), old, new)``;
    - then the filters are chosen, and the weights of those that stay are trained, with gates that
      are 1 or 0; the others stand still with their momentum, and take no decay.

    With ``weight_steps`` the last two come back in turn, as often as they end by ``stop``; all
    filters are present again in each attention phase. After the last one the choice is final, and
    nothing of the attention network is in the params. `shrink` then really cuts the filters.

    Args:
      inner: the optimizer of the weights.
      channels: what ``network.channels(...)`` returned; ``residual="internal"`` leaves out filters
        whose outputs are added to others', else all layers that write to a residual stream share
        a score, the highest of theirs.
      sparsity: share of the filters that goes, in [0, 1); of the cost, where channels have one.
      learner: the optimizer of the scores; ``optax.adam(3e-2)``, of free ones ``optax.adam(1e-1)``.
      begin: updates before the first attention phase; half of the training is a good choice.
      attention_steps: updates of an attention phase.
      weight_steps: updates of the weights between two attention phases; None for one phase alone.
      stop: the update by which the last attention phase has ended; needed with ``weight_steps``.
      scores: "attention", or "free": every z is learned by itself, the control.
      scope: "global" keeps the highest ``round((1 - sparsity) N)`` of all N filters, "layer" as
        large a share of each layer; "cumulative" the fewest whose scores add up to the share
        ``1 - sparsity`` of all. Where channels have a cost, as many as fit within the share
        ``1 - sparsity`` of it: the highest, or as large a share of each layer.
      penalty: R: "budget", ``|mean s - (1 - sparsity)|``, or "mean", ``mean s``; of each layer
        where ``scope`` is "layer".
      strength: what R is multiplied by.
      width: entries of a query and of a key.
      min_density: least share kept of each layer; None for a quarter of ``1 - sparsity``, but where
        ``scope`` is "cumulative". One filter always stays.
      seed: of the attention network's first weights.

    Returns:
      A gradient transformation; outside attention phases the params are the pruned network after
      each update.

    Raises:
      ValueError: if the sparsity lies outside [0, 1), ``weight_steps`` and ``stop`` do not come
        together, channels are no traced ones, or ``inner`` is None.
      TypeError: if ``learner`` is not an optimizer.

    Warns:
      UserWarning: if scores of an attention network are ranked over layers: where a norm follows
        the next layer, a factor on all scores of a layer changes nothing, so that their levels say
        nothing.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, jaxprune
      >>> params = {"first": jnp.eye(4), "head": jnp.ones((4, 2))}
      >>> def fn(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["head"]
      >>> net = jaxprune.trace(fn, params, jnp.ones((1, 4)))
      >>> channels = net.channels(round_to=1)
      >>> tx = jaxprune.filter_attention(
      ...     optax.sgd(0.1), channels=channels, sparsity=0.5, learner=optax.adam(3e-2), begin=0,
      ...     attention_steps=2, scope="layer",
      ... )
      >>> state, x = tx.init(params), jnp.array([[1.0, 2.0, 3.0, 4.0]])
      >>> update = jax.jit(tx.update)
      >>> for _ in range(3):
      ...     grads = jax.grad(lambda p: -jnp.mean(fn(p, x)))(params)
      ...     updates, state = update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> int(jaxprune.get_masks(state)["first[1]"].sum())
      2

    References:
      Babaiee, Liebenwein, Hasani, Rus and Grosu, Pruning by Active Attention Manipulation, 2022,
      https://arxiv.org/abs/2210.11114: scores from filter weights by additive attention, on feature
      maps, from exactly 1; a positive activation with a slope everywhere; one loss with a term in
      the scores; two regimes in turn; one budget over all filters, by the cumulative distribution
      of scores. The attention network, its standardised rows, the form of the activation, R, and
      when phases come are our reading.
    """
    share = checked_share("sparsity", sparsity)
    check_optimizer("learner", learner)
    one_of("scores", scores, ("attention", "free"))
    one_of("scope", scope, ("global", "layer", "cumulative"))
    one_of("penalty", penalty, ("budget", "mean"))
    units = units_for(channels=channels)
    groups = units.groups.values() if isinstance(units, Channels) else ()
    if not isinstance(units, Channels) or not all(g.makers and g.gates for g in groups):
        hint = "the trace tells which layers make a channel, and what shuts it"
        raise ValueError(wrong("channels", "be network.channels(...)", "others", hint))
    if scope == "cumulative" and units.cost is not None:
        expected = 'be "global" or "layer" where channels have a cost, which says how many stay'
        raise ValueError(wrong("scope", expected, scope))
    if scope == "cumulative" and min_density is not None:
        raise ValueError(wrong("min_density", "be None where sums of scores decide", min_density))
    if scores == "attention" and scope != "layer" and len(units.groups) > 1:
        warnings.warn(
            "levels of an attention network's scores are not comparable between layers: "
            'scope="layer" ranks within each, scores="free" ranks them all',
            stacklevel=3,
        )
    course = _course(begin, attention_steps, weight_steps, stop)
    least = (1 - share) / 4 if min_density is None else min_density
    distribution = "uniform" if scope == "layer" else "global"
    budget = Budget(constant(share), distribution, None, least)
    attention = _Attention(units, scores, step_number("width", width, 1))
    regularizer = _Penalty(attention, penalty, scope == "layer", 1 - share, strength)
    kept: Keep = within(budget, units, additive=False)
    if scope == "cumulative":
        kept = keep.largest(functools.partial(_cumulative, attention, 1 - share))
    by_rank = scope == "layer" and units.cost is not None
    chosen = attention.ranks if by_rank else attention.of
    seen = _Seen(attention, course)
    return prune(
        inner,
        [MaskUpdate(course.at_end_of("attention"), chosen, kept)],
        View(
            seen.network,
            update_scale=lambda s: s.support,
            ship=lambda s: masked(s.dense, s.support),
        ),
        units=units,
        learner=Learner(attention.init, learner, regularizer, alternate=seen.turns),
        phases=course,
        seed=seed,
    )


def _course(begin: int, attention: int, weights: int | None, stop: int | None) -> Cycles:
    if (weights is None) != (stop is None):
        expected = "be given with `stop`, which says how often phases come back"
        raise ValueError(wrong("weight_steps", expected, weights))
    parts = [("attention", step_number("attention_steps", attention, 1))]
    if weights is not None:
        parts.append(("train", step_number("weight_steps", weights, 1)))
    first = ("train", step_number("begin", begin, 0))
    return cycles(*parts, then="train", stop=stop, first=first)


class _Attention(NamedTuple):
    """The networks that score the filters of each group, one for each layer that makes them."""

    units: Channels
    kind: str
    width: int

    def init(self, s: Signals) -> dict[str, Any]:
        """Queries and keys by chance; v and u 0, so that scores are 1. Of free scores z."""
        if self.kind == "free":
            return {name: jnp.zeros(group.size) for name, group in self.units.groups.items()}
        found: dict[str, Any] = {}
        for name, group in self.units.groups.items():
            found[name], members = {}, _members(group)
            for path, axis in group.makers:
                keys = jax.random.split(trees.path_key(s.key, f"{name} {path}[{axis}]"), 3)
                own = int((members[path, axis] >= 0).sum()) // group.size  # indices of each filter
                fan = own * s.dense[path].size // s.dense[path].shape[axis]
                spread = 1 / np.sqrt(fan)
                found[name][f"{path}[{axis}]"] = {
                    "query": spread * jax.random.normal(keys[0], (fan, self.width)),
                    "key": spread * jax.random.normal(keys[1], (fan, self.width)),
                    "bias": jax.random.normal(keys[2], (self.width,)),
                    "v": jnp.zeros(self.width),
                    "u": jnp.zeros(()),
                }
        return found

    def of(self, s: Signals) -> Scores:
        """The scores of all filters, ``{group: [n]}``."""
        if self.kind == "free":
            return {name: activated(z) for name, z in s.learned.items()}
        found = {}
        for name, group in self.units.groups.items():
            each, members = [], _members(group)
            for path, axis in group.makers:
                rows = filter_rows(s.dense[path], axis, members[path, axis], group.size)
                z = additive_attention(rows, s.learned[name][f"{path}[{axis}]"])
                each.append(activated(z))
            found[name] = functools.reduce(jnp.maximum, each)
        return found

    def ranks(self, s: Signals) -> Scores:
        """The share of its layer that each filter is better than: an order over all layers."""
        scores = self.of(s).items()
        return {name: jnp.argsort(jnp.argsort(x)) / x.size for name, x in scores}


def _members(group: Any) -> dict[tuple[str, int], np.ndarray]:
    """The unit of each index of each member of a group, by path and axis."""
    return {(each.path, each.axis): each.units() for each in group.members}


def activated(z: jax.Array) -> jax.Array:
    """The leaky exponential: 1 at 0, positive, with a slope everywhere above -20."""
    z = jnp.maximum(z, _LOWEST)
    return jnp.where(z < 0, jnp.exp(jnp.minimum(z, 0)), 1 + _LEAK * z)


def filter_rows(leaf: jax.Array, axis: int, units: np.ndarray, number: int) -> jax.Array:
    """``|K|`` standardised over the layer, a row a filter, ``[n, ...]``; without a gradient."""
    x = jnp.moveaxis(jnp.abs(jax.lax.stop_gradient(leaf)).astype(jnp.float32), axis, 0)
    order = np.argsort(units, kind="stable")[(units < 0).sum() :]
    if len(order) != len(units) or (np.diff(order) != 1).any():
        x = x[order]
    if len(x) != number:
        x = x.reshape(number, -1)
    spread = jnp.std(x)
    return (x - jnp.mean(x)) / jnp.where(spread > 0, spread, 1)


def additive_attention(rows: jax.Array, network: Mapping[str, jax.Array]) -> jax.Array:
    """``z``, ``[n]``: how each filter stands out by what it finds in all others."""
    query, key = _projected(rows, network["query"]), _projected(rows, network["key"])
    key += network["bias"][None]

    @jax.checkpoint
    def found(one: jax.Array) -> jax.Array:  # all n n of them at once would be too large to keep
        return jnp.mean(jnp.tanh(one[None] + key), axis=0)

    h = jax.lax.map(found, query, batch_size=min(len(rows), _ROWS))
    return (h - jnp.mean(h, axis=0, keepdims=True)) @ network["v"] + network["u"]


def _projected(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """The product of rows that lie as the leaf does, and whole wherever they lie; none moves."""
    kernel = kernel.reshape(*rows.shape[1:], -1)
    along = tuple(range(1, rows.ndim)), tuple(range(rows.ndim - 1))
    layout = jax.sharding.PartitionSpec() if any(jax.typeof(rows).sharding.spec) else None
    return jax.lax.dot_general(rows, kernel, (along, ((), ())), out_sharding=layout)


class _Penalty(NamedTuple):
    """What the scores are to lower: the loss, as its gradient at the gates tells, and R.

    Not by the view's own derivative, which would need the attention in every step of the weights.
    """

    attention: _Attention
    kind: str
    by_layer: bool
    budget: Any
    strength: Any

    def __call__(self, s: Signals) -> jax.Array:
        """``sum g e(s) + strength R(s)``: g the gradient at the gates, e what they are seen as."""
        scores, units = self.attention.of(s), self.attention.units
        gates = dict.fromkeys(path for group in units.groups.values() for path, _ in group.gates)
        weights = {path: s.dense[path].astype(jnp.float32) for path in gates}
        task = jnp.zeros(())
        for path, seen in units.gated(jax.lax.stop_gradient(weights), scores).items():
            felt = s.grads[path].astype(jnp.float32)
            task += jnp.sum(jnp.where(jnp.isfinite(felt), felt, 0) * seen)
        layers = [*scores.values()]
        layers = layers if self.by_layer else [jnp.concatenate(layers)]
        means = jnp.stack([jnp.mean(each) for each in layers])
        if self.kind == "budget":
            means = jnp.abs(means - self.budget)
        return task + self.strength * jnp.mean(means)


def _cumulative(attention: _Attention, share: Any, s: Signals) -> dict[tuple[str, ...], jax.Array]:
    """How many of the highest add up to a share of all scores."""
    scores = attention.of(s)
    each = jnp.sort(jnp.concatenate([*scores.values()]), descending=True)
    total = jnp.cumsum(each)
    number = jnp.sum(total < share * total[-1], dtype=jnp.int32) + 1
    return {tuple(scores): jnp.minimum(number, len(each))}


class _Seen(NamedTuple):
    """The dense network with gates that are scaled by scores; or the masked one."""

    attention: _Attention
    course: Callable[[Any], Any]

    def turns(self, step: Any) -> tuple[jax.Array, jax.Array]:
        """Whether the weights move, and whether the scores do."""
        looking = self.course(step).named("attention")
        return ~looking, looking

    def network(self, s: Signals) -> Leaves:
        """``s w`` at gates and w elsewhere while filters attend; ``m w`` else."""
        looking, units = self.turns(s.step)[1], self.attention.units
        seen = masked(s.dense, {path: m | looking for path, m in s.support.items()})
        still = s._replace(learned=jax.lax.stop_gradient(s.learned))

        def ones() -> Scores:
            return {name: jnp.ones(group.size) for name, group in units.groups.items()}

        def scored() -> Scores:
            return self.attention.of(still)

        if not is_traced(looking):  # outside jit a cond would be compiled at every call
            return seen | units.gated(seen, scored() if looking else ones())
        return seen | units.gated(seen, jax.lax.cond(looking, scored, ones))
