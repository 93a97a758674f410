"""The one core: `prune` wraps an optax optimizer so that the params are the pruned network.

One update, with w the dense weights, m the masks and e = view(w, m) the network the loss saw:
the gradient with respect to e is pulled back by the VJP of the view; the inner optimizer moves w;
masks change if due; the emitted update lands the params on the new view, exactly 0 off the mask.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune import landing, trees
from jaxprune.learning import in_turn, learned_step
from jaxprune.refresh import changed, ranks_in_place, readable, refresh, started
from jaxprune.selection import read_before
from jaxprune.state import PRNG, Parts, PruneState, Spec, dense_copy, signals_of
from jaxprune.trees import OutputAxis, Where
from jaxprune.types import (
    Learner,
    Leaves,
    MaskUpdate,
    Memory,
    Phase,
    Signals,
    View,
    is_optimizer,
    wrong,
)

Start = Any | Callable[[Signals], Leaves] | None


def prune(
    inner: optax.GradientTransformation | None,
    mask_updates: Sequence[MaskUpdate],
    view: View,
    *,
    where: Where | None = None,
    start: Start = None,
    memory: Memory | None = None,
    learner: Learner | None = None,
    phases: Callable[[Any], Phase] | None = None,
    output_axis: OutputAxis = None,
    note: str | Callable[[Leaves], str] = "",
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that the parameters it trains are a pruned network.

    With w the dense weights, m the masks, e = view(w, m) = the params, and g = dL/de:
    ``w <- w + scale * inner(g . de/dw)``, then masks change if due, then ``params <- view(w, m)``.

    Args:
      inner: the optimizer, or None to stand last in a chain, where finished updates arrive.
      mask_updates: the changes of masks, done in this order at the steps they are due.
      view: how the network is seen.
      where: which leaves are pruned: regexes searched in the path, or ``(path, leaf) -> bool``.
      start: first masks (matched by path; a leaf that is missing stays whole), or a function of the
        `Signals` of the first update that returns ``{path: mask}``.
      memory: what is remembered between refreshes.
      learner: what is learned beside the weights; the view keeps a copy then.
      phases: step -> `Phase`, for `phase_of`.
      output_axis: the axis of a leaf that counts its outputs, where the default is wrong.
      note: a sentence that `plan` prints, or a function of the leaves by path that returns it.
      seed: seed of the random keys that scores get.

    Returns:
      A gradient transformation with the state `PruneState`.

    Raises:
      ValueError: if a change starts warm whose ``select`` is not `masks.largest`; at ``init`` if no
        leaf is pruned, a pattern or a path of ``start`` matches none; at ``update`` without params
        or with params of another structure.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> from jaxprune import masks, schedules, scores, views
      >>> at_once = jaxprune.MaskUpdate(
      ...     when=schedules.once(1),
      ...     score=scores.magnitude,
      ...     count=lambda signals: 2,
      ...     select=masks.largest,
      ... )
      >>> tx = jaxprune.prune(optax.sgd(0.1), [at_once], views.hard)
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"kernel": jnp.zeros((2, 2))}, state, params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[ 0. -4.]
       [ 3.  0.]]

    References:
      original.
    """
    if inner is not None and not is_optimizer(inner):
        raise TypeError(wrong("inner", "be an optax optimizer or None", inner))
    if learner is not None and inner is None:
        hint = "what reaches a method that stands last in a chain are updates"
        raise ValueError(wrong("inner", "be an optimizer where something is learned", None, hint))
    if learner is not None and not view.copy:
        raise ValueError(wrong("view", "keep a copy (copy=True) beside a learner", view))
    updates = tuple(mask_updates)
    for update in updates:
        if update.warm_start and not ranks_in_place(update):
            hint = "a warm start is that of its search"
            raise ValueError(wrong("select", "be `masks.largest`", update.select, hint))
    parts = Parts(updates, view, memory, phases, where, start, output_axis, note, learner)
    return _transformation(_Pruner(inner, Spec(parts), seed))


