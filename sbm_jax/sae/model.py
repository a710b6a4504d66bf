"""A stack of TopK autoencoders as one pytree: every array has a leading axis a, one entry per autoencoder.

For one token x [d]:  x' = scale (x - mean);  z = TopK_k(x' w_enc + b_enc), negatives set to 0;  x'^ = z w_dec + b_dec.
(Gao et al. 2024, arXiv 2406.04093; inputs centred and scaled to unit mean square as arXiv 2605.31518 recommends.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sbm_jax.kernels import sparse_decode, topk_encode


class Norm(NamedTuple):
    """Input normalisation: mean [a, d] and scale [a], so that scale (x - mean) has mean square 1 per dimension."""

    mean: jax.Array
    scale: jax.Array


class Params(NamedTuple):
    """Learned arrays: w_enc [a, d, u], b_enc [a, u], w_dec [a, u, d], b_dec [a, d].

    threshold [a, u]: logarithms of JumpReLU's thresholds. mix [a, u, c] and points [a, c, d]: archetypal decoder rows are
    softmax(mix) points, convex combinations of c tokens of the data, and w_dec is a copy of them. None elsewhere.
    """

    w_enc: jax.Array
    b_enc: jax.Array
    w_dec: jax.Array
    b_dec: jax.Array
    threshold: jax.Array | None = None
    mix: jax.Array | None = None
    points: jax.Array | None = None


PER_UNIT = {"w_enc", "b_enc", "w_dec", "threshold", "mix"}
_FIRST_THRESHOLD = 0.001  # of JumpReLU (Rajamanoharan et al. 2024)
_MIX_SPREAD = 3.0  # so that at the start a row is dominated by a few points, as rows that differ must be


def decoder_rows(params: Params) -> jax.Array:
    """Decoder rows [..., u, d] as the gradient sees them: learned, or archetypal mixtures of data points."""
    if params.mix is None or params.points is None:
        return params.w_dec
    points = jax.lax.stop_gradient(params.points)
    return jnp.einsum(
        "...uc,...cd->...ud", jax.nn.softmax(params.mix, axis=-1), points, precision=jax.lax.Precision.HIGHEST
    )


def with_threshold(params: Params) -> Params:
    """The parameters with JumpReLU's first thresholds."""
    return params._replace(threshold=jnp.full(params.b_enc.shape, np.log(_FIRST_THRESHOLD), jnp.float32))


def with_points(params: Params, seeds: np.ndarray, points: jax.Array, encoder_scale: float) -> Params:
    """The parameters with archetypal decoder rows over normalised tokens `points` [a, c, d]."""
    shape = (params.b_enc.shape[1], points.shape[1])
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32) + 1_000_003)
    mix = _MIX_SPREAD * jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
    mixed = params._replace(mix=mix, points=points)
    rows = decoder_rows(mixed)
    # Rows are as long as tokens are; divided by their squared length they meet themselves with a code of `encoder_scale`.
    square = jnp.maximum(jnp.sum(rows**2, axis=-1, keepdims=True), 1e-12)
    return mixed._replace(w_dec=rows, w_enc=encoder_scale * (rows / square).transpose(0, 2, 1))


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


def per_unit(function: Callable[..., jax.Array], other: Callable[..., jax.Array], *params: Params) -> Params:
    """`function` of the arrays with an entry per unit, `other` of the rest; several parameter sets side by side."""
    done: dict[str, Any] = {
        name: None if values[0] is None else (function if name in PER_UNIT else other)(*values)
        for name, *values in zip(Params._fields, *params, strict=True)
    }
    return Params(**done)


def turned(params: Params) -> Params:
    """The parameters with the two last axes of w_enc swapped: one row per unit, or back."""
    return params._replace(w_enc=params.w_enc.swapaxes(-1, -2))


def each(function: Callable[..., Any], *arrays: Any) -> Any:
    """`jax.vmap(function)(*arrays)`; a single autoencoder is not looped over, which would copy its weights."""
    if len(jax.tree.leaves(arrays)[0]) > 1:
        return jax.vmap(function)(*arrays)
    one = function(*jax.tree.map(lambda x: x[0], arrays))
    return jax.tree.map(lambda x: x[None], one)


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
