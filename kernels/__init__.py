"""Compute kernels: maths on arrays, each with a plain reference that is its specification.

Importing this package starts no JAX: implementations are imported when called. The imports are eager because a function
and its folder may share a name (`rdm`), and the function must be what the name means here.
"""

from sbm_jax.kernels.codes import SparseCodes
from sbm_jax.kernels.cosine_topk.api import (
    cosine_topk,
    cosine_topk_both,
    cosine_topk_voxels,
    prepare_responses,
)
from sbm_jax.kernels.cosine_topk.merge import merge_topk
from sbm_jax.kernels.cosine_topk.paired import paired_cosine
from sbm_jax.kernels.rdm.api import rdm
from sbm_jax.kernels.rdm_compare.api import rdm_compare
from sbm_jax.kernels.sparse_decode.api import sparse_decode
from sbm_jax.kernels.topk_autoencode.api import topk_autoencode
from sbm_jax.kernels.topk_encode.api import topk_encode

__all__ = [
    "SparseCodes",
    "cosine_topk",
    "cosine_topk_both",
    "cosine_topk_voxels",
    "merge_topk",
    "paired_cosine",
    "prepare_responses",
    "rdm",
    "rdm_compare",
    "sparse_decode",
    "topk_autoencode",
    "topk_encode",
]
