"""Images that are read from files while a network trains: TFDS's array_record files by grain.

Reading, decoding and cropping run in threads or in worker processes. Batches are uint8, a quarter
of the bytes of floats, and are normalised on the device. Batch n is a pure function of seed and n:
so there is no state to save, and a run that goes on, on any number of processes, sees exactly the
images that it would have seen.
"""

import dataclasses
import functools
import io
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from PIL import Image

Batch = dict[str, np.ndarray]
"""``image``: uint8 ``[batch, height, width, channels]``; ``label``: int32 ``[batch]``."""

_THREADS = min(16, os.cpu_count() or 1)
"""Each makes a batch at a time, and as many wait."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """A split on disk; each process reads its own share.

    Attributes:
      source: examples with ``label`` and ``image``: an encoded file, or uint8 ``[h, w, 3]``.
      classes: number of classes.
      size: edge of the square images that come out.
      workers: processes that read and decode; 0: threads of this one do.
    """

    source: Sequence[Any]
    classes: int
    size: int = 224
    workers: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image."""
        return self.size, self.size, 3

    def __len__(self) -> int:
        """Number of images, on all processes."""
        return len(self.source)

    def batches(
        self, batch_size: int, *, seed: int, start: int = 0, augment: bool = False
    ) -> Iterator[Batch]:
        """Shuffled batches without end.

        Args:
          batch_size: images a batch, on all processes.
          seed: seed of order and augmentation.
          start: number of batches already seen.
          augment: random boxes, mirrored at random; else the central one.

        Yields:
          This process's share of a batch.

        Raises:
          ValueError: if a batch is larger than the split, or does not divide by the processes.
        """
        if batch_size > len(self):
            raise ValueError(f"`batch_size` must be at most {len(self)}, got {batch_size}")
        images = grain.MapDataset.source(self.source).seed(seed).shuffle().repeat()
        if augment:
            images = images.random_map(functools.partial(random_box, size=self.size))
        else:
            images = images.map(self._look)
        own = _own(images).batch(share(batch_size), drop_remainder=True)
        yield from self._read(own[start:])

    def whole(self, batch_size: int) -> Iterator[Batch]:
        """All images once, in batches of one shape, as many on each process.

        Args:
          batch_size: images a batch, on all processes.

        Yields:
          This process's share of a batch, filled up under the label -1.

        Raises:
          ValueError: if a batch does not divide by the processes.
        """
        each = share(batch_size)
        images = grain.MapDataset.source(self.source)
        read = self._read(_own(images).map(self._look).batch(each))
        none = {"image": np.zeros((0, *self.shape), np.uint8), "label": np.zeros(0, np.int32)}
        for _ in range(math.ceil(math.ceil(len(self) / jax.process_count()) / each)):
            yield filled(next(read, none), each)

    @property
    def _look(self) -> Callable[[Any], Batch]:
        return functools.partial(central_box, size=self.size)

    def _read(self, batches: grain.MapDataset) -> Iterator[Batch]:
        threads = 1 if self.workers else _THREADS
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        read = batches.to_iter_dataset(options)
        if self.workers:
            workers = grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=1)
            read = read.mp_prefetch(workers, worker_init_fn=_stay)
        yield from read


def _own(images: grain.MapDataset) -> grain.MapDataset:
    """Every n-th image, of n processes."""
    return images[jax.process_index() :: jax.process_count()]


def _stay(worker: int, workers: int) -> None:
    """A worker lives as long as the run, which saves on SIGTERM; clusters send it to all alike."""
    del worker, workers
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def central_box(example: Any, size: int) -> Batch:
    """The largest central square but an eighth, as ImageNet is evaluated.

    Args:
      example: ``image`` and ``label``.
      size: edge of the square that comes out.

    Returns:
      The image and its label.
    """
    image = _opened(example["image"])
    edge = min(image.size) * 0.875
    left, top = ((whole - edge) / 2 for whole in image.size)
    return _example(example, _resized(image, (left, top, left + edge, top + edge), size))


def random_box(example: Any, rng: np.random.Generator, size: int) -> Batch:
    """A box of 8 to 100 % of the area, between 3:4 and 4:3, mirrored half of the time.

    Args:
      example: ``image`` and ``label``.
      rng: of this example in this epoch.
      size: edge of the square that comes out.

    Returns:
      The image and its label.

    References:
      Szegedy et al., Going deeper with convolutions, 2014, https://arxiv.org/abs/1409.4842,
      section 6.
    """
    image = _opened(example["image"])
    width, height = image.size
    for _ in range(10):
        area = rng.uniform(0.08, 1) * height * width
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if across <= width and down <= height:
            break
    else:
        across = down = min(height, width)
    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
    pixels = _resized(image, (left, top, left + across, top + down), size)
    return _example(example, pixels[:, ::-1] if rng.random() < 0.5 else pixels)


def _opened(image: Any) -> Image.Image:
    """An image of its size; what is in a file is not decoded yet."""
    return Image.open(io.BytesIO(image)) if isinstance(image, bytes) else Image.fromarray(image)


def _resized(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """A box of an image; JPEG decodes no finer than that needs, which saves most of the work."""
    width, height = image.size
    finer = min(box[2] - box[0], box[3] - box[1]) / size
    image.draft("RGB", (math.ceil(width / finer), math.ceil(height / finer)))
    across, down = image.width / width, image.height / height
    box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    small = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(small)


def _example(element: Any, pixels: np.ndarray) -> Batch:
    return {"image": pixels, "label": np.asarray(element["label"], np.int32)}


def share(batch_size: int) -> int:
    """How many images of a batch each process has.

    Args:
      batch_size: images a batch, on all processes.

    Returns:
      Images a process.

    Raises:
      ValueError: if the batch does not divide by the processes.

    Examples:
      >>> from experiments import streams
      >>> streams.share(64)
      64
    """
    each, left = divmod(batch_size, jax.process_count())
    if left:
        expected = f"be a multiple of the {jax.process_count()} processes"
        raise ValueError(f"`batch_size` must {expected}, got {batch_size}")
    return each


def filled(batch: Batch, size: int) -> Batch:
    """A batch of so many images; those that are missing are black, under the label -1.

    Args:
      batch: images and labels.
      size: how many there must be.

    Returns:
      The batch.

    Examples:
      >>> import numpy as np
      >>> from experiments import streams
      >>> few = {"image": np.zeros((1, 2, 2, 1), np.uint8), "label": np.array([3])}
      >>> streams.filled(few, 2)["label"].tolist()
      [3, -1]
    """
    missing = size - len(batch["label"])
    return {
        "image": np.pad(batch["image"], ((0, missing), (0, 0), (0, 0), (0, 0))),
        "label": np.pad(batch["label"], (0, missing), constant_values=-1),
    }
