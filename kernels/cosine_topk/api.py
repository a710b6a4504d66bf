"""Public functions of `cosine_topk`: checks, choice of implementation, contract.

Contract, kept by every implementation: columns are centred over images when `center` (the cosine is then Pearson's r);
similarities are signed; constant and all-zero columns have similarity 0 and are never chosen over a real one; ties go to
the lowest index; NaN is an error that names the column. Sparse units that fire on the same single image tie exactly, in any
block and on any device. Other equal columns may differ in the last bit of a float32 product when they lie in different
blocks; the tie rule is about equal computed values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sbm_jax.kernels.codes import SparseCodes, check_codes, check_finite
from sbm_jax.kernels.cosine_topk import reference
from sbm_jax.kernels.cosine_topk.precision import Precision, check
from sbm_jax.kernels.dispatch import dispatch

if TYPE_CHECKING:
    from sbm_jax.kernels.cosine_topk.prepared import Prepared


def _xla(*args: Any, **kwargs: Any) -> Any:
    from sbm_jax.kernels.cosine_topk import xla

    return xla.cosine_topk_both(*args, **kwargs)


def _sharded(*args: Any, **kwargs: Any) -> Any:
    from sbm_jax.kernels.cosine_topk import sharded

    return sharded.cosine_topk_both(*args, **kwargs)


def _sparse(*args: Any, **kwargs: Any) -> Any:
    from sbm_jax.kernels.cosine_topk import sparse

    return sparse.cosine_topk_both(*args, **kwargs)


def _host(*args: Any, **kwargs: Any) -> Any:
    from sbm_jax.kernels.cosine_topk import host

    return host.cosine_topk_both(*args, **kwargs)


def _reference(
    codes: Any, responses: Prepared, k_voxel: int, k_unit: int, memory_bytes: int = 0, precision: str = "f32"
) -> Any:
    if precision != "f32":
        raise NotImplementedError("the specification is float64")
    y_nv = np.asarray(responses.y_nv)[: responses.n_images, : responses.n_voxels]
    return reference.cosine_topk_both(codes, y_nv, k_voxel, k_unit, center=responses.center)


IMPLEMENTATIONS = {"host": _host, "sharded": _sharded, "xla": _xla, "sparse": _sparse, "reference": _reference}


def prepare_responses(responses_nv: np.ndarray, *, center: bool = True, mesh: Any = None) -> Prepared:
    """Check, centre and normalise responses once, for several searches over the same voxels and images.

    Args: responses_nv [n, v], n >= 2. mesh: with axes `units` and `voxels`, to spread the voxels over devices; with a
    third one, `images`, the images too, where those of a device's voxels do not fit it.
    Raises ValueError for a wrong shape, or NaN and infinities (naming the voxel).
    """
    from sbm_jax.kernels.cosine_topk.prepared import prepare

    responses = np.asarray(responses_nv)
    if responses.ndim != 2:
        raise ValueError(f"cosine_topk: responses must be [n, v], found shape {responses.shape}")
    if responses.shape[0] < 2:
        raise ValueError(f"cosine_topk: at least 2 images are needed, found {responses.shape[0]}")
    check_finite(responses, "cosine_topk", "responses", "voxel")
    return prepare(responses, center, mesh)


def cosine_topk_both(
    codes: SparseCodes | np.ndarray,
    responses: np.ndarray | Prepared,
    k_voxel: int,
    k_unit: int,
    *,
    center: bool = True,
    implementation: str | None = None,
    memory_bytes: int = 1 << 29,
    mesh: Any = None,
    precision: Precision = "f32",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Best units per voxel and best voxels per unit in one pass over the similarities.

    s[u, v] = <a_u - mean a_u, y_v - mean y_v> / (|a_u - mean a_u| |y_v - mean y_v|) over images.

    Args:
        codes: dense [n, u] or `SparseCodes`. responses: [n, v], or the result of `prepare_responses` (then `center`
            and `mesh` are those of the preparation).
        k_voxel, k_unit: list lengths, 0..n_units and 0..n_voxels.
        implementation: `host` (responses in the memory of this host: dense blocks by BLAS), `sharded` (needs a mesh with axes
            `units`, `voxels` and perhaps `images`), `xla` (dense blocks), `sparse` (sparse codes without a mesh: exact, work in
            proportion to the entries), `reference`, or None: `sparse` where `cost.sparse_wins` says so, else the first that can.
        memory_bytes: budget for blocks in flight.
        precision: of the products, `f32`, `bf16x3` or `bf16` (errors: `precision.error_bound`); `xla` and `sharded` have all,
            the others `f32` alone. Norms, means and sums are float32 or better in each.
    Returns:
        values_vk float [v, k_voxel], units_vk int32, values_uk float [u, k_unit], voxels_uk int32; descending.
    Raises:
        ValueError: shapes that disagree, k out of range, NaN or infinity (naming the column), unknown implementation or
            precision. NotImplementedError: the implementation that was named cannot do it.
    """
    check(precision)
    if implementation == "reference" and precision == "f32" and isinstance(responses, np.ndarray):
        # The specification sees the caller's own numbers, not their float32 normalisation.
        check_finite(responses, "cosine_topk", "responses", "voxel")
        return reference.cosine_topk_both(codes, responses, k_voxel, k_unit, center=center)
    n, n_units = check_codes(codes, "cosine_topk")
    prepared = (
        prepare_responses(responses, center=center, mesh=mesh) if isinstance(responses, np.ndarray) else responses
    )
    if prepared.n_images != n:
        raise ValueError(f"cosine_topk: codes have {n} images, responses {prepared.n_images}")
    for name, k, limit in (("k per voxel", k_voxel, n_units), ("k per unit", k_unit, prepared.n_voxels)):
        if not 0 <= k <= limit:
            raise ValueError(f"cosine_topk: {name} is {k}, allowed 0..{limit}")
    if n_units == 0 or prepared.n_voxels == 0:
        return *_empty(prepared.n_voxels, k_voxel), *_empty(n_units, k_unit)
    if implementation is None and precision == "f32" and isinstance(codes, SparseCodes) and prepared.on_host:
        from sbm_jax.kernels.cosine_topk import cost

        if cost.sparse_wins(codes, prepared.n_voxels, k_unit):
            implementation, prepared = "sparse", prepared.on_one_device()
    options = {"memory_bytes": memory_bytes, "precision": precision}
    return dispatch("cosine_topk", IMPLEMENTATIONS, implementation, codes, prepared, k_voxel, k_unit, **options)


def _empty(rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((rows, k), np.float32), np.zeros((rows, k), np.int32)


def cosine_topk(
    codes: SparseCodes | np.ndarray,
    responses: np.ndarray | Prepared,
    k: int,
    *,
    center: bool = True,
    implementation: str | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best units of every voxel: values_vk, units_vk. See `cosine_topk_both`."""
    values, units, _, _ = cosine_topk_both(
        codes, responses, k, 0, center=center, implementation=implementation, **options
    )
    return values, units


def cosine_topk_voxels(
    codes: SparseCodes | np.ndarray,
    responses: np.ndarray | Prepared,
    k: int,
    *,
    center: bool = True,
    implementation: str | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """The transpose form, the k best voxels of every unit: values_uk, voxels_uk. See `cosine_topk_both`."""
    _, _, values, voxels = cosine_topk_both(
        codes, responses, 0, k, center=center, implementation=implementation, **options
    )
    return values, voxels
