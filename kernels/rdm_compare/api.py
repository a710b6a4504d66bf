"""Public function `rdm_compare`."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.kernels.dispatch import dispatch
from sbm_jax.kernels.rdm_compare import reference, whitened
from sbm_jax.kernels.rdm_compare.whitened import WHITENED

_RANKED = ("spearman", "rho-a")
METHODS = ("corr", "spearman", "tau-a", "rho-a", "cosine")


def _xla(*args: Any) -> float:
    from sbm_jax.kernels.rdm_compare import xla

    return xla.compare(*args)


IMPLEMENTATIONS = {"xla": _xla, "reference": reference.compare}
WHITENED_IMPLEMENTATIONS = {"structured": whitened.compare, "reference": reference.compare_whitened}


def upper_triangle(rdm: np.ndarray) -> np.ndarray:
    """Strict upper triangle of a square matrix, row-major (the order of `np.triu_indices(n, 1)`)."""
    return rdm[~np.tri(len(rdm), dtype=bool)]


def rdm_compare(a: np.ndarray, b: np.ndarray, method: str = "spearman", *, implementation: str | None = None) -> float:
    """Similarity of two RDMs, each square [n, n] or condensed [n (n - 1) / 2]; definitions in `reference.compare` (`METHODS`)
    and `reference.compare_whitened` (`WHITENED`).

    NaN entries must be the same in both RDMs and are left out. Raises ValueError for an unknown method, sizes that
    disagree, a matrix that is not square or not symmetric, NaN in one RDM only, or fewer than 2 usable pairs.
    """
    if method not in METHODS + WHITENED:
        raise ValueError(f"rdm_compare: unknown method {method!r}; there are {', '.join(METHODS + WHITENED)}")
    va, vb = _condensed(a, "a"), _condensed(b, "b")
    if len(va) != len(vb):
        raise ValueError(f"rdm_compare: a has {len(va)} pairs, b has {len(vb)}")
    missing_a, missing_b = np.isnan(va), np.isnan(vb)
    if not np.array_equal(missing_a, missing_b):
        raise ValueError(
            f"rdm_compare: a has {missing_a.sum()} NaN pairs, b has {missing_b.sum()}, not at the same places"
        )
    for name, vector in (("a", va), ("b", vb)):
        if np.isinf(vector).any():
            raise ValueError(f"rdm_compare: {name} holds {int(np.isinf(vector).sum())} infinite dissimilarities")
    usable = len(va) - int(missing_a.sum())
    if usable < 2:
        raise ValueError(f"rdm_compare: {usable} usable pairs, at least 2 are needed")
    if method in WHITENED:
        return dispatch("rdm_compare", WHITENED_IMPLEMENTATIONS, implementation, va, vb, method)
    if usable < len(va):
        va, vb = va[~missing_a], vb[~missing_b]
    if implementation is None and method in _RANKED and _on_cpu():
        implementation = "reference"
    return dispatch("rdm_compare", IMPLEMENTATIONS, implementation, va, vb, method)


def _on_cpu() -> bool:
    """XLA sorts on one CPU thread, slower than NumPy (bench/kernels.py); ranks are then made on the host."""
    import jax

    return jax.default_backend() == "cpu"


def _is_symmetric(x: np.ndarray, block: int = 512) -> bool:
    """In blocks of rows: comparing all at once takes several matrices beside the one."""
    starts = range(0, len(x), block)
    return all(
        np.allclose(x[i : i + block], x[:, i : i + block].T, rtol=1e-4, atol=1e-6, equal_nan=True) for i in starts
    )


def _condensed(rdm: np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(rdm)
    if x.ndim == 1:
        size = (1 + np.sqrt(1 + 8 * len(x))) / 2
        if size != int(size):
            raise ValueError(f"rdm_compare: {name} has {len(x)} entries, which is no n (n - 1) / 2")
    elif x.ndim == 2 and x.shape[0] == x.shape[1]:
        if not _is_symmetric(x):
            raise ValueError(f"rdm_compare: {name} is not symmetric")
        x = upper_triangle(x)
    else:
        raise ValueError(f"rdm_compare: {name} must be square or condensed, found shape {x.shape}")
    return x.astype(np.float64, copy=False)
