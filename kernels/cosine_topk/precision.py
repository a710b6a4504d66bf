"""The named precisions of the products of `cosine_topk`, and how far a similarity may be from the exact one.

A float32 x is split into bfloat16 parts, x = hi + lo + r with |lo| <= 2^-8 |x| and |r| <= 2^-16 |x| (bfloat16 keeps 8 bits; the
split of Henry, Tang and Heinecke 2019, arXiv 1904.06376). `bf16x3` adds hi hi + hi lo + lo hi, `bf16` hi hi alone; products of
two bfloat16 numbers are exact in float32, where all are summed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import jax

Precision = Literal["f32", "bf16x3", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Of the split alone, per sum |a_i y_i| <= |a| |y| = 1: bf16 drops a lo and b lo (2 2^-8, and their product); bf16x3 drops
# lo lo (2^-16) and both remainders (2 2^-16), each times at most 1 + 2^-7.
_SPLIT = {"f32": 0.0, "bf16x3": 3 * 2.0**-16 * (1 + 2.0**-7), "bf16": 2 * 2.0**-8 * (1 + 2.0**-9)}


def check(precision: str) -> None:
    """Raise ValueError for a name that is none."""
    if precision not in PRECISIONS:
        raise ValueError(f"cosine_topk: no precision {precision!r}; there are {', '.join(PRECISIONS)}")


def error_bound(precision: Precision, n: int) -> float:
    """|similarity - exact one| over n images, at most: f32 2^-23 (32 + 4 sqrt(n)), bf16x3 3 2^-16 more, bf16 2^-7 more.

    The split's part holds always (Cauchy-Schwarz). The float32 part, for norms, means and the sum, is probabilistic (errors of
    n roundings add up as their square root) and for columns whose mean is at most a few times their spread.
    """
    return _SPLIT[precision] + 2.0**-23 * (32 + 4 * n**0.5)


def product(a_nu: jax.Array, y_nv: jax.Array, precision: str) -> jax.Array:
    """Sums over images [u, v] float32, of columns of float32."""
    import jax
    import jax.numpy as jnp

    if precision == "f32":
        return jnp.einsum("nu,nv->uv", a_nu, y_nv, precision=jax.lax.Precision.HIGHEST)
    (a, a_lo), (y, y_lo) = _split(a_nu), _split(y_nv)
    s = _bf16(a, y)
    return s if precision == "bf16" else s + (_bf16(a, y_lo) + _bf16(a_lo, y))


def _bf16(a_nu: jax.Array, y_nv: jax.Array) -> jax.Array:
    import jax.numpy as jnp

    return jnp.einsum("nu,nv->uv", a_nu, y_nv, preferred_element_type=jnp.float32)


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    import jax
    import jax.numpy as jnp

    # Not by conversion there and back, which XLA may leave out (xla_allow_excess_precision).
    hi = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    lo = jax.lax.reduce_precision(x - hi, exponent_bits=8, mantissa_bits=7)
    return hi.astype(jnp.bfloat16), lo.astype(jnp.bfloat16)
