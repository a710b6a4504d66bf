"""Decode image files to square RGB arrays: one geometry for every backbone, so tokens line up."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sbm_jax.errors import UserError

MID_GREY = (128, 128, 128)

# What Pillow's decoders raise for damaged files, found by truncating and flipping bytes of each format.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def load_square(path: Path, side: int) -> np.ndarray:
    """Decode to uint8 [side, side, 3] RGB.

    EXIF orientation is applied, alpha is composited on mid-grey, 16-bit grey is scaled to 8 bits, the largest
    centred square is cropped (one pixel nearer to the top left if the margin is odd), then resized with
    Pillow's antialiased bicubic filter. Of several frames the first is taken. Raises UserError naming an
    unreadable or truncated file.
    """
    try:
        with warnings.catch_warnings():
            # Photographs above 89 megapixels are legitimate; Pillow still refuses twice that.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                image = _to_rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image file") from error
    except _DECODE_ERRORS as error:
        raise UserError(f"{path}: not a readable image ({error}); replace it or take it off the image list") from error
    return to_square(image, side)


def to_square(image: Image.Image, side: int) -> np.ndarray:
    """The geometry of load_square for an RGB picture in memory: uint8 [side, side, 3]."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    image = image.crop((left, top, left + short, top + short))
    return np.array(image.resize((side, side), Image.Resampling.BICUBIC))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit grey values (mode {image.mode}) have no defined range; save it as 8 or 16 bits")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        clear = image.convert("RGBA")
        grey = Image.new("RGBA", clear.size, (*MID_GREY, 255))
        return Image.alpha_composite(grey, clear).convert("RGB")
    return image.convert("RGB")


def normalise(images_bhwc: np.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float]) -> np.ndarray:
    """uint8 [b, h, w, 3] -> f32 (x / 255 - mean) / std, per channel."""
    if images_bhwc.dtype != np.uint8:
        raise ValueError(f"expected uint8 images, got {images_bhwc.dtype}")
    unit = images_bhwc.astype(np.float32) * np.float32(1 / 255)
    return (unit - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
