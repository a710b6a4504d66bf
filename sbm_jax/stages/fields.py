"""Gaussian receptive fields over the patches of an image: a grid of places and sizes, and those that voxels bring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sbm_jax.brain.prf import Prf

UNIFORM = 0  # index of the uniform field, so that ties go to it


@dataclass(frozen=True)
class Fields:
    """Receptive fields over t patches, row by row from the upper left corner.

    x, y: centres, float64 [g], fractions of the image's side from its left and upper edge. size: standard deviation, the same
    unit. All NaN for the uniform field. weights_gt: float32, every row sums to 1.
    """

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    weights_gt: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


def gaussian_weights(x: np.ndarray, y: np.ndarray, size: np.ndarray, patches: int) -> np.ndarray:
    """w(t) = exp(-|p_t - c|^2 / (2 size^2)) / sum over patches, p_t the centre of patch t; float32 [fields, t].

    Args: x, y, size: [fields], fractions of the image's side, size > 0. patches: t, a square number.
    A field far outside of the image becomes the patches nearest to it: its exponents are taken relative to the largest.
    Raises ValueError for a grid that is not square.
    """
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"gaussian_weights: {patches} patches are no square grid")
    centre = (np.arange(side) + 0.5) / side
    dx, dy = (np.asarray(c, np.float64)[:, None] - centre for c in (x, y))
    square = (dy[:, :, None] ** 2 + dx[:, None, :] ** 2).reshape(-1, patches)
    exponent = -(square - square.min(axis=1, keepdims=True)) / (2 * np.asarray(size, np.float64)[:, None] ** 2)
    weights = np.exp(exponent)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def field_grid(positions: int, sizes: Sequence[float], patches: int) -> Fields:
    """The uniform field, then Gaussians: for each size `positions` x `positions` centres at (i + 1/2) / positions, row by row.

    No Gaussian where `sizes` is empty.
    """
    places = (np.arange(positions) + 0.5) / positions
    size, y, x = (a.ravel() for a in np.meshgrid(np.asarray(sizes, np.float64), places, places, indexing="ij"))
    weights = np.concatenate([np.full((1, patches), 1 / patches, np.float32), gaussian_weights(x, y, size, patches)])
    x, y, size = (np.concatenate([[np.nan], a]) for a in (x, y, size))
    return Fields(x, y, size, weights)


def in_image(prf: Prf, degrees: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre x, y and size of pRFs as fractions of an image `degrees` wide at fixation; y counts downwards."""
    return 0.5 + prf.x / degrees, 0.5 - prf.y / degrees, prf.sigma / degrees
