"""The words of the algebra: what a part may look at, and the parts a method is made of.

Inside the library every tree is a flat ``{path: leaf}`` dict. Dicts that a part receives hold all
floating leaves (``mask`` the prunable ones); dicts that a part returns hold only what it changes.
``True`` in a mask always means *kept*. A *step* is an age: the number of updates completed.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import optax
from jax.typing import ArrayLike

Leaves = Mapping[str, Any]
"""Arrays of one kind (weights, gradients, masks, scores) by path."""

Count = ArrayLike
"""A number of entries: an int, or a traced int32 scalar."""

Counts = Mapping[tuple[str, ...], Count]
"""How many units stay of sites that are ranked together: ``{(site, ...): number}``. The number of
one stacked site may be an array of its rank: one for each slice."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("values", "factor", "mask"),
    meta_fields=("magnitude", "pruned"),
)
@dataclasses.dataclass(frozen=True)
class Ranked:
    """The scores of one site as selection reads them, without writing them out.

    Attributes:
      values: array of any shape and any floating dtype.
      magnitude: whether the scores are ``|values|``.
      mask: bool, of the same shape: which entries are candidates; None for all. What is no
        candidate is never kept.
      pruned: whether candidates are those where the mask is False instead.
      factor: what values are multiplied by; None for 1.
    """

    values: Any
    magnitude: bool = False
    mask: Any = None
    pruned: bool = False
    factor: Any = None

    @property
    def candidates(self) -> Any:
        """Which entries are candidates: a bool array, or None for all."""
        return ~self.mask if self.pruned else self.mask

    @property
    def scores(self) -> Any:
        """The scores, candidates or not."""
        values = self.values if self.factor is None else self.values * self.factor
        return abs(values) if self.magnitude else values

    def replace(self, **fields: Any) -> "Ranked":
        """The same with other fields."""
        return dataclasses.replace(self, **fields)

    def of_arrays(self, function: Callable[[Any], Any]) -> "Ranked":
        """The same with a function of each array in its place."""
        return jax.tree.map(function, self)


Scores = Mapping[str, Ranked]
"""Scores by site, as a change of masks ranks them."""


class Signals(NamedTuple):
    """What a part may look at.

    Attributes:
      step: age of the network, an int32 scalar: updates completed when it is seen.
      dense: the weights that the inner optimizer moves, by path. To a change of masks without a
        dense copy those of before the update, beside one those of after it.
      mask: bool, True = kept, one a unit, by site (a leaf's path, or a group's name).
      grads: gradient of the loss with respect to the network it saw, by path; empty where a method
        stands last in a chain, since what reaches it there are updates.
      learned: what a method learns beside the weights; empty in methods that learn nothing.
      memory: what `Memory` remembered.
      key: raw uint32 key data, folded with the step; the same on all hosts.
      units: what one decision of a mask is about (`jaxprune.units`); None means entries.
    """

    step: jax.Array
    dense: Leaves
    mask: Leaves
    grads: Leaves = {}
    learned: Any = {}
    memory: Any = {}
    key: Any = None
    units: Any = None

    @property
    def support(self) -> Leaves:
        """What the masks keep of each prunable leaf: bool by path, broadcastable to the leaf."""
        return self.mask if self.units is None else self.units.support(self.mask, self.dense)


class Candidates(enum.Enum):
    """Which entries a change of masks may choose from."""

    ALL = "all"
    KEPT = "kept"
    """Only entries that are kept now: the change can only drop."""
    PRUNED = "pruned"
    """Only entries that are pruned now: the change can only grow, up to the count."""


ALL, KEPT, PRUNED = Candidates


class Chosen(NamedTuple):
    """What a change of masks has chosen: the masks by site, and whether a score it read is NaN."""

    masks: Leaves
    nan: jax.Array


class Keep(Protocol):
    """Which units stay: `largest`, `n_of_m`, `above`, `everything`, or any like them."""

    def __call__(self, scores: Scores, s: Signals, kept: Leaves) -> Chosen:
        """The masks after a change.

        Args:
          scores: by site, with the candidates that may be chosen.
          s: the masks before, and all else that a part may look at.
          kept: masks of what stays whatever its score; empty where all may go.
        """
        ...


class MaskUpdate(NamedTuple):
    """One change of masks. A method has a tuple of them; those due at a step happen together.

    Where a view keeps no copy, the masks of update n rank weights and gradients of before it: the
    weights of after it are never in memory as such, which is how the speed is had. With a copy they
    rank the weights of after it.

    Attributes:
      when: step -> bool, is it due.
      score: Signals -> {path or site: array or `Ranked`}; higher is kept, signed, NaN last.
      keep: which of the candidates stay.
      candidates: which units it chooses from.
    """

    when: Callable[[jax.Array], jax.Array]
    score: Callable[[Signals], Leaves]
    keep: Keep
    candidates: Candidates = Candidates.ALL


