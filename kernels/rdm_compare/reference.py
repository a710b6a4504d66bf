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


def compare_whitened(a: np.ndarray, b: np.ndarray, method: str) -> float:
    """cosine_cov: <a, V^-1 b> / sqrt(<a, V^-1 a> <b, V^-1 b>); corr_cov: the same after subtracting the means.

    V = (C C^T) o (C C^T) with C [pairs, n] the contrasts x_i - x_j: the covariance of squared distances under independent
    noise of equal size in all patterns (Diedrichsen et al. 2021; rsatoolbox 0.3.2 without `sigma_k`). a and b are condensed
    and whole, NaN where a pair is missing (the same ones in both): its row and column of V are left out. V is made here, n^4
    numbers: for small n.
    """
    n = round((1 + np.sqrt(1 + 8 * len(a))) / 2)
    rows, columns = np.triu_indices(n, 1)
    contrasts = np.eye(n)[rows] - np.eye(n)[columns]
    observed = ~np.isnan(a)
    v = (contrasts @ contrasts.T)[np.ix_(observed, observed)] ** 2
    x = np.stack([a[observed], b[observed]])
    if method == "corr_cov":
        if (np.ptp(x, axis=1) == 0).any():
            return 0.0
        x = x - x.mean(axis=1, keepdims=True)
    products = x @ np.linalg.solve(v, x.T)
    scale = np.sqrt(products[0, 0] * products[1, 1])
    return float(products[0, 1] / scale) if scale > 0 else 0.0
