"""Whitened comparisons (`cosine_cov`, `corr_cov`): products a^T V^-1 b without the matrix V.

V is the covariance of the entries of a squared-distance RDM whose patterns have independent noise of equal size
(Diedrichsen et al. 2021), V = (C C^T) o (C C^T) with C the contrasts x_i - x_j. Up to a factor, a^T V^-1 a is the squared
norm of the smallest symmetric n x n matrix G with G_ii + G_jj - 2 G_ij = a_ij: for a given diagonal the rest follows, so it
is a least-squares problem in n unknowns,

    a^T V^-1 b  ~  1/2 sum_p a_p b_p - r_a^T A^-1 r_b,   r_i = sum over the pairs p of image i,
    A = 2 (diag(pairs per image) + [pair observed]) + 4 I.

With all pairs observed A = 2 n I + 2 1 1^T, so nothing larger than the RDM is touched: the double-centred cosine, linear CKA.
"""

from __future__ import annotations

import numpy as np

WHITENED = ("cosine_cov", "corr_cov")


def n_images(pairs: int) -> int:
    """n of n (n - 1) / 2 pairs. Raises ValueError when there is none."""
    n = round((1 + np.sqrt(1 + 8 * pairs)) / 2)
    if n * (n - 1) // 2 != pairs:
        raise ValueError(f"rdm_compare: {pairs} entries are no n (n - 1) / 2")
    return n


def row_sums(x_mp: np.ndarray, weights_n: np.ndarray | None = None) -> np.ndarray:
    """[m, n]: of every image the (weighted) sum over its pairs, from condensed [m, pairs] without making squares."""
    n = n_images(x_mp.shape[1])
    w = np.ones(n) if weights_n is None else weights_n
    out = np.zeros((len(x_mp), n))
    start = 0
    for i in range(n - 1):
        row = x_mp[:, start : start + n - 1 - i]
        out[:, i] += row @ w[i + 1 :]
        out[:, i + 1 :] += row * w[i]
        start += n - 1 - i
    return out


def correction(r_mn: np.ndarray, weights_n: np.ndarray | None = None) -> np.ndarray:
    """[m, m]: r^T A^-1 r for all pairs of vectors when only pairs of an image with itself are missing.

    With image i present w_i times (its copies have no pair), A = diag(2 W w - 4 w^2 + 4 w) + 2 w w^T, W = sum w, and `r_mn`
    holds w_i sum_j w_j a_ij. Weights are positive whole numbers.
    """
    n = r_mn.shape[1]
    w = np.ones(n) if weights_n is None else weights_n
    diagonal = 2 * w.sum() * w - 4 * w**2 + 4 * w
    scaled = r_mn / diagonal
    direction = w / diagonal
    along = r_mn @ direction
    return scaled @ r_mn.T - np.outer(along, along) * (2 / (1 + 2 * (w @ direction)))


def compare(a: np.ndarray, b: np.ndarray, method: str) -> float:
    """As `reference.compare_whitened`, float64: O(pairs) work when no pair is missing, else a solve of n unknowns."""
    observed = ~np.isnan(a)
    a, b, observed = without_empty_images(a, b, observed)
    x = np.stack([a[observed], b[observed]])
    if method == "corr_cov":
        if (np.ptp(x, axis=1) == 0).any():  # as in `reference.compare`
            return 0.0
        x = x - x.mean(axis=1, keepdims=True)
    x = x / np.maximum(np.abs(x).max(axis=1, keepdims=True), np.finfo(float).tiny)
    if observed.all():
        products = x @ x.T / 2 - correction(row_sums(x))
    else:
        full = np.zeros((2, len(observed)))
        full[:, observed] = x
        r = row_sums(full)
        products = x @ x.T / 2 - r @ np.linalg.solve(normal_matrix(observed), r.T)
    scale = np.sqrt(products[0, 0] * products[1, 1])
    return float(products[0, 1] / scale) if scale > 0 else 0.0


def normal_matrix(observed_p: np.ndarray) -> np.ndarray:
    """A [n, n] of the module's text for any set of observed pairs."""
    from scipy.spatial.distance import squareform

    seen = squareform(observed_p.astype(np.float64))
    return 2 * (np.diag(seen.sum(axis=1)) + seen) + 4 * np.eye(len(seen))


def without_empty_images(*vectors_p: np.ndarray) -> list[np.ndarray]:
    """The condensed vectors (the last one: which pairs are observed) without the images that have no pair at all."""
    observed = vectors_p[-1]
    if observed.all():
        return list(vectors_p)
    n = n_images(len(observed))
    keep = row_sums(observed[None].astype(np.float64))[0] > 0
    rows, columns = np.triu_indices(n, 1)
    both = keep[rows] & keep[columns]
    return [x[both] for x in vectors_p]
