"""What the names of leaves say: which are pruned, and which of their axes count outputs.

A rule by names is a fallback. Where a name is plain in the layouts of Linen, NNX, Equinox and the
networks ported to them, it is followed; where it is not, nothing is guessed. Whoever knows better
says which leaves are pruned by ``where`` and ``exclude``, and what counts outputs by
``output_axis``.

Rules read whole components of a path, in any case and without the number they end in: ``Norm_0``,
``norm1`` and ``norms/1`` are norms, ``pre_norm_mlp`` is none.
"""

import re
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from jaxprune.trees import Where, by_pattern, is_floating, matching
from jaxprune.types import Leaves, wrong

Axes = int | tuple[int, ...]
OutputAxis = Axes | Mapping[str, Axes] | None


def _rule(*patterns: str) -> Any:
    """Whether a whole component is one of some names."""
    return re.compile("|".join(patterns)).fullmatch


# A layer whose name also has the word for a table: `embed_dim_proj`, `patch_embed`.
_NO_LAYER = r"(?!.*(patch(es)?_?emb|proj|conv|kernel|dense|linear|mlp|mix))"
_EMBED = r"(?!un)[a-z]*emb(s|ed(s|d?ings?|d?ers?)?)?"

_NORM = _rule(
    r"(?!ada)(.*_)?([a-z]*norm(s|alization)?|rms|[lbg]ns?)"
    r"(_[a-z]|_(in|out|pre|post|before|after|final))?",
    r"[lbg]n_.*",
)
_ADAPTER = _rule(
    r"(?!.*_(dense|linear|conv)$)(.*_)?(loras?|lokr|hada|dora|vera|ia3?|adapters?)(_[^/]*)?",
    r"(kernel|weight|w|lora[a-z]*)/[ab]",
)
_KINDS = {
    "norm": _NORM,
    "bias": _rule(
        r"(.*_)?[a-z]*bias(es)?(_.*)?", r"(.*_)?(beta|offset|shift)s?", r"b[a-z]?(_.*)?", r".*_b"
    ),
    "scale": _rule(
        r"(.*_)?(layer)?(scales?|scaling)(_param(eter)?)?",
        r"(.*_)?(gain|gamma|alpha|lambda|temperature|magnitude)",
        r"lambda_[a-z]|gamma_.*|g|weight_g",
    ),
    "constant": _rule(
        r"a_(log|re|im|real|imag|param|init)|d|dt|log_.*|.*_log|init(ial)?_.*",
        r"(inv|lambda|nu|theta)_.*|time_(decay|first|mix.*|maa.*|faaaa)",
    ),
    "embedding": _rule(
        rf"{_NO_LAYER}(.*_)?({_EMBED}|(rel)?pos(ition(al)?)?|[ar]?pe|freqs?)(_.*)?",
        rf"{_NO_LAYER}(.*_)?(tok(en)?|cls|[be]os|newline|probe|querie|latent|register|prompt)s?",
        rf"{_NO_LAYER}(.*_)?(table|code(book|vector))s?|wte|wpe",
    ),
}
_TABLE = _rule(  # as the parent of a `weight`, which alone says nothing
    rf"(?!.*time){_NO_LAYER}(.*_)?{_EMBED}(_(in|layer|tokens?.*|positions?|types?|tables?|[xyhw]))?",
    rf"{_NO_LAYER}(.*_)?(token|table|position|codebook|vocab(ulary)?|lookup)s?|(.*_)?rel(ative)?_.*bias",
    r"wte|wpe|shared|lut",
)
_PLAIN = _rule(r"weights?|w")

_WEIGHT = _rule(r"(.*_)?weight(_.*)?")
_CONVOLUTION = _rule(r"(.*_)?[a-z]*conv(s|olution)?(_?\d(x\d?|_?d)?)?(_.*)?")
# The same name stands for both layouts: GPT-2's `c_fc` for (out, in) and GPT-Neo's for (in, out), a
# transposed convolution for either by its arguments. A local convolution has outputs a position.
_UNSAID = _rule(r"c_(attn|fc|proj)|q_attn", r".*(transpose|deconv|upconv).*", r".*conv.*local")
_FEEDS_FORWARD = re.compile(r"(^|[/_])(mlp|ffn|experts?|moe|feed_?forward)[^/]*/").search
_PRODUCT = re.compile(  # no convolution, however many axes: fused, stacked, of many experts
    r"(attention|attn|mha|moe|experts?|mlp|ffn)(block|layer)?(/|$)|einsum[a-z_]*$"
    r"|(^|[/_])(query|key|value|output|out|fc|qkv|kv|[qkvo]|w[io]|dense[a-z]*|linear[a-z]*)(_[a-z]+)?$"
).search
_QUERY = _rule(r"(to_)?(query|q)(_proj)?")
_KEY_OR_VALUE = _rule(r"(to_)?(key|value|k|v)(_proj)?")
_OUT = _rule(r"(to_)?(out|output|o)(_proj)?|attention_output")
_FUSED = _rule(r"(to_|w)?qkv(_proj)?")


