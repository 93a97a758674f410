"""The highest of every group of neighbours: N:M sparsity."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxprune import masks
from jaxprune.masks.patterns import check_groups
from jaxprune.numbers import is_traced
from jaxprune.schedules import Ramp
from jaxprune.selection import any_nan, as_array
from jaxprune.types import Chosen, Leaves, Scores, Signals, wrong
from jaxprune.units import Layers, units_of


@dataclasses.dataclass(frozen=True)
class n_of_m:
    """The n highest of every m neighbours along the contraction; along a ramp, more at first.

    Attributes:
      n: how many stay of each group, in [1, m].
      m: how many make a group, at least 2.
      course: a `Ramp` along whose progress p a group keeps ``ceil(m - (m - n) p)``; None for n.

    Raises:
      TypeError: if ``n`` or ``m`` is not an integer.
      ValueError: if ``n`` lies outside [1, m] or ``m`` is below 2; at a call if groups do not fit
        the contraction of a leaf, or it is not known along which axes that lies.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import keep
      >>> from jaxprune.types import Ranked, Signals
      >>> scores = {"kernel": Ranked(jnp.array([[3.0], [1.0], [2.0], [4.0]]))}
      >>> s = Signals(jnp.int32(1), {}, {"kernel": jnp.ones((4, 1), bool)})
      >>> keep.n_of_m(1, 2)(scores, s, {}).masks["kernel"][:, 0].tolist()
      [True, False, False, True]
    """

    n: int
    m: int
    course: Ramp | None = None

    def __post_init__(self) -> None:
        """Refuses groups that cannot be pruned."""
        check_groups(self.n, self.m)
        if self.m < 2:
            raise ValueError(wrong("m", "be at least 2", self.m, "a group of one is kept or empty"))
        if not self.n:
            raise ValueError(wrong("n", f"lie in [1, m] with m = {self.m}", self.n))

    @property
    def sparsity(self) -> float:
        """``(m - n) / m``."""
        return (self.m - self.n) / self.m

    def __call__(self, scores: Scores, s: Signals, kept: Leaves) -> Chosen:
        """The masks after a change; what stays is the first of its group."""
        written = {site: as_array(score) for site, score in scores.items()}
        for site, m in kept.items():
            x = written[site]
            # Not by a minimum, which takes denormals for 0.
            below = jnp.where(x == jnp.inf, jnp.finfo(x.dtype).max, x)
            written[site] = jnp.where(m, jnp.inf, below)
        found = masks.n_of_m(written, self._number(s.step), self.m, self.axes(s))
        if not kept:  # what is no candidate has no place in its group, which may keep fewer then
            found = {
                site: m if scores[site].mask is None else m & scores[site].candidates
                for site, m in found.items()
            }
        return Chosen(found, any_nan([*scores.values()]))

    def _number(self, step: Any) -> Any:
        if self.course is None:
            return self.n
        way = self.course.progress(step)
        number = jnp.ceil(self.m - (self.m - self.n) * way).astype(jnp.int32)
        return number if is_traced(number) else int(number)

    def axes(self, s: Signals) -> dict[str, tuple[int, ...]]:
        """Along which axes of each leaf groups lie; an error that names all where that fails."""
        inputs = units_of(s).inputs(s.mask)
        unfit = {path: number for path, number in inputs.items() if number and number % self.m}
        if unfit:
            hint = 'leave these leaves out by `exclude`, or dense by unfit="skip"'
            if unknown := [path for path, number in inputs.items() if number is None]:
                hint += f"; and say the `output_axis` of {', '.join(unknown)}"
            expected = f"sum multiples of m = {self.m} inputs in every leaf"
            raise ValueError(wrong("params", expected, unfit, hint))
        return known_axes(s)

    def at_end(self, layers: Layers) -> dict[tuple[str, ...], int]:
        """What `at_end` gives."""
        return {(site,): layers.size(site) * self.n // self.m for site in layers.whole}


def known_axes(s: Signals) -> dict[str, tuple[int, ...]]:
    """Along which axes of each leaf inputs are summed.

    Args:
      s: of which the masks' shapes and the units are read.

    Returns:
      ``{path: axes}``, the fastest last.

    Raises:
      ValueError: naming all leaves that do not tell.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxprune import keep
      >>> from jaxprune.types import Signals
      >>> keep.known_axes(Signals(jnp.int32(0), {}, {"kernel": jnp.ones((4, 2), bool)}))
      {'kernel': (0,)}
    """
    axes = units_of(s).contraction_axes(s.mask)
    unknown = {path: s.mask[path].shape for path, a in axes.items() if a is None}
    if unknown:
        hint = 'say which axes count the outputs, as output_axis={"query/kernel": (1, 2)}'
        expected = "be given where a name does not tell the axes that count a leaf's outputs"
        raise ValueError(wrong("output_axis", expected, unknown, hint))
    return {path: a for path, a in axes.items() if a is not None}
