"""`topk_encode` for XLA: dense product, then `select.top_k` (lowest index first on ties). Traceable and differentiable."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sbm_jax.kernels.select import top_k

PRECISION = jax.lax.Precision.HIGHEST


def topk_encode(x_bd: jax.Array, w_du: jax.Array, b_u: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """As `reference.topk_encode`, float32."""
    pre = jnp.einsum("...d,du->...u", x_bd, w_du, precision=PRECISION)
    pre = pre + jnp.broadcast_to(b_u, pre.shape)
    values, units = top_k(pre, k)
    return jax.nn.relu(values), units
