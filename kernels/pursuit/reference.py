"""The specification of `pursue`: orthogonal matching pursuit of one response, by least squares in float64 NumPy."""

from __future__ import annotations

import numpy as np

from sbm_jax.kernels.cosine_topk.reference import CONSTANT

# A candidate whose part outside of the span of the chosen atoms has at most this share of its variance is dropped: it is
# a copy of theirs, and what is left of it is rounding, which scaling to norm 1 would blow up.
DEPENDENT = 1e-3
TIE = (
    2e-6  # what is this near the largest correlation ties with it: float32 sums of copies in other sizes differ by less
)
STOP = 1e-5  # |correlation| with the residual up to which nothing is left to explain but rounding


def pursue(
    columns_nk: np.ndarray, y_n: np.ndarray, fit_n: np.ndarray, score_n: np.ndarray, atoms: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nested models of 1..`atoms` candidates (Pati, Rezaiifar & Krishnaprasad 1993), fitted on some images, scored on others.

    Columns are centred and have norm 1 over the fitting images. The next atom is the one with the largest |correlation| with
    the residual, ties (up to `TIE`) to the first; then all weights are fitted again by least squares.

    Args: columns_nk [n, k] and y_n [n] over all images; fit_n, score_n bool [n].
    Returns position of each atom [atoms] (-1: none was left), and Pearson's r of prediction and response on the fitting and on
    the scoring images, each [atoms]; 0 where either is constant. Without a further atom the model stays as it was.
    """
    a_nk, y = np.asarray(columns_nk, np.float64), np.asarray(y_n, np.float64)
    fit, norms = _centred(a_nk[fit_n])
    scale = np.where(norms > 0, norms, np.inf)
    fit, score = fit / scale, _centred(a_nk[score_n])[0] / scale
    y_fit, y_score = _centred(y[fit_n, None])[0][:, 0], _centred(y[score_n, None])[0][:, 0]
    y_fit = y_fit / (np.linalg.norm(y_fit) or 1.0)
    chosen: list[int] = []
    units, in_sample, held_out = np.full(atoms, -1), np.zeros(atoms), np.zeros(atoms)
    weights = np.zeros(0)
    for t in range(atoms):
        residual = y_fit - fit[:, chosen] @ weights
        basis = np.linalg.qr(fit[:, chosen])[0]
        left = (fit**2).sum(axis=0) - ((basis.T @ fit) ** 2).sum(axis=0)
        likeness = np.where(left > DEPENDENT, np.abs(fit.T @ residual), -1.0)
        likeness[chosen] = -1.0
        best = int((likeness >= likeness.max() - TIE).argmax())
        if likeness[best] > STOP:
            chosen.append(best)
            units[t] = best
            weights = np.linalg.lstsq(fit[:, chosen], y_fit, rcond=None)[0]
        in_sample[t] = _pearson(fit[:, chosen] @ weights, y_fit)
        held_out[t] = _pearson(score[:, chosen] @ weights, y_score)
    return units, in_sample, held_out


def _centred(x_nc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred columns and their norms, both 0 where constant."""
    centred = x_nc - x_nc.mean(axis=0)
    norms = np.linalg.norm(centred, axis=0)
    real = norms > CONSTANT * np.linalg.norm(x_nc, axis=0)
    return np.where(real, centred, 0.0), np.where(real, norms, 0.0)


def _pearson(x_n: np.ndarray, y_n: np.ndarray) -> float:
    x, y = x_n - x_n.mean(), y_n - y_n.mean()
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / norms) if norms > 0 else 0.0
