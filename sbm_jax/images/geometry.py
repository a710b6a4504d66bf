"""Which part of a picture a backbone sees, and how it is resized: one geometry for all backbones, or each its own."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from sbm_jax.images.sources import ImageSource, open_image


@dataclass(frozen=True)
class Geometry:
    """From an RGB picture to uint8 [side, side, 3], in this order, each step optional.

    `square`: crop the largest centred square, one pixel nearer to the top left if the margin is odd.
    `resize`: with Pillow's antialiased `resample` filter, to (height, width), or so that the shortest edge has this
    length and the other `int(length * long / short)`. `crop`: the centred `side` x `side` pixels; what is too small
    is padded with black, the odd pixel of padding before it.
    """

    name: str
    side: int
    square: bool = False
    resize: int | tuple[int, int] | None = None
    resample: Resampling = Resampling.BICUBIC
    crop: bool = False

    def __call__(self, image: Image.Image) -> np.ndarray:
        if self.square and image.width != image.height:
            short = min(image.size)
            left, top = (image.width - short) // 2, (image.height - short) // 2
            image = image.crop((left, top, left + short, top + short))
        if self.resize is not None:
            image = image.resize(self._target(image.width, image.height), self.resample)
        pixels = np.asarray(image)
        return _centre(pixels, self.side) if self.crop else pixels

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing."""
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        assert self.resize is not None
        long = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, long) if width <= height else (long, self.resize)


def _centre(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = (min(n, side) for n in pixels.shape[:2])
    top, left = ((n - m) // 2 for n, m in zip(pixels.shape[:2], (height, width), strict=True))
    part = pixels[top : top + height, left : left + width]
    if part.shape[:2] == (side, side):
        return part
    out = np.zeros((side, side, 3), np.uint8)
    top, left = -((height - side) // 2), -((width - side) // 2)
    out[top : top + height, left : left + width] = part
    return out


def square(side: int) -> Geometry:
    """The default: the largest centred square, resized with the antialiased bicubic filter."""
    return Geometry("square", side, square=True, resize=(side, side))


def stretch(side: int, resample: Resampling = Resampling.BICUBIC) -> Geometry:
    """The whole picture made square, whatever its aspect ratio."""
    return Geometry("stretch", side, resize=(side, side), resample=resample)


def load_square(source: ImageSource, side: int) -> np.ndarray:
    """Decode with `open_image` and take `square(side)`: uint8 [side, side, 3]."""
    return square(side)(open_image(source))


def to_square(image: Image.Image, side: int) -> np.ndarray:
    """`square(side)` of an RGB picture in memory: uint8 [side, side, 3]."""
    return square(side)(image)


def normalise(images_bhwc: np.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float]) -> np.ndarray:
    """uint8 [b, h, w, 3] -> f32 (x / 255 - mean) / std, per channel."""
    if images_bhwc.dtype != np.uint8:
        raise ValueError(f"expected uint8 images, got {images_bhwc.dtype}")
    unit = images_bhwc.astype(np.float32) * np.float32(1 / 255)
    return (unit - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
