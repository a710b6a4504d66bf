"""What a unit that fires on m images can reach at most with a voxel: how the sparse search leaves units out, exactly.

Let y be a voxel's unit column and w the weights of a unit that fires on at most m images F (w_i = a_i / |a - mean a|, so
that s = sum_F w_i y_i). With z_i = y_i^2, or max(y_i, 0)^2 when no weight is negative (negative y_i then only lower s),
Cauchy-Schwarz gives

    s <= sum_F w_i sqrt(z_i) <= |w| sqrt(sum_F z_i) <= |w| sqrt(T_m),    T_m = sum of the m largest z_i.

And for every threshold t >= 0 (no sort: one pass over y)

    T_m <= m t + sum_i max(z_i - t, 0),

because each of the m largest is at most t + max(z_i - t, 0); equality where t is the m-th largest. t is taken where it
would be for a Gaussian column: for others the bound is looser, never wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np


def threshold(n: int, m: int, positive: bool) -> float:
    """The m-th largest z of a Gaussian column of unit norm, about."""
    share = m / n if positive else m / (2 * n)
    return NormalDist().inv_cdf(1 - share) ** 2 / n if share < 0.5 else 0.0


@functools.partial(jax.jit, static_argnames="positive")
def excess(y_nv: jax.Array, t_m: jax.Array, positive: bool) -> jax.Array:
    """[m, v] sum over images of max(z - t, 0), for each threshold t."""
    z = jnp.maximum(y_nv, 0) ** 2 if positive else y_nv**2
    return jnp.stack([jnp.maximum(z - t, 0).sum(axis=0) for t in t_m])


def most_similar(y_nv: jax.Array | np.ndarray, images_m: Sequence[int], positive: bool) -> np.ndarray:
    """[m, v] upper bounds of the float32 similarity of any unit on at most m images, as multiples of the norm of its weights.

    positive: no weight is negative. Rounding is covered: of the sum over n images, relative 2^-24 n (all terms are >= 0;
    four times that is added for z, t and the root), and of the similarity itself, at most 2^-24 (m + 1) |w| |y|.
    """
    n = y_nv.shape[0]
    m = np.asarray(images_m, np.float64)[:, None]
    t = np.asarray([threshold(n, i, positive) for i in images_m], np.float32)
    largest = m * t[:, None].astype(np.float64) + np.asarray(excess(y_nv, t, positive), np.float64)
    eps = 2.0**-24
    return np.sqrt(largest) * (1 + 4 * eps * n) + 2 * eps * (m + 1)
