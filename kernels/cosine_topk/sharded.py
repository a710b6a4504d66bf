"""`cosine_topk` over a mesh: units along one axis, voxels along the other; only k-long lists travel.

Each device finds the best of its units for its voxels. Along the unit axis the per-voxel lists are gathered and merged
(V k numbers, never codes or responses); along the voxel axis the same for the per-unit lists.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.kernels.codes import SparseCodes
from sbm_jax.kernels.cosine_topk import xla

UNITS, VOXELS = "units", "voxels"


def cosine_topk_both(
    codes: SparseCodes | np.ndarray,
    responses_nv: np.ndarray,
    k_voxel: int,
    k_unit: int,
    *,
    center: bool = True,
    memory_bytes: int = 1 << 29,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `reference.cosine_topk_both`, float32, spread over `mesh` with axes `units` and `voxels`."""
    if mesh is None:
        raise NotImplementedError("no mesh was given")
    values_v, units_v, values_u, voxels_u = sharded_topk(
        codes, responses_nv, k_voxel, k_unit, center=center, memory_bytes=memory_bytes, mesh=mesh
    )
    n_voxels = responses_nv.shape[1]
    n_units = codes.n_units if isinstance(codes, SparseCodes) else codes.shape[1]
    return (
        np.asarray(values_v)[:n_voxels],
        np.asarray(units_v)[:n_voxels],
        np.asarray(values_u)[:n_units],
        np.asarray(voxels_u)[:n_units],
    )


def sharded_topk(
    codes: SparseCodes | np.ndarray,
    responses_nv: np.ndarray,
    k_voxel: int,
    k_unit: int,
    *,
    center: bool,
    memory_bytes: int,
    mesh: Mesh,
) -> tuple[jax.Array, ...]:
    """The result as sharded arrays, units and voxels padded to multiples of the mesh (padding rows come last)."""
    n, n_voxels = responses_nv.shape
    du, dv = mesh.shape[UNITS], mesh.shape[VOXELS]
    local_v = -(-n_voxels // dv)
    y = np.zeros((n, local_v * dv), np.float32)
    y[:, :n_voxels] = responses_nv
    n_units = codes.n_units if isinstance(codes, SparseCodes) else codes.shape[1]
    local_u = -(-n_units // du)
    if isinstance(codes, SparseCodes):
        operand: Any = tuple(
            jax.device_put(np.asarray(x), NamedSharding(mesh, P())) for x in (codes.values_nk, codes.units_nk)
        )
        code_specs: Any = (P(), P())
    else:
        padded = np.zeros((n, local_u * du), np.float32)
        padded[:, :n_units] = codes
        operand = jax.device_put(padded, NamedSharding(mesh, P(None, UNITS)))
        code_specs = P(None, UNITS)
    y_sharded = jax.device_put(y, NamedSharding(mesh, P(None, VOXELS)))
    bu, bv = xla.block_sizes(n, local_u, local_v, memory_bytes // mesh.size)
    run = _compiled(mesh, code_specs, n_units, n_voxels, local_u, local_v, k_voxel, k_unit, center, bu, bv)
    return run(operand, y_sharded)


@functools.lru_cache(maxsize=64)
def _compiled(
    mesh: Mesh,
    code_specs: Any,
    n_units: int,
    n_voxels: int,
    local_u: int,
    local_v: int,
    k_voxel: int,
    k_unit: int,
    center: bool,
    bu: int,
    bv: int,
) -> Any:
    def local(codes: Any, y_nv: jax.Array) -> tuple[jax.Array, ...]:
        first_u = jax.lax.axis_index(UNITS) * local_u
        first_v = jax.lax.axis_index(VOXELS) * local_v
        if isinstance(codes, tuple):
            values, units = codes
            mine = (units >= first_u) & (units < first_u + local_u)
            codes = (jnp.where(mine, values, 0), jnp.where(mine, units - first_u, 0))
        values_v, units_v, values_u, voxels_u = xla.topk_keys(
            codes,
            y_nv,
            n_units=local_u,
            valid_units=n_units - first_u,
            valid_voxels=n_voxels - first_v,
            k_voxel=min(k_voxel, local_u),
            k_unit=min(k_unit, local_v),
            center=center,
            bu=bu,
            bv=bv,
        )
        values_v, units_v = _merge_over(UNITS, values_v, units_v + first_u, k_voxel)
        values_u, voxels_u = _merge_over(VOXELS, values_u, voxels_u + first_v, k_unit)
        return xla.values_of(values_v), units_v, xla.values_of(values_u), voxels_u

    specs = dict(in_specs=(code_specs, P(None, VOXELS)), out_specs=(P(VOXELS), P(VOXELS), P(UNITS), P(UNITS)))
    return jax.jit(jax.shard_map(local, mesh=mesh, check_vma=False, **specs))


def _merge_over(axis: str, values: jax.Array, index: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Best k of every device's list along `axis`; devices hold ascending indices, so ties go to the lowest."""
    if k == 0:
        return values, index
    values = jax.lax.all_gather(values, axis, axis=1, tiled=True)
    index = jax.lax.all_gather(index, axis, axis=1, tiled=True)
    best, slot = jax.lax.top_k(values, k)
    return best, jnp.take_along_axis(index, slot, axis=1)
