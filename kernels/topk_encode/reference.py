"""The specification of `topk_encode`, in float64 NumPy (Gao et al. 2024, arXiv 2406.04093, section 2.3)."""

from __future__ import annotations

import numpy as np


def topk_encode(x_bd: np.ndarray, w_du: np.ndarray, b_u: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of x w + b per row, descending, ties to the lowest unit; negative ones become 0 (ReLU)."""
    pre = np.asarray(x_bd, np.float64) @ np.asarray(w_du, np.float64) + np.asarray(b_u, np.float64)
    units = np.argsort(-pre, axis=-1, kind="stable")[..., :k]
    return np.maximum(np.take_along_axis(pre, units, axis=-1), 0.0), units.astype(np.int32)
