"""Exact top-k along the last axis, cheaper than one long selection when k is much smaller than the row.

The k largest of a row lie in the k chunks with the largest maxima, so a row of u values needs a maximum over u and two
short selections of u / c and k c values (least work at c = sqrt(u / k)). Ties go to the lowest index: chunks are
contiguous, the chosen ones are put in ascending order, and equal maxima are taken from the lowest chunk first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Measured on CPU (bench/kernels.py): below 256 values per kept one the gather costs more than the selection saves.
_WORTH_IT = 256
_CHUNK = 32


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Values and indices of the k largest along the last axis, descending, ties to the lowest index."""
    u = x.shape[-1]
    if u % _CHUNK or u < _WORTH_IT * k:
        return jax.lax.top_k(x, k)
    chunks = x.reshape(*x.shape[:-1], u // _CHUNK, _CHUNK)
    _, chosen = jax.lax.top_k(chunks.max(axis=-1), k)
    chosen = jnp.sort(chosen, axis=-1)
    candidates = jnp.take_along_axis(chunks, chosen[..., None], axis=-2)
    values, slot = jax.lax.top_k(candidates.reshape(*x.shape[:-1], k * _CHUNK), k)
    return values, jnp.take_along_axis(chosen, slot // _CHUNK, axis=-1) * _CHUNK + slot % _CHUNK