def pruning_reasons(
    leaves: Leaves,
    where: Where | None = None,
    exclude: Where | None = None,
    by_default: Callable[[str, Any, Leaves], str] | None = None,
) -> dict[str, str]:
    """Why each leaf is pruned or not: an empty string for those that are pruned.

    The default rule goes by names, so it is a fallback: floating leaves of two dimensions or more
    are pruned, but no bias, scale or norm, no table or token (embeddings and positions of any kind,
    class and mask tokens), no adapter and no constant of a state-space model. ``where`` takes its
    place; ``exclude`` takes leaves away from either. Integers, booleans and empty leaves are never
    pruned.

    Args:
      leaves: ``{path: leaf}``.
      where: which leaves are pruned: a regex, or several, searched in the path; or ``(path, leaf)
        -> bool``.
      exclude: which are not, in the same forms; they do not count in any total.
      by_default: ``(path, leaf, leaves) -> reason``, in place of the rule by names.

    Returns:
      ``{path: reason}``.

    Raises:
      ValueError: if a pattern matches no path.
      TypeError: if ``where`` or ``exclude`` is neither regexes nor a function.

    Examples:
      >>> import numpy as np
      >>> shapes = {"body/kernel": (4, 8), "head/kernel": (8, 3), "embed/embedding": (9, 4)}
      >>> leaves = {path: np.ones(shape) for path, shape in shapes.items()}
      >>> pruning_reasons(leaves, exclude="head")
      {'body/kernel': '', 'head/kernel': 'left out by `exclude`', 'embed/embedding': 'embedding'}
    """
    reasons = {path: _never(leaf) for path, leaf in leaves.items()}
    chosen = {path: leaf for path, leaf in leaves.items() if not reasons[path]}
    included = _matched(where, leaves, chosen, "where")
    excluded = _matched(exclude, leaves, chosen, "exclude")
    for path, leaf in chosen.items():
        if path in excluded:
            reasons[path] = "left out by `exclude`"
        elif where is None:
            reasons[path] = (by_default or _by_default)(path, leaf, leaves)
        elif path not in included:
            reasons[path] = "left out by `where`"
    return reasons


def prunable(leaves: Leaves, where: Where | None = None, exclude: Where | None = None) -> list[str]:
    """The paths of the leaves that are pruned (see `pruning_reasons`)."""
    return [path for path, why in pruning_reasons(leaves, where, exclude).items() if not why]


def _never(leaf: Any) -> str:
    if not is_floating(leaf):
        return "not floating"
    return "" if leaf.size else "empty"


def _matched(said: Where | None, leaves: Leaves, chosen: Leaves, argument: str) -> set[str]:
    """The paths that patterns match, or those of the chosen leaves that a function picks."""
    if said is None:
        return set()
    if callable(said):
        return {path for path, leaf in chosen.items() if said(path, leaf)}
    if not isinstance(said, str | list | tuple):
        raise TypeError(wrong(argument, "be regexes or a function (path, leaf) -> bool", said))
    patterns = [said] if isinstance(said, str) else said
    return {path for pattern in patterns for path in matching(pattern, leaves, argument)}


def _by_default(path: str, leaf: Any, paths: Container[str]) -> str:
    return "fewer than two dimensions" if leaf.ndim < 2 else _kind(path, leaf, paths)


def _kind(path: str, leaf: Any, paths: Container[str]) -> str:
    """What a leaf is, if its name says that it is no layer's weight."""
    *parents, own = _components(path)
    parent = parents[-1] if parents else ""
    if any(map(_ADAPTER, [*parents, own, f"{parent}/{own}"])):
        return "adapter"
    if _is_lettered(path, paths):
        return ""
    for kind, is_one in _KINDS.items():
        if is_one(own):
            return kind
    if _NORM(parent):
        return "norm"
    return "embedding" if _PLAIN(own) and _TABLE(parent) and leaf.ndim < 4 else ""


