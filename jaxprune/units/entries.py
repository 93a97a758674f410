"""Entries: every entry of every prunable leaf is decided about alone."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import names, trees
from jaxprune.network import Network
from jaxprune.types import Leaves, hashable, wrong
from jaxprune.units.layers import Layers, stack_axes

Axes = tuple[int, ...] | None

WHY_NOT = {
    "table": "a table, of which rows are looked up",
    "tied": "used in two ways: name it by `where` to prune it nevertheless",
    "factor": "a factor of a weight that others make",
}
"""What `plan` says of leaves that are contracted with no data."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Entries:
    """Every entry of every prunable leaf is a unit: sites are paths, and the support is the mask.

    Attributes:
      where: which leaves are pruned; None means the default rule.
      exclude: which of them are not.
      output_axis: the axes of a leaf that count its outputs, where the rule by names is wrong.
      stacked: ``{pattern: axis}`` of scanned layers, whose slices are layers of their own.
      multiple_of: leaves that do not sum a multiple of so many inputs are left out, too.
      network: what was traced of the network; names are asked only where there is none.
    """

    where: Any = None
    exclude: Any = None
    output_axis: Any = None
    stacked: Any = None
    multiple_of: int = 1
    network: Network | None = None

    cost = None  # budgets count entries

    def __post_init__(self) -> None:
        """Brings what was given into a form that can be hashed."""
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, hashable(getattr(self, field.name)))
        if self.network is not None:
            object.__setattr__(self, "network", self.network.structure())

    def whole(self, leaves: Leaves) -> dict[str, jax.Array]:
        """All-kept masks of the leaves that the rule prunes; what cannot be pruned fails here."""
        paths = [path for path, reason in self.reasons(leaves).items() if not reason]
        if not paths:
            hint = f"name leaves by `where`, a regex searched in paths such as {[*leaves][:3]!r}"
            raise ValueError(wrong("params", "have at least one prunable leaf", "none", hint))
        masks = {path: jnp.ones_like(leaves[path], dtype=bool) for path in paths}
        for argument in ("output_axis", "stacked"):  # of all leaves: some may be left out
            said = getattr(self, argument)
            for pattern in said if isinstance(said, Mapping) else ():
                trees.matching(pattern, leaves, argument)
        self.output_axes(masks)
        return masks

    def sites(self, leaves: Leaves) -> Leaves:
        """What masks may be given for: any leaf, since those of unpruned ones are passed over."""
        return leaves

    def own(self, masks: Leaves) -> list[str]:
        """Which of some masks are of units that are pruned."""
        leaves = {p: jax.ShapeDtypeStruct(jnp.shape(m), jnp.float32) for p, m in masks.items()}
        where, exclude = _about(self.where, leaves), _about(self.exclude, leaves)
        units = dataclasses.replace(self, where=where, exclude=exclude)
        return [path for path, reason in units.reasons(leaves).items() if not reason]

    def reasons(self, leaves: Leaves) -> dict[str, str]:
        """Why each leaf is not pruned; an empty string for those that are."""
        by_default = None if self.network is None else self._traced_reason
        reasons = names.pruning_reasons(leaves, self.where, self.exclude, by_default)
        if self.multiple_of == 1:
            return reasons
        pruned = {path: leaves[path] for path, reason in reasons.items() if not reason}
        for path, inputs in self.inputs(pruned).items():
            if inputs is not None and inputs % self.multiple_of:
                reasons[path] = f"sums {inputs} inputs, no multiple of {self.multiple_of}"
        return reasons

    def members(self, masks: Leaves) -> list[str]:
        """The paths of the leaves that are pruned."""
        return [*masks]

    def shapes(self, masks: Leaves) -> dict[str, tuple[int, ...]]:
        """The shapes of the leaves that are pruned."""
        return {path: tuple(mask.shape) for path, mask in masks.items()}

    def support(self, masks: Leaves, leaves: Leaves) -> Leaves:
        """The masks themselves."""
        del leaves
        return masks

    def pooled(self, scores: Leaves) -> dict[str, Any]:
        """The scores themselves."""
        return dict(scores)

    def packed(self, masks: Leaves, like: Any) -> Any:
        """In the containers of the params, with holes."""
        return trees.from_paths(like, masks)

    def check(self, masks: Any, params: Any) -> None:
        """Raises unless params have the leaves and the shapes that packed masks were made for."""
        trees.check_structure("params", params, masks, "`init`")

    def layers(self, masks: Leaves) -> Layers:
        """Each leaf is a layer, or each of its slices."""
        shapes = {path: tuple(mask.shape) for path, mask in masks.items()}
        return Layers(shapes, self.stacks(masks))

    def stacks(self, leaves: Leaves) -> dict[str, int]:
        """Along which axis leaves stack layers."""
        said = stack_axes(leaves, _about(self.stacked or {}, leaves))
        if self.network is None:
            return said
        traced = {path: self.network.leaf(path).stacked for path in leaves}
        return {path: axis for path, axis in traced.items() if axis is not None} | said

    def output_axes(self, leaves: Leaves) -> dict[str, Axes]:
        """Which axes of each leaf count its outputs; None where nothing says it."""
        return self._of_slices(names.output_axes, "outputs", leaves)

    def contraction_axes(self, leaves: Leaves) -> dict[str, Axes]:
        """Along which axes of each leaf inputs are summed, the fastest last; None if unknown."""
        return self._of_slices(names.contraction_axes, "contracted", leaves)

    def inputs(self, leaves: Leaves) -> dict[str, int | None]:
        """How many inputs each output of a leaf sums; None if unknown."""
        axes = self.contraction_axes(leaves)
        return {
            path: None if a is None else math.prod(leaves[path].shape[i] for i in a)
            for path, a in axes.items()
        }

    def biases(self, masks: Leaves, leaves: Leaves) -> dict[str, list[str]]:
        """The biases of each layer, among all leaves: by the network, else by names."""
        if self.network is None:
            return names.biases_of(masks, leaves)
        found = {path: self.network.leaf(path).biases for path in masks}
        return {path: [bias for bias in biases if bias in leaves] for path, biases in found.items()}

    def living(self, masks: Leaves) -> dict[str, jax.Array]:
        """Which output units have a weight left, broadcastable; of leaves whose outputs are known.

        Under batch norm a filter without a kept weight outputs 0, its variance is 0, and the
        backward pass is multiplied by ``1 / sqrt(eps)``: a method whose pruned weights learn has to
        hold those of such a filter still, or they rise into the ranking and others die instead.
        """
        stacks, living = self.stacks(masks), {}
        for path, outputs in self.output_axes(masks).items():
            if outputs is not None:
                kept = {*outputs, stacks.get(path)}
                inputs = [axis for axis in range(masks[path].ndim) if axis not in kept]
                living[path] = jnp.any(masks[path], axis=inputs, keepdims=True)
        return living

    def _traced_reason(self, path: str, leaf: Any, leaves: Leaves) -> str:
        """Why a leaf is not pruned: it is contracted with no data, as the network was traced."""
        del leaf, leaves
        assert self.network is not None
        use = self.network.leaf(path).use
        return "" if use == "contracted" else WHY_NOT.get(use, use)

    def _of_slices(self, rule: Any, traced: str, leaves: Leaves) -> dict[str, Axes]:
        """What is known of leaves, or of the slices of stacked ones; in the axes of the leaf.

        By what was given; else by the network, where there is one; else by a rule for names.
        """
        stacks = self.stacks(leaves)
        slices = {path: _slice(leaf, stacks.get(path)) for path, leaf in leaves.items()}
        given = self.output_axis
        found = rule(slices, _about(given, leaves) if isinstance(given, Mapping) else given)
        found = {path: _in_the_leaf(axes, stacks.get(path)) for path, axes in found.items()}
        if self.network is None or (given is not None and not isinstance(given, Mapping)):
            return found
        said = trees.by_pattern(_about(given, leaves), leaves, "output_axis") if given else {}
        for path in (path for path in found if path not in said):
            leaf = self.network.leaf(path)
            found[path] = getattr(leaf, traced) if leaf.use == "contracted" else None
        return found


def _about(said: Any, leaves: Leaves) -> Any:
    """What patterns say of some leaves: those that match none are about others, left out here."""

    def known(pattern: str) -> bool:
        return any(re.search(pattern, path) for path in leaves)

    if isinstance(said, Mapping):
        return {pattern: value for pattern, value in said.items() if known(pattern)}
    said = (said,) if isinstance(said, str) else said
    return tuple(filter(known, said)) if isinstance(said, tuple) else said


def _slice(leaf: Any, stack: int | None) -> jax.ShapeDtypeStruct:
    shape = tuple(n for axis, n in enumerate(leaf.shape) if axis != stack)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _in_the_leaf(axes: Axes, stack: int | None) -> Axes:
    if axes is None or stack is None:
        return axes
    return tuple(axis + (axis >= stack) for axis in axes)
