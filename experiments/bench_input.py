"""How fast images come: the whole input pipeline beside decoding alone."""

import io
import os
import time

import numpy as np
from PIL import Image

from experiments.streams import Stream

_IMAGES, _BATCH, _ROUNDS = 64, 64, 9
_SIZE = (500, 375)
"""A usual image of ImageNet, in pixels."""


def jpegs() -> list[bytes]:
    """Images of a usual size in pixels and in bytes, 65 kB: blurred noise, and grain."""
    rng, found = np.random.default_rng(0), []
    for _ in range(_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(_SIZE, Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, 9, smooth.shape)
        file = io.BytesIO()
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=88)
        found.append(file.getvalue())
    return found


def input_rows() -> list[tuple[str, str, str]]:
    """Images a second and core: read, decoded, cropped and batched; and decoded alone."""
    files, cores = jpegs(), os.cpu_count() or 1
    streamed, decoded = [], []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for file in files:
            Image.open(io.BytesIO(file)).convert("RGB")
        decoded.append(_IMAGES / (time.perf_counter() - began))
    source = [{"image": file, "label": 0} for file in files]
    batches = Stream(source, 1).batches(_BATCH, seed=0, augment=True)
    for _ in range(2 * cores + 2):  # those that were made ahead
        next(batches)
    for _ in range(_ROUNDS):  # without a pause, in which threads would work ahead
        began = time.perf_counter()
        for _ in range(4 * cores):
            next(batches)
        streamed.append(4 * _BATCH / (time.perf_counter() - began))
    kilobytes = sum(map(len, files)) / len(files) / 1000
    what = f"images/s a core, JPEGs of {_SIZE[0]}x{_SIZE[1]}, {kilobytes:.0f} kB"
    return [
        (f"{what}, whole pipeline to 224x224", _told(streamed), "any"),
        (f"{what}, decoded alone", _told(decoded), "any"),
    ]


def _told(rates: list[float]) -> str:
    low, middle, high = np.quantile(rates, [0.25, 0.5, 0.75])
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    for row in input_rows():
        print(*row)
