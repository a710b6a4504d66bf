"""Pictures to square uint8 arrays: one geometry for every backbone, or a processor's own, with prefetching."""

from sbm_jax.images.batches import square_batches
from sbm_jax.images.geometry import Geometry, load_square, normalise, square, stretch, to_square
from sbm_jax.images.processor import processor
from sbm_jax.images.sources import BrickImage, ImageSource, MemoryImage, open_image

__all__ = [
    "BrickImage",
    "Geometry",
    "ImageSource",
    "MemoryImage",
    "load_square",
    "normalise",
    "open_image",
    "processor",
    "square",
    "square_batches",
    "stretch",
    "to_square",
]