def method(function: Callable[..., Any]) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """Makes a function that returns `prune(...)` a method: its state knows its name and values.

    Args:
      function: takes ``inner`` first and keyword values after it; returns ``prune(...)``.

    Returns:
      The function, whose states can be described, compared and pickled by its name and values.

    Examples:
      >>> import optax, jaxprune
      >>> tx = jaxprune.gradual_magnitude(optax.sgd(0.1), sparsity=0.9, ramp=(0, 100))
      >>> state = tx.init({"kernel": jax.numpy.ones((4, 4))})
      >>> jaxprune.describe(state)["method"], jaxprune.describe(state)["sparsity"]
      ('gradual_magnitude', 0.9)

    References:
      original.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def named(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        pruner = function(*args, **kwargs).init.__self__
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        values = {name: "given" if is_optimizer(x) else x for name, x in values.items()}
        spec = Spec(pruner.spec.parts, named, values)
        return _transformation(dataclasses.replace(pruner, spec=spec))

    return named


def _transformation(pruner: "_Pruner") -> optax.GradientTransformationExtraArgs:
    return optax.GradientTransformationExtraArgs(pruner.init, pruner.update)


@dataclasses.dataclass(frozen=True)
class _Pruner:
    """The `init` and `update` of a pruning transformation."""

    inner: optax.GradientTransformation | None
    spec: Spec
    seed: int | jax.Array

    @property
    def parts(self) -> Parts:
        return self.spec.parts

    @property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        inner = optax.identity() if self.inner is None else self.inner
        return optax.with_extra_args_support(inner)

    # ------------------------------------------------------------------------------------- init

    def init(self, params: optax.Params) -> Any:
        """The state before the first update; nothing is derived from the params' values."""
        leaves = trees.by_path(params)
        if not leaves:  # a placeholder of `optax.tree.map_params`, or a branch without leaves
            none = jnp.zeros(())
            state = self._state(params, params, none, none, none, params)
            return state._replace(prune_cuts=none)
        mask = self._first_masks(leaves)
        learner = self.parts.learner  # copied, lest it be an alias of a value that was given
        learned = jax.tree.map(jnp.copy, learner.init(mask)) if learner else {}
        learner_slots = learner.optimizer.init(learned) if learner else ()
        signals = Signals(jnp.zeros((), jnp.int32), leaves, mask, learned=learned)
        memory = self.parts.memory.init(mask) if self.parts.memory else {}
        dense = {p: dense_copy(leaves[p]) for p in self._copied(signals._replace(memory=memory))}
        state = self._state(
            trees.from_paths(params, mask),
            trees.from_paths(params, dense),
            memory,
            learned,
            learner_slots,
            trees.from_paths(params, leaves | dense),
        )
        # Memory and what is learned are there by now: scores and counts may read them.
        _, changes = jax.eval_shape(self._try_refresh, state, leaves)
        pairs = zip(self.parts.mask_updates, changes, strict=True)
        ended = [points if update.warm_start else () for update, (*_, points) in pairs]
        cuts = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tuple(ended))
        return state._replace(prune_cuts=cuts)

    def _state(
        self, mask: Any, dense: Any, memory: Any, learned: Any, learner: Any, weights: Any
    ) -> PruneState:
        def zero() -> jax.Array:  # one array each: a shared one could not be donated
            return jnp.zeros((), jnp.int32)

        key = jax.random.key_data(jax.random.key(self.seed, impl=PRNG))
        return PruneState(
            prune_count=zero(),
            prune_mask=mask,
            prune_dense=dense,
            prune_memory=memory,
            prune_learned=learned,
            prune_learner=learner,
            prune_cuts=(),
            prune_key=key,
            prune_drift=zero(),
            prune_skipped=zero(),
            prune_revived=zero(),
            prune_inner=self.optimizer.init(weights),
            prune_spec=self.spec,
        )

    def _first_masks(self, leaves: Leaves) -> dict[str, jax.Array]:
        paths = trees.prunable(leaves, self.parts.where)
        if not paths:
            hint = "name leaves by `where`, a regex searched in paths such as " + repr(
                [*leaves][:3]
            )
            raise ValueError(wrong("params", "have at least one prunable leaf", "none", hint))
        trees.output_axes({p: leaves[p] for p in paths}, self.parts.output_axis)
        mask = {p: jnp.ones_like(leaves[p], dtype=bool) for p in paths}
        if self.parts.start is None or callable(self.parts.start):
            return mask
        given = trees.by_path(self.parts.start)
        for path, start in given.items():
            trees.known(path, leaves, "start", "have only paths of the params")
            if start.shape != leaves[path].shape:
                expected = f"have the shape {leaves[path].shape} at '{path}'"
                raise ValueError(wrong("start", expected, start.shape))
        if not any(path in given for path in paths):
            raise ValueError(
                wrong("start", "have the mask of at least one prunable leaf", [*given])
            )
        return {path: m & given[path].astype(bool) for path, m in mask.items() if path in given}

    def _copied(self, signals: Signals) -> list[str]:
        """The paths that the view changes, in the order of the tree."""
        if not self.parts.view.copy:
            return []
        wide = jax.eval_shape(lambda: {p: dense_copy(signals.dense[p]) for p in signals.mask})
        signals = signals._replace(dense={**signals.dense, **wide})
        seen = jax.eval_shape(self.parts.view.apply, signals)
        return [path for path in signals.dense if path in seen]

    def _try_refresh(self, state: PruneState, leaves: Leaves) -> Any:
        """Every change of masks once, by shape: what cannot work fails at `init`."""
        signals = signals_of(state, leaves, leaves if self.inner is not None else {})
        start = started(self.parts, signals)
        signals = self._remembered(signals)
        signals = readable(self.parts, signals)
        return start, [changed(update, signals) for update in self.parts.mask_updates]

    # ----------------------------------------------------------------------------------- update

    def update(
        self,
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        """One update that lands the params on the pruned network."""
        if params is None:
            raise ValueError(
                wrong("params", "be given to `update`", None, "call update(g, s, params)")
            )
        if not isinstance(state, PruneState):
            hint = "restore checkpoints with a target tree, else states come back as plain dicts"
            raise TypeError(wrong("state", "be what `init` returned", type(state), hint))
        weights, given = trees.by_path(params), trees.by_path(updates)
        if not weights:
            return updates, state
        trees.check_structure("params", params, state.prune_mask, "`init`")
        trees.check_structure("updates", updates, params, "`params`")
        signals = signals_of(state, weights, given if self.inner is not None else {})
        signals = self._remembered(signals)
        counters = state.prune_drift, state.prune_skipped, state.prune_revived
        cuts = state.prune_cuts
        age = jnp.asarray(optax.safe_increment(state.prune_count))
        hard, slots = not self.parts.view.copy, state.prune_inner
        if hard:  # refresh first: XLA would keep new weights in memory for a later one
            signals, counters, slots, cuts = refresh(
                self.parts, signals, age, weights, counters, slots, cuts
            )
            signals = signals._replace(step=state.prune_count)
        factors = self._factors(signals)
        pulled, of_learned = self._pull_back(signals, given, factors)
        learned, learner = signals.learned, state.prune_learner
        if self.parts.learner is not None:
            learned, learner = learned_step(
                self.parts.learner, signals, of_learned, learner, **extra
            )
            signals = signals._replace(dense=read_before(learned, signals.dense))

        def move() -> tuple[Any, Any]:
            return self.optimizer.update(
                trees.from_paths(updates, pulled),
                slots,
                trees.from_paths(params, {**signals.dense, **self._decayed(signals)}),
                **extra,
            )

        moves, slots = in_turn(self.parts.learner, signals.step, move, slots)
        moves, dense = landing.scaled(trees.by_path(moves), factors), {}
        if hard:
            emitted = landing.on_masks(weights, moves, signals.mask)
        else:
            copies = {path: signals.dense[path] for path in trees.by_path(state.prune_dense)}
            dense = {path: w + moves[path].astype(w.dtype) for path, w in copies.items()}
            signals = signals._replace(dense={**signals.dense, **dense}, learned=learned)
            signals, counters, slots, cuts = refresh(
                self.parts, signals, age, weights, counters, slots, cuts
            )
            dense = {path: signals.dense[path] for path in dense}
            emitted = landing.on_view(weights, moves, self.parts.view.apply(signals))
        drift, skipped, revived = counters
        return trees.from_paths(params, emitted), PruneState(
            prune_count=age,
            prune_mask=trees.from_paths(state.prune_mask, signals.mask),
            prune_dense=trees.from_paths(state.prune_dense, dense),
            prune_memory=signals.memory,
            prune_learned=learned,
            prune_learner=learner,
            prune_cuts=cuts,
            prune_key=state.prune_key,
            prune_drift=drift,
            prune_skipped=skipped,
            prune_revived=revived,
            prune_inner=slots,
            prune_spec=state.prune_spec,
        )

    def _remembered(self, signals: Signals) -> Signals:
        """The signals with a memory of every step renewed."""
        memory = self.parts.memory
        if memory is None or memory.at != "step":
            return signals
        new = memory.update(signals)
        new = jax.tree.map(lambda a, b: b.astype(a.dtype), signals.memory, new)
        return signals._replace(memory=new, dense=read_before(new, signals.dense))

    def _pull_back(self, signals: Signals, given: Leaves, factors: Leaves) -> tuple[Leaves, Any]:
        """The gradient with respect to the dense weights, and to what is learned.

        Finished updates pass as they are.
        """
        if not signals.grads:
            return given, {}
        seen = jax.eval_shape(self.parts.view.apply, signals)

        def view(dense: Leaves, learned: Any) -> Leaves:
            dense = {**signals.dense, **dense}
            return self.parts.view.apply(signals._replace(dense=dense, learned=learned))

        _, vjp = jax.vjp(view, {path: signals.dense[path] for path in seen}, signals.learned)
        pulled, of_learned = vjp({path: signals.grads[path] for path in seen})
        grads = {**given, **signals.grads, **pulled}
        for path, factor in factors.items():
            grads[path] = jnp.where(factor.astype(bool), grads[path], 0)
        return grads, of_learned

    def _decayed(self, signals: Signals) -> Leaves:
        """The weights that the inner optimizer gets as params in place of the dense ones."""
        decay_on = self.parts.view.decay_on
        return {} if decay_on is None else decay_on(signals)

    def _factors(self, signals: Signals) -> dict[str, jax.Array]:
        scale = self.parts.view.update_scale
        factors = {} if scale is None else scale(signals)
        return {path: jnp.asarray(factor) for path, factor in factors.items()}
