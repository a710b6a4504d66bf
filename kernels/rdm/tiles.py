"""RDMs made tile by tile and never held whole: of patterns, or of a matrix that is somewhere else (a memory map)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sbm_jax.kernels.rdm.api import checked_patterns


@dataclass(frozen=True)
class Tiles:
    """The strict upper triangle of an RDM of n images in square tiles; every pass makes them again.

    block(i, j): float32 dissimilarities of images [i, i + size) with [j, j + size), cut off at n. limits: what all
    dissimilarities lie between up to rounding, None if that is not known beforehand.
    """

    n: int
    size: int
    block: Callable[[int, int], np.ndarray]
    limits: tuple[float, float] | None = None

    @property
    def pairs(self) -> int:
        return self.n * (self.n - 1) // 2

    def values(self) -> Iterator[np.ndarray]:
        """float32 [pairs of the tile], tile after tile; two RDMs with the same n and size have the same order."""
        for i in range(0, self.n, self.size):
            for j in range(i, self.n, self.size):
                block = self.block(i, j)
                yield block[~np.tri(len(block), dtype=bool)] if i == j else block.ravel()


def pattern_tiles(x_nd: np.ndarray, metric: str = "correlation", *, size: int = 1024) -> Tiles:
    """Tiles of `rdm(x_nd, metric)`, float32; the patterns are held on the device, beside them one tile.

    Raises ValueError for an unknown metric, a wrong shape, NaN, or a pattern that has no dissimilarity (constant or zero).
    """
    import jax.numpy as jnp

    from sbm_jax.kernels.rdm import xla

    x = checked_patterns(x_nd, metric, "pattern_tiles")
    n = len(x)
    size = _even(n, size)

    patterns = xla.tile_patterns(jnp.asarray(x, jnp.float32), metric, size)
    empty = np.flatnonzero(np.isnan(np.asarray(patterns[:n, 0])))
    if len(empty):
        raise ValueError(f"pattern_tiles: {len(empty)} images have no {metric} dissimilarity, the first is {empty[0]}")

    def block(i: int, j: int) -> np.ndarray:
        return np.asarray(xla.tile(patterns, i, j, metric, size))[: n - i, : n - j]

    return Tiles(n, size, block, None if metric == "euclidean" else (0.0, 2.0))


def _even(n: int, size: int) -> int:
    """The tile size of as many tiles that wastes least at the edge."""
    return -(-n // -(-n // size))


def matrix_tiles(rdm_nn: Any, *, size: int = 1024) -> Tiles:
    """Tiles of a square matrix that can be sliced (array, memory map, zarr or TensorStore view); only they are read."""
    shape = tuple(rdm_nn.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
        raise ValueError(f"matrix_tiles: an RDM must be [n, n], found shape {shape}")
    size = _even(shape[0], size)
    return Tiles(shape[0], size, lambda i, j: np.asarray(rdm_nn[i : i + size, j : j + size], np.float32))
