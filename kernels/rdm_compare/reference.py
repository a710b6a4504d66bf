"""The specification of `rdm_compare`, in float64. Definitions as in rsatoolbox 0.3.2 (`rdm/compare.py`)."""

from __future__ import annotations

import numpy as np


def compare(a: np.ndarray, b: np.ndarray, method: str) -> float:
    """Similarity of two vectors of n dissimilarities (strict upper triangle, row-major).

    cosine: <a, b> / (|a| |b|). corr: the same after subtracting the means. spearman: corr of average ranks.
    rho-a: 12 sum (ra - mean)(rb - mean) / (n^3 - n), the expected Spearman under random tie breaking (Schütt 2023).
    tau-a: (concordant - discordant) / (n (n - 1) / 2); tied pairs count 0.
    0 when one vector is constant (for cosine: zero).
    """
    from scipy import stats  # half a second to import

    n = len(a)
    if method == "tau-a":
        return _tau_a(a, b)
    if method in ("spearman", "rho-a"):
        # Ranks up to n with n^3 in the denominator: float64 throughout.
        ra, rb = stats.rankdata(a), stats.rankdata(b)
        if method == "rho-a":
            middle = (n + 1) / 2
            return float(12 * np.dot(ra - middle, rb - middle) / (float(n) ** 3 - n))
        a, b = ra, rb
    if method != "cosine":
        if np.ptp(a) == 0 or np.ptp(b) == 0:  # a constant minus its mean may leave rounding noise
            return 0.0
        a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt(np.dot(a, a) * np.dot(b, b))
    return float(np.dot(a, b) / scale) if scale > 0 else 0.0


def _tau_a(a: np.ndarray, b: np.ndarray) -> float:
    """From Kendall's tau-b, O(n log n): tau_b = s / sqrt((p - ta)(p - tb)) with p pairs, ta and tb of them tied."""
    from scipy import stats

    n = len(a)
    pairs = n * (n - 1) / 2
    ties = [float(sum(c * (c - 1) / 2 for c in np.unique(x, return_counts=True)[1])) for x in (a, b)]
    if pairs in ties:
        return 0.0
    tau_b = stats.kendalltau(a, b, variant="b")[0]
    return float(np.rint(tau_b * np.sqrt(pairs - ties[0]) * np.sqrt(pairs - ties[1])) / pairs)
