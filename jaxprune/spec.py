"""What a state was made from: the parts of a method as one static node without leaves."""

import dataclasses
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import trees
from jaxprune.network import Network
from jaxprune.numbers import is_traced
from jaxprune.types import Candidates, Learner, MaskUpdate, Memory, Phase, View


class Parts(NamedTuple):
    """The parts of a method, as `prune` was given them."""

    mask_updates: tuple[MaskUpdate, ...]
    view: View
    units: Any
    memory: Memory | None = None
    phases: Callable[[Any], Phase] | None = None
    start: Any = None
    start_named: str = "start"
    note: str = ""
    learner: Learner | None = None

    @property
    def grows(self) -> bool:
        """Whether pruned entries can come back that did not move meanwhile."""
        candidates = {update.candidates for update in self.mask_updates}
        held = self.learner is not None and self.view.update_scale is not None
        return Candidates.PRUNED in candidates or (
            Candidates.ALL in candidates and (held or not self.view.copy)
        )

    @property
    def renews(self) -> bool:
        """Whether there is a memory that a refresh renews."""
        return self.memory is not None and self.memory.at == "refresh"


@jax.tree_util.register_static
class Spec:
    """What a state was made from: the parts, and the method and values that determine them.

    A leafless node: readers find the parts in the state, so nobody has to hold the transformation.
    Two specs are equal if their methods and values are; of a custom `prune(...)`, whose parts have
    no name, if the parts themselves are (functions by identity, partials by value).

    Attributes:
      parts: the parts.
      method: the method's function, or None for a custom `prune(...)`.
      values: the keyword values the method was called with; an optimizer is "given".
    """

    def __init__(
        self,
        parts: Parts,
        method: Callable[..., Any] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the parts; a method's name and values take their place in comparisons."""
        self.parts, self.method = parts, method
        self.values = {name: _settled(value) for name, value in (values or {}).items()}
        self._identity = _canonical(tuple(parts) if method is None else self.values)
        _register_with_flax()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Spec)
            and self.method == other.method
            and self._identity == other._identity
        )

    def __hash__(self) -> int:
        return hash((self.method, self._identity))

    def __repr__(self) -> str:
        return f"Spec({self.describe()})"

    def __reduce__(self) -> tuple:
        if self.method is None:
            return Spec, (self.parts,)
        return _from_method, (self.method, self.values)

    def differs(self, other: "Spec") -> str | None:
        """The first value in which another differs; None where none does, or traced ones alone."""
        if self == other:
            return None
        ours, theirs = self.describe(), other.describe()
        for name in [*theirs, *(name for name in ours if name not in theirs)]:
            now, was = ours.get(name, "nothing"), theirs.get(name, "nothing")
            if now != was and "traced" not in (now, was):
                return f"{name}={now!r} where the state has {was!r}"
        return None

    def describe(self) -> dict[str, Any]:
        """The method and its values as JSON."""
        if self.method is None:
            return {"method": "prune", **_json(self.parts._asdict())}
        return {"method": self.method.__name__, **_json(self.values)}


def _from_method(method: Callable[..., Any], values: dict[str, Any]) -> Spec:
    optimizers = {name: optax.identity() for name, x in values.items() if x == "given"}
    return method(**(values | optimizers)).init.__self__.spec


def _settled(value: Any) -> Any:
    """A number for an array of one, which its owner may donate, a pattern for a list of one."""
    if isinstance(value, Network):
        return value.structure()
    if isinstance(value, np.generic):
        value = jnp.asarray(value)
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if isinstance(value, jax.Array) and value.ndim == 0 and not is_traced(value):
        return float(str(np.asarray(value))) if trees.is_floating(value) else value.item()
    return value


def _digest(array: Any) -> str:
    array = np.asarray(array)
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def _canonical(value: Any) -> Any:
    """A hashable stand-in for a value: equal values, equal stand-ins."""
    if isinstance(value, functools.partial):
        return ("partial", value.func, _canonical(value.args), _canonical(value.keywords))
    if jax.tree_util.all_leaves([value]):  # an empty dict is none
        return _canonical_leaf(value)
    if isinstance(value, Mapping):  # in order: of patterns, the first that matches wins
        return "mapping", *((key, _canonical(item)) for key, item in value.items())
    leaves, structure = jax.tree.flatten(value)
    return structure, tuple(_canonical(leaf) for leaf in leaves)


def _canonical_leaf(value: Any) -> Any:
    if is_traced(value):
        return ("traced", id(value))
    if isinstance(value, (jax.Array, np.ndarray)):
        return ("array", value.shape, str(value.dtype), _digest(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((f.name, _canonical(getattr(value, f.name))) for f in dataclasses.fields(value))
        return (type(value), *fields)
    return type(value), value


def _json(value: Any) -> Any:
    """A value as plain JSON; functions by name, arrays by shape, type and digest."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if is_traced(value):
        return "traced"
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return value.item() if value.ndim == 0 else _json_array(value)
    if isinstance(value, functools.partial):
        return {"partial": _json(value.func), "of": _json([*value.args, dict(value.keywords)])}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {type(value).__name__: fields}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if not jax.tree_util.all_leaves([value]):
        return {
            jax.tree_util.keystr(path): _json(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(value)
        }
    if isinstance(value, types.FunctionType):
        return _json_function(value)
    name = getattr(value, "__qualname__", None)
    return name or (_type_name(value) if type(value).__repr__ is object.__repr__ else str(value))


def _json_function(function: types.FunctionType) -> Any:
    """The name of a function; with what it closes over, and the code of one without a name."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    held = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    told = [_type_name(x) if x is function else _json(x) for x in held]
    if function.__name__ == "<lambda>":
        code = function.__code__
        told += [code.co_code.hex(), code.co_names, str(code.co_consts)]
    if not told:
        return function.__qualname__
    return f"{function.__qualname__} {hashlib.sha256(str(told).encode()).hexdigest()[:8]}"


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _type_name(value: Any) -> str:
    return type(value).__qualname__


def _json_array(array: Any) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": _digest(array)}


def _register_with_flax() -> None:
    """Let `flax.serialization` pass over the node, where the user has flax."""
    flax = sys.modules.get("flax.serialization")
    if flax is not None and not flax.is_serializable(Spec):
        flax.register_serialization_state(Spec, lambda spec: {}, lambda spec, state: spec)