class View(NamedTuple):
    """How the network is seen: dense weights -> the parameters that the loss meets.

    Attributes:
      apply: Signals -> {path: seen}, for the leaves it changes. Its VJP is the backward rule.
      update_scale: Signals -> {path: factor} on the inner optimizer's update, weight decay
        included; bool or number. Where it is 0, gradient and update are selected away and the
        weight does not move a bit. None means one everywhere.
      copy: whether the state keeps a dense copy of the leaves that `apply` changes. False for
        `views.hard` alone, whose dense weights are the parameters themselves.
      inverse: Signals (with `dense` holding seen values) -> {path: dense}, such that `apply` gives
        the seen values back on kept entries; None where seen and dense weights are equal there.
      settle: (Signals after a change, entries just grown) -> {path: dense}: what dense weights
        become when masks change, where there is a copy of them. None leaves them as they are.
      ship: Signals -> {path: seen} of the network one would ship where the loss sees another one
        for a time, for the leaves that `apply` changes; masks are applied to it, too. None means
        what `apply` gives.
      decay_on: Signals -> {path: weights} that the inner optimizer gets as params in place of the
        dense ones, so that its weight decay acts on them; None means the dense weights. Optimizers
        that measure from the params they get (schedule-free ones, MADGRAD) then go wrong.
    """

    apply: Callable[[Signals], Leaves]
    update_scale: Callable[[Signals], Leaves] | None = None
    copy: bool = True
    inverse: Callable[[Signals], Leaves] | None = None
    settle: Callable[[Signals, Leaves], Leaves] | None = None
    decay_on: Callable[[Signals], Leaves] | None = None
    ship: Callable[[Signals], Leaves] | None = None


class Memory(NamedTuple):
    """What a method remembers.

    Attributes:
      init: Signals -> memory; its `dense` are shapes: weights may be loaded after `init`.
      update: Signals -> memory.
      at: when it is renewed. "refresh": inside each refresh after the masks changed, and once on
        the first update. "step": at the beginning of every update, when weights and gradient are of
        one age and the gradient is that of the network seen, pruned entries included.
    """

    init: Callable[[Signals], Any]
    update: Callable[[Signals], Any]
    at: Literal["refresh", "step"] = "refresh"


class Learner(NamedTuple):
    """What a method learns beside the weights, from the same one gradient.

    Its gradient is that of the loss through the view, plus that of the penalty; one step of its own
    optimizer, projected, is taken in every update, before masks change. Its view keeps a copy.

    Attributes:
      init: Signals -> what is learned, a tree of floating arrays; its `dense` are shapes.
      optimizer: what moves it.
      penalty: Signals -> a scalar that is added to the loss, as a function of `learned`; None adds
        nothing.
      project: learned -> learned, after each step; None leaves it where the step has led.
      alternate: step -> (whether the weights move, whether what is learned moves). What does not
        move is held whole, the state of its optimizer included. None moves both in every update.
    """

    init: Callable[[Signals], Any]
    optimizer: optax.GradientTransformation
    penalty: Callable[[Signals], jax.Array] | None = None
    project: Callable[[Any], Any] | None = None
    alternate: Callable[[jax.Array], tuple[jax.Array, jax.Array]] | None = None


class _PhaseNumbers(NamedTuple):
    index: Any
    step: Any
    length: Any


class Phase(_PhaseNumbers):
    """Where the coming forward pass stands in a method's course.

    Attributes:
      index: number of the phase, an int32 scalar.
      step: steps completed within it.
      length: its length in steps; -1 without end.
      names: the names of all phases, static.
    """

    names: tuple[str, ...]

    def __new__(cls, index: Any, step: Any, length: Any, names: tuple[str, ...] = ()) -> "Phase":
        """Three numbers; the names stay outside of the tuple."""
        phase = super().__new__(cls, index, step, length)
        phase.names = names
        return phase

    @property
    def name(self) -> str:
        """Name of the phase; only outside jit."""
        return self.names[int(self.index)]

    def named(self, name: str) -> Any:
        """Whether the phase has this name, a bool scalar under jit too; False if none has it."""
        return self.index == (self.names.index(name) if name in self.names else -1)


jax.tree_util.register_pytree_node(
    Phase,
    lambda phase: (tuple(phase), phase.names),
    lambda names, xs: Phase(*xs, names=names),
)


class _Frozen(dict):
    """A mapping that counts as its items in order, and has a hash."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(tuple(self.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and tuple(self.items()) == tuple(other.items())


def hashable(value: Any) -> Any:
    """A value with lists as tuples and mappings in a form that can be hashed, for static nodes."""
    if isinstance(value, Mapping):
        return _Frozen((key, hashable(item)) for key, item in value.items())
    return tuple(map(hashable, value)) if isinstance(value, list) else value


def is_optimizer(value: object) -> bool:
    """Whether a value has what makes an optax optimizer."""
    return hasattr(value, "init") and hasattr(value, "update")


def check_optimizer(argument: str, came: object) -> None:
    """Raises a TypeError unless a value is an optax optimizer."""
    if not is_optimizer(came):
        raise TypeError(wrong(argument, "be an optax optimizer", came))


def wrong(argument: str, expected: str, came: object, hint: str = "") -> str:
    """The one sentence of an error: which argument, what was expected, what came."""
    return f"`{argument}` must {expected}, got {came!r}" + (f": {hint}" if hint else "")


def one_of(argument: str, came: object, choices: tuple[str, ...]) -> None:
    """Raises a ValueError unless a closed choice is one of its values."""
    if came not in choices:
        raise ValueError(wrong(argument, "be " + " or ".join(map(repr, choices)), came))
