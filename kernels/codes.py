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
