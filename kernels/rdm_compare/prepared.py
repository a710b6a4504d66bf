"""RDMs made ready once and compared often: ranked once where the method wants ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbm_jax.kernels.rdm_compare.api import rdm_compare, upper_triangle
from sbm_jax.kernels.rdm_compare.ranks import average_ranks


@dataclass(frozen=True)
class PreparedRdm:
    """A condensed RDM, NaN where a pair is missing, and its average ranks for `spearman` when none is."""

    values: np.ndarray
    ranks: np.ndarray | None
    method: str


def prepare_rdm(dissimilarities: np.ndarray, method: str) -> PreparedRdm:
    """From a square [n, n] or condensed RDM."""
    values = dissimilarities if dissimilarities.ndim == 1 else upper_triangle(dissimilarities)
    whole = method == "spearman" and bool(np.isfinite(values).all())
    return PreparedRdm(values, average_ranks(values) if whole else None, method)


def compare_prepared(a: PreparedRdm, b: PreparedRdm) -> float:
    """Comparison over the pairs that both have; NaN for fewer than 2. Raises ValueError when methods differ."""
    if a.method != b.method:
        raise ValueError(f"compare_prepared: a is made for {a.method}, b for {b.method}")
    if a.ranks is not None and b.ranks is not None:
        return rdm_compare(a.ranks, b.ranks, "corr")  # which is what spearman is
    both = np.isfinite(a.values) & np.isfinite(b.values)
    if both.sum() < 2:
        return float("nan")
    # Dropping pairs leaves no condensed matrix, so both vectors carry NaN at the same places.
    return rdm_compare(np.where(both, a.values, np.nan), np.where(both, b.values, np.nan), a.method)
