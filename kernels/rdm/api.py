"""Public functions `rdm` and `crossnobis`."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.kernels.codes import check_finite
from sbm_jax.kernels.dispatch import dispatch
from sbm_jax.kernels.rdm import reference

METRICS = ("correlation", "euclidean", "cosine")


def _xla(*args: Any) -> np.ndarray:
    from sbm_jax.kernels.rdm import xla

    return xla.rdm(*args)


def _xla_crossnobis(*args: Any) -> np.ndarray:
    from sbm_jax.kernels.rdm import xla

    return xla.crossnobis(*args)


IMPLEMENTATIONS = {"xla": _xla, "reference": reference.rdm}
CROSSNOBIS = {"xla": _xla_crossnobis, "reference": reference.crossnobis}


def rdm(x_nd: np.ndarray, metric: str = "correlation", *, implementation: str | None = None) -> np.ndarray:
    """Dissimilarity matrix [n, n] of n patterns over d channels: `correlation`, `euclidean` (squared, / d) or `cosine`.

    Definitions in `reference.rdm`. Raises ValueError for an unknown metric, a wrong shape, or NaN (naming the channel).
    """
    return dispatch("rdm", IMPLEMENTATIONS, implementation, checked_patterns(x_nd, metric, "rdm"), metric)


def checked_patterns(x_nd: np.ndarray, metric: str, op: str) -> np.ndarray:
    """The patterns as an array. Raises ValueError, naming `op`, for an unknown metric, a wrong shape, or NaN."""
    x = np.asarray(x_nd)
    if x.ndim != 2 or min(x.shape) < 1:
        raise ValueError(f"{op}: patterns must be [n, d], found shape {x.shape}")
    if metric not in METRICS:
        raise ValueError(f"{op}: unknown metric {metric!r}; there are {', '.join(METRICS)}")
    check_finite(x, op, "patterns", "channel")
    return x


def crossnobis(
    x_mnd: np.ndarray, precision_dd: np.ndarray | None = None, *, implementation: str | None = None
) -> np.ndarray:
    """Cross-validated (Mahalanobis) dissimilarity matrix [n, n] of patterns measured in m independent folds, / d.

    Definition in `reference.crossnobis` (rsatoolbox 0.3.2, leave one fold out). Unbiased: entries may be negative, and
    their mean is 0 where two patterns do not differ.

    Args: x_mnd: [m folds, n patterns, d channels], every pattern in every fold. precision_dd: inverse noise covariance,
    symmetric [d, d]; the identity if not given.
    Raises ValueError for a wrong shape, fewer than 2 folds, an asymmetric precision, or NaN (naming fold and channel).
    """
    x = np.asarray(x_mnd)
    if x.ndim != 3 or min(x.shape) < 1:
        raise ValueError(f"crossnobis: patterns must be [folds, n, d], found shape {x.shape}")
    if len(x) < 2:
        raise ValueError("crossnobis: 1 fold, at least 2 are needed")
    for fold, patterns in enumerate(x):
        check_finite(patterns, "crossnobis", f"patterns of fold {fold}", "channel")
    if precision_dd is not None:
        precision_dd = np.asarray(precision_dd)
        if precision_dd.shape != (x.shape[2],) * 2:
            raise ValueError(f"crossnobis: precision must be {(x.shape[2],) * 2}, found {precision_dd.shape}")
        check_finite(precision_dd, "crossnobis", "precision", "channel")
        if not np.allclose(precision_dd, precision_dd.T, rtol=1e-4, atol=1e-6 * np.abs(precision_dd).max()):
            raise ValueError("crossnobis: precision is not symmetric")
    return dispatch("crossnobis", CROSSNOBIS, implementation, x, precision_dd)
