"""A cut: which indices of which axes of which leaves are kept."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.network.groups import NOBODY, Group, Runs, expanded, runs_of
from jaxprune.network.program import ALSO
from jaxprune.network.small import Keeps, cut, taken
from jaxprune.types import wrong


class Kept(NamedTuple):
    """What is kept along an axis of a leaf.

    Attributes:
      path: of the leaf; ``also:`` stands before one that is no param.
      axis: of the leaf.
      size: how many indices it had.
      runs: the indices that are kept, as `Runs`.
    """

    path: str
    axis: int
    size: int
    runs: Runs

    @property
    def indices(self) -> np.ndarray:
        """The indices that are kept, in order."""
        return expanded(self.runs)


class Cut(NamedTuple):
    """A cut, static and without arrays.

    Attributes:
      kept: what is kept, axis by axis; all of any other axis.
      shapes: of all leaves, before.
      inexact: whether sums may miss what is not 0.
    """

    kept: tuple[Kept, ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    inexact: bool = False

    @property
    def paths(self) -> list[str]:
        """The paths of the leaves that are cut."""
        return [*dict.fromkeys(each.path for each in self.kept)]

    def keeps(self, path: str, shape: tuple[int, ...]) -> Keeps:
        """What is kept of each axis of a leaf, by its small shape."""
        found = [np.ones(n, bool) for n in shape]
        for each in self.kept:
            if each.path == path:
                found[each.axis] = np.zeros(each.size, bool)
                found[each.axis][each.indices] = True
        return found

    def to_json(self) -> str:
        """The cut as JSON: the axes that are cut, and the indices that are kept of them."""
        return json.dumps(self._asdict())


def cut_from_json(text: str) -> Cut:
    """The cut that `Cut.to_json` wrote."""
    fields = json.loads(text)
    kept = [Kept(p, axis, size, tuple(map(tuple, runs))) for p, axis, size, runs in fields["kept"]]
    shapes = [(path, tuple(shape)) for path, shape in fields["shapes"]]
    return Cut(tuple(kept), tuple(shapes), fields["inexact"])


def cut_of(
    groups: Mapping[str, Group], masks: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Cut:
    """The cut by which units of groups go: an index goes with any unit that it belongs to.

    Args:
      groups: by name.
      masks: ``{name: bool[size]}``, True is kept; a group that is not among them stays whole.
      shapes: of all leaves by path.
    """
    keeps: dict[tuple[str, int], np.ndarray] = {}
    for name, mask in masks.items():
        group = groups[name]
        mask = np.asarray(mask)
        if mask.shape != (group.size,) or mask.dtype != bool:
            expected = f"be a bool for each of the {group.size} channels"
            raise ValueError(wrong(f"masks['{name}']", expected, f"{mask.dtype}{mask.shape}"))
        for member in group.members:
            units = member.units()
            stays = (units == NOBODY) | mask[units]
            before = keeps.get((member.path, member.axis), True)
            keeps[member.path, member.axis] = before & stays
    kept = [
        Kept(path, axis, len(keep), runs_of(np.flatnonzero(keep)))
        for (path, axis), keep in keeps.items()
        if not keep.all()
    ]
    return Cut(tuple(kept), tuple(shapes.items()))


def cut_tree(by: Cut, tree: Any) -> Any:
    """Any tree shaped like the params, or like what is no param, cut.

    A leaf belongs to the param whose path ends its own and whose shape it has, so states of
    optimizers are cut, too.
    """
    shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in by.shapes}
    owners = _owners(shapes)

    def one(path: str, x: Any) -> Any:
        owner = owners(path, x)
        if owner is None:
            return x
        keeps = by.keeps(owner, shapes[owner].shape)
        axes = zip(keeps, x.shape, strict=True)
        return cut(x, [keep if len(keep) == n else np.ones(n, bool) for keep, n in axes])

    return trees.map_with_path(one, tree)


def restored_tree(by: Cut, tree: Any) -> Any:
    """A tree that was cut, with zeros where something went."""
    whole = {path: by.keeps(path, shape) for path, shape in by.shapes}
    small = {
        path: jax.ShapeDtypeStruct([int(keep.sum()) for keep in keeps], jnp.float32)
        for path, keeps in whole.items()
    }
    owners = _owners(small)

    def one(path: str, x: Any) -> Any:
        owner = owners(path, x)
        if owner is None:
            return x
        for axis, keep in enumerate(whole[owner]):
            if not keep.all() and x.shape[axis] == keep.sum():
                x = _spread(x, keep, axis)
        return x

    return trees.map_with_path(one, tree)


def _spread(x: Any, keep: np.ndarray, axis: int) -> Any:
    """An array with zeros along an axis where nothing was kept."""
    if not keep.any():
        shape = [n if k != axis else len(keep) for k, n in enumerate(x.shape)]
        return jnp.zeros(shape, x.dtype)
    x = taken(x, np.maximum(np.cumsum(keep) - 1, 0), axis)
    return jnp.where(keep.reshape((-1,) + (1,) * (x.ndim - axis - 1)), x, jnp.zeros((), x.dtype))


def _owners(shapes: Mapping[str, Any]) -> Callable[[str, Any], str | None]:
    """The leaf that an array belongs to: it ends in its path, and must then have its shape."""
    plain = {name.removeprefix(ALSO): name for name in [*shapes][::-1]}  # params win
    fits = {name: shapes[whole] for name, whole in plain.items()}

    def owner(path: str, x: Any) -> str | None:
        if not hasattr(x, "shape"):
            return None
        found = trees.parameter_of(path, x.shape, fits)
        if found is not None:
            return plain[found]
        near = [name for name in plain if f"/{path}".endswith(f"/{name}" if name else "")]
        if near and len(x.shape) and x.size > 1:
            expected = f"have the shape {fits[near[0]].shape} at '{path}'"
            raise ValueError(wrong("tree", expected, tuple(x.shape)))
        below = [name for name in plain if name and f"/{name}/" in f"/{path}"]
        if below and x.size > 1:
            expected = f"hold nothing of '{below[0]}' in a form of its own"
            hint = "begin such an optimizer anew, by `init` of the cut params"
            raise ValueError(wrong("tree", expected, f"{x.shape} at '{path}'", hint))
        return None

    return owner
