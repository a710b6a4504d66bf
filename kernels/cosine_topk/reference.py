"""The specification of `cosine_topk`, in float64 NumPy with the whole similarity matrix in memory."""

from __future__ import annotations

import numpy as np

from sbm_jax.kernels.codes import SparseCodes

# A column whose centred norm is below this share of its own norm is constant up to rounding of its float32 input.
CONSTANT = 1e-6


def unit_columns(x_nc: np.ndarray, center: bool) -> tuple[np.ndarray, np.ndarray]:
    """Columns centred (if asked) and scaled to unit norm in float64, and which of them are real (not constant, not zero)."""
    x = np.asarray(x_nc, np.float64)
    norm_before = np.linalg.norm(x, axis=0)
    if center:
        x = x - x.mean(axis=0)
    norm = np.linalg.norm(x, axis=0)
    real = norm > CONSTANT * norm_before
    return np.where(real, x / np.where(real, norm, 1.0), 0.0), real


def similarity(codes_nu: np.ndarray, responses_nv: np.ndarray, center: bool) -> tuple[np.ndarray, np.ndarray]:
    """s[u, v] = <a_u, y_v> / (|a_u| |y_v|), columns centred when `center` (then s is Pearson's r); 0 for constant columns.

    Returns s [u, v] float64 and which units are real [u].
    """
    a, real = unit_columns(codes_nu, center)
    y, _ = unit_columns(responses_nv, center)
    return a.T @ y, real


def cosine_topk_both(
    codes: SparseCodes | np.ndarray,
    responses_nv: np.ndarray,
    k_voxel: int,
    k_unit: int,
    *,
    center: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sort each column and each row of s; equal values keep index order; constant candidates come after all real ones.

    Returns values_vk, units_vk, values_uk, voxels_uk.
    """
    dense = codes.to_dense(np.float64) if isinstance(codes, SparseCodes) else np.asarray(codes, np.float64)
    s, real_u = similarity(dense, responses_nv, center)
    _, real_v = unit_columns(responses_nv, center)
    units = _order(np.where(real_u[:, None], s, -2.0))[:k_voxel].T
    voxels = _order(np.where(real_v[None, :], s, -2.0).T)[:k_unit].T
    values_vk = np.take_along_axis(s.T, units, axis=1)
    values_uk = np.take_along_axis(s, voxels, axis=1)
    return values_vk, units.astype(np.int32), values_uk, voxels.astype(np.int32)


def _order(s: np.ndarray) -> np.ndarray:
    return np.argsort(-s, axis=0, kind="stable")
