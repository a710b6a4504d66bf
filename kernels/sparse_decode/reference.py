"""The specification of `sparse_decode`, in float64 NumPy."""

from __future__ import annotations

import numpy as np


def sparse_decode(values_bk: np.ndarray, units_bk: np.ndarray, w_ud: np.ndarray) -> np.ndarray:
    """x_b = sum_k values[b, k] w[units[b, k]]."""
    rows = np.asarray(w_ud, np.float64)[np.asarray(units_bk)]
    return np.einsum("...k,...kd->...d", np.asarray(values_bk, np.float64), rows)
