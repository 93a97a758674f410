"""The one core: `prune` wraps an optax optimizer so that the params are the pruned network."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import jax
import optax

from jaxprune import views
from jaxprune.spec import Parts, Spec
from jaxprune.starts import AtRandom as AtRandom
from jaxprune.starts import Start as Start
from jaxprune.types import Learner, MaskUpdate, Memory, Phase, View, is_optimizer, wrong
from jaxprune.units import Entries, Units
from jaxprune.wrapper import Wrapper

Arguments = ParamSpec("Arguments")

ENTRIES = Entries()


def prune(
    inner: optax.GradientTransformation | None,
    mask_updates: Sequence[MaskUpdate],
    view: View,
    *,
    units: Units = ENTRIES,
    start: Start = None,
    start_named: str = "start",
    memory: Memory | None = None,
    learner: Learner | None = None,
    phases: Callable[[Any], Phase] | None = None,
    note: str = "",
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that the parameters it trains are a pruned network.

    With w the dense weights, m the masks, e = view(w, m) = the params, and g = dL/de:
    ``w <- w + scale * inner(g . de/dw)``, then masks change if due, then ``params <- view(w, m)``.
    Without a dense copy (`views.hard`) masks change first, and rank the weights of before the
    update: one pass over the weights fewer.

    Args:
      inner: the optimizer, or None to stand last in a chain, where finished updates arrive.
      mask_updates: the changes of masks, done in this order at the steps they are due.
      view: how the network is seen.
      units: what one decision is about: `units.Entries` of the leaves that a rule prunes,
        `units.Blocks` of them, or `units.Channels`.
      start: first masks (matched by site; one that is missing stays whole); `AtRandom`; or a
        function of the `Signals` of the first update that returns ``{site: mask}``.
      start_named: what a method's user knows ``start`` as, for errors.
      memory: what is remembered between refreshes.
      learner: what is learned beside the weights; the view keeps a copy then.
      phases: step -> `Phase`, for `phase_of`.
      note: a sentence that `plan` prints.
      seed: seed of the random keys that scores get.

    Returns:
      A gradient transformation with the state `PruneState`.

    Raises:
      ValueError: if a view other than `views.hard` keeps no copy; at ``init`` if no leaf is pruned,
        a pattern or a path of ``start`` matches none, ``inner`` holds another method, or its memory
        cannot be assigned to parameters where weights grow; at ``update`` without params, with
        params of another structure, or with a state that was made by other rules.

    Examples:
      >>> import jax.numpy as jnp, optax, jaxprune
      >>> from jaxprune import keep, schedules, scores, views
      >>> at_once = jaxprune.MaskUpdate(schedules.once(1), scores.magnitude, keep.largest(2))
      >>> tx = jaxprune.prune(optax.sgd(0.1), [at_once], views.hard)
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"kernel": jnp.zeros((2, 2))}, state, params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[ 0. -4.]
       [ 3.  0.]]
    """
    if inner is not None and not is_optimizer(inner):
        raise TypeError(wrong("inner", "be an optax optimizer or None", inner))
    if learner is not None and inner is None:
        hint = "what reaches a method that stands last in a chain are updates"
        raise ValueError(wrong("inner", "be an optimizer where something is learned", None, hint))
    if not view.copy and view.apply is not views.hard.apply:
        hint = "of `views.hard` alone the params are the dense weights"
        raise ValueError(wrong("view", "keep a copy (copy=True)", view, hint))
    if learner is not None and not view.copy:
        raise ValueError(wrong("view", "keep a copy (copy=True) beside a learner", view))
    parts = Parts(
        tuple(mask_updates), view, units, memory, phases, start, start_named, note, learner
    )
    return _transformation(Wrapper(inner, Spec(parts), seed))


def method(
    function: Callable[Arguments, optax.GradientTransformationExtraArgs],
) -> Callable[Arguments, optax.GradientTransformationExtraArgs]:
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
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def named(
        *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> optax.GradientTransformationExtraArgs:
        built: Any = function(*args, **kwargs).init
        wrapper: Wrapper = built.__self__
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = {n: "given" if is_optimizer(x) else x for n, x in bound.arguments.items()}
        spec = Spec(wrapper.spec.parts, named, values)
        return _transformation(dataclasses.replace(wrapper, spec=spec))

    return named


def _transformation(wrapper: Wrapper) -> optax.GradientTransformationExtraArgs:
    return optax.GradientTransformationExtraArgs(wrapper.init, wrapper.update)