def _components(path: str) -> list[str]:
    """The names in a path, dots of PyTorch's keys taken for slashes."""
    names = [name for name in re.split(r"[/.]", path.lower()) if not name.isdigit()]
    return [re.sub(r"_?\d+$", "", name) for name in names] or [""]


def _is_lettered(path: str, paths: Container[str]) -> bool:
    """Whether a leaf named ``b`` or ``d`` stands beside an ``a`` or ``c``: that is no bias."""
    *parents, own = path.split("/")
    return own in ("b", "d") and "/".join([*parents, chr(ord(own) - 1)]) in paths


def output_axes(leaves: Leaves, given: OutputAxis = None) -> dict[str, tuple[int, ...] | None]:
    """Which axes of each leaf count its outputs (filters, neurons, heads and their entries).

    By names, as a fallback: the last axis for a ``kernel`` and whatever else has two axes, the
    first for a ``weight``, heads and their entries for the projections of attention. A name that
    does not tell the layout (fused and stacked layers, einsums, transposed convolutions, GPT-2's
    ``c_fc``) gives None: name the axes by ``output_axis`` then.

    Args:
      leaves: ``{path: leaf}``, or their shapes; without the axis of stacked layers.
      given: the axes where the rule is wrong or has none: an int or several for all leaves, or
        ``{pattern: axes}``, of which the first that matches holds.

    Returns:
      ``{path: axes}``, ascending and in ``[0, ndim)``; None where neither a name nor ``given``
      tells, as in a vector, which may be summed (``()``) or hold an output an entry (``0``).

    Raises:
      ValueError: if an axis is out of range or named twice, none is left for the inputs, or a
        pattern matches no path.
      TypeError: if axes are neither an int nor a tuple of ints.

    Examples:
      >>> import numpy as np
      >>> shapes = {"query/kernel": (16, 4, 8), "mlp/kernel": (16, 2, 32)}
      >>> leaves = {path: np.ones(shape) for path, shape in shapes.items()}
      >>> output_axes(leaves)
      {'query/kernel': (1, 2), 'mlp/kernel': None}
      >>> output_axes(leaves, {"mlp": (1, 2)})
      {'query/kernel': (1, 2), 'mlp/kernel': (1, 2)}
    """
    if isinstance(given, Mapping):
        said = by_pattern(given, leaves, "output_axis")
    else:
        said = {} if given is None else dict.fromkeys(leaves, given)
    return {
        path: _checked(said[path], path, leaf.ndim) if path in said else _outputs(path, leaves)
        for path, leaf in leaves.items()
    }


def contraction_axes(leaves: Leaves, given: OutputAxis = None) -> dict[str, tuple[int, ...] | None]:
    """Along which axes of each leaf its inputs are summed: all that count no outputs.

    They stand from the slowest to the fastest: groups of neighbours lie along the last of them, the
    one beside the outputs (the longer, if there are two), and go on over the others.

    Args:
      leaves: ``{path: leaf}``, or their shapes; without the axis of stacked layers.
      given: the axes that count outputs, where the rule by names is wrong or has none (see
        `output_axes`).

    Returns:
      ``{path: axes}``; None where nothing tells the outputs.

    Examples:
      >>> import numpy as np
      >>> leaves = {"conv/kernel": np.ones((3, 3, 2, 8)), "conv/weight": np.ones((8, 2, 3, 3))}
      >>> contraction_axes(leaves)
      {'conv/kernel': (0, 1, 2), 'conv/weight': (2, 3, 1)}
    """
    axes = output_axes(leaves, given)
    return {p: None if a is None else _contracted(a, leaves[p].shape) for p, a in axes.items()}


