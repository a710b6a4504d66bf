"""The specification of `topk_autoencode` and of its gradients, in float64 NumPy (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

import numpy as np

from sbm_jax.kernels.sparse_decode.reference import sparse_decode
from sbm_jax.kernels.topk_encode.reference import topk_encode


def topk_autoencode(
    x_bd: np.ndarray, w_enc: np.ndarray, b_enc: np.ndarray, w_dec: np.ndarray, b_dec: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x_hat [b, d] = z w_dec + b_dec, values [b, k], units [b, k]; z = the k largest of x w_enc + b_enc, negatives 0."""
    values, units = topk_encode(x_bd, w_enc, b_enc, k)
    return sparse_decode(values, units, w_dec) + np.asarray(b_dec, np.float64), values, units


def gradients(
    x_bd: np.ndarray,
    w_enc: np.ndarray,
    b_enc: np.ndarray,
    w_dec: np.ndarray,
    b_dec: np.ndarray,
    k: int,
    g_bd: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Cotangents of (x, w_enc, b_enc, w_dec, b_dec) for the cotangent g of x_hat, by dense products.

    The selection is held fixed and a code that is 0 passes nothing: dz = (g w_dec') masked to z > 0.
    """
    values, units = topk_encode(x_bd, w_enc, b_enc, k)
    x, g = np.asarray(x_bd, np.float64), np.asarray(g_bd, np.float64)
    z = np.zeros((len(x), len(b_enc)))
    np.put_along_axis(z, units, values, axis=1)
    dz = (g @ np.asarray(w_dec, np.float64).T) * (z > 0)
    return dz @ np.asarray(w_enc, np.float64).T, x.T @ dz, dz.sum(axis=0), z.T @ g, g.sum(axis=0)
