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
        if metric == "correlation":
            scale = jnp.linalg.norm(x, axis=1, keepdims=True)
            x = x - jnp.mean(x, axis=1, keepdims=True)
            x = jnp.where(jnp.linalg.norm(x, axis=1, keepdims=True) <= 1e-6 * scale, 0.0, x)
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        out = 1.0 - jnp.einsum("nd,md->nm", x, x, precision=PRECISION)
    out = (out + out.T) / 2
    return jnp.where(jnp.eye(n, dtype=bool), 0.0, out)
