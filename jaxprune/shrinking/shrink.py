"""Really cutting channels: smaller arrays, and the function that runs on them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxprune.network import Network
from jaxprune.network.cuts import Cut, cut_from_json, cut_tree, restored_tree
from jaxprune.network.program import all_arrays
from jaxprune.network.small import Keeps
from jaxprune.network.walk import Equation
from jaxprune.numbers import is_traced
from jaxprune.shrinking.choosing import RemovableUnits
from jaxprune.shrinking.functions import CutFunction
from jaxprune.types import one_of, wrong


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """A network without the channels that went.

    Attributes:
      params: the cut params, in the containers of the whole ones.
      also: what is no param, cut; None if there is none.
      by: what was cut.
      net: the network it was cut of; None if it was made from a plan.
    """

    params: Any
    also: Any
    by: Cut
    net: Network | None = None

    @functools.cached_property
    def fn(self) -> Callable[..., Any]:
        """The traced function on cut arrays: called as before, for any batch or image size."""
        return self.bind(self.whole)

    @property
    def whole(self) -> Callable[..., Any]:
        """The traced function, of full-sized arrays."""
        if self.net is None:
            hint = "`bind` the function of full-sized arrays"
            raise ValueError(
                wrong("small", "come from `shrink` to have a function", "a plan", hint)
            )
        return self.net.traced_from().fn

    def bind(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Another function of the same trees on cut arrays, such as the network while it trains.

        Args:
          fn: ``fn(params, *args)``, or ``fn(params, also, *args)`` if there is ``also``; of
            full-sized arrays.

        Returns:
          The function of cut arrays. It is traced at full size for each shape of its inputs, so
          call it under `jax.jit`. What it returns along axes that are cut is cut, such as updated
          statistics. A cut that it does not allow is an error that names the leaf and the line.
        """
        return CutFunction(fn, self.by, self.also is not None)

    def cut(self, tree: Any) -> Any:
        """Anything shaped like the whole params, cut: an average, the state of an optimizer."""
        return cut_tree(self.by, tree)

    def restore(self, tree: Any) -> Any:
        """Anything shaped like the cut params at full size, with zeros where something went."""
        return restored_tree(self.by, tree)

    @property
    def plan(self) -> str:
        """What is kept of which axis, as JSON."""
        return self.by.to_json()


def shrink(
    net: Network,
    params: Any,
    masks: Mapping[str, Any],
    also: Any = None,
    *,
    inexact: str = "refuse",
) -> Shrunk:
    """Cuts channels out of a network: smaller arrays, and the same function on them.

    What comes out equals the masked network: that in which all that belongs to the channels that
    go (kernels, biases, scales) is 0. Where that one is not finite they may part: if a whole group
    goes that a norm without an epsilon divides by, or where something is divided by a difference
    that only a computation would tell to be 0; `verify_shrink` finds it.

    Args:
      net: what `trace` returned.
      params: whole params; values of channels that go do not matter.
      masks: ``{name of a group: bool[size]}``, True is kept; groups that are not named stay whole.
      also: what is no param, if the network was traced with it.
      inexact: "refuse" refuses to remove channels over which the network sums something that is
        not 0 once they are removed, such as a softmax over channels; "allow" cuts them too, and
        the network is then another one, to be fine-tuned.

    Returns:
      A `Shrunk` network, with ``.params``, ``.also`` and ``.fn``.

    Raises:
      ValueError: if a group is not known or a mask has another size, if params have other shapes
        than those that were traced, or channels cannot be removed exactly.

    Examples:
      >>> import jax, jax.numpy as jnp, jaxprune
      >>> params = {"first": jnp.eye(3), "head": jnp.arange(6.0).reshape(3, 2)}
      >>> def fn(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["head"]
      >>> net = jaxprune.trace(fn, params, jnp.ones((1, 3)))
      >>> small = jaxprune.shrink(net, params, {"first[1]": jnp.array([True, False, True])})
      >>> print(small.fn(small.params, jnp.ones((1, 3))))
      [[4. 6.]]
      >>> print(small.restore(small.params)["head"])
      [[0. 1.]
       [0. 0.]
       [4. 5.]]
    """
    one_of("inexact", inexact, ("refuse", "allow"))
    if isinstance(masks, RemovableUnits):  # of these the values tell that nothing is missed
        inexact = "allow"
    _check(net, params, also)
    for name, mask in masks.items():
        group = net.group(name)
        if group.inexact and inexact == "refuse" and not np.asarray(mask).all():
            hint = "keep its channels, or give `inexact='allow'` and fine-tune"
            expected = f"keep '{name}', whose channels are summed where they are not 0"
            raise ValueError(wrong("masks", expected, "; ".join(group.inexact), hint))
    by = net.cut(masks)._replace(inexact=inexact == "allow")
    return Shrunk(cut_tree(by, params), None if also is None else cut_tree(by, also), by, net)


