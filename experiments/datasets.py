"""Our own TFDS builders; they write array_record files, so that nothing needs TensorFlow."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments import glyphs


def _info(builder: tfds.core.DatasetBuilder, size: int, names: list[str]) -> tfds.core.DatasetInfo:
    features = {
        "image": tfds.features.Tensor(shape=(size, size, 1), dtype=np.uint8),
        "label": tfds.features.ClassLabel(names=names),
    }
    return tfds.core.DatasetInfo(builder=builder, features=tfds.features.FeaturesDict(features))


class Digits(tfds.core.GeneratorBasedBuilder):
    """The 1,797 scanned 8x8 digits of scikit-learn: 1,347 for training and 450 for testing."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self, 8, [str(digit) for digit in range(10)])

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        order = np.random.default_rng(0).permutation(1797)
        return {
            "train": self._generate_examples(order[:1347]),
            "test": self._generate_examples(order[1347:]),
        }

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        for index in indices.tolist():
            yield index, {"image": images[index], "label": int(digits.target[index])}


@dataclasses.dataclass(eq=False)
class GlyphsConfig(tfds.core.BuilderConfig):
    """Size and difficulty of the glyphs; every value is part of the name, so of the folder.

    Attributes:
      name: made from the values below, whatever is given.
      size: height and width in pixels.
      difficulty: factor on jitter, clutter and noise (see `glyphs.render`).
      seed: seed of the images.
      train: number of training images.
      validation: number of validation images.
      test: number of test images.
    """

    name: str = ""
    size: int = 16
    difficulty: float = 1.0
    seed: int = 0
    train: int = 32_000
    validation: int = 6_000
    test: int = 10_000

    def __post_init__(self) -> None:
        """Name the config after its values."""
        counts = f"{self.train}-{self.validation}-{self.test}"
        self.name = f"size{self.size}_difficulty{self.difficulty}_seed{self.seed}_{counts}"


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """62 classes of characters rendered from matplotlib's fonts, distorted and cluttered."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        config: Any = self.builder_config
        return _info(self, config.size, list(glyphs.CHARACTERS))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        splits = ("train", "validation", "test")
        return {name: self._generate_examples(name, i) for i, name in enumerate(splits)}

    def _generate_examples(self, split: str, stream: int) -> Iterator[tuple[int, dict[str, Any]]]:
        config: Any = self.builder_config
        images = glyphs.render(
            getattr(config, split),
            size=config.size,
            difficulty=config.difficulty,
            seed=config.seed,
            stream=stream,
        )
        for index, (image, label) in enumerate(images):
            yield index, {"image": image, "label": label}


OURS = (Digits, Glyphs)
"""The builders that are prepared on first use."""
