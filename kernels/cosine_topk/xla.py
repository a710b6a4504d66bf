"""Blocked `cosine_topk` for XLA: one pass over unit blocks x voxel blocks keeps a running top-k in both directions.

Memory in flight: n (bu + bv) + bu bv floats for the blocks, V kv + U ku pairs for the running lists, and the normalised
responses n V. FLOPs: 2 n U V for the products; the selections read each similarity twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sbm_jax.kernels.codes import SparseCodes, count_units, unit_values
from sbm_jax.kernels.cosine_topk.merge import merge_topk
from sbm_jax.kernels.cosine_topk.precision import product
from sbm_jax.kernels.cosine_topk.prepared import IMAGES, Prepared, unit_columns
from sbm_jax.kernels.cosine_topk.reference import CONSTANT
from sbm_jax.kernels.select import top_k

# An f32 product is TF32 or bf16 by default on accelerators; these similarities feed statistics.
PRECISION = jax.lax.Precision.HIGHEST
BELOW_ALL = -2.0  # key of a constant column: cosines are >= -1, so it is never chosen over a real one
PADDING = -3.0  # key of a column that only fills up a block: never chosen at all
NEVER = -4.0  # key of an empty slot


def block_sizes(n: int, n_units: int, n_voxels: int, budget: int) -> tuple[int, int]:
    """(units, voxels) per block so that two n-column blocks and their product stay within `budget` bytes of float32."""
    side = 4096
    while side > 64 and 4 * (2 * n * side + 2 * side * side) > budget:
        side //= 2
    return min(side, _round_up(n_units, 32)), min(side, _round_up(n_voxels, 32))


def _round_up(x: int, multiple: int) -> int:
    return -(-max(1, x) // multiple) * multiple


def cosine_topk_both(
    codes: SparseCodes | np.ndarray,
    responses: Prepared,
    k_voxel: int,
    k_unit: int,
    *,
    memory_bytes: int = 1 << 29,
    precision: str = "f32",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `reference.cosine_topk_both`, float32; products in the named `precision`.

    Raises NotImplementedError where the images of the responses are split over devices.
    """
    if responses.split_images:
        raise NotImplementedError("images are split over the devices of a mesh")
    n_units = count_units(codes)
    bu, bv = block_sizes(responses.y_nv.shape[0], n_units, responses.n_voxels, memory_bytes)
    operand = prepare_codes(codes, responses.center) if isinstance(codes, SparseCodes) else codes
    out = topk_blocks(
        operand,
        responses.y_nv,
        responses.real_v,
        n_units=n_units,
        k_voxel=k_voxel,
        k_unit=k_unit,
        center=responses.center,
        bu=bu,
        bv=bv,
        precision=precision,
    )
    return tuple(np.asarray(x) for x in out)  # type: ignore[return-value]


class UnitCodes(NamedTuple):
    """Sparse codes whose columns have unit norm; see `codes.unit_values`: values_nk, units_nk, shift_u [u], real_u [u]."""

    values_nk: jax.typing.ArrayLike
    units_nk: jax.typing.ArrayLike
    shift_u: jax.typing.ArrayLike
    real_u: jax.typing.ArrayLike


def prepare_codes(codes: SparseCodes, center: bool) -> UnitCodes:
    """Columns of unit norm, on the host."""
    return UnitCodes(*unit_values(codes, center, CONSTANT))


