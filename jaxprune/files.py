"""Sparse files: the values that are kept and where they stand, as plain safetensors."""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.types import wrong

_VALUES, _PLACES = ".values", ".places"
_TYPES = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_TYPES |= {"float16", "bfloat16", "float32", "float64", "complex64"}
_LAST = 255
"""A byte of a gap that goes on in the next one."""


def save_sparse(path: str | os.PathLike[str], params: Any, plan: str = "") -> None:
    """Writes params, of sparse leaves only what is not zero.

    A leaf of which enough is 0 is stored as two tensors: its other entries in order,
    ``<path>.values``, and where they stand, ``<path>.places``: the numbers of zeros before each,
    compressed. Masks of density d take ``-d log2 d - (1 - d) log2 (1 - d)`` bits an entry and a few
    hundredths more. The shapes stand in the header as JSON. There is no pickle in it, and any
    reader of safetensors opens it; other leaves are stored as they are. The file is there as a
    whole or not at all.

    Args:
      path: of the file, ``.safetensors`` by custom.
      params: arrays, in any containers; entries come back bit for bit.
      plan: what is stored with them, such as the ``plan`` of a `Shrunk` network.

    Raises:
      ImportError: if safetensors is not installed.
      ValueError: if there is no array, or one that safetensors has no type for.

    Examples:
      >>> import jax.numpy as jnp, jaxprune, os, tempfile
      >>> params = {"kernel": jnp.eye(64), "bias": jnp.ones(3)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = os.path.join(folder, "net.safetensors")
      ...     jaxprune.save_sparse(file, params)
      ...     size, again = os.path.getsize(file), jaxprune.load_sparse(file)
      >>> size < 64 * 64 * 4 / 10, bool((again["kernel"] == params["kernel"]).all())
      (True, True)

    References:
      Han et al., Deep Compression, 2016, https://arxiv.org/abs/1510.00149, section 2, for gaps
      between weights, with Huffman codes; one code for the whole file is our reading.
    """
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    sparse: dict[str, tuple[int, ...]] = {}
    for name, leaf in trees.by_path(params).items():
        if not hasattr(leaf, "dtype"):
            continue
        if not (leaf.dtype == bool or str(leaf.dtype) in _TYPES):
            expected = f"have types that safetensors has at '{name}'"
            raise ValueError(wrong("params", expected, str(leaf.dtype)))
        x = np.asarray(leaf)
        kept = _bits(x).any(axis=-1)
        places = _packed(np.flatnonzero(kept))
        if kept.sum() * x.itemsize + places.nbytes < x.nbytes:
            tensors[name + _VALUES], tensors[name + _PLACES] = x.reshape(-1)[kept], places
            sparse[name] = x.shape
        else:
            tensors[name] = np.asarray(x, order="C")
    suffixed = {name + end for name in sparse for end in (_VALUES, _PLACES)}
    paths = trees.all_paths(params)
    if len({*paths}) < len(paths) or suffixed.intersection(paths):
        raise ValueError(wrong("params", "have paths of their own", sorted(paths)))
    if not tensors:
        raise ValueError(wrong("params", "hold an array", params))
    header = {"format": "jaxprune", "sparse": json.dumps(sparse), "plan": plan}
    temporary = Path(f"{path}.{os.getpid()}.part")
    try:
        save_file(tensors, temporary, metadata=header)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_sparse(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Reads what `save_sparse` wrote.

    Args:
      path: of the file.
      like: a tree whose containers the params come in; nested dicts by default.

    Returns:
      The params.

    Raises:
      ImportError: if safetensors is not installed.
      ValueError: if `save_sparse` did not write the file, or ``like`` has other leaves.

    Examples:
      >>> import jax.numpy as jnp, jaxprune, os, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = os.path.join(folder, "net.safetensors")
      ...     jaxprune.save_sparse(file, {"dense": {"bias": jnp.ones(3)}})
      ...     print(jaxprune.load_sparse(file))
      {'dense': {'bias': Array([1., 1., 1.], dtype=float32)}}
    """
    header, tensors = _read(path)
    shapes: Mapping[str, Any] = json.loads(header["sparse"])
    leaves: dict[str, Any] = {}
    for name, x in tensors.items():
        leaf = name.removesuffix(_VALUES)
        if leaf in shapes and name != leaf:
            whole = np.zeros(shapes[leaf], x.dtype)
            whole.reshape(-1)[_unpacked(tensors[leaf + _PLACES])] = x
            leaves[leaf] = _array(whole)
        elif name.removesuffix(_PLACES) not in shapes:
            leaves[name] = _array(x)
    if like is None:
        return _nested(leaves)
    wanted = trees.by_path(like)
    for name, leaf in wanted.items():
        shape = leaves[name].shape if name in leaves else None
        if hasattr(leaf, "shape") and shape != leaf.shape:
            expected = f"have a leaf of shape {tuple(leaf.shape)} at '{name}', as `like` has"
            raise ValueError(wrong("path", expected, shape))
    return trees.from_paths(like, {**wanted, **leaves})


def load_plan(path: str | os.PathLike[str]) -> str:
    """Reads the plan that `save_sparse` stored with the params.

    Args:
      path: of the file.

    Returns:
      The plan, as it was given; an empty string if there was none.

    Raises:
      ImportError: if safetensors is not installed.
      ValueError: if `save_sparse` did not write the file.

    Examples:
      >>> import jax.numpy as jnp, jaxprune, os, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = os.path.join(folder, "net.safetensors")
      ...     jaxprune.save_sparse(file, {"bias": jnp.ones(3)}, plan="[]")
      ...     jaxprune.load_plan(file)
      '[]'
    """
    return _read(path)[0]["plan"]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(wrong("path", "be a file", str(path)))
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(wrong("path", "be a whole safetensors file", str(path))) from error
    if header.get("format") != "jaxprune":
        raise ValueError(wrong("path", "be what `save_sparse` wrote", str(path)))
    return header, tensors


def _array(x: np.ndarray) -> Any:
    """A JAX array; NumPy's where JAX has no such type unless it is told."""
    return jnp.asarray(x) if jax.dtypes.canonicalize_dtype(x.dtype) == x.dtype else x


def _bits(x: np.ndarray) -> np.ndarray:
    """The bytes of each entry, `[n, bytes]`: -0.0 is no zero here."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).reshape(x.size, x.itemsize)


def _packed(places: np.ndarray) -> np.ndarray:
    """Increasing integers as their gaps, a byte each where it suffices, compressed."""
    gaps = np.diff(places, prepend=-1) - 1
    more = gaps // _LAST
    ends = np.cumsum(more + 1) - 1
    spelled = np.full(int(ends[-1]) + 1 if len(ends) else 0, _LAST, np.uint8)
    spelled[ends] = gaps % _LAST
    found = []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):  # chance, or a pattern
        stream = zlib.compressobj(9, strategy=strategy)
        found.append(stream.compress(spelled.tobytes()) + stream.flush())
    return np.frombuffer(min(found, key=len), np.uint8)


def _unpacked(packed: np.ndarray) -> np.ndarray:
    """The integers that `_packed` took."""
    spelled = np.frombuffer(zlib.decompress(packed.tobytes()), np.uint8)
    ends = np.flatnonzero(spelled != _LAST)
    return np.cumsum(spelled, dtype=np.int64)[ends] + np.arange(len(ends))


def _nested(leaves: Mapping[str, Any]) -> Any:
    """Dicts within dicts; a single leaf without a path is itself."""
    if [*leaves] == [""]:
        return leaves[""]
    found: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *outer, last = path.split("/")
        here = found
        for name in outer:
            here = here.setdefault(name, {})
        here[last] = leaf
    return found
