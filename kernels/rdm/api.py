"""Public function `rdm`."""

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


IMPLEMENTATIONS = {"xla": _xla, "reference": reference.rdm}


def rdm(x_nd: np.ndarray, metric: str = "correlation", *, implementation: str | None = None) -> np.ndarray:
    """Dissimilarity matrix [n, n] of n patterns over d channels: `correlation`, `euclidean` (squared, / d) or `cosine`.

    Definitions in `reference.rdm`. Raises ValueError for an unknown metric, a wrong shape, or NaN (naming the channel).
    """
    x = np.asarray(x_nd)
    if x.ndim != 2 or min(x.shape) < 1:
        raise ValueError(f"rdm: patterns must be [n, d], found shape {x.shape}")
    if metric not in METRICS:
        raise ValueError(f"rdm: unknown metric {metric!r}; there are {', '.join(METRICS)}")
    check_finite(x, "rdm", "patterns", "channel")
    return dispatch("rdm", IMPLEMENTATIONS, implementation, x, metric)
