"""`cosine_topk` over a mesh: units along one axis, voxels along another, and images along a third where they do not fit.

Each device finds the best of its units for its voxels. Along the unit axis the per-voxel lists are gathered and merged
(V k numbers, never codes or responses); along the voxel axis the same for the per-unit lists. Along the image axis blocks of
partial similarities are summed and scattered: each device selects from its share of the voxels of a block.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sbm_jax.kernels.codes import SparseCodes, count_units
from sbm_jax.kernels.cosine_topk import xla
from sbm_jax.kernels.cosine_topk.prepared import IMAGES, UNITS, VOXELS, Prepared, image_parts, put


def cosine_topk_both(
    codes: SparseCodes | np.ndarray,
    responses: Prepared,
    k_voxel: int,
    k_unit: int,
    *,
    memory_bytes: int = 1 << 29,
    precision: str = "f32",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `xla.cosine_topk_both`, spread over the mesh that the responses lie on; the result is whole on every process."""
    lists = sharded_topk(codes, responses, k_voxel, k_unit, memory_bytes=memory_bytes, precision=precision)
    if not lists[0].is_fully_addressable:
        lists = multihost_utils.process_allgather(lists, tiled=True)
    values_v, units_v, values_u, voxels_u = (np.asarray(x) for x in lists)
    n_units, n_voxels = count_units(codes), responses.n_voxels
    return values_v[:n_voxels], units_v[:n_voxels], values_u[:n_units], voxels_u[:n_units]


def sharded_topk(
    codes: SparseCodes | np.ndarray,
    responses: Prepared,
    k_voxel: int,
    k_unit: int,
    *,
    memory_bytes: int,
    precision: str = "f32",
) -> tuple[jax.Array, ...]:
    """The result as sharded arrays, units and voxels padded to multiples of the mesh (padding rows come last).

    Per-voxel lists lie along `voxels` x `images`, per-unit lists along `units`. Over several processes each passes the same codes.
    Raises NotImplementedError when the responses were prepared without a mesh.
    """
    run, operands = search_program(codes, responses, k_voxel, k_unit, memory_bytes=memory_bytes, precision=precision)
    return run(*operands)


def search_program(
    codes: SparseCodes | np.ndarray,
    responses: Prepared,
    k_voxel: int,
    k_unit: int,
    *,
    memory_bytes: int,
    precision: str = "f32",
) -> tuple[Any, tuple[Any, jax.Array, jax.Array]]:
    """The jitted search and what it is called with, codes laid over the mesh; see `sharded_topk`."""
    mesh = responses.mesh
    if mesh is None:
        raise NotImplementedError("no mesh was given")
    n_units, parts = count_units(codes), image_parts(mesh)
    local_n, local_u = responses.y_nv.shape[0] // parts, -(-n_units // mesh.shape[UNITS])
    local_v = responses.y_nv.shape[1] // (mesh.shape[VOXELS] * parts)
    pad_n, pad_u = (0, responses.padding_n), (0, local_u * mesh.shape[UNITS] - n_units)
    rows = IMAGES if parts > 1 else None
    if isinstance(codes, SparseCodes):
        values_nk, units_nk, shift_u, real_u = xla.prepare_codes(codes, responses.center)
        host: Any = xla.UnitCodes(
            np.pad(values_nk, (pad_n, (0, 0))),
            np.pad(units_nk, (pad_n, (0, 0))),
            np.pad(shift_u, pad_u),
            np.pad(real_u, pad_u),
        )
        specs: Any = (P(rows), P(rows), P(UNITS), P(UNITS))
        code_specs: Any = xla.UnitCodes(*specs)
    else:
        host, code_specs = np.pad(np.asarray(codes, np.float32), (pad_n, pad_u)), P(rows, UNITS)
    operand = jax.tree.map(lambda x, spec: put(x, mesh, spec), host, code_specs)
    bu, bv = xla.block_sizes(local_n, local_u, local_v * parts, memory_bytes // mesh.size)
    bv = max(32, bv // parts // 32 * 32)
    sizes = (responses.n_images, n_units, responses.n_voxels, local_u, local_v, k_voxel, k_unit)
    run = _compiled(mesh, code_specs, *sizes, responses.center, bu, bv, precision)
    return run, (operand, responses.y_nv, responses.real_v)


@functools.lru_cache(maxsize=64)
def _compiled(
    mesh: Mesh,
    code_specs: Any,
    n_images: int,
    n_units: int,
    n_voxels: int,
    local_u: int,
    local_v: int,
    k_voxel: int,
    k_unit: int,
    center: bool,
    bu: int,
    bv: int,
    precision: str,
) -> Any:
    parts = image_parts(mesh)
    split = parts > 1
    selecting = (VOXELS, IMAGES) if split else (VOXELS,)

    def local(codes: Any, y_nv: jax.Array, real_v: jax.Array) -> tuple[jax.Array, ...]:
        first_u = jax.lax.axis_index(UNITS) * local_u
        first_v = jax.lax.axis_index(selecting) * local_v
        if split:
            real_v = jax.lax.dynamic_slice_in_dim(real_v, jax.lax.axis_index(IMAGES) * local_v, local_v)
        if isinstance(codes, xla.UnitCodes):
            mine = (codes.units_nk >= first_u) & (codes.units_nk < first_u + local_u)
            codes = codes._replace(units_nk=jnp.where(mine, codes.units_nk - first_u, local_u))
        values_v, units_v, values_u, voxels_u = xla.topk_keys(
            codes,
            y_nv,
            real_v,
            n_units=local_u,
            valid_units=n_units - first_u,
            valid_voxels=n_voxels - first_v,
            k_voxel=min(k_voxel, local_u),
            k_unit=min(k_unit, local_v),
            center=center,
            bu=bu,
            bv=bv,
            precision=precision,
            split_n=n_images if split else None,
        )
        values_v, units_v = _merge_over(UNITS, values_v, units_v + first_u, k_voxel)
        values_u, voxels_u = _merge_over(selecting, values_u, voxels_u + first_v, k_unit)
        return xla.values_of(values_v), units_v, xla.values_of(values_u), voxels_u

    specs = {
        "in_specs": (code_specs, P(IMAGES if split else None, VOXELS), P(VOXELS)),
        "out_specs": (P(selecting), P(selecting), P(UNITS), P(UNITS)),
    }
    return jax.jit(jax.shard_map(local, mesh=mesh, check_vma=False, **specs))


def _merge_over(
    axis: str | tuple[str, ...], values: jax.Array, index: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """Best k of every device's list along `axis`; devices hold ascending indices, so ties go to the lowest."""
    if k == 0:
        return values, index
    values = jax.lax.all_gather(values, axis, axis=1, tiled=True)
    index = jax.lax.all_gather(index, axis, axis=1, tiled=True)
    best, slot = jax.lax.top_k(values, k)
    return best, jnp.take_along_axis(index, slot, axis=1)
