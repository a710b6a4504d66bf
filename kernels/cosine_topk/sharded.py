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
from sbm_jax.kernels.cosine_topk.prepared import UNITS, VOXELS, Prepared


def cosine_topk_both(
    codes: SparseCodes | np.ndarray,
    responses: Prepared,
    k_voxel: int,
    k_unit: int,
    *,
    memory_bytes: int = 1 << 29,
    precision: str = "f32",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `xla.cosine_topk_both`, spread over the mesh that the responses lie on."""
    values_v, units_v, values_u, voxels_u = sharded_topk(
        codes, responses, k_voxel, k_unit, memory_bytes=memory_bytes, precision=precision
    )
    n_units = codes.n_units if isinstance(codes, SparseCodes) else codes.shape[1]
    return (
        np.asarray(values_v)[: responses.n_voxels],
        np.asarray(units_v)[: responses.n_voxels],
        np.asarray(values_u)[:n_units],
        np.asarray(voxels_u)[:n_units],
    )


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

    Raises NotImplementedError when the responses were prepared without a mesh.
    """
    mesh = responses.mesh
    if mesh is None:
        raise NotImplementedError("no mesh was given")
    n, n_voxels = responses.y_nv.shape[0], responses.n_voxels
    n_units = codes.n_units if isinstance(codes, SparseCodes) else codes.shape[1]
    local_u, local_v = -(-n_units // mesh.shape[UNITS]), responses.y_nv.shape[1] // mesh.shape[VOXELS]
    if isinstance(codes, SparseCodes):
        unit_codes = xla.prepare_codes(codes, responses.center)
        pad = (0, local_u * mesh.shape[UNITS] - n_units)
        unit_codes = unit_codes._replace(shift_u=np.pad(unit_codes.shift_u, pad), real_u=np.pad(unit_codes.real_u, pad))
        specs: Any = (P(), P(), P(UNITS), P(UNITS))
        code_specs: Any = xla.UnitCodes(*specs)
        operand: Any = jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), unit_codes, code_specs
        )
    else:
        padded = np.pad(np.asarray(codes, np.float32), ((0, 0), (0, -n_units % mesh.shape[UNITS])))
        operand = jax.device_put(padded, NamedSharding(mesh, P(None, UNITS)))
        code_specs = P(None, UNITS)
    bu, bv = xla.block_sizes(n, local_u, local_v, memory_bytes // mesh.size)
    sizes = (n_units, n_voxels, local_u, local_v, k_voxel, k_unit)
    run = _compiled(mesh, code_specs, *sizes, responses.center, bu, bv, precision)
    return run(operand, responses.y_nv, responses.real_v)


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
    precision: str,
) -> Any:
    def local(codes: Any, y_nv: jax.Array, real_v: jax.Array) -> tuple[jax.Array, ...]:
        first_u = jax.lax.axis_index(UNITS) * local_u
        first_v = jax.lax.axis_index(VOXELS) * local_v
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
        )
        values_v, units_v = _merge_over(UNITS, values_v, units_v + first_u, k_voxel)
        values_u, voxels_u = _merge_over(VOXELS, values_u, voxels_u + first_v, k_unit)
        return xla.values_of(values_v), units_v, xla.values_of(values_u), voxels_u

    specs = {
        "in_specs": (code_specs, P(None, VOXELS), P(VOXELS)),
        "out_specs": (P(VOXELS), P(VOXELS), P(UNITS), P(UNITS)),
    }
    return jax.jit(jax.shard_map(local, mesh=mesh, check_vma=False, **specs))


def _merge_over(axis: str, values: jax.Array, index: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Best k of every device's list along `axis`; devices hold ascending indices, so ties go to the lowest."""
    if k == 0:
        return values, index
    values = jax.lax.all_gather(values, axis, axis=1, tiled=True)
    index = jax.lax.all_gather(index, axis, axis=1, tiled=True)
    best, slot = jax.lax.top_k(values, k)
    return best, jnp.take_along_axis(index, slot, axis=1)
