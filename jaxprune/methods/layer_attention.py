"""Layer attention (ASWL): each layer learns how much it counts, and is pruned by the rest."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import keep, scores
from jaxprune.fences import cut
from jaxprune.masks.counting import floor_of_product
from jaxprune.methods.common import check_span
from jaxprune.network import Network
from jaxprune.numbers import checked_share, is_traced, step_number
from jaxprune.schedules import constant, cubic, either, once
from jaxprune.schedules import every as each
from jaxprune.selection import sum_to
from jaxprune.transform import method, prune
from jaxprune.trees import Where
from jaxprune.types import Learner, Leaves, MaskUpdate, Signals, View, check_optimizer, wrong
from jaxprune.units import Stacked, units_for
from jaxprune.views import through

_LEAST, _MOST_PRUNED = 0.01, 0.99
"""The least attention, and the largest share pruned: no layer is ever emptied."""

_BELOW_ONE = 1 - 2.0**-10
"""The largest attention for alpha below 1, where the slope of the ratio has no end at 1."""


@method
def layer_attention(
    inner: optax.GradientTransformation,
    *,
    sparsity: Any,
    learner: optax.GradientTransformation,
    ramp: tuple[int, int] | None,
    alpha: float = 1.0,
    gamma: Any = 20.0,
    attention_init: float = 0.99,
    every: int = 1,
    where: Where | None = None,
    exclude: Where | None = None,
    network: Network | None = None,
    stacked: Stacked = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """ASWL: one attention a layer, learned with the weights, scales it and says how far it is cut.

    With ``a_l`` the attention of layer l, ``n_l`` its weights, and r_n the target density,

    - the layer gives ``a_l f_l(x; m w)``: the params hold ``a_l m w``, and the bias ``a_l b``;
    - ``p_l = (1 - a_l)^alpha``, at most 0.99, is pruned: the ``n_l - floor(p_l n_l)`` largest
      ``|w|`` of the layer stay, chosen anew after every update, or every ``every`` updates;
    - ``gamma phi`` joins the loss, ``phi = (sum (1 - p_l) n_l / sum n_l - r_n)^2``;
    - the gradient at the sparse weights moves the dense ones (straight through), weight decay acts
      on the sparse ones: a pruned weight has none.

    Where a norm follows a layer, a factor on the layer is divided out again: the loss does not feel
    its attention, which phi alone then moves, by the size of the layer. That is no learned
    importance. Where no norm follows, the loss holds attentions up, and the density reached stays
    above the target.

    A fixed count or a least share of a layer has no place beside a learned ratio, and masks to
    start from none beside masks that are rebuilt at once: leave out by ``where`` what is to stay
    whole. The first update's loss is that of the weights as they were given, without attention.

    Args:
      inner: the optimizer of the weights. Its weight decay sees ``m w``, which it gets as params:
        optimizers that measure from their params (schedule-free, MADGRAD, COCOB) go wrong here.
      sparsity: the share to prune in the end, in [0, 1]; what is reached depends on gamma, and is
        what the penalty and the loss agree on. 1 pushes without end.
      learner: the optimizer of the attentions. Give it the schedule of the weights' learning rate;
        to decay attentions, let it add a decay.
      ramp: (begin, end) in updates: r falls from 1 to ``1 - sparsity`` along a cubic; None for the
        target itself from the start, as in the authors' code.
      alpha: how an attention is turned into a share, above 0.
      gamma: weight of the penalty. On a batch-norm network 20 reached densities of 0.02 to 0.2
        within a sixth, the authors' 5 those from 0.1 up (README).
      attention_init: every attention's first value, in [0.01, 1]; the authors' code has 0.5. 1 only
        where alpha is at least 1: below, the slope of the share has no end there.
      every: updates between two choices of masks; the first update makes one too. In every step
        is the authors' form and costs a refresh in each.
      where: which leaves are pruned, each with its attention; replaces the default rule.
      exclude: which leaves are not pruned, beside ``where`` or the default rule; they do not count.
      network: what `jaxprune.trace` knows of the network, in place of what names suggest.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices have attentions of their own.
      seed: not used by this method's scores.

    Returns:
      A gradient transformation; the params are the pruned network, attentions multiplied in.

    Raises:
      ValueError: if ``inner`` is None; if a number lies outside its range, or ``attention_init`` is
        1 with alpha below 1.
      TypeError: if ``learner`` is not an optimizer.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> tx = jaxprune.layer_attention(
      ...     optax.sgd(0.1),
      ...     sparsity=0.5,
      ...     learner=optax.set_to_zero(),
      ...     attention_init=0.5,
      ...     ramp=None,
      ... )
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]]), "bias": jnp.ones(2)}
      >>> zeros = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
      >>> updates, state = tx.update(zeros, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(params["kernel"], params["bias"])
      [[ 0.  -2. ]
       [ 1.5  0. ]] [0.5 0.5]

    References:
      He, Shi and Dong, Attention-based Simultaneous Sparse Structure and Weight Learning, 2021,
      https://arxiv.org/abs/2111.02399: attention, ratio, penalty, both weights tracked. From the
      authors' code: masks in every step, decay on the sparse weights, the two bounds. That code
      sorts signed weights, never assigns the pruned tensor and leaves the bias out when it folds
      the attention in; here the intent stands. The annealed target, its default start at 0.99 and
      the slope of phi through the bounds are ours.
    """
    sparsity = checked_share("sparsity", sparsity, whole=True)
    check_optimizer("learner", learner)
    if not is_traced(alpha) and not alpha > 0:
        raise ValueError(wrong("alpha", "be above 0", alpha))
    if not is_traced(gamma) and not gamma >= 0:
        raise ValueError(wrong("gamma", "be at least 0", gamma))
    if not is_traced(attention_init) and not _LEAST <= attention_init <= 1:
        raise ValueError(wrong("attention_init", f"lie in [{_LEAST}, 1]", attention_init))
    if not is_traced(alpha) and alpha < 1 == attention_init:
        raise ValueError(wrong("attention_init", "be below 1 where `alpha` is", attention_init))
    if ramp is not None:
        check_span("ramp", ramp)
    course = constant(0.0) if ramp is None else cubic(*ramp, 0.0)
    attention = _Attention(
        ratio=_Ratio(alpha),
        target=lambda step: 1 - sparsity * course.progress(step),
        gamma=gamma,
    )
    choosing = either(once(1), each(step_number("every", every, 1)))
    top = jnp.where(jnp.asarray(alpha) < 1, _BELOW_ONE, 1.0)
    return prune(
        inner,
        [MaskUpdate(choosing, scores.magnitude, keep.largest(attention.kept))],
        View(attention.seen, inverse=attention.inverse, decay_on=sparse_weights),
        units=units_for(where, exclude, stacked=stacked, network=network),
        learner=Learner(
            init=lambda s: s.units.layers(s.mask).full(attention_init),
            optimizer=learner,
            penalty=attention.penalty,
            project=lambda learned: jax.tree.map(lambda a: jnp.clip(a, _LEAST, top), learned),
        ),
        seed=seed,
    )


def sparse_weights(s: Signals) -> Leaves:
    """``m w``, on which weight decay acts."""
    return {path: cut(s.dense[path], m) for path, m in s.mask.items()}


class _Ratio(NamedTuple):
    """The share of a layer that its attention prunes, ``(1 - a)^alpha``, bounded."""

    alpha: float

    def __call__(self, a: jax.Array) -> jax.Array:
        """The share; its slope is that without the bound."""
        ratio = (1 - a) ** self.alpha
        return through(jnp.clip(ratio, 0, _MOST_PRUNED), ratio)


class _Attention(NamedTuple):
    """One learned scalar a layer, or a slice of a stacked leaf."""

    ratio: _Ratio
    target: Callable[[Any], Any]
    gamma: Any

    def kept(self, s: Signals) -> dict[str, jax.Array]:
        """``n - floor(p n)`` of each layer."""
        sizes = self.sizes(s)
        pruned = {p: floor_of_product(self.ratio(a), sizes[p]) for p, a in s.learned.items()}
        return {path: sizes[path] - count for path, count in pruned.items()}

    def sizes(self, s: Signals) -> dict[str, int]:
        """The weights of each layer."""
        return {path: m.size // max(s.learned[path].size, 1) for path, m in s.mask.items()}

    def penalty(self, s: Signals) -> jax.Array:
        """``gamma phi``."""
        sizes = self.sizes(s)
        total = sum(m.size for m in s.mask.values())
        shares = [jnp.sum(1 - self.ratio(a)) * (sizes[p] / total) for p, a in s.learned.items()]
        return self.gamma * (sum(shares) - self.target(s.step)) ** 2

    def seen(self, s: Signals) -> Leaves:
        """``a m w``, and ``a b``."""
        factors = self.factors(s)
        biases = {path: a * s.dense[path] for path, a in factors.items() if path not in s.mask}
        return biases | {p: attended(s.dense[p], m, factors[p]) for p, m in s.mask.items()}

    def inverse(self, s: Signals) -> Leaves:
        """The weights of which seen values are the view."""
        return {place: s.dense[place] / a for place, a in self.factors(s).items()}

    def factors(self, s: Signals) -> dict[str, jax.Array]:
        """The attention at the kernel and the bias of each layer."""
        return {
            place: factor_of(s.learned[path], s.dense[place], place)
            for path, biases in s.units.biases(s.mask, s.dense).items()
            for place in (path, *biases)
        }


@jax.custom_vjp
def attended(w: jax.Array, mask: jax.Array, a: jax.Array) -> jax.Array:
    """``a m w``: w has the gradient a g, pruned or not, and a the sum of ``m w g``."""
    return cut(a * w, mask)


def _forward(w: jax.Array, mask: jax.Array, a: jax.Array) -> tuple[jax.Array, tuple]:
    return attended(w, mask, a), (w, mask, a)


def _backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    w, mask, a = saved
    return a * g, None, sum_to(jnp.where(mask, w * g, 0), a.shape)


attended.defvjp(_forward, _backward)


def factor_of(factor: jax.Array, leaf: jax.Array, path: str) -> jax.Array:
    """A layer's factor in the type of a leaf; those of a stack along the same axis of the leaf."""
    if factor.size == 1:
        return factor.reshape([1] * min(factor.ndim, leaf.ndim)).astype(leaf.dtype)
    axis = factor.shape.index(factor.size)
    if leaf.ndim <= axis or leaf.shape[axis] != factor.size:
        expected = f"be stacked along axis {axis} as its kernel is, {factor.size} layers"
        raise ValueError(wrong(f"stacked: '{path}'", expected, leaf.shape))
    shape = [factor.size if n == axis else 1 for n in range(leaf.ndim)]
    return factor.reshape(shape).astype(leaf.dtype)
