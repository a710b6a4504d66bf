"""Image files to square uint8 arrays: one geometry for every backbone, with prefetching."""

from sbm_jax.images.batches import square_batches
from sbm_jax.images.geometry import load_square, normalise

__all__ = ["load_square", "normalise", "square_batches"]
