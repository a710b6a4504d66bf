"""How a batch and a dictionary lie over devices while one objective is computed, and products in a stated precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

PRECISION = jax.lax.Precision.HIGHEST


class Over(NamedTuple):
    """How a batch and a dictionary lie over devices, and in what the products are computed.

    mean: over the devices that share a batch. max: over those and the ones that share a dictionary. units: the mesh axis
    along which a dictionary is cut into `parts` equal blocks. dtype: of the factors of products; all sums are float32.
    """

    mean: Callable[[jax.Array], jax.Array]
    max: Callable[[jax.Array], jax.Array]
    units: str = ""
    parts: int = 1
    dtype: str = "float32"

    def total(self, x: jax.Array) -> jax.Array:
        """Sum over the blocks of the dictionary."""
        return x if self.parts == 1 else _total(self.units, x)

    def positions(self, u: int) -> jax.Array:
        """Numbers in the whole dictionary of this block's u units, int32 [u]; for several blocks."""
        return jax.lax.axis_index(self.units) * u + jnp.arange(u)

    def among_best(self, values_bk: jax.Array, k: int) -> jax.Array:
        """Which of this block's candidates, descending per row, are among the k best of several blocks; ties to the lowest."""
        rows, width = values_bk.shape
        everywhere = jax.lax.all_gather(values_bk, self.units, axis=1, tiled=True)
        _, slots = jax.lax.top_k(everywhere, k)
        best = jnp.zeros(everywhere.shape, bool).at[jnp.arange(rows)[:, None], slots].set(True)
        return jax.lax.dynamic_slice_in_dim(best, jax.lax.axis_index(self.units) * width, width, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(axis: str, x: jax.Array) -> jax.Array:
    return jax.lax.psum(x, axis)


# Every device goes on from the same sum, so the cotangent is the same on all of them: it is passed on, not added up.
_total.defvjp(lambda axis, x: (_total(axis, x), None), lambda axis, _, g: (g,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded_product(dtype: str, x_bc: jax.Array, w_cd: jax.Array) -> jax.Array:
    return _wide(x_bc.astype(dtype), w_cd.astype(dtype))


def _wide(x_bc: jax.Array, w_cd: jax.Array) -> jax.Array:
    return jnp.einsum("bc,cd->bd", x_bc, w_cd, preferred_element_type=jnp.float32)


def _product_forward(dtype: str, x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    kept = x.astype(dtype), w.astype(dtype)
    return _wide(*kept), kept


def _product_backward(dtype: str, kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    g = g.astype(dtype)
    return _wide(g, w.T), _wide(x.T, g)


_rounded_product.defvjp(_product_forward, _product_backward)


def product(dtype: str, x_bc: jax.Array, w_cd: jax.Array) -> jax.Array:
    """x w in float32; in bfloat16 the factors are rounded, here and in the gradients, and sums stay float32."""
    if dtype == "float32":
        return jnp.einsum("bc,cd->bd", x_bc, w_cd, precision=PRECISION)
    return _rounded_product(dtype, x_bc, w_cd)


ALONE = Over(lambda x: x, lambda x: x)
