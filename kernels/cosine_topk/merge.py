"""Merging two top-k lists: how layers, blocks and devices are brought together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax
    from jax.typing import ArrayLike


def merge_topk(
    values_a: ArrayLike, index_a: ArrayLike, values_b: ArrayLike, index_b: ArrayLike, k: int
) -> tuple[jax.Array, jax.Array]:
    """Top k of two lists per row, both sorted by descending value.

    Args: values [rows, ka] and [rows, kb], index alike. On equal values list `a` comes first, so when every index of `a`
    is below those of `b` ties go to the lowest index. Returns values [rows, k], index [rows, k], k <= ka + kb.
    """
    import jax
    import jax.numpy as jnp

    values = jnp.concatenate([jnp.asarray(values_a), jnp.asarray(values_b)], axis=-1)
    index = jnp.concatenate([jnp.asarray(index_a), jnp.asarray(index_b)], axis=-1)
    best, slot = jax.lax.top_k(values, k)
    return best, jnp.take_along_axis(index, slot, axis=-1)
