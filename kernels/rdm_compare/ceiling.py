"""Noise ceiling of RDM comparisons over subjects (Nili et al. 2014; pooling per measure as in rsatoolbox 0.3.2)."""

from __future__ import annotations

import numpy as np
from scipy import stats

from sbm_jax.kernels.rdm_compare import reference


def pool(rdms_sn: np.ndarray, method: str) -> np.ndarray:
    """The RDM vector most similar to all subjects': mean after dividing by the RMS (cosine), after z-scoring (corr), or
    of ranks (spearman, rho-a, tau-a)."""
    x = np.asarray(rdms_sn, np.float64)
    if method == "cosine":
        return (x / np.sqrt((x**2).mean(axis=1, keepdims=True))).mean(axis=0)
    if method == "corr":
        return ((x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)).mean(axis=0)
    return stats.rankdata(x, axis=1).mean(axis=0)


def noise_ceiling(rdms_sn: np.ndarray, method: str) -> tuple[float, float]:
    """(lower, upper): mean similarity of each subject's RDM to the pool of the others, and to the pool of all.

    Args: rdms_sn: [s, pairs], at least 2 subjects with the same images in the same order. The upper bound contains the
    subject itself and is about 1 / sqrt(s) for pure noise. Raises ValueError for fewer than 2 subjects.
    """
    n = len(rdms_sn)
    if n < 2:
        raise ValueError(f"noise_ceiling: {n} subjects, at least 2 are needed")
    if not np.isfinite(rdms_sn).all():
        raise ValueError("noise_ceiling: RDMs hold NaN or infinity; leave out the same pairs in all subjects first")
    everyone = pool(rdms_sn, method)
    lower = [
        reference.compare(pool(np.delete(rdms_sn, s, axis=0), method), np.asarray(rdms_sn[s], np.float64), method)
        for s in range(n)
    ]
    upper = [reference.compare(everyone, np.asarray(rdm, np.float64), method) for rdm in rdms_sn]
    return float(np.mean(lower)), float(np.mean(upper))
