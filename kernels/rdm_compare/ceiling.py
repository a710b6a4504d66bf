"""Noise ceiling of RDM comparisons over subjects (Nili et al. 2014; pooling per measure as in rsatoolbox 0.3.2)."""

from __future__ import annotations

import numpy as np
from scipy import stats

from sbm_jax.kernels.rdm_compare import reference, whitened


def pool(rdms_sn: np.ndarray, method: str) -> np.ndarray:
    """The RDM vector most similar to all subjects': mean after dividing by the RMS (cosine, cosine_cov), after z-scoring
    (corr, corr_cov), or of ranks (spearman, rho-a, tau-a)."""
    x = np.asarray(rdms_sn, np.float64)
    if method in ("cosine", "cosine_cov"):
        return (x / np.sqrt((x**2).mean(axis=1, keepdims=True))).mean(axis=0)
    if method in ("corr", "corr_cov"):
        return ((x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)).mean(axis=0)
    return stats.rankdata(x, axis=1).mean(axis=0)


def noise_ceiling(rdms_sn: np.ndarray, method: str, observed_n: np.ndarray | None = None) -> tuple[float, float]:
    """(lower, upper): mean similarity of each subject's RDM to the pool of the others, and to the pool of all.

    Args: rdms_sn: [s, pairs], at least 2 subjects with the same images in the same order. observed_n: bool [pairs], the
    pairs to use (all if not given). The upper bound contains the subject itself and is about 1 / sqrt(s) for pure noise.
    Raises ValueError for fewer than 2 subjects, or NaN or infinity among the pairs used.
    """
    n = len(rdms_sn)
    if n < 2:
        raise ValueError(f"noise_ceiling: {n} subjects, at least 2 are needed")
    x = rdms_sn if observed_n is None else rdms_sn[:, observed_n]
    if not np.isfinite(x).all():
        raise ValueError("noise_ceiling: RDMs hold NaN or infinity; leave out the same pairs in all subjects first")

    def similarity(a: np.ndarray, b: np.ndarray) -> float:
        if method not in whitened.WHITENED:
            return reference.compare(a, b, method)
        places = np.full((2, rdms_sn.shape[1]), np.nan)
        places[:, slice(None) if observed_n is None else observed_n] = a, b
        return whitened.compare(places[0], places[1], method)

    everyone = pool(x, method)
    lower = [similarity(pool(np.delete(x, s, axis=0), method), np.asarray(x[s], np.float64)) for s in range(n)]
    upper = [similarity(everyone, np.asarray(rdm, np.float64)) for rdm in x]
    return float(np.mean(lower)), float(np.mean(upper))
