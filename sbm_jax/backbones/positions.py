"""Positions of patches: learned ones stretched to another grid as torch does, and rotary angles. NumPy alone."""

from functools import lru_cache

import numpy as np

from sbm_jax.backbones.spec import Resize, VisionSpec


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' convolution kernel (Keys 1981, doi:10.1109/TASSP.1981.1163711), eq. 4 with free parameter a."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def resize_weights(n_in: int, n_out: int, how: Resize) -> np.ndarray:
    """f64 [n_out, n_in]: row i weighs the inputs of output i, as torch.nn.functional.interpolate without align_corners.

    Plain bicubic has a = -0.75 and repeats the edge; with antialias the kernel is as wide as the scale when it
    shrinks, has a = -0.5, and is cut at the edge and normalised (as in Pillow).
    """
    scale = n_in / n_out
    centre = (np.arange(n_out)[:, None] + 0.5) * scale
    if how == "bicubic":
        left = np.floor(centre - 0.5).astype(int)
        taps = left + np.arange(-1, 3)[None]
        weights = np.zeros((n_out, n_in))
        rows = np.broadcast_to(np.arange(n_out)[:, None], taps.shape)
        np.add.at(weights, (rows, taps.clip(0, n_in - 1)), _cubic(centre - 0.5 - taps, -0.75))
        return weights
    wide = max(scale, 1.0)
    reach = (2.0 if how == "bicubic_antialias" else 1.0) * wide
    taps = np.arange(n_in)[None]
    first = np.maximum((centre - reach + 0.5).astype(int), 0)
    last = np.minimum((centre + reach + 0.5).astype(int), n_in)
    distance = (taps + 0.5 - centre) / wide
    weights = _cubic(distance, -0.5) if how == "bicubic_antialias" else _triangle(distance)
    weights = np.where((taps >= first) & (taps < last), weights, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def resize_positions(positions_td: np.ndarray, prefix: int, grid: int, how: Resize) -> np.ndarray:
    """Learned positions [prefix + g * g, d] for a grid of any size g -> f32 [prefix + grid * grid, d].

    The first `prefix` rows are kept. Raises ValueError if the others are not a square grid.
    """
    patches = positions_td[prefix:].astype(np.float64)
    side = round(len(patches) ** 0.5)
    if side**2 != len(patches):
        raise ValueError(f"{len(patches)} patch positions are not a square grid")
    weights = resize_weights(side, grid, how)
    square = patches.reshape(side, side, -1)
    stretched = np.einsum("ai,bj,ijd->abd", weights, weights, square, optimize=True)
    out = np.concatenate([positions_td[:prefix].astype(np.float64), stretched.reshape(grid**2, -1)])
    return out.astype(np.float32)


@lru_cache(maxsize=8)
def rotations(spec: VisionSpec) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines f32 [grid * grid, d_head] of DINOv3's rotary positions (Simeoni et al. 2025, arXiv:2508.10104).

    A patch whose centre lies at (y, x) in -1..1 has angles 2 pi y / theta^(4 i / d_head), i < d_head / 4, then the
    same for x; both halves of a head share them.
    """
    head = spec.block.width // spec.block.heads
    theta = np.float32(spec.rope_theta or 0)
    rates = 1 / theta ** np.arange(0, 1, 4 / head, dtype=np.float32)
    centres = 2 * ((np.arange(spec.grid, dtype=np.float32) + np.float32(0.5)) / np.float32(spec.grid)) - 1
    yx = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    angles = np.tile((np.float32(2 * np.pi) * yx * rates).reshape(len(yx), -1), 2)
    return np.cos(angles), np.sin(angles)
