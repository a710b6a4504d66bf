"""Small JPEGs for the page, and pictures whose patches are lit by how much they drive a unit."""

import io

import numpy as np
from PIL import Image

from sbm_jax.report.colormaps import from_oklab, parse_hex, to_oklab
from sbm_jax.report.data import Thumb

_DARKEST = 0.6  # of the lightness of a picture is left where a unit is silent
_OUTLINE = "#ffd400"


def thumbnail(image_hwc: np.ndarray, alt: str, side: int = 96, quality: int = 82) -> Thumb:
    """uint8 [h, w, 3] -> a JPEG that fits into side x side pixels, about 3 kB; never enlarged."""
    picture = Image.fromarray(image_hwc)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality, optimize=True)
    return Thumb(stream.getvalue(), alt)


def lit(image_hwc: np.ndarray, heat_gg: np.ndarray, side: int = 96) -> np.ndarray:
    """uint8 [side, side, 3]: the picture with every patch as light as its value, and an outline of those of at least half of
    the largest. heat_gg: [g, g], not negative, rows from the top; without a positive value the picture stays as it is.

    Lightness is that of Oklab (Ottosson 2020), in which equal steps look equal: a patch of value h keeps a share
    .6 + .4 h / max of it, and of its chroma.
    """
    picture = np.asarray(Image.fromarray(image_hwc).resize((side, side), Image.Resampling.LANCZOS))
    heat = np.asarray(heat_gg, np.float64)
    if not heat.max() > 0:
        return picture
    patch = np.arange(side) * len(heat) // side
    share = (heat / heat.max())[np.ix_(patch, patch)]
    out = from_oklab(to_oklab(picture) * (_DARKEST + (1 - _DARKEST) * share)[:, :, None])
    inside = share >= 0.5
    padded = np.pad(inside, 2)
    near = [padded[2 + y : 2 + y + side, 2 + x : 2 + x + side] for y in range(-2, 3) for x in range(-2, 3)]
    out[inside & ~np.logical_and.reduce(near)] = parse_hex(_OUTLINE)
    return out
