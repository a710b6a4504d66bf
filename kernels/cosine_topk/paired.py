"""Similarity of chosen unit-voxel pairs: how a unit selected on one set of images scores on another."""

from __future__ import annotations

import numpy as np

from sbm_jax.kernels.codes import SparseCodes, check_codes, check_finite
from sbm_jax.kernels.cosine_topk.reference import CONSTANT

_BLOCK_BYTES = 1 << 24


def paired_cosine(
    codes: SparseCodes | np.ndarray, responses_nv: np.ndarray, units_vk: np.ndarray, *, center: bool = True
) -> np.ndarray:
    """s[units_vk[v, j], v] for every voxel v and slot j, on these images.

    Args:
        codes: [n, u] dense or SparseCodes. responses_nv: [n, v]. units_vk: integer [v, k]; -1 marks an empty slot.
    Returns float32 [v, k]; 0 where either column is constant, NaN in empty slots. Norms in float64, products pairwise
    in float32. Raises ValueError for shapes that disagree, units out of range, or NaN (naming the column).
    """
    responses = np.asarray(responses_nv)
    if responses.ndim != 2:
        raise ValueError(f"paired_cosine: responses must be [n, v], found shape {responses.shape}")
    units = np.asarray(units_vk)
    if units.ndim != 2 or units.shape[0] != responses.shape[1]:
        raise ValueError(f"paired_cosine: expected units [{responses.shape[1]}, k], found {units.shape}")
    check_finite(responses, "paired_cosine", "responses", "voxel")
    return paired_rows(codes, unit_rows(responses.T, center), units, center=center)


def paired_rows(
    codes: SparseCodes | np.ndarray, y_vn: np.ndarray, units_vk: np.ndarray, *, center: bool = True
) -> np.ndarray:
    """`paired_cosine` for responses that are unit rows already (see `unit_rows`), for repeated use."""
    n, n_units = check_codes(codes, "paired_cosine")
    if y_vn.shape[1] != n:
        raise ValueError(f"paired_cosine: codes have {n} images, responses have {y_vn.shape[1]}")
    if units_vk.size and (units_vk.min() < -1 or units_vk.max() >= n_units):
        raise ValueError(f"paired_cosine: units span {units_vk.min()}..{units_vk.max()}, allowed 0..{n_units - 1}")
    out = np.full(units_vk.shape, np.nan, np.float32)
    voxels, slots = np.nonzero(units_vk >= 0)
    # Only units that are somebody's choice are looked at; their columns are made once.
    wanted, place = np.unique(units_vk[voxels, slots], return_inverse=True)
    a_un = unit_rows(chosen_columns(codes, wanted), center)
    step = max(1, _BLOCK_BYTES // (4 * n))
    for start in range(0, len(voxels), step):
        pair = slice(start, start + step)
        out[voxels[pair], slots[pair]] = np.multiply(a_un[place[pair]], y_vn[voxels[pair]]).sum(axis=1)
    return out


def unit_rows(x_cn: np.ndarray, center: bool = True) -> np.ndarray:
    """Rows centred and scaled to unit norm, zero where constant; float32 from float64 sums."""
    x = np.ascontiguousarray(x_cn, np.float32)
    before = np.sqrt(np.einsum("cn,cn->c", x, x, dtype=np.float64))
    if center:
        x = x - x.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    norm = np.sqrt(np.einsum("cn,cn->c", x, x, dtype=np.float64))
    real = norm > CONSTANT * before
    return x * np.where(real, 1 / np.where(real, norm, 1.0), 0.0).astype(np.float32)[:, None]


def chosen_columns(codes: SparseCodes | np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The columns of some units, each named once, as rows [w, n], float32."""
    if not isinstance(codes, SparseCodes):
        return np.asarray(codes)[:, wanted].T
    values, units = np.asarray(codes.values_nk), np.asarray(codes.units_nk)
    place = np.full(codes.n_units, -1, np.int64)
    place[wanted] = np.arange(len(wanted))
    rows, slots = np.nonzero(place[units] >= 0)
    out = np.zeros((len(wanted), codes.n_images), np.float32)
    np.add.at(out, (place[units[rows, slots]], rows), values[rows, slots])
    return out
