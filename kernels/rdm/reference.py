"""The specification of `rdm`, in float64 NumPy. Definitions as in rsatoolbox 0.3.2 (`rdm/calc.py`)."""

from __future__ import annotations

import numpy as np


def rdm(x_nd: np.ndarray, metric: str) -> np.ndarray:
    """Dissimilarity of every pair of the n patterns x_i over d channels; square, symmetric, zero diagonal.

    correlation: 1 - r(x_i, x_j), each pattern centred over its channels. A constant pattern has no correlation: its
        row and column are NaN (the diagonal stays 0).
    cosine: 1 - <x_i, x_j> / (|x_i| |x_j|); NaN for an all-zero pattern.
    euclidean: |x_i - x_j|^2 / d, squared and divided by the number of channels.
    """
    x = np.asarray(x_nd, np.float64)
    if metric == "euclidean":
        difference = x[:, None, :] - x[None, :, :]
        return (difference**2).mean(axis=-1)
    if metric == "correlation":
        scale = np.linalg.norm(x, axis=1)
        x = x - x.mean(axis=1, keepdims=True)
        x[np.linalg.norm(x, axis=1) <= 1e-6 * scale] = 0.0
    with np.errstate(invalid="ignore"):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    out = 1.0 - x @ x.T
    np.fill_diagonal(out, 0.0)
    return out
