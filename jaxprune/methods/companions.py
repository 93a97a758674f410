"""What belongs to a layer beside its kernel: its bias, and the norm that follows it."""

import re
from collections.abc import Iterable, Mapping

from jaxprune.trees import OutputAxis, matching, output_axes
from jaxprune.types import Leaves, wrong

Norms = Mapping[str, str | None] | None
"""``{pattern of a layer's path: path of the norm that follows it}``; None says that none does."""

_BIASES = ("bias", "b")
_SCALES = ("scale", "weight")
_NORM = re.compile(r"(batch|layer|group|rms|instance)?_?norm(alization)?|[blg]n(?![a-z])")
_CONVOLUTION = re.compile(r"conv(olution)?(_?transpose)?(al)?")


def biases_of(paths: Iterable[str], leaves: Leaves) -> dict[str, list[str]]:
    """The bias of each layer: the leaf named ``bias`` or ``b`` beside its kernel.

    A kernel that has another one beside it, as in recurrent cells, has no bias of its own.

    Args:
      paths: of the kernels.
      leaves: ``{path: leaf}``, all of them.

    Returns:
      ``{path: [path of the bias]}``, an empty list where there is none.
    """
    paths = list(paths)
    modules = [_module(path) for path in paths]
    biases: dict[str, list[str]] = {}
    for path in leaves:
        if path not in paths and _last(path).lower() in _BIASES:
            biases.setdefault(_module(path), []).append(path)
    return {
        path: biases.get(module, []) if modules.count(module) == 1 else []
        for path, module in zip(paths, modules, strict=True)
    }


def norms_of(
    paths: Iterable[str], leaves: Leaves, given: Norms = None, output_axis: OutputAxis = None
) -> dict[str, list[str]]:
    r"""The scale and the bias of the norm that follows each layer, where that is plain.

    By ``given``; else by name: a convolution and a norm in one module whose names differ only in
    the kind (``conv_0`` and ``norm_0``, ``Conv_1`` and ``BatchNorm_1``, ``stem_conv`` and
    ``stem_bn``), if the norm is as wide as the convolution's outputs. A norm that comes *before*
    the convolution of its name cannot be told from one that follows: say it by ``given``.

    Args:
      paths: of the kernels.
      leaves: ``{path: leaf}``, all of them.
      given: ``{pattern: path}`` of norms, where ``\1`` stands for the pattern's first group.
      output_axis: the axis that counts a kernel's outputs, where the default rule is wrong.

    Returns:
      ``{path of the kernel: [path of the scale, path of the bias]}`` for the layers that have one.

    Raises:
      ValueError: if a pattern matches no layer, or ``given`` names what is no norm of that width.
    """
    paths = list(paths)
    axes = output_axes({path: leaves[path] for path in paths}, output_axis)
    widths = {path: leaves[path].shape[axis] for path, axis in axes.items()}
    found, norms = {}, _norms(leaves)
    said = _said(given, paths)
    for path in paths:
        module = said[path] if path in said else _by_name(path, leaves, norms)
        if module is None:
            continue
        scale = next((p for p in norms.get(module, []) if _last(p).lower() in _SCALES), None)
        if scale is not None and leaves[scale].shape[-1] == widths[path]:
            found[path] = [scale, *(place for place in norms[module] if place != scale)]
        elif path in said:
            expected = f"name a norm with a scale of {widths[path]} entries for '{path}'"
            hint = "there are " + (", ".join(norms) or "none")
            raise ValueError(wrong("norms", expected, module, hint))
    return found


def _module(path: str) -> str:
    return path.rpartition("/")[0]


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _norms(leaves: Leaves) -> dict[str, list[str]]:
    """The leaves of each module that has a scale: a weight only where its name says norm."""
    modules: dict[str, list[str]] = {}
    for path in leaves:
        modules.setdefault(_module(path), []).append(path)

    def is_norm(module: str, paths: list[str]) -> bool:
        names = {_last(path).lower() for path in paths}
        named = _NORM.search(_last(module).lower()) is not None
        return names <= {*_BIASES, *_SCALES} and ("scale" in names or ("weight" in names and named))

    return {module: paths for module, paths in modules.items() if is_norm(module, paths)}


def _said(given: Norms, paths: list[str]) -> dict[str, str | None]:
    """The norm of each layer that the user names one for; the first pattern that matches wins."""
    found: dict[str, str | None] = {}
    for pattern, norm in (given or {}).items():
        for path in matching(pattern, paths, "norms"):
            match = re.search(pattern, path)
            said = match.expand(norm) if match is not None and norm is not None else norm
            found.setdefault(path, said)
    return found


def _by_name(path: str, leaves: Leaves, norms: Mapping[str, list[str]]) -> str | None:
    """The one norm beside a convolution that has its name but for the kind."""
    module = _module(path)
    parent, name = _module(module), _last(module).lower()
    if leaves[path].ndim < 3 or not _CONVOLUTION.search(name):
        return None
    rest = _CONVOLUTION.sub("", name, count=1).strip("_")
    beside = [norm for norm in norms if _module(norm) == parent]
    alike = [n for n in beside if _NORM.sub("", _last(n).lower(), count=1).strip("_") == rest]
    return alike[0] if len(alike) == 1 else None
