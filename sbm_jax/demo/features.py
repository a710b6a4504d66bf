"""What early visual areas measure in a picture: oriented energy, local contrast, luminance and opponent
colours.
"""

from functools import lru_cache

import numpy as np
from scipy import fft

from sbm_jax.demo.retinotopy import EarlyAreas

GRID = 32  # feature maps have GRID x GRID cells
_FINE = 64  # side at which they are computed
_PAD = 16  # reflected on every side, so that the picture's border is no edge
ORIENTATIONS = (0, 45, 90, 135)  # of the stripes, degrees anticlockwise from horizontal
CYCLES = {"coarse": 8.0, "fine": 16.0}  # spatial frequency, cycles per picture width
ORIENTED = tuple(f"orientation-{angle:03d}-{band}" for band in CYCLES for angle in ORIENTATIONS)
FEATURES = (*ORIENTED, "contrast", "luminance", "red-green", "blue-yellow")
SIGNED = ("luminance", "red-green", "blue-yellow")
_BANDWIDTH = 0.4  # SD of the Gabor's Gaussian in the frequency domain over its centre frequency, about 1.4 octaves
_NEIGHBOURHOOD = 9  # side of the square in which contrast is measured, fine pixels (a seventh of the picture)


def feature_maps(image: np.ndarray) -> np.ndarray:
    """Local features of one picture, float32 [len(FEATURES), GRID, GRID].

    Oriented energy is the squared modulus of a complex (quadrature) Gabor filter on luminance; contrast is
    the squared deviation of luminance from its neighbourhood's mean; luminance and the opponent colours red -
    green and blue - (red + green) / 2 are signed values, pictures being scaled to 0..1.

    Args:
        image: uint8 [s, s, 3], s a multiple of 64.
    """
    side = image.shape[0]
    if image.shape != (side, side, 3) or side % _FINE:
        raise ValueError(f"expected an image [s, s, 3] with s a multiple of {_FINE}, got {image.shape}")
    rgb = _shrink(np.moveaxis(image, 2, 0).astype(np.float32) / 255, _FINE)
    red, green, blue = rgb
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    padded = np.pad(luminance - luminance.mean(), _PAD, mode="reflect")
    bands = np.asarray(fft.ifft2(fft.fft2(padded) * _gabor_bank()))[:, _PAD:-_PAD, _PAD:-_PAD]
    energy = np.square(np.real(bands)) + np.square(np.imag(bands))
    deviation = np.square(luminance - _neighbourhood_mean(luminance))
    others = np.stack([deviation, luminance, red - green, blue - (red + green) / 2])
    return _shrink(np.concatenate([energy, others]), GRID)


def _neighbourhood_mean(field: np.ndarray) -> np.ndarray:
    """Mean over the square around every pixel, reflected at the border."""
    half = _NEIGHBOURHOOD // 2
    padded = np.pad(field, half, mode="reflect")
    side, n = len(field), _NEIGHBOURHOOD
    rows = np.add.reduce([padded[i : i + side] for i in range(n)])
    return np.add.reduce([rows[:, i : i + side] for i in range(n)]) / np.float32(n * n)


def _shrink(maps: np.ndarray, side: int) -> np.ndarray:
    """Mean over square cells: [..., s, s] to [..., side, side]."""
    step = maps.shape[-1] // side
    total = np.add.reduce([maps[..., i::step, j::step] for i in range(step) for j in range(step)])
    return total / np.float32(step * step)


@lru_cache(maxsize=1)
def _gabor_bank() -> np.ndarray:
    """One-sided transfer functions float32 [8, s, s] in the order of ORIENTED: each filter and its quadrature
    partner.
    """
    frequency = fft.fftfreq(_FINE + 2 * _PAD, d=1 / _FINE)  # cycles per picture width
    fy, fx = np.meshgrid(frequency, frequency, indexing="ij")
    bank = []
    for cycles in CYCLES.values():
        for angle in ORIENTATIONS:
            across = np.radians(angle + 90)  # stripes vary across their direction; image rows run downwards
            distance2 = (fx - cycles * np.cos(across)) ** 2 + (fy + cycles * np.sin(across)) ** 2
            bank.append(np.exp(-distance2 / (2 * (_BANDWIDTH * cycles) ** 2)))
    return np.stack(bank).astype(np.float32)


def receptive_fields(early: EarlyAreas, vertices: np.ndarray) -> np.ndarray:
    """Gaussian weights over the cells of a feature map, float64 [GRID * GRID, vertices]; every column sums to
    1.
    """
    centre = (np.arange(GRID) + 0.5) / GRID
    size = early.rf_size[vertices]
    x = np.exp(-((centre[:, None] - early.rf_x[vertices]) ** 2) / (2 * size**2))
    y = np.exp(-((centre[:, None] - early.rf_y[vertices]) ** 2) / (2 * size**2))
    weights = (y[:, None, :] * x[None, :, :]).reshape(GRID * GRID, len(vertices))
    return weights / weights.sum(axis=0)


def pooled(maps_nfc: np.ndarray, feature: str, fields_cv: np.ndarray) -> np.ndarray:
    """One feature seen through receptive fields, float64 [n, v]: mean value, or root mean energy for unsigned
    features.

    Args:
        maps_nfc: [n, len(FEATURES), cells].
        feature: one of FEATURES.
        fields_cv: from receptive_fields.
    """
    # float64 so that the number of BLAS threads cannot change the stored bytes
    seen = maps_nfc[:, FEATURES.index(feature)].astype(np.float64) @ fields_cv
    return seen if feature in SIGNED else np.sqrt(np.maximum(seen, 0.0))
