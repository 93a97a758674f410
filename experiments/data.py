"""Datasets as arrays in memory, and batches whose order is a pure function of seed and epoch.

Everything is read through TFDS's data sources, without TensorFlow: our own `digits` and `glyphs`
are prepared on first use; other datasets (``cifar10``, ``imagenet2012``, ...) are read by their
TFDS name where their array_record files are in the data directory. What does not fit in memory is
read as it is needed (`streams`).
"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from experiments import datasets, streams
from experiments.streams import Batch, Stream


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A split in memory.

    Attributes:
      images: uint8 ``[n, height, width, channels]``.
      labels: int32 ``[n]``.
      classes: number of classes.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image."""
        return self.images.shape[1:]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def batches(
        self, batch_size: int, *, seed: int, start: int = 0, augment: bool = False
    ) -> Iterator[Batch]:
        """Shuffled batches without end; the order is a function of ``(seed, epoch)`` alone.

        So there is no state to save: a run that stopped after ``start`` batches goes on with
        exactly those it would have seen. The last, smaller batch of an epoch is left out.

        Args:
          batch_size: images a batch, on all processes.
          seed: seed of order and augmentation.
          start: number of batches already seen.
          augment: shift by up to 4 pixels and mirror (for natural images, not for characters).

        Yields:
          This process's share of a batch.

        Raises:
          ValueError: if a batch is larger than the dataset, or does not divide by the processes.

        Examples:
          >>> import itertools, numpy as np
          >>> from experiments import data
          >>> toy = data.Dataset(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), np.arange(6), 6)
          >>> whole = [b["label"].tolist() for b in itertools.islice(toy.batches(2, seed=1), 5)]
          >>> rest = toy.batches(2, seed=1, start=4)
          >>> next(rest)["label"].tolist() == whole[4]
          True
        """
        per_epoch, own = len(self) // batch_size, _own(batch_size)
        if per_epoch == 0:
            raise ValueError(f"`batch_size` must be at most {len(self)}, got {batch_size}")
        for epoch, first in _epochs(start, per_epoch):
            order = np.random.default_rng((seed, epoch)).permutation(len(self))
            for index in range(first, per_epoch):
                chosen = order[index * batch_size : (index + 1) * batch_size]
                image = self.images[chosen]
                if augment:
                    image = _shifted(image, np.random.default_rng((seed, epoch, index)))
                yield {"image": image[own], "label": self.labels[chosen][own]}

    def whole(self, batch_size: int) -> Iterator[Batch]:
        """All images once, in batches of one shape; the last is filled up under the label -1.

        Args:
          batch_size: images a batch, on all processes.

        Yields:
          This process's share of a batch.

        Raises:
          ValueError: if a batch does not divide by the processes.

        Examples:
          >>> import numpy as np
          >>> from experiments import data
          >>> toy = data.Dataset(np.zeros((3, 1, 1, 1), np.uint8), np.arange(3, dtype=np.int32), 3)
          >>> [batch["label"].tolist() for batch in toy.whole(2)]
          [[0, 1], [2, -1]]
        """
        own = _own(batch_size)
        for begin in range(0, len(self), batch_size):
            part = slice(begin, begin + batch_size)
            batch = {"image": self.images[part], "label": self.labels[part]}
            yield {name: x[own] for name, x in streams.filled(batch, batch_size).items()}


Images = Dataset | Stream
"""What batches come from."""


def _own(batch_size: int) -> slice:
    """Which images of a batch are those of this process."""
    each = streams.share(batch_size)
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


def opened(config: Any, split: str) -> Images:
    """A split, in memory or, where the config has a ``crop``, on disk.

    Args:
      config: as for `load`; with ``crop``, the edge of images, and ``workers``, see `Stream`, the
        images are read as they are needed.
      split: a split with TFDS's slicing.

    Returns:
      The images and labels.

    Raises:
      ValueError: if another dataset is not there as array_record files.
    """
    options: dict[str, Any] = dict(config)
    crop, workers = options.pop("crop", 0), options.pop("workers", 0)
    if not crop:
        return load(options, split)
    builder = _builder(options)
    return Stream(_source(builder, split, ENCODED), _classes(builder), crop, workers)


ENCODED: Any = {"image": tfds.decode.SkipDecoding()}
"""What streams of images are decoded by: they do it themselves, no finer than they need."""


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
    builder = _builder(config)
    source = _source(builder, split)
    examples = [source[index] for index in range(len(source))]
    return Dataset(
        images=np.stack([example["image"] for example in examples]),
        labels=np.array([example["label"] for example in examples], np.int32),
        classes=_classes(builder),
    )


def _builder(config: Any) -> Any:
    options: dict[str, Any] = dict(config)
    name, data_dir = options.pop("name"), options.pop("data_dir", "") or None
    if name == "glyphs":
        options = {"config": datasets.GlyphsConfig(**options)}
    builder: Any = tfds.builder(name, data_dir=data_dir, file_format="array_record", **options)
    if isinstance(builder, datasets.OURS):
        if not sys.stderr.isatty():  # its bars are made for terminals
            tfds.disable_progress_bar()
        builder.download_and_prepare()
    return builder


def _classes(builder: Any) -> int:
    return builder.info.features["label"].num_classes


def _source(builder: Any, split: str, decoders: Any = None) -> Any:
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except KeyError as error:
        if builder.info.splits:  # the dataset is there, the split is not
            raise
        raise ValueError(
            "`data.name` must be a dataset prepared as array_record files, got "
            f"{builder.name!r}: where TensorFlow is installed, run tfds.builder({builder.name!r}, "
            "file_format='array_record').download_and_prepare(), then set `data.data_dir`"
        ) from error


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
