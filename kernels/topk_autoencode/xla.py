"""`topk_autoencode` for XLA: the encoder product is dense, all else touches active rows only.

b tokens, width d, u units, k active. FLOPs: 2 b d u for the encoder product and 8 b d k for the rest (decoding, the
codes' gradient, the two weight gradients). The pre-activations [block, u] live for one block of tokens: never [b, u],
and never [b, k, d], because writing fresh memory costs more than the arithmetic.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sbm_jax.kernels.select import top_k

PRECISION = lax.Precision.HIGHEST
_BLOCK_TOKENS = 256  # per encoder product: fewer make it slow, more push the pre-activations out of the cache
_GATHERED = 1 << 18  # values of decoder rows copied at a time, and
_SCATTERED = 1 << 16  # of rows added to a weight gradient: what a core's cache holds
_ROWS_AT_ONCE = 32  # decoder rows added by one fused loop


def topk_autoencode(
    x_bd: jax.Array, w_enc: jax.Array, b_enc: jax.Array, w_dec: jax.Array, b_dec: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `reference.topk_autoencode`, float32, with `reference.gradients` as its derivative."""
    # One row per unit from here on: so the gradient comes, and a caller that keeps such rows has nothing transposed.
    return _autoencode(k, x_bd, w_enc.T, b_enc, w_dec, b_dec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _autoencode(k: int, x: Any, w_enc: Any, b_enc: Any, w_dec: Any, b_dec: Any) -> tuple[Any, Any, Any]:
    return _forward(k)(x, w_enc, b_enc, w_dec, b_dec)


def _autoencode_fwd(k: int, x: Any, w_enc: Any, b_enc: Any, w_dec: Any, b_dec: Any) -> Any:
    out = _forward(k)(x, w_enc, b_enc, w_dec, b_dec)
    return out, (x, w_enc, w_dec, *out[1:])


def _autoencode_bwd(k: int, kept: Any, cotangents: Any) -> Any:
    x, w_enc, w_dec, values, units = kept
    g, g_values, _ = cotangents
    dz, dw_enc, db_enc, dw_dec = _backward()(x, w_dec, values, units, g, g_values)
    # Its own call, so that XLA drops it where the inputs need no gradient.
    dx = _decode_in_turn()(dz, units, w_enc)
    return dx, dw_enc, db_enc, dw_dec, g.sum(axis=0)


_autoencode.defvjp(_autoencode_fwd, _autoencode_bwd)


def blocks(function: Any, carry: Any, arrays: tuple[jax.Array, ...], most: int) -> Any:
    """`lax.scan` of function(carry, *arrays of at most `most` rows) -> (carry, outputs), over blocks as equal as can be."""
    b = len(arrays[0])
    size = -(-b // max(1, -(-b // max(1, most))))
    whole = b // size * size if b else 0
    outs = []
    if whole:
        cut = tuple(a[:whole].reshape(-1, size, *a.shape[1:]) for a in arrays)
        carry, out = lax.scan(lambda c, a: function(c, *a), carry, cut)
        outs.append(jax.tree.map(lambda o: o.reshape(whole, *o.shape[2:]), out))
    if whole < b or not b:
        carry, out = function(carry, *(a[whole:] for a in arrays))
        outs.append(out)
    return carry, jax.tree.map(lambda *o: jnp.concatenate(o), *outs)


@functools.cache
def _forward(k: int) -> Any:
    def forward(x_bd: Any, w_enc: Any, b_enc: Any, w_dec: Any, b_dec: Any) -> Any:
        def one(_: None, x: jax.Array) -> Any:
            pre = jnp.einsum("bd,ud->bu", x, w_enc, precision=PRECISION) + b_enc[None]
            values, units = top_k(pre, k)
            values = jax.nn.relu(values)
            return None, (decode(values, units, w_dec) + b_dec[None], values, units)

        return blocks(one, None, (x_bd,), _BLOCK_TOKENS)[1]

    return jax.custom_batching.sequential_vmap(forward)


def decode(values_bk: jax.Array, units_bk: jax.Array, w_ud: jax.Array) -> jax.Array:
    """[b, d] sum of k rows per token, as one loop over [b, d]: nothing of size [b, k, d] is written."""
    k = values_bk.shape[1]
    total = jnp.zeros((values_bk.shape[0], w_ud.shape[1]), jnp.float32)
    for j in range(k % _ROWS_AT_ONCE):
        total = total + values_bk[:, j, None] * _rows(w_ud, units_bk[:, j])

    def add(i: Any, total: jax.Array) -> jax.Array:
        start = k % _ROWS_AT_ONCE + i * _ROWS_AT_ONCE
        values = lax.dynamic_slice_in_dim(values_bk, start, _ROWS_AT_ONCE, 1)
        units = lax.dynamic_slice_in_dim(units_bk, start, _ROWS_AT_ONCE, 1)
        for j in range(_ROWS_AT_ONCE):
            total = total + values[:, j, None] * _rows(w_ud, units[:, j])
        return total

    return lax.fori_loop(0, k // _ROWS_AT_ONCE, add, total) if k >= _ROWS_AT_ONCE else total


def _rows(w_ud: jax.Array, units: jax.Array) -> jax.Array:
    return w_ud.at[units].get(mode="promise_in_bounds")


@functools.cache
def _decode_in_turn() -> Any:
    return jax.custom_batching.sequential_vmap(decode)


@functools.cache
def _backward() -> Any:
    def backward(x_bd: Any, w_dec: Any, values_bk: Any, units_bk: Any, g_bd: Any, g_values: Any) -> Any:
        u, d = w_dec.shape

        per_token = values_bk.shape[1] * d

        def dot(_: None, g: jax.Array, units: jax.Array) -> Any:
            return None, jnp.einsum("bd,bkd->bk", g, _rows(w_dec, units), precision=PRECISION)

        dz = blocks(dot, None, (g_bd, units_bk), _GATHERED // per_token)[1] + g_values
        dz = jnp.where(values_bk > 0, dz, 0.0)

        def add(total: jax.Array, z: jax.Array, units: jax.Array, y: jax.Array) -> Any:
            rows = (z[..., None] * y[:, None]).reshape(-1, d)
            return total.at[units.reshape(-1)].add(rows, mode="promise_in_bounds"), None

        def weights(z_bk: jax.Array, y_bd: jax.Array) -> jax.Array:
            """[u, d] sum over tokens of z y for each unit; one loop for each, since XLA copies sums that share one."""
            return blocks(add, jnp.zeros((u, d)), (z_bk, units_bk, y_bd), _SCATTERED // per_token)[0]

        bias = jnp.zeros(u).at[units_bk.reshape(-1)].add(dz.reshape(-1), mode="promise_in_bounds")
        return dz, weights(dz, x_bd), bias, weights(values_bk, g_bd)

    return jax.custom_batching.sequential_vmap(backward)
