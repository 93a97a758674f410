"""The `init` and the `update` of a pruning transformation.

One update, with w the dense weights, m the masks and e = view(w, m) the network the loss saw:
the gradient with respect to e is pulled back by the VJP of the view; the inner optimizer moves w;
masks change if due; the emitted update lands the params on the new view, exactly 0 off the mask.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import landing, slots, trees
from jaxprune.fences import read_before
from jaxprune.learning import in_turn, learned_step
from jaxprune.refresh import changed, readable, refresh
from jaxprune.spec import Parts, Spec
from jaxprune.starts import first_masks, started
from jaxprune.state import PRNG, PruneState, check_alone, dense_copy, is_state, signals_of
from jaxprune.types import Leaves, Signals, wrong


class _Course(NamedTuple):
    """An update on its way: what each of its stages hands to the next.

    Attributes:
      s: weights, masks and all else that parts look at; its step is the age of the network seen.
      slots: the state of the inner optimizer.
      learner: that of the learner's.
      skipped: refreshes skipped so far.
      copies: the paths of the leaves that have a dense copy.
      moves: what the inner optimizer wants, scaled; None before it moves.
    """

    s: Signals
    slots: Any
    learner: Any
    skipped: jax.Array
    copies: list[str]
    moves: Any = None


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """A pruning transformation: an optimizer, the rules, and the seed of its state.

    Attributes:
      inner: the optimizer; None stands last in a chain.
      spec: the parts, and what they were made from.
      seed: of the random keys.
    """

    inner: optax.GradientTransformation | None
    spec: Spec
    seed: int | jax.Array

    @property
    def parts(self) -> Parts:
        """The parts of the method."""
        return self.spec.parts

    @property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """The inner optimizer, with extra arguments."""
        inner = optax.identity() if self.inner is None else self.inner
        return optax.with_extra_args_support(inner)

    # ------------------------------------------------------------------------------------- init

    def init(self, params: optax.Params) -> Any:
        """The state before the first update; nothing is derived from the params' values."""
        leaves, parts = trees.by_path(params), self.parts
        if not leaves:  # a placeholder of `optax.tree.map_params`, or a branch without leaves
            none = jnp.zeros(())
            return self._state(parts.units.packed({}, params), params, none, none, none, params)
        _check_params(params, leaves)
        key = jax.random.key_data(jax.random.key(self.seed, impl=PRNG))
        masks = first_masks(parts, leaves, key)
        shapes = {
            p: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for p, x in leaves.items()
        }
        s = Signals(jnp.zeros((), jnp.int32), shapes, masks, key=key, units=parts.units)
        if parts.learner:  # copied, lest it be an alias of a value that was given
            s = s._replace(learned=jax.tree.map(jnp.copy, parts.learner.init(s)))
        if parts.memory:
            s = s._replace(memory=parts.memory.init(s))
        dense = {p: dense_copy(leaves[p]) for p in self._copied(s)}
        state = self._state(
            parts.units.packed(s.mask, params),
            trees.from_paths(params, dense),
            s.memory,
            s.learned,
            parts.learner.optimizer.init(s.learned) if parts.learner else (),
            trees.from_paths(params, leaves | dense),
        )
        check_alone([state], "inner")
        _check_inner(state.prune_inner)
        if parts.grows:
            slots.check_owned(state.prune_inner, leaves, parts.units.members(s.mask))
        jax.eval_shape(self._try_refresh, state, leaves)
        return state

    def _state(
        self, mask: Any, dense: Any, memory: Any, learned: Any, learner: Any, weights: Any
    ) -> PruneState:
        return PruneState(
            prune_count=jnp.zeros((), jnp.int32),  # one array each: a shared one is not donated
            prune_mask=mask,
            prune_dense=dense,
            prune_memory=memory,
            prune_learned=learned,
            prune_learner=learner,
            prune_key=jax.random.key_data(jax.random.key(self.seed, impl=PRNG)),
            prune_skipped=jnp.zeros((), jnp.int32),
            prune_loaded=jnp.zeros((), bool),
            prune_inner=self.optimizer.init(weights),
            prune_spec=self.spec,
        )

    def _copied(self, s: Signals) -> list[str]:
        """The paths that the view changes, in the order of the tree."""
        if not self.parts.view.copy:
            return []

        def seen(dense: Leaves, s: Signals) -> Leaves:
            wide = {p: dense_copy(dense[p]) for p in s.support}
            return self.parts.view.apply(s._replace(dense={**dense, **wide}))

        changed = jax.eval_shape(seen, s.dense, s)
        return [path for path in s.dense if path in changed]

    def _try_refresh(self, state: PruneState, leaves: Leaves) -> Any:
        """Every change of masks once, by shape: what cannot work fails at `init`."""
        s = signals_of(state, leaves, leaves if self.inner is not None else {})
        start = started(self.parts, s)
        s = readable(self.parts, self._remembered(s))
        return start, [changed(update, s) for update in self.parts.mask_updates]

    # ----------------------------------------------------------------------------------- update

    def update(
        self,
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        """One update that lands the params on the pruned network: open, refresh, move, land, close.

        Masks without a copy are refreshed before the weights move (XLA would keep moved weights in
        memory for a later refresh), those beside a copy after it, from what has moved.
        """
        self._check(updates, state, params)
        weights, given = trees.by_path(params), trees.by_path(updates)
        if not weights:
            return updates, state
        age = jnp.asarray(optax.safe_increment(state.prune_count))

        def refreshed(now: _Course) -> _Course:
            s, inner, skipped = refresh(self.parts, now.s, now.slots, now.skipped, age)
            return now._replace(s=s, slots=inner, skipped=skipped)

        def moved(now: _Course) -> _Course:
            return self._move(now, given, updates, params, extra)

        now = self._open(state, weights, given)
        for stage in (moved, refreshed) if self.parts.view.copy else (refreshed, moved):
            now = stage(now)
        now = now._replace(s=now.s._replace(step=age))
        return trees.from_paths(params, self._land(now, weights)), self._close(now, state)

    def _check(self, updates: Any, state: Any, params: Any) -> None:
        if params is None:
            hint = "call update(g, s, params)"
            raise ValueError(wrong("params", "be given to `update`", None, hint))
        if not is_state(state):
            hint = "restore checkpoints with a target tree, else states come back as plain dicts"
            raise TypeError(wrong("state", "be what `init` returned", type(state), hint))
        odd = self.spec.differs(state.prune_spec)
        if odd:
            hint = "`next_stage(tx, params, old_state)` goes on by other rules"
            raise ValueError(f"`state` must have been made by the same rules, got {odd}: {hint}")
        trees.check_structure("params", params, state.prune_dense, "`init`")
        trees.check_structure("updates", updates, params, "`params`")
        self.parts.units.check(state.prune_mask, params)

    def _open(self, state: PruneState, weights: Leaves, given: Leaves) -> _Course:
        """What the parts look at, of the age of the network that the loss saw."""
        s = signals_of(state, weights, given if self.inner is not None else {})
        s, copies = self._remembered(s), [*trees.by_path(state.prune_dense)]
        return _Course(s, state.prune_inner, state.prune_learner, state.prune_skipped, copies)

    def _move(
        self, now: _Course, given: Leaves, updates: Any, params: Any, extra: dict[str, Any]
    ) -> _Course:
        """The gradient pulled back through the view; the weights, and what is learned, move."""
        s, view, learner = now.s, self.parts.view, self.parts.learner
        factors = {} if view.update_scale is None else view.update_scale(s)
        factors = {path: jnp.asarray(factor) for path, factor in factors.items()}
        pulled, of_learned = self._pull_back(s, given, factors)
        learned, learner_slots = s.learned, now.learner
        if learner is not None:
            learned, learner_slots = learned_step(learner, s, of_learned, now.learner, **extra)
            s = s._replace(dense=read_before(learned, s.dense))

        def move() -> tuple[Any, Any]:
            decayed = {} if view.decay_on is None else view.decay_on(s)
            return self.optimizer.update(
                trees.from_paths(updates, pulled),
                now.slots,
                trees.from_paths(params, {**s.dense, **decayed}),
                **extra,
            )

        moves, inner = in_turn(learner, s.step, move, now.slots)
        moves = landing.scaled(trees.by_path(moves), factors)
        if view.copy:
            dense = {p: s.dense[p] + moves[p].astype(s.dense[p].dtype) for p in now.copies}
            s = s._replace(dense={**s.dense, **dense}, learned=learned)
        return now._replace(s=s, slots=inner, learner=learner_slots, moves=moves)

    def _land(self, now: _Course, weights: Leaves) -> dict[str, jax.Array]:
        """The updates that put the params on the network seen."""
        if not self.parts.view.copy:
            return landing.on_support(weights, now.moves, now.s.support)
        return landing.on_view(weights, now.moves, self.parts.view.apply(now.s))

    def _close(self, now: _Course, state: PruneState) -> PruneState:
        s, dense = now.s, {path: now.s.dense[path] for path in now.copies}
        return PruneState(
            prune_count=s.step,
            prune_mask=self.parts.units.packed(s.mask, state.prune_mask),
            prune_dense=trees.from_paths(state.prune_dense, dense),
            prune_memory=s.memory,
            prune_learned=s.learned,
            prune_learner=now.learner,
            prune_key=state.prune_key,
            prune_skipped=now.skipped,
            prune_loaded=jnp.ones((), bool),
            prune_inner=now.slots,
            prune_spec=state.prune_spec,
        )

    def _remembered(self, s: Signals) -> Signals:
        """The signals with a memory of every step renewed."""
        memory = self.parts.memory
        if memory is None or memory.at != "step":
            return s
        new = jax.tree.map(lambda a, b: b.astype(a.dtype), s.memory, memory.update(s))
        return s._replace(memory=new, dense=read_before(new, s.dense))

    def _pull_back(self, s: Signals, given: Leaves, factors: Leaves) -> tuple[Leaves, Any]:
        """The gradient with respect to the dense weights, and to what is learned.

        Finished updates pass as they are.
        """
        if not s.grads:
            return given, {}

        def view(dense: Leaves, learned: Any) -> Leaves:
            return self.parts.view.apply(s._replace(dense={**s.dense, **dense}, learned=learned))

        seen = jax.eval_shape(self.parts.view.apply, s)
        _, vjp = jax.vjp(view, {path: s.dense[path] for path in seen}, s.learned)
        pulled, of_learned = vjp({path: s.grads[path] for path in seen})
        grads = {**given, **s.grads, **pulled}
        for path, factor in factors.items():
            grads[path] = jnp.where(factor.astype(bool), grads[path], 0)
        return grads, of_learned


_LOOKAHEAD = "`optax.lookahead` moves two sets of weights, and masks know one"


def _check_params(params: Any, leaves: Leaves) -> None:
    """Refuses what is no tree of arrays of one network."""
    if isinstance(params, optax.LookaheadParams):
        raise TypeError(wrong("params", "be one network", "optax.LookaheadParams", _LOOKAHEAD))
    for path, leaf in leaves.items():
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            hint = "of an Equinox model, give `eqx.filter(model, eqx.is_array)`"
            expected = f"be arrays, at '{path}' too"
            raise TypeError(wrong("params", expected, getattr(leaf, "__name__", type(leaf)), hint))


def _check_inner(inner: Any) -> None:
    """Refuses optimizers that no method fits around."""
    if trees.nodes(inner, lambda node: isinstance(node, optax.LookaheadState)):
        raise ValueError(wrong("inner", "move one set of weights", "optax.lookahead", _LOOKAHEAD))
