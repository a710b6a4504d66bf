"""Compute kernels: maths on arrays, each with a plain reference that is its specification.

Public names are resolved on first use, so importing this package imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sbm_jax.kernels.codes import SparseCodes as SparseCodes
    from sbm_jax.kernels.cosine_topk.api import cosine_topk as cosine_topk
    from sbm_jax.kernels.cosine_topk.api import cosine_topk_both as cosine_topk_both
    from sbm_jax.kernels.cosine_topk.api import cosine_topk_voxels as cosine_topk_voxels
    from sbm_jax.kernels.cosine_topk.merge import merge_topk as merge_topk
    from sbm_jax.kernels.cosine_topk.paired import paired_cosine as paired_cosine
    from sbm_jax.kernels.rdm.api import rdm as rdm
    from sbm_jax.kernels.rdm_compare.api import rdm_compare as rdm_compare
    from sbm_jax.kernels.sparse_decode.api import sparse_decode as sparse_decode
    from sbm_jax.kernels.topk_encode.api import topk_encode as topk_encode

_HOME = {
    "SparseCodes": "sbm_jax.kernels.codes",
    "cosine_topk": "sbm_jax.kernels.cosine_topk.api",
    "cosine_topk_voxels": "sbm_jax.kernels.cosine_topk.api",
    "cosine_topk_both": "sbm_jax.kernels.cosine_topk.api",
    "merge_topk": "sbm_jax.kernels.cosine_topk.merge",
    "paired_cosine": "sbm_jax.kernels.cosine_topk.paired",
    "rdm": "sbm_jax.kernels.rdm.api",
    "rdm_compare": "sbm_jax.kernels.rdm_compare.api",
    "sparse_decode": "sbm_jax.kernels.sparse_decode.api",
    "topk_encode": "sbm_jax.kernels.topk_encode.api",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # A folder and its function may share a name (kernels/rdm, rdm): the function is what callers mean.
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
