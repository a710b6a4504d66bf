"""Every similarity of every unit and a few voxels, for what asks of the same matrix again and again."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sbm_jax.kernels.codes import SparseCodes, check_codes
from sbm_jax.kernels.cosine_topk.prepared import Prepared
from sbm_jax.kernels.cosine_topk.xla import BELOW_ALL, PRECISION, UnitCodes, block_sizes, prepare_codes, unit_blocks


def cosine_keys(codes: SparseCodes | np.ndarray, responses: Prepared, memory_bytes: int = 1 << 29) -> np.ndarray:
    """s[v, u] as `cosine_topk_both` has it, float32, but -2 (below every cosine) for constant units.

    In flight: n bu floats for a block of units within `memory_bytes`, and the V U of the result twice. FLOPs: 2 n U V.
    Raises ValueError for numbers of images that disagree, NaN or infinity, responses that lie on a mesh.
    """
    n, n_units = check_codes(codes, "cosine_keys")
    if responses.mesh is not None or responses.y_nv.shape[0] != n:
        raise ValueError(f"cosine_keys: codes have {n} images, responses {responses.y_nv.shape[0]}, or lie on a mesh")
    bu, _ = block_sizes(n, n_units, responses.n_voxels, memory_bytes)
    operand = prepare_codes(codes, responses.center) if isinstance(codes, SparseCodes) else codes
    keys = _keys(operand, responses.y_nv, n_units=n_units, center=responses.center, bu=bu)
    return np.asarray(keys).transpose(2, 0, 1).reshape(responses.n_voxels, -1)[:, :n_units]


@functools.partial(jax.jit, static_argnames=("n_units", "center", "bu"))
def _keys(codes: jax.Array | UnitCodes, y_nv: jax.Array, *, n_units: int, center: bool, bu: int) -> jax.Array:
    """[blocks, bu, v]."""
    block = unit_blocks(codes, y_nv.shape[0], n_units, bu, center)

    def keys(i: jax.Array) -> jax.Array:
        a, real_u = block(i)
        s = jnp.einsum("nu,nv->uv", a, y_nv, precision=PRECISION)
        return jnp.where(real_u[:, None], s, BELOW_ALL)

    return jax.lax.map(keys, jnp.arange(-(-n_units // bu)))
