"""Where a picture lies (a file of its own, a row of an HDF5 array, or memory) and how it becomes 8-bit RGB."""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from sbm_jax.errors import UserError
from sbm_jax.images.brick import read_row

MID_GREY = (128, 128, 128)

# What Pillow's decoders raise for damaged files, found by truncating and flipping bytes of each format.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class BrickImage:
    """One picture of an HDF5 array [n, h, w, 3] of uint8, such as `imgBrick` of NSD's nsd_stimuli.hdf5."""

    path: Path
    dataset: str
    row: int  # 0-based

    def __str__(self) -> str:
        return f"{self.path.name}[{self.dataset}, row {self.row}]"


@dataclass(frozen=True, eq=False)
class MemoryImage:
    """A picture that came inside a table: uint8 [h, w, 3] of the file `path`, called `label` there."""

    path: Path
    label: str
    pixels: np.ndarray

    def __str__(self) -> str:
        return f"{self.path.name}[{self.label}]"


ImageSource: TypeAlias = Path | BrickImage | MemoryImage


def open_image(source: ImageSource) -> Image.Image:
    """Decode to an RGB picture in memory; safe to call from many threads.

    For a file, EXIF orientation is applied, alpha is composited on mid-grey, 16-bit grey is scaled to 8 bits and
    of several frames the first is taken. Pillow warns above 89 megapixels and refuses twice that. Raises UserError
    naming a missing, unreadable or truncated file, or a brick that is not [n, h, w, 3] uint8 or has no such row.
    """
    if isinstance(source, BrickImage):
        return Image.fromarray(read_row(source.path, source.dataset, source.row))
    if isinstance(source, MemoryImage):
        return Image.fromarray(source.pixels)
    try:
        with Image.open(source) as opened:
            ImageOps.exif_transpose(opened, in_place=True)
            return _to_rgb(opened)
    except FileNotFoundError as error:
        raise UserError(f"{source}: no such image file") from error
    except _DECODE_ERRORS as error:
        raise UserError(
            f"{source}: not a readable image ({error}); replace it or take it off the image list"
        ) from error


def open_bytes(data: bytes, formats: tuple[str, ...], most_pixels: int) -> Image.Image:
    """Decode a picture that somebody sent, as `open_image` does a file. formats: Pillow's names of those that are tried.

    Raises UserError for what is none of them, has more than `most_pixels` (before any is decoded), or is damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats) as opened:
            if opened.width * opened.height > most_pixels:
                raise UserError(
                    f"the picture has {opened.width} x {opened.height} pixels; at most {most_pixels / 1e6:g} million are taken"
                )
            ImageOps.exif_transpose(opened, in_place=True)
            return _to_rgb(opened)
    except _DECODE_ERRORS as error:
        raise UserError(f"not a readable picture ({', '.join(formats)} are read): {error}") from error


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
