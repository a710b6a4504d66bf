"""Low-level statistics of pictures, the features that units may be tuned to before they are tuned to what is shown."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from sbm_jax.images import Geometry, ImageSource, square_batches
from sbm_jax.progress import progress

N_ORIENTATIONS = 8
FREQUENCIES = (4.0, 8.0, 16.0)  # cycles per picture, at the filters' centres: octaves
_BANDWIDTH = 0.65  # sigma of a log-Gabor over its centre: about 1.4 octaves at half height
_BATCH = 64
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # ITU-R BT.709

GROUPS: dict[str, tuple[str, ...]] = {
    "luminance": ("mean",),
    "contrast": ("rms", "log rms", "log energy"),
    "orientation": tuple(f"{180 * i / N_ORIENTATIONS:g} deg" for i in range(N_ORIENTATIONS)),
    "frequency": tuple(f"{f:g} cycles" for f in FREQUENCIES),
    "colour": ("red", "green", "blue", "yellow", "chroma"),
}


def columns() -> dict[str, slice]:
    """Of `image_statistics`, by group."""
    out, start = {}, 0
    for name, parts in GROUPS.items():
        out[name] = slice(start, start + len(parts))
        start += len(parts)
    return out


def measure_images(sources: Sequence[ImageSource], geometry: Geometry) -> np.ndarray:
    """`image_statistics` of many pictures as the backbone sees them, float32 [n, p]; each is decoded once."""
    parts = []
    with progress("emergence: image statistics", len(sources), "images") as task:
        for pixels in square_batches(sources, geometry, _BATCH):
            parts.append(image_statistics(pixels))
            task.advance(len(pixels))
    return np.concatenate(parts)


def image_statistics(pixels_bhwc: np.ndarray) -> np.ndarray:
    """float32 [b, p] of uint8 [b, s, s, 3], columns as in `GROUPS`.

    With Y the luma in 0..1: its mean; its standard deviation (RMS contrast), the logarithm of that, and of the energy of all
    filters. Energy E(o, f) of a log-Gabor at orientation o and frequency f (Field 1987): sum over the spectrum |F|^2 |G_of|^2,
    which by Parseval is the mean of the squared local amplitude, of Y minus its mean under a Hann window, without which the
    picture's border would be its strongest edge. orientation: sum over f of E, over the sum of all; frequency: sum over o
    alike; equal shares for a picture without energy. Colour: means of the positive and negative parts of R - G and of
    B - (R + G) / 2, and of sqrt((R - G)^2 + (B - (R + G) / 2)^2).

    Orientation is that of stripes: 0 deg stripes run up and down, 90 deg left and right; anticlockwise between, as seen.
    """
    x = pixels_bhwc.astype(np.float32) / 255
    side = x.shape[1]
    luma = x @ _LUMA
    rms = luma.std(axis=(1, 2))
    window, filters = _filters(side)
    centred = (luma - (luma * window).sum(axis=(1, 2), keepdims=True) / window.sum()) * window
    power = np.abs(np.fft.rfft2(centred)) ** 2
    energy_bof = (power.reshape(len(x), -1) @ filters).reshape(len(x), N_ORIENTATIONS, len(FREQUENCIES))
    energy_bof /= window.sum() ** 2
    total = energy_bof.sum(axis=(1, 2))
    silent = total < 1e-12
    shares = np.where(
        silent[:, None, None], 1 / energy_bof[0].size, energy_bof / np.where(silent, 1, total)[:, None, None]
    )
    red, blue = x[..., 0] - x[..., 1], x[..., 2] - (x[..., 0] + x[..., 1]) / 2
    means = [np.maximum(part, 0).mean(axis=(1, 2)) for part in (red, -red, blue, -blue)]
    chroma = np.hypot(red, blue).mean(axis=(1, 2))
    least = 1 / 255
    return np.column_stack(
        [
            luma.mean(axis=(1, 2)),
            rms,
            np.log(rms + least),
            np.log(total + least**2),
            shares.sum(axis=2),
            shares.sum(axis=1),
            *means,
            chroma,
        ]
    ).astype(np.float32)


@functools.lru_cache(maxsize=2)
def _filters(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Hann window [s, s], and |G_of|^2 over the half plane of rfft2, [s * (s // 2 + 1), o * f].

    G = exp(-ln(f / f0)^2 / (2 ln(bandwidth)^2)) exp(-angle^2 / (2 sigma^2)), angle to the filter's own modulo 180 degrees.
    """
    one = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(side) + 0.5) / side)
    down, right = np.meshgrid(np.fft.fftfreq(side, 1 / side), np.fft.rfftfreq(side, 1 / side), indexing="ij")
    radius = np.hypot(down, right)
    # Rows count downwards, angles anticlockwise from the right; waves along 0 deg are upright stripes.
    angle = np.arctan2(-down, right)
    twice = np.where(right == 0, 1.0, 2.0)  # the other columns stand for two halves of the plane
    twice[(radius == 0) | (np.abs(down) == side / 2) | (right == side / 2)] = (
        0  # Nyquist's has two orientations at once
    )
    out = []
    for o in range(N_ORIENTATIONS):
        off = (angle - np.pi * o / N_ORIENTATIONS + np.pi / 2) % np.pi - np.pi / 2
        around = np.exp(-((off / (np.pi / N_ORIENTATIONS / 1.2)) ** 2))
        for f in FREQUENCIES:
            along = np.exp(-((np.log(np.maximum(radius, 1) / f) / np.log(_BANDWIDTH)) ** 2))
            out.append((around * along * twice).ravel())
    return np.outer(one, one).astype(np.float32), np.stack(out, axis=1).astype(np.float32)
