"""A stack of TopK autoencoders as one pytree: every array has a leading axis a, one entry per autoencoder.

For one token x [d]:  x' = scale (x - mean);  z = TopK_k(x' w_enc + b_enc), negatives set to 0;  x'^ = z w_dec + b_dec.
(Gao et al. 2024, arXiv 2406.04093; inputs centred and scaled to unit mean square as arXiv 2605.31518 recommends.)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sbm_jax.kernels import sparse_decode, topk_encode


class Norm(NamedTuple):
    """Input normalisation: mean [a, d] and scale [a], so that scale (x - mean) has mean square 1 per dimension."""

    mean: jax.Array
    scale: jax.Array


class Params(NamedTuple):
    """Learned arrays: w_enc [a, d, u], b_enc [a, u], w_dec [a, u, d] with unit rows, b_dec [a, d]."""

    w_enc: jax.Array
    b_enc: jax.Array
    w_dec: jax.Array
    b_dec: jax.Array


def init_params(seeds: np.ndarray, d: int, u: int, encoder_scale: float) -> Params:
    """Random unit decoder rows; the encoder is `encoder_scale` times their transpose; biases 0.

    b_dec = 0 puts it at the data mean, since inputs are centred. The encoder starts short of the transpose because k of
    u random unit rows overshoot the input, and Adam remembers the gradients of that.

    Args: seeds: integer [a], one per autoencoder, so that a stack equals its members trained alone.
    """
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    rows = jax.vmap(lambda key: jax.random.normal(key, (u, d), jnp.float32))(keys)
    w_dec = unit_rows(rows)
    a = len(seeds)
    return Params(
        w_enc=encoder_scale * w_dec.transpose(0, 2, 1),
        b_enc=jnp.zeros((a, u)),
        w_dec=w_dec,
        b_dec=jnp.zeros((a, d)),
    )


def unit_rows(w: jax.Array) -> jax.Array:
    """Rows scaled to norm 1 (a zero row stays zero)."""
    norm = jnp.linalg.norm(w, axis=-1, keepdims=True)
    return w / jnp.where(norm > 0, norm, 1.0)


def normalise(norm: Norm, x_abd: jax.Array) -> jax.Array:
    """scale (x - mean), float32; x may be float16."""
    x = x_abd.astype(jnp.float32)
    return norm.scale[:, None, None] * (x - norm.mean[:, None, :])


def encode(params: Params, x_abd: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """values [a, b, k] and units [a, b, k] of normalised inputs."""
    return jax.vmap(lambda p, x: topk_encode(x, p.w_enc, p.b_enc, k))(params, x_abd)


def decode(params: Params, values: jax.Array, units: jax.Array) -> jax.Array:
    """Reconstruction [a, b, d] in normalised coordinates."""
    return jax.vmap(lambda p, v, i: sparse_decode(v, i, p.w_dec) + p.b_dec[None])(params, values, units)