def _contracted(outputs: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    inputs = [axis for axis in range(len(shape)) if axis not in outputs]
    beside = [axis for axis in inputs if axis - 1 in outputs or axis + 1 in outputs]
    if not beside:
        return tuple(inputs)
    fastest = max(beside, key=lambda axis: shape[axis])
    return (*(axis for axis in inputs if axis != fastest), fastest)


def _checked(said: Axes, path: str, ndim: int) -> tuple[int, ...]:
    """Axes that were given for a leaf, counted from 0 and ascending."""
    axes = said if isinstance(said, tuple) else (said,)
    if any(isinstance(axis, bool) or not isinstance(axis, int) for axis in axes):
        raise TypeError(wrong("output_axis", "be an axis or a tuple of axes", said))
    if not ndim:
        return ()
    if not all(-ndim <= axis < ndim for axis in axes):
        raise ValueError(wrong("output_axis", f"lie in [-{ndim}, {ndim}) for '{path}'", said))
    found = {axis % ndim for axis in axes}
    if len(found) < len(axes):
        raise ValueError(wrong("output_axis", f"name each axis of '{path}' once", said))
    if len(found) == ndim > 1:
        raise ValueError(wrong("output_axis", f"leave an axis of '{path}' for its inputs", said))
    return tuple(sorted(found))


def _outputs(path: str, leaves: Leaves) -> tuple[int, ...] | None:
    """The axes that count outputs, as far as the name of a leaf tells them."""
    leaf, (*parents, own) = leaves[path], _components(path)
    parent = parents[-1] if parents else ""
    if leaf.ndim < 2:
        return None if leaf.ndim else ()
    if _kind(path, leaf, leaves) not in ("", "adapter") or _UNSAID(parent):
        return None
    if leaf.ndim == 2 or _is_convolution(own, parents, leaf.ndim):
        return (0,) if _WEIGHT(own) else (leaf.ndim - 1,)
    return _heads(path, parent, leaves) if own == "kernel" else None


def _is_convolution(own: str, parents: list[str], ndim: int) -> bool:
    if parents and _CONVOLUTION(parents[-1]):
        return own in ("kernel", "w") or bool(_WEIGHT(own))
    return ndim > 3 and (own == "kernel" or bool(_WEIGHT(own))) and not _PRODUCT("/".join(parents))


def _heads(path: str, parent: str, leaves: Leaves) -> tuple[int, ...] | None:
    """The heads and their entries for (in, heads, entries), the last for (heads, entries, out)."""
    shape = leaves[path].shape
    if _FUSED(parent) and shape[1] == 3:
        return tuple(range(1, len(shape)))
    if len(shape) > 3 or _is_stacked(path, leaves):
        return None
    if _QUERY(parent) or _KEY_OR_VALUE(parent):
        return (1, 2)
    return (2,) if _OUT(parent) and not _FEEDS_FORWARD(path.lower()) else None


def _is_stacked(path: str, leaves: Leaves) -> bool:
    """Whether the matrices of an attention are stacked, by the kernels of three axes around it.

    The way out of one has the heads of its queries first; and no other kernel beside an attention
    has its first axis as long as theirs, unless that counts layers.
    """
    block = path.lower().split("/")[:-2]
    queries, outs, others = [], [], []
    for other, leaf in leaves.items():
        *rest, module, own = ["", "", *other.lower().split("/")]
        if own != "kernel" or leaf.ndim != 3 or rest[2:][: len(block[:-1])] != block[:-1]:
            continue
        inside = rest[2:] == block
        if _QUERY(module) or _KEY_OR_VALUE(module):
            queries += [(leaf.shape, bool(_QUERY(module)))] if inside else []
            continue
        if leaf.shape[1] > 2:  # two may be those of a gated layer
            others.append(leaf.shape)
        outs += [leaf.shape] if inside and _OUT(module) else []
    apart = any(query[1:] != out[:2] for query, asks in queries if asks for out in outs)
    return apart or any(query[0] == other[0] for query, _ in queries for other in others)


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
    kernels: list[str] = []
    biases: dict[str, list[str]] = {}
    for path, leaf in leaves.items():
        if path in paths or (leaf.ndim > 1 and _last(path).lower() not in ("bias", "b")):
            kernels.append(_module(path))
        elif _last(path).lower() in ("bias", "b"):
            biases.setdefault(_module(path), []).append(path)
    modules = {path: _module(path) for path in paths}
    alone = {path: kernels.count(module) <= 1 for path, module in modules.items()}
    return {path: biases.get(modules[path], []) if alone[path] else [] for path in paths}


def _module(path: str) -> str:
    return path.rpartition("/")[0]


def _last(path: str) -> str:
    return path.rpartition("/")[2]