@functools.partial(jax.jit, static_argnames=("n_units", "k_voxel", "k_unit", "center", "bu", "bv", "precision"))
def topk_blocks(
    codes: jax.Array | UnitCodes,
    y_nv: jax.Array,
    real_v: jax.Array,
    *,
    n_units: int,
    k_voxel: int,
    k_unit: int,
    center: bool,
    bu: int,
    bv: int,
    precision: str = "f32",
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The pass as one jitted program. `codes` is dense [n, u] or `UnitCodes`; k_voxel or k_unit may be 0.

    Returns values_vk, units_vk, values_uk, voxels_uk with constant candidates valued 0.
    """
    values_v, units_v, values_u, voxels_u = topk_keys(
        codes,
        y_nv,
        real_v,
        n_units=n_units,
        valid_units=n_units,
        valid_voxels=y_nv.shape[1],
        k_voxel=k_voxel,
        k_unit=k_unit,
        center=center,
        bu=bu,
        bv=bv,
        precision=precision,
    )
    return values_of(values_v), units_v, values_of(values_u), voxels_u


def topk_keys(
    codes: jax.Array | UnitCodes,
    y_nv: jax.Array,
    real_v: jax.Array,
    *,
    n_units: int,
    valid_units: int | jax.Array,
    valid_voxels: int | jax.Array,
    k_voxel: int,
    k_unit: int,
    center: bool,
    bu: int,
    bv: int,
    precision: str = "f32",
    split_n: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The pass with selection keys instead of values; columns from `valid_units` or `valid_voxels` on are padding.

    y_nv, real_v: unit columns and which are real, as `unit_columns` gives them. split_n: in a `shard_map` over `images`, how
    many there are in all; codes and y_nv are then one device's rows (padding of y_nv is 0), y_nv has the voxels of all
    devices along `images` in their order, and each selects from its own, `real_v`, and returns lists for them alone.
    """
    n, n_voxels = y_nv.shape[0], real_v.shape[0]
    parts = 1 if split_n is None else y_nv.shape[1] // n_voxels
    blocks_u, blocks_v = -(-n_units // bu), -(-n_voxels // bv)
    y = jnp.pad(y_nv.reshape(n, parts, n_voxels), ((0, 0), (0, 0), (0, blocks_v * bv - n_voxels)))
    y_bnv = y.reshape(n, parts, blocks_v, bv).transpose(2, 0, 1, 3).reshape(blocks_v, n, parts * bv)
    offset_v = _keys(jnp.pad(real_v, (0, blocks_v * bv - n_voxels)), 0, valid_voxels).reshape(blocks_v, bv)
    code_block = unit_blocks(codes, n, n_units, bu, center, split_n)

    def unit_step(best_v: tuple[jax.Array, jax.Array], i: jax.Array):
        a, real_u = code_block(i)
        offset_u = _keys(real_u, i * bu, valid_units)

        def voxel_step(best_u: tuple[jax.Array, jax.Array], block: tuple[jax.Array, ...]):
            y_block, off_v, j, best_values, best_units = block
            s = product(a, y_block, precision)
            if split_n is not None:
                s = jax.lax.psum_scatter(s, IMAGES, scatter_dimension=1, tiled=True)
            if k_voxel:
                key = jnp.where(offset_u[:, None] == 0, s, offset_u[:, None]).T
                top, slot = top_k(key, min(k_voxel, bu))
                best_values, best_units = merge_topk(best_values, best_units, top, i * bu + slot, k_voxel)
            if k_unit:
                key = jnp.where(off_v[None, :] == 0, s, off_v[None, :])
                top, slot = top_k(key, min(k_unit, bv))
                best_u = merge_topk(best_u[0], best_u[1], top, j * bv + slot, k_unit)
            return best_u, (best_values, best_units)

        start_u = (jnp.full((bu, k_unit), NEVER), jnp.zeros((bu, k_unit), jnp.int32))
        best_u, best_v = jax.lax.scan(voxel_step, start_u, (y_bnv, offset_v, jnp.arange(blocks_v), *best_v))
        return best_v, best_u

    start_v = (jnp.full((blocks_v, bv, k_voxel), NEVER), jnp.zeros((blocks_v, bv, k_voxel), jnp.int32))
    (values_v, units_v), (values_u, voxels_u) = jax.lax.scan(unit_step, start_v, jnp.arange(blocks_u))
    return (
        values_v.reshape(-1, k_voxel)[:n_voxels] if k_voxel else jnp.zeros((n_voxels, 0)),
        units_v.reshape(-1, k_voxel)[:n_voxels] if k_voxel else jnp.zeros((n_voxels, 0), jnp.int32),
        values_u.reshape(-1, k_unit)[:n_units] if k_unit else jnp.zeros((n_units, 0)),
        voxels_u.reshape(-1, k_unit)[:n_units] if k_unit else jnp.zeros((n_units, 0), jnp.int32),
    )


def unit_blocks(
    codes: jax.Array | UnitCodes, n: int, n_units: int, bu: int, center: bool, split_n: int | None = None
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Number of a block -> its `bu` unit columns [n, bu], which are real [bu]; columns past the last unit are 0.

    split_n: as for `unit_columns`, of dense codes; in rows of padding sparse ones have the value that they have where no
    unit fires, which meets zeros of the responses.
    """
    pad_u = -n_units % bu

    def dense_block(codes_nu: jax.Array) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
        padded = jnp.pad(codes_nu, ((0, 0), (0, pad_u)))
        return lambda i: unit_columns(jax.lax.dynamic_slice_in_dim(padded, i * bu, bu, axis=1), center, split_n)

    def sparse_block(codes: UnitCodes) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
        shift, real = jnp.pad(codes.shift_u, (0, pad_u)), jnp.pad(codes.real_u, (0, pad_u))
        rows = jnp.arange(n)[:, None]

        def block(i: jax.Array) -> tuple[jax.Array, jax.Array]:
            local = codes.units_nk - i * bu
            inside = (local >= 0) & (local < bu)
            silent = jnp.pad(-jax.lax.dynamic_slice_in_dim(shift, i * bu, bu), (0, 1))
            # Entries of other blocks go to a spare column, which is cut off.
            a = jnp.broadcast_to(silent, (n, bu + 1)).at[rows, jnp.where(inside, local, bu)].set(codes.values_nk)
            return a[:, :bu], jax.lax.dynamic_slice_in_dim(real, i * bu, bu)

        return block

    return sparse_block(codes) if isinstance(codes, UnitCodes) else dense_block(codes)


def _keys(real: jax.Array, first: int | jax.Array, valid: int | jax.Array) -> jax.Array:
    """0 for a real column, BELOW_ALL for a constant one, PADDING from position `valid` on."""
    position = first + jnp.arange(real.shape[0])
    return jnp.where(position >= valid, PADDING, jnp.where(real, 0.0, BELOW_ALL))


def values_of(keys: jax.Array) -> jax.Array:
    """Selection keys to similarities: constant candidates have 0."""
    return jnp.where(keys <= BELOW_ALL, 0.0, keys)
