"""Image files to square uint8 arrays: one geometry for every backbone, with prefetching."""

from sbm_jax.images.batches import square_batches
from sbm_jax.images.geometry import load_square, normalise, to_square

__all__ = ["load_square", "normalise", "square_batches", "to_square"]
