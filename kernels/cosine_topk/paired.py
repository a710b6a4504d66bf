"""Similarity of chosen unit-voxel pairs: how a unit selected on one set of images scores on another."""

from __future__ import annotations

import numpy as np

from sbm_jax.kernels.codes import SparseCodes, check_codes, check_finite
from sbm_jax.kernels.cosine_topk.reference import CONSTANT

_BLOCK_BYTES = 1 << 26


def paired_cosine(
    codes: SparseCodes | np.ndarray, responses_nv: np.ndarray, units_vk: np.ndarray, *, center: bool = True
) -> np.ndarray:
    """s[units_vk[v, j], v] for every voxel v and slot j, on these images.

    Args:
        codes: [n, u] dense or SparseCodes. responses_nv: [n, v]. units_vk: integer [v, k].
    Returns float32 [v, k]; 0 where either column is constant. Sums run in float64.
    Raises ValueError for shapes that disagree, units out of range, or NaN (naming the column).
    """
    n, n_units = check_codes(codes, "paired_cosine")
    responses = np.asarray(responses_nv)
    if responses.ndim != 2 or responses.shape[0] != n:
        raise ValueError(f"paired_cosine: codes have {n} images, responses have shape {responses.shape}")
    check_finite(responses, "paired_cosine", "responses", "voxel")
    units = np.asarray(units_vk)
    if units.ndim != 2 or units.shape[0] != responses.shape[1]:
        raise ValueError(f"paired_cosine: expected units [{responses.shape[1]}, k], found {units.shape}")
    if units.size and (units.min() < 0 or units.max() >= n_units):
        raise ValueError(f"paired_cosine: units span {units.min()}..{units.max()}, allowed 0..{n_units - 1}")
    # Only units that are somebody's choice are looked at; their columns are made once.
    wanted, slot = np.unique(units, return_inverse=True)
    columns_un, real_u = _unit_rows(_columns(codes, wanted), center)
    slot = slot.reshape(units.shape)
    out = np.zeros(units.shape, np.float32)
    step = max(1, _BLOCK_BYTES // (8 * max(1, n)))
    for start in range(0, responses.shape[1], step):
        block = slice(start, start + step)
        y_vn, real_v = _unit_rows(responses[:, block].T, center)
        for j in range(units.shape[1]):
            chosen = slot[block, j]
            s = np.einsum("vn,vn->v", columns_un[chosen], y_vn)
            out[block, j] = np.where(real_u[chosen] & real_v, s, 0.0)
    return out


def _columns(codes: SparseCodes | np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The wanted columns as rows [w, n]."""
    if not isinstance(codes, SparseCodes):
        return np.asarray(codes)[:, wanted].T
    values, units = np.asarray(codes.values_nk), np.asarray(codes.units_nk)
    place = np.full(codes.n_units, -1, np.int64)
    place[wanted] = np.arange(len(wanted))
    rows, slots = np.nonzero(place[units] >= 0)
    out = np.zeros((len(wanted), codes.n_images))
    np.add.at(out, (place[units[rows, slots]], rows), values[rows, slots])
    return out


def _unit_rows(x_cn: np.ndarray, center: bool) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x_cn, np.float64)
    before = np.sqrt(np.einsum("cn,cn->c", x, x))
    if center:
        x = x - x.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.einsum("cn,cn->c", x, x))
    real = norm > CONSTANT * before
    return x / np.where(real, norm, 1.0)[:, None], real
