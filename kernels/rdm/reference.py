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


def crossnobis(x_mnd: np.ndarray, precision_dd: np.ndarray | None) -> np.ndarray:
    """Cross-validated squared distance of n patterns over d channels in m folds; square, symmetric, zero diagonal.

    Per fold: A the mean of the other folds, B the fold itself, K = A P B^T with P the noise precision (the identity if
    None), d_ij = (K_ii + K_jj - K_ij - K_ji) / d; the mean over folds. Noise that is independent between folds has mean
    0 in it, so a distance of no signal is 0 on average and may be negative.
    """
    x = np.asarray(x_mnd, np.float64)
    m, n, d = x.shape
    out = np.zeros((n, n))
    for fold in range(m):
        others = np.delete(x, fold, axis=0).mean(axis=0)
        left = others if precision_dd is None else others @ np.asarray(precision_dd, np.float64)
        kernel = left @ x[fold].T
        diagonal = np.diag(kernel)
        out += (diagonal[:, None] + diagonal[None, :] - kernel - kernel.T) / (d * m)
    return out
