"""The words of the algebra: what a part may look at, and the parts a method is made of.

Inside the library every tree is a flat ``{path: leaf}`` dict. Dicts that a part receives hold all
floating leaves (``mask`` the prunable ones); dicts that a part returns hold only what it changes.
``True`` in a mask always means *kept*. A *step* is an age: the number of updates completed.
"""

import enum
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import optax
from jax.typing import ArrayLike

Leaves = Mapping[str, Any]
"""Arrays of one kind (weights, gradients, masks, scores) by path."""

Count = ArrayLike
"""A number of entries: an int, or a traced int32 scalar."""

Counts = Count | Mapping[str, Count]
"""How many entries stay: one number for the whole tree, or one a leaf; under the path `REST`, one
for all leaves that are not named, ranked together."""

REST = "*"


class Signals(NamedTuple):
    """What a part may look at.

    Attributes:
      step: age of the network, an int32 scalar: updates completed when it is seen.
      dense: the weights that the inner optimizer moves, by path.
      mask: bool, True = kept, by path; its paths are the prunable leaves.
      grads: gradient of the loss with respect to the network it saw, by path; empty where a method
        stands last in a chain, since what reaches it there are updates.
      learned: what a method learns beside the weights; empty in methods that learn nothing.
      memory: what `Memory` remembered.
      key: raw uint32 key data, folded with the step; the same on all hosts.
    """

    step: jax.Array
    dense: Leaves
    mask: Leaves
    grads: Leaves = {}
    learned: Any = {}
    memory: Any = {}
    key: Any = None


class Candidates(enum.Enum):
    """Which entries a change of masks may choose from."""

    ALL = "all"
    KEPT = "kept"
    """Only entries that are kept now: the change can only drop."""
    PRUNED = "pruned"
    """Only entries that are pruned now: the change can only grow, up to the count."""


class MaskUpdate(NamedTuple):
    """One change of masks. A method has a tuple of them; those due at a step happen together.

    Attributes:
      when: step -> bool, is it due.
      score: Signals -> {path: array}; higher is kept, signed, NaN last.
      count: Signals -> how many entries are kept afterwards.
      select: (scores, counts) -> {path: mask}; keeps that many of the highest. Entries that are no
        candidates come as NaN, except to `masks.largest`, which ranks in place.
      candidates: which entries it chooses from.
      warm_start: whether the search for the k-th largest begins where the last one ended, for a
        change due in nearly every update: the same masks, sooner. `select` must be `masks.largest`;
        counts a slice gain nothing.
    """

    when: Callable[[jax.Array], jax.Array]
    score: Callable[[Signals], Leaves]
    count: Callable[[Signals], Counts]  # pyright: ignore[reportIncompatibleMethodOverride]
    select: Callable[[Leaves, Counts], Leaves]
    candidates: Candidates = Candidates.ALL
    warm_start: bool = False


class View(NamedTuple):
    """How the network is seen: dense weights -> the parameters that the loss meets.

    Attributes:
      apply: Signals -> {path: seen}, for the leaves it changes. Its VJP is the backward rule.
      update_scale: Signals -> {path: factor} on the inner optimizer's update, weight decay
        included; bool or number. Where it is 0, gradient and update are selected away and the
        weight does not move a bit. None means one everywhere.
      copy: whether the state keeps a dense copy of the leaves that `apply` changes. False where
        the dense weights are the parameters themselves (hard masks).
      inverse: Signals (with `dense` holding seen values) -> {path: dense}, such that `apply` gives
        the seen values back on kept entries; None where seen and dense weights are equal there.
      settle: (Signals after a change, entries just grown) -> {path: dense}: what dense weights
        become when masks change, where there is a copy of them. None leaves them as they are.
      decay_on: Signals -> {path: weights} that the inner optimizer gets as params in place of the
        dense ones, so that its weight decay acts on them; None means the dense weights. Optimizers
        that measure from the params they get (schedule-free ones, MADGRAD) then go wrong.
    """

    apply: Callable[[Signals], Leaves]
    update_scale: Callable[[Signals], Leaves] | None = None
    copy: bool = False
    inverse: Callable[[Signals], Leaves] | None = None
    settle: Callable[[Signals, Leaves], Leaves] | None = None
    decay_on: Callable[[Signals], Leaves] | None = None


class Memory(NamedTuple):
    """What a method remembers.

    Attributes:
      init: {path: mask} -> memory, from shapes alone: weights may be loaded after `init`.
      update: Signals -> memory.
      at: when it is renewed. "refresh": inside each refresh after the masks changed, and once on
        the first update. "step": at the beginning of every update, when weights and gradient are of
        one age and the gradient is that of the network seen, pruned entries included.
    """

    init: Callable[[Leaves], Any]
    update: Callable[[Signals], Any]
    at: Literal["refresh", "step"] = "refresh"


class Learner(NamedTuple):
    """What a method learns beside the weights, from the same one gradient.

    Its gradient is that of the loss through the view, plus that of the penalty; one step of its own
    optimizer, projected, is taken in every update, before masks change. Its view keeps a copy.

    Attributes:
      init: {path: mask} -> what is learned, a tree of floating arrays, from shapes alone: weights
        may be loaded after `init`.
      optimizer: what moves it.
      penalty: Signals -> a scalar that is added to the loss, as a function of `learned`; None adds
        nothing.
      project: learned -> learned, after each step; None leaves it where the step has led.
      alternate: step -> (whether the weights move, whether what is learned moves). What does not
        move is held whole, the state of its optimizer included. None moves both in every update.
    """

    init: Callable[[Leaves], Any]
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
        """Whether the phase has this name: a bool scalar, under jit too."""
        one_of("name", name, self.names)
        return self.index == self.names.index(name)


jax.tree_util.register_pytree_node(
    Phase,
    lambda phase: (tuple(phase), phase.names),
    lambda names, xs: Phase(*xs, names=names),
)


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
