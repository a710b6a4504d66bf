"""`rdm` for XLA: one Gram matrix, float32, blocked over rows so that one block is in flight beside the result.

FLOPs 2 n^2 d; bytes 4 (n d + n^2).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

PRECISION = jax.lax.Precision.HIGHEST


def rdm(x_nd: np.ndarray, metric: str) -> np.ndarray:
    """As `reference.rdm`, float32."""
    return np.asarray(_rdm(jnp.asarray(x_nd, jnp.float32), metric))


@functools.partial(jax.jit, static_argnames="metric")
def _rdm(x: jax.Array, metric: str) -> jax.Array:
    n, d = x.shape
    if metric == "euclidean":
        # Distances do not change when the mean pattern is removed, and the subtraction below then loses fewer digits.
        x = x - jnp.mean(x, axis=0, keepdims=True)
        gram = jnp.einsum("nd,md->nm", x, x, precision=PRECISION)
        square = jnp.sum(x * x, axis=1)
        out = jnp.maximum(square[:, None] + square[None, :] - 2 * gram, 0.0) / d
    else:
        x = unit_patterns(x, metric)
        out = 1.0 - jnp.einsum("nd,md->nm", x, x, precision=PRECISION)
    out = (out + out.T) / 2
    return jnp.where(jnp.eye(n, dtype=bool), 0.0, out)


def unit_patterns(x: jax.Array, metric: str) -> jax.Array:
    """Rows of which 1 - <x_i, x_j> is the `correlation` or `cosine` dissimilarity; NaN for a constant or zero pattern."""
    if metric == "correlation":
        scale = jnp.linalg.norm(x, axis=1, keepdims=True)
        x = x - jnp.mean(x, axis=1, keepdims=True)
        x = jnp.where(jnp.linalg.norm(x, axis=1, keepdims=True) <= 1e-6 * scale, 0.0, x)
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


@functools.partial(jax.jit, static_argnames=("metric", "size"))
def tile_patterns(x: jax.Array, metric: str, size: int) -> jax.Array:
    """Patterns ready for `tile`: unit ones, or around their mean; zero rows up to a multiple of `size`."""
    x = x - jnp.mean(x, axis=0, keepdims=True) if metric == "euclidean" else unit_patterns(x, metric)
    return jnp.pad(x, ((0, -len(x) % size), (0, 0)))


@functools.partial(jax.jit, static_argnames=("metric", "size"))
def tile(x: jax.Array, i: int, j: int, metric: str, size: int) -> jax.Array:
    """Dissimilarities [size, size] of the patterns from i with those from j. FLOPs 2 size^2 d."""
    a, b = (jax.lax.dynamic_slice_in_dim(x, start, size) for start in (i, j))
    gram = jnp.einsum("nd,md->nm", a, b, precision=PRECISION)
    if metric != "euclidean":
        return 1.0 - gram
    square = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)[None, :]
    return jnp.maximum(square - 2 * gram, 0.0) / x.shape[1]


def crossnobis(x_mnd: np.ndarray, precision_dd: np.ndarray | None) -> np.ndarray:
    """As `reference.crossnobis`, float32, in one product: the mean over folds of (mean of the others) P (fold)^T is
    (1 / (m (m - 1))) sum_f (sum of all - x_f) P x_f^T, one matrix product with the folds side by side. FLOPs 2 n^2 m d.
    """
    precision = None if precision_dd is None else jnp.asarray(precision_dd, jnp.float32)
    return np.asarray(_crossnobis(jnp.asarray(x_mnd, jnp.float32), precision))


@jax.jit
def _crossnobis(x: jax.Array, precision: jax.Array | None) -> jax.Array:
    m, n, d = x.shape
    # Each fold's mean pattern drops out of every difference; without it the sums below lose fewer digits.
    x = x - jnp.mean(x, axis=1, keepdims=True)
    others = jnp.sum(x, axis=0, keepdims=True) - x
    if precision is not None:
        others = jnp.einsum("mnd,de->mne", others, precision, precision=PRECISION)
    kernel = jnp.einsum("mnd,mkd->nk", others, x, precision=PRECISION)
    kernel = kernel + kernel.T
    diagonal = jnp.diag(kernel) / 2
    out = (diagonal[:, None] + diagonal[None, :] - kernel) / (d * m * (m - 1))
    return jnp.where(jnp.eye(n, dtype=bool), 0.0, out)
