"""Rendered glyphs: 62 letters and digits from the fonts that ship inside matplotlib, made hard.

Every image is one character in one font under a random affine map, with a faint piece of another
glyph at its border, a graded background and noise; half of them are inverted. The same arguments
give the same images, up to the rasteriser of the installed Pillow.
"""

import functools
import pathlib
import string
from collections.abc import Iterator

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmti10", "cmss10", "cmtt10"),
)
_DETAIL = 4  # template pixels per image pixel
_SAMPLES = 3  # samples per image pixel and axis
_CHUNK = 2000


@functools.cache
def _templates(size: int) -> np.ndarray:
    """Every character in every font, centred on twice its em square: `[62, 21, side, side]`."""
    side = 2 * _DETAIL * size
    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), side // 2) for name in _FONTS]
    images = np.zeros((len(CHARACTERS), len(fonts), side, side), np.uint8)
    for i, character in enumerate(CHARACTERS):
        for j, font in enumerate(fonts):
            canvas = Image.new("L", (side, side))
            left, top, right, bottom = font.getbbox(character)
            corner = ((side - left - right) // 2, (side - top - bottom) // 2)
            ImageDraw.Draw(canvas).text(corner, character, fill=255, font=font)
            images[i, j] = np.asarray(canvas)
    return images


def _inverse_maps(rng: np.random.Generator, count: int, difficulty: float) -> np.ndarray:
    """Random maps from image to template, `[count, 2, 2]`: rotation, shear and scale undone."""
    angle = rng.uniform(-0.26, 0.26, count) * difficulty
    shear = rng.uniform(-0.25, 0.25, count) * difficulty
    scale = 1.225 + rng.uniform(-0.175, 0.175, count) * difficulty
    cos, sin = np.cos(angle), np.sin(angle)
    forward = np.array([[cos, cos * shear - sin], [sin, sin * shear + cos]]) * scale
    return np.linalg.inv(np.moveaxis(forward, -1, 0)).astype(np.float32)


def _draw(templates: np.ndarray, maps: np.ndarray, shift: np.ndarray, size: int) -> np.ndarray:
    """Ink in [0, 1], `[count, size, size]`, of templates through maps and shifts (in pixels)."""
    count, side = templates.shape[0], templates.shape[-1]
    axis = (np.arange(size * _SAMPLES, dtype=np.float32) + 0.5) / _SAMPLES - size / 2
    x = axis[None, None, :] - shift[:, 0, None, None]
    y = axis[None, :, None] - shift[:, 1, None, None]

    def source(row: int) -> np.ndarray:
        a, b = maps[:, row, 0, None, None], maps[:, row, 1, None, None]
        return ((a * x + b * y) * _DETAIL + side / 2).astype(np.int32)

    column, row = source(0), source(1)
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    flat = np.where(inside, row * side + column, 0)
    flat += (np.arange(count, dtype=np.int32) * side * side)[:, None, None]
    ink = np.where(inside, templates.reshape(-1)[flat], 0)
    blocks = ink.reshape(count, size, _SAMPLES, size, _SAMPLES)
    return blocks.mean(axis=(2, 4), dtype=np.float32) / 255


def _backgrounds(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Planes of random height and slope, `[count, size, size]`."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    slope = rng.uniform(-0.12, 0.12, (count, 2, 1, 1)).astype(np.float32)
    level = rng.uniform(0.12, 0.32, (count, 1, 1)).astype(np.float32)
    return level + slope[:, 0] * axis[None, :, None] + slope[:, 1] * axis[None, None, :]


def _random_ink(
    rng: np.random.Generator, labels: np.ndarray, shift: np.ndarray, size: int, difficulty: float
) -> np.ndarray:
    """Ink of characters in random fonts under random maps, `[count, size, size]`."""
    templates, count = _templates(size), len(labels)
    fonts = rng.integers(templates.shape[1], size=count)
    maps = _inverse_maps(rng, count, difficulty)
    return _draw(templates[labels, fonts], maps, shift.astype(np.float32), size)


def _chunk(
    rng: np.random.Generator, count: int, size: int, difficulty: float
) -> tuple[np.ndarray, np.ndarray]:
    labels, others = rng.integers(len(CHARACTERS), size=(2, count))
    shift = rng.uniform(-1.5, 1.5, (count, 2)) * difficulty * size / 16
    glyph = _random_ink(rng, labels, shift, size, difficulty)
    direction = rng.uniform(0, 2 * np.pi, count)
    border = np.stack([np.cos(direction), np.sin(direction)], axis=1) * 0.62 * size
    clutter = _random_ink(rng, others, border, size, difficulty)
    clutter *= rng.uniform(0.2, 0.5, (count, 1, 1)) * min(difficulty, 2.0)
    ground = _backgrounds(rng, count, size)
    ink = rng.uniform(0.45, 0.9, (count, 1, 1))
    image = ground + (ink - ground) * np.maximum(glyph, clutter)
    image = np.where(rng.random((count, 1, 1)) < 0.5, 1 - image, image)
    image += rng.normal(0, 0.07 * difficulty, image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)[..., None], labels


def render(
    count: int, *, size: int = 16, difficulty: float = 1.0, seed: int = 0, stream: int = 0
) -> Iterator[tuple[np.ndarray, int]]:
    """Glyph images, one after another.

    Args:
      count: how many.
      size: height and width in pixels.
      difficulty: factor on rotation, shear, spread of scale, shift, clutter and noise; at 1 they
        are 0.26 rad, 0.25, 1.05 to 1.40, 1.5 pixels of 16, 0.2 to 0.5 and 0.07.
      seed: seed of the images.
      stream: number of an independent stream of the same seed, one for each split.

    Yields:
      Image, uint8 ``[size, size, 1]``, and label, the index in `CHARACTERS`.

    Examples:
      >>> from experiments import glyphs
      >>> image, label = next(glyphs.render(1, size=16, seed=3))
      >>> image.shape, 0 <= label < 62
      ((16, 16, 1), True)
    """
    for begin in range(0, count, _CHUNK):
        rng = np.random.default_rng((seed, stream, begin))
        images, labels = _chunk(rng, min(_CHUNK, count - begin), size, difficulty)
        yield from zip(images, labels.tolist(), strict=True)
