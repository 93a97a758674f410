"""What is above a threshold, and everything."""

import dataclasses

import jax.numpy as jnp

from jaxprune.selection import any_nan, is_above
from jaxprune.types import Chosen, Leaves, Scores, Signals
from jaxprune.units import Layers


@dataclasses.dataclass(frozen=True)
class above:
    """What scores above a threshold.

    Attributes:
      threshold: the highest score that does not stay.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import keep
      >>> from jaxprune.types import Ranked, Signals
      >>> s = Signals(jnp.int32(1), {}, {"kernel": jnp.ones(3, bool)})
      >>> scores = {"kernel": Ranked(jnp.array([0.5, 2.0, 1.0]))}
      >>> keep.above(1.0)(scores, s, {}).masks["kernel"].tolist()
      [False, True, False]
    """

    threshold: float

    def __call__(self, scores: Scores, s: Signals, kept: Leaves) -> Chosen:
        """The masks after a change."""
        del s
        found = {x: is_above(w, self.threshold) | kept.get(x, False) for x, w in scores.items()}
        return Chosen(found, any_nan([*scores.values()]))


@dataclasses.dataclass(frozen=True)
class _Everything:
    """All units."""

    def __call__(self, scores: Scores, s: Signals, kept: Leaves) -> Chosen:
        """The masks after a change."""
        del scores, kept
        return Chosen({x: jnp.ones_like(m) for x, m in s.mask.items()}, jnp.zeros((), bool))

    def at_end(self, layers: Layers) -> dict[tuple[str, ...], int]:
        """What `at_end` gives."""
        return {(x,): layers.size(x) for x in layers.whole}


everything = _Everything()
"""All units stay: what was pruned comes back."""
