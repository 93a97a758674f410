"""Datasets as arrays in memory, and batches whose order is a pure function of seed and epoch.

Everything is read through TFDS's data sources, without TensorFlow: our own `digits` and `glyphs`
are prepared on first use; other datasets (``cifar10``, ``cifar100``, ...) are read by their TFDS
name where their array_record files are in the data directory.
"""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from experiments import datasets

Batch = dict[str, np.ndarray]
"""``image``: uint8 ``[batch, height, width, channels]``; ``label``: int32 ``[batch]``."""


class Dataset(NamedTuple):
    """A split in memory.

    Attributes:
      images: uint8 ``[n, height, width, channels]``.
      labels: int32 ``[n]``.
      classes: number of classes.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: int


def load(config: Any, split: str) -> Dataset:
    """Reads a split into memory; `digits` and `glyphs` are prepared on first use.

    Args:
      config: ``name`` (``digits``, ``glyphs`` or a TFDS name), ``data_dir`` (empty: TFDS's own
        default, which honours ``TFDS_DATA_DIR``) and, for ``glyphs``, values of `GlyphsConfig`.
      split: a split with TFDS's slicing, such as ``train[:90%]``.

    Returns:
      The images and labels.

    Raises:
      ValueError: if another dataset is not there as array_record files.

    Examples:
      >>> import tensorflow_datasets as tfds
      >>> from experiments import data
      >>> with tfds.testing.mock_data(num_examples=5):  # random images in place of CIFAR's
      ...     data.load({"name": "cifar10"}, "train").images.shape
      (5, 32, 32, 3)
    """
    options: dict[str, Any] = dict(config)
    name, data_dir = options.pop("name"), options.pop("data_dir", "") or None
    if name == "glyphs":
        options = {"config": datasets.GlyphsConfig(**options)}
    builder: Any = tfds.builder(name, data_dir=data_dir, file_format="array_record", **options)
    if isinstance(builder, datasets.OURS):
        if not sys.stderr.isatty():  # its bars are made for terminals
            tfds.disable_progress_bar()
        builder.download_and_prepare()
    return _read(builder, split)


def _read(builder: Any, split: str) -> Dataset:
    try:
        source = builder.as_data_source(split=split)
    except KeyError as error:
        if builder.info.splits:  # the dataset is there, the split is not
            raise
        raise ValueError(
            "`data.name` must be a dataset prepared as array_record files, got "
            f"{builder.name!r}: where TensorFlow is installed, run tfds.builder({builder.name!r}, "
            "file_format='array_record').download_and_prepare(), then set `data.data_dir`"
        ) from error
    examples = [source[index] for index in range(len(source))]
    return Dataset(
        images=np.stack([example["image"] for example in examples]),
        labels=np.array([example["label"] for example in examples], np.int32),
        classes=builder.info.features["label"].num_classes,
    )


def batches(
    dataset: Dataset, batch_size: int, *, seed: int, start: int = 0, augment: bool = False
) -> Iterator[Batch]:
    """Shuffled batches without end; the order is a function of ``(seed, epoch)`` alone.

    So there is no state to save: a run that stopped after ``start`` batches goes on with exactly
    those it would have seen. The last, smaller batch of an epoch is left out.

    Args:
      dataset: the images and labels.
      batch_size: images a batch.
      seed: seed of order and augmentation.
      start: number of batches already seen.
      augment: shift by up to 4 pixels and mirror (for natural images, not for characters).

    Yields:
      Batches of ``batch_size`` images and labels.

    Raises:
      ValueError: if a batch is larger than the dataset.

    Examples:
      >>> import itertools, numpy as np
      >>> from experiments import data
      >>> toy = data.Dataset(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), np.arange(6), 6)
      >>> whole = [b["label"].tolist() for b in itertools.islice(data.batches(toy, 2, seed=1), 5)]
      >>> rest = data.batches(toy, 2, seed=1, start=4)
      >>> next(rest)["label"].tolist() == whole[4]
      True
    """
    per_epoch = len(dataset.labels) // batch_size
    if per_epoch == 0:
        raise ValueError(f"`batch_size` must be at most {len(dataset.labels)}, got {batch_size}")
    for epoch, first in _epochs(start, per_epoch):
        order = np.random.default_rng((seed, epoch)).permutation(len(dataset.labels))
        for index in range(first, per_epoch):
            chosen = order[index * batch_size : (index + 1) * batch_size]
            image = dataset.images[chosen]
            if augment:
                image = _shifted(image, np.random.default_rng((seed, epoch, index)))
            yield {"image": image, "label": dataset.labels[chosen]}


def _epochs(start: int, per_epoch: int) -> Iterator[tuple[int, int]]:
    """Epochs from the one under way, and the index of the first batch in each."""
    epoch, first = divmod(start, per_epoch)
    while True:
        yield epoch, first
        epoch, first = epoch + 1, 0


def _shifted(images: np.ndarray, rng: np.random.Generator, pad: int = 4) -> np.ndarray:
    """Each image shifted by up to `pad` pixels (zeros come in), every second one mirrored."""
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    rows, columns = rng.integers(2 * pad + 1, size=(2, count))
    shifted = np.moveaxis(windows[np.arange(count), rows, columns], 1, -1)
    mirrored = rng.random((count, 1, 1, 1)) < 0.5
    return np.where(mirrored, shifted[:, :, ::-1], shifted)


def whole(dataset: Dataset, batch_size: int) -> Iterator[Batch]:
    """All images once, in batches of one shape; the last is filled up under the label -1.

    Args:
      dataset: the images and labels.
      batch_size: images a batch.

    Yields:
      Batches of ``batch_size`` images and labels.

    Examples:
      >>> import numpy as np
      >>> from experiments import data
      >>> toy = data.Dataset(np.zeros((3, 1, 1, 1), np.uint8), np.arange(3, dtype=np.int32), 3)
      >>> [batch["label"].tolist() for batch in data.whole(toy, 2)]
      [[0, 1], [2, -1]]
    """
    for begin in range(0, len(dataset.labels), batch_size):
        image = dataset.images[begin : begin + batch_size]
        label = dataset.labels[begin : begin + batch_size]
        missing = batch_size - len(label)
        yield {
            "image": np.pad(image, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(label, (0, missing), constant_values=-1),
        }
