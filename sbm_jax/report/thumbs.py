"""Small JPEGs for the page."""

import io

import numpy as np
from PIL import Image

from sbm_jax.report.data import Thumb


def thumbnail(image_hwc: np.ndarray, alt: str, side: int = 96, quality: int = 82) -> Thumb:
    """uint8 [h, w, 3] -> a JPEG that fits into side x side pixels, about 3 kB; never enlarged."""
    picture = Image.fromarray(image_hwc)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality, optimize=True)
    return Thumb(stream.getvalue(), alt)
