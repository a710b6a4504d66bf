"""Sparse per-image codes: the few active units of every image, never images x units."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class SparseCodes(NamedTuple):
    """Codes of n images over `n_units` units, of which at most k are active per image.

    values_nk: float, [n, k]; a zero value is padding, whatever its unit.
    units_nk: integer, [n, k], in 0..n_units-1. The same unit twice in one row adds up.
    """

    values_nk: np.ndarray
    units_nk: np.ndarray
    n_units: int

    @property
    def n_images(self) -> int:
        return self.values_nk.shape[0]

    def rows(self, index: np.ndarray | slice) -> SparseCodes:
        """The codes of some of the images."""
        return SparseCodes(self.values_nk[index], self.units_nk[index], self.n_units)

    def to_dense(self, dtype: type | str = np.float32) -> np.ndarray:
        """The dense [n, u] array. For small problems, tests and references only."""
        values, units = np.asarray(self.values_nk), np.asarray(self.units_nk)
        dense = np.zeros((self.n_images, self.n_units), dtype)
        np.add.at(dense, (np.arange(self.n_images)[:, None], units), values.astype(dtype))
        return dense


def count_units(codes: SparseCodes | np.ndarray) -> int:
    """Units of sparse or dense codes."""
    return codes.n_units if isinstance(codes, SparseCodes) else codes.shape[1]


def rows_of(codes: SparseCodes | np.ndarray, index: np.ndarray | slice) -> SparseCodes | np.ndarray:
    """Sparse or dense codes of some of the images."""
    return codes.rows(index) if isinstance(codes, SparseCodes) else codes[index]


def unit_values(
    codes: SparseCodes, center: bool, constant: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sparse codes with columns of unit norm (after centring when `center`), each unit at most once a row, still sparse.

    For a centred unit column y over the images <a - mean a, y> = <a, y>, so a column need not be centred to be compared
    with one. In floating point sum(y) is a rounding error, which mean(a) multiplies: a column that fires on at most half
    of the images has n mean(a)^2 <= |a|^2 / 2, hence |a| <= sqrt(2) |a - mean a|, and stays as it is; one that fires on
    more is centred, and then has the value -shift where it does not fire. Units that fire on one and the same image alone
    get bitwise the same column.

    Returns values_nk float32 (0 for columns whose centred norm is at most `constant` of their norm), units_nk int32 (n_units
    marks padding), shift_u [u] float32, real_u [u] (which columns are not constant).
    """
    from scipy.sparse import csr_array

    values, units = np.asarray(codes.values_nk, np.float64), np.asarray(codes.units_nk)
    n, k = values.shape
    rows = csr_array((values.ravel(), units.ravel(), k * np.arange(n + 1)), (n, codes.n_units))
    rows.sum_duplicates()
    rows.eliminate_zeros()
    count, mean, square = (
        np.bincount(rows.indices, weights, codes.n_units) for weights in (None, rows.data / n, rows.data**2)
    )
    shift = np.where(center & (2 * count > n), mean, 0.0)
    data = rows.data - shift[rows.indices]
    centred = square - n * mean**2 if center else square
    # Not by the difference, which cancels.
    exact = np.bincount(rows.indices, data**2, codes.n_units) + (n - count) * shift**2
    centred = np.where(shift != 0, exact, np.maximum(centred, 0.0))
    real = np.sqrt(centred) > constant * np.sqrt(square)
    scale = np.where(real, 1 / np.sqrt(np.where(real, centred, 1.0)), 0.0)
    out_values, out_units = np.zeros((n, k), np.float32), np.full((n, k), codes.n_units, np.int32)
    image = np.repeat(np.arange(n), np.diff(rows.indptr))
    slot = np.arange(rows.nnz) - rows.indptr[image]
    out_values[image, slot], out_units[image, slot] = data * scale[rows.indices], rows.indices
    return out_values, out_units, (shift * scale).astype(np.float32), real


def check_codes(codes: SparseCodes | np.ndarray, op: str) -> tuple[int, int]:
    """(n images, n units) of dense or sparse codes.

    Raises ValueError on wrong shapes, units out of range, or non-finite values (naming the column).
    """
    if not isinstance(codes, SparseCodes):
        dense = np.asarray(codes)
        if dense.ndim != 2:
            raise ValueError(f"{op}: codes must be [n, u], found shape {dense.shape}")
        check_finite(dense, op, "codes", "unit")
        return dense.shape
    values, units = np.asarray(codes.values_nk), np.asarray(codes.units_nk)
    if values.ndim != 2 or values.shape != units.shape:
        raise ValueError(f"{op}: values_nk {values.shape} and units_nk {units.shape} must be one [n, k] shape")
    if not np.issubdtype(units.dtype, np.integer):
        raise ValueError(f"{op}: units_nk must be integers, found {units.dtype}")
    if units.size and (units.min() < 0 or units.max() >= codes.n_units):
        raise ValueError(f"{op}: units_nk spans {units.min()}..{units.max()}, allowed 0..{codes.n_units - 1}")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, slot = bad[0]
        raise ValueError(f"{op}: codes hold {values[row, slot]} at image {row}, unit {units[row, slot]}")
    return values.shape[0], codes.n_units


def check_finite(array: np.ndarray, op: str, what: str, column: str) -> None:
    """Raise ValueError naming the first column of [n, columns] that holds a NaN or an infinity."""
    # A float64 sum is finite unless an element is not (or the column overflows), and costs one pass without a mask.
    sums = array.sum(axis=0, dtype=np.float64)
    if np.isfinite(sums).all():
        return
    bad = np.flatnonzero(~np.isfinite(array).all(axis=0))
    if len(bad):
        row = int(np.flatnonzero(~np.isfinite(array[:, bad[0]]))[0])
        raise ValueError(
            f"{op}: {what} hold {array[row, bad[0]]} at image {row}, {column} {bad[0]} "
            f"({len(bad)} of {array.shape[1]} columns are not finite)"
        )
