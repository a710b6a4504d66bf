"""`rdm_compare` for XLA: one sort per vector; ranks as int32, products summed in blocks.

Float32 holds whole numbers only up to 2^24, so ranks of more than 16.7 million pairs (5,794 images) are kept as doubled
int32 ranks and scaled to [-1, 1] before the product.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 4096


def compare(a: np.ndarray, b: np.ndarray, method: str) -> float:
    """As `reference.compare`, float32; tau-a is not here (a merge sort does not suit accelerators)."""
    if method == "tau-a":
        raise NotImplementedError("tau-a runs on the host")
    if len(a) >= 2**30:
        raise NotImplementedError("doubled ranks of more than 2^30 pairs overflow int32")
    return float(_compare(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), method))


@functools.partial(jax.jit, static_argnames="method")
def _compare(a: jax.Array, b: jax.Array, method: str) -> jax.Array:
    n = a.shape[0]
    if method in ("spearman", "rho-a"):
        a, b = _centred_ranks(a) / n, _centred_ranks(b) / n
    elif method == "corr":
        a, b = _centred(a), _centred(b)
    # Dissimilarities may be tiny or huge; the ratio is the same after scaling by the largest.
    a, b = (a, b) if method == "rho-a" else (a / _largest(a), b / _largest(b))
    product = _sum(a * b)
    if method == "rho-a":
        return 3 * product / (n - 1 / n)  # 12 / 4: both ranks are doubled
    scale = jnp.sqrt(_sum(a * a)) * jnp.sqrt(_sum(b * b))
    return jnp.where(scale > 0, product / jnp.where(scale > 0, scale, 1.0), 0.0)


def _centred(x: jax.Array) -> jax.Array:
    """x minus its mean; exactly 0 for a constant, which rounding of the mean would leave as noise."""
    return jnp.where(jnp.max(x) == jnp.min(x), 0.0, x - _sum(x) / x.shape[0])


def _largest(x: jax.Array) -> jax.Array:
    top = jnp.max(jnp.abs(x))
    return jnp.where(top > 0, top, 1.0)


def _centred_ranks(x: jax.Array) -> jax.Array:
    """Twice the average rank minus (n + 1), as float32: whole numbers from -(n - 1) to n - 1, made in int32."""
    n = x.shape[0]
    order = jnp.argsort(x)
    ordered = x[order]
    position = jnp.arange(n, dtype=jnp.int32)
    is_first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    first = jax.lax.cummax(jnp.where(is_first, position, 0))
    is_last = jnp.concatenate([is_first[1:], jnp.ones(1, bool)])
    last = jax.lax.cummin(jnp.where(is_last, position, n - 1), reverse=True)
    doubled = first + last + 2 - (n + 1)
    return jnp.zeros(n, jnp.int32).at[order].set(doubled, unique_indices=True).astype(jnp.float32)


def _sum(x: jax.Array) -> jax.Array:
    """Sum of block sums: error grows with the block length and the number of blocks, not with their product."""
    padded = jnp.pad(x, (0, -x.shape[0] % _BLOCK)).reshape(-1, _BLOCK)
    return jnp.sum(jnp.sum(padded, axis=1))