def shrunk_from_plan(plan: str, params: Any, also: Any = None) -> Shrunk:
    """A cut network again, in another process, from its plan and its arrays.

    Args:
      plan: the ``plan`` of a `Shrunk` network.
      params: its cut params.
      also: its cut arrays that are no params.

    Returns:
      The `Shrunk` network; give `bind` the function of full-sized arrays.

    Examples:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"first": jnp.eye(3), "head": jnp.ones((3, 2))}
      >>> fn = lambda params, x: x @ params["first"] @ params["head"]
      >>> net = jaxprune.trace(fn, params, jnp.ones((1, 3)))
      >>> small = jaxprune.shrink(net, params, {"first[1]": jnp.array([True, False, True])})
      >>> again = jaxprune.shrunk_from_plan(small.plan, small.params)
      >>> print(again.bind(fn)(again.params, jnp.ones((1, 3))))
      [[2. 2.]]
    """
    return Shrunk(params, also, cut_from_json(plan))


def verify_shrink(small: Shrunk, *args: Any, tolerance: float = 1e-4) -> None:
    """Compares a cut network with the masked one, equation by equation.

    Args:
      small: what `shrink` returned.
      *args: what the function takes besides params and what is no param.
      tolerance: the largest difference allowed, relative to the largest entry of a value.

    Raises:
      ValueError: naming the first equation whose values differ, and the line where it stands.

    Examples:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"first": jnp.eye(3), "head": jnp.ones((3, 2))}
      >>> fn = lambda params, x: x @ params["first"] @ params["head"]
      >>> net = jaxprune.trace(fn, params, jnp.ones((1, 3)))
      >>> small = jaxprune.shrink(net, params, {"first[1]": jnp.array([True, False, True])})
      >>> jaxprune.verify_shrink(small, jnp.ones((1, 3)))
    """
    seen: dict[Any, list[Any]] = {}
    fn, has_also = small.whole, small.also is not None
    whole, cut = CutFunction(fn, Cut(), has_also), CutFunction(fn, small.by, has_also)

    def note(equation: Equation, outputs: list[Any], keeps: list[Keeps]) -> None:
        del keeps
        seen[equation.site] = outputs

    def compare(equation: Equation, outputs: list[Any], keeps: list[Keeps]) -> None:
        masked = seen.pop(equation.site, [])
        for ours, theirs, keep in zip(outputs, masked, keeps, strict=False):
            if is_traced(ours) or not np.issubdtype(ours.dtype, np.inexact):
                continue
            expected = np.asarray(theirs)[np.ix_(*keep)]
            off = np.max(np.abs(np.asarray(ours) - expected), initial=0.0)
            largest = np.max(np.abs(expected), initial=0.0)
            if not off <= tolerance * largest:
                came = f"{off:.2g} beside {largest:.2g} in {equation.why()}"
                raise ValueError(wrong("small", "equal the masked network", came))

    also = (small.also,) if has_also else ()
    whole.run(small.restore(small.params), (*map(small.restore, also), *args), note)
    cut.run(small.params, (*also, *args), compare)


def _check(net: Network, params: Any, also: Any) -> None:
    shapes, given = dict(net.shapes), all_arrays(params, also)
    for path in [*shapes, *given]:
        came = tuple(given[path].shape) if path in given else f"no leaf '{path}'"
        if path not in shapes:
            raise ValueError(wrong("params", "have the leaves that were traced", f"a new '{path}'"))
        if path not in given or came != shapes[path]:
            expected = f"have the shape {shapes[path]} at '{path}', as traced"
            raise ValueError(wrong("params", expected, came))
