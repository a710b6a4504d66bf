"""One search of one set of images, signed or by absolute similarity, and running lists of the best that were found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sbm_jax.config import AlignConfig
from sbm_jax.kernels import cosine_topk_both, prepare_responses
from sbm_jax.kernels.cosine_topk.paired import paired_rows
from sbm_jax.kernels.cosine_topk.precision import Precision
from sbm_jax.kernels.cosine_topk.prepared import Prepared
from sbm_jax.mesh import make_mesh
from sbm_jax.stages.inputs import Codes

_CONSTANT = -2.0


class Found(NamedTuple):
    """Best units of voxels and best voxels of units: merge keys (see `as_keys`), indices, and the sign of each similarity
    (1 throughout unless absolute similarities were asked for).
    """

    keys_vk: np.ndarray
    units_vk: np.ndarray
    signs_vk: np.ndarray
    keys_uk: np.ndarray
    voxels_uk: np.ndarray
    signs_uk: np.ndarray


@dataclass(frozen=True)
class Engine:
    """How every search of a run is made: on which mesh (axes `units`, `voxels`; None: one device), within which budget,
    whether s or |s| is maximised, and the precision of the products.
    """

    mesh: Any
    memory_bytes: int
    absolute: bool = False
    precision: Precision = "f32"

    def prepare(self, y_nv: np.ndarray) -> Prepared:
        """Responses [n, v] for `best`: unit columns, with their negatives behind where |s| is maximised (max |s| = max(s, -s))."""
        return prepare_responses(np.concatenate([y_nv, -y_nv], axis=1) if self.absolute else y_nv, mesh=self.mesh)

    def best(self, codes: Codes, responses: Prepared, k_voxel: int, k_unit: int = 0) -> Found:
        """The k_voxel best units of every voxel and the k_unit best voxels of every unit; ties to the lowest index."""
        values_vk, units_vk, values_uk, voxels_uk = cosine_topk_both(
            codes, responses, k_voxel, k_unit, memory_bytes=self.memory_bytes, precision=self.precision
        )
        keys_vk, keys_uk = as_keys(values_vk), as_keys(values_uk)
        if not self.absolute:
            return Found(keys_vk, units_vk, _ones(keys_vk), keys_uk, voxels_uk, _ones(keys_uk))
        n_voxels = responses.n_voxels // 2
        signs_uk = np.where(voxels_uk < n_voxels, 1, -1).astype(np.int8)
        keys_vk, units_vk, signs_vk = _either_sign(keys_vk, units_vk)
        return Found(keys_vk, units_vk, signs_vk, keys_uk, voxels_uk % n_voxels, signs_uk)


def make_engine(config: AlignConfig, devices: list[Any]) -> Engine:
    """The engine of the settings of `align`, voxels spread over the devices where that is faster."""
    # What searches in this host's memory has threads of its own.
    apart = len(devices) > 1 and (devices[0].platform != "cpu" or config.precision != "f32")
    mesh = make_mesh({"units": 1, "voxels": len(devices)}, devices) if apart else None
    return Engine(mesh, config.memory_mb << 20, config.sign == "absolute", config.precision)


def _ones(keys: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.int8(1), keys.shape)


def _either_sign(keys: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists [2 v, k] for s and for -s as lists [v, k] for |s|, with signs. Every unit once: at its non-negative similarity,
    and a constant one where it stands for s.
    """
    v, k = len(keys) // 2, keys.shape[1]
    both, index = np.concatenate([keys[:v], keys[v:]], axis=1), np.concatenate([units[:v], units[v:]], axis=1)
    second = np.arange(2 * k)[None, :] >= k
    both = np.where(((both < 0) & (both > _CONSTANT)) | (second & (both <= _CONSTANT)), -np.inf, both)
    order = np.lexsort((index, -both), axis=1)[:, :k]
    keys, units = np.take_along_axis(both, order, axis=1), np.take_along_axis(index, order, axis=1)
    return keys.astype(np.float32), units, np.where(order >= k, -1, 1).astype(np.int8)


class Ranking:
    """Running lists of `rows` voxels, best first: merge keys, units, signs, and scores on other images, each [rows, k]."""

    def __init__(self, rows: int, k: int):
        self.keys, self.units = empty(rows, k)
        self.signs = np.ones((rows, k), np.int8)
        self.scores = np.full((rows, k), np.nan, np.float32)

    def entering(self, at: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """bool [len(at), k']: which of some voxels' new candidates come into their lists."""
        return keys > self.keys[at, -1:]

    def bring(
        self, at: np.ndarray, keys: np.ndarray, units: np.ndarray, signs: np.ndarray, scores: np.ndarray | None
    ) -> None:
        """Merge candidates [len(at), k'] (best first) of the voxels `at`. Candidates that came earlier win ties, so bring those
        of lower units first. scores: None where there are none.
        """
        some = self.entering(at, keys).any(axis=1)
        at, k = at[some], self.keys.shape[1]
        if not len(at):
            return
        order = np.argsort(-np.concatenate([self.keys[at], keys[some]], axis=1), axis=1, kind="stable")[:, :k]
        for name, found in (("keys", keys), ("units", units), ("signs", signs), ("scores", scores)):
            if found is not None:
                known = getattr(self, name)
                both = np.concatenate([known[at], found[some]], axis=1)
                known[at] = np.take_along_axis(both, order, axis=1)


def held_out_scores(ranking: Ranking, at: np.ndarray, found: Found, codes: Codes, y_vn: np.ndarray) -> np.ndarray:
    """Similarity on other images, with the sign of the selection, of the candidates that come into the lists of the voxels `at`
    and of each voxel's first, float32 [len(at), k]; NaN for others. codes, y_vn: of those images, responses as unit rows.
    """
    wanted = ranking.entering(at, found.keys_vk)
    wanted[:, 0] = True
    return found.signs_vk * paired_rows(codes, y_vn, np.where(wanted, found.units_vk, -1))


def empty(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge keys and indices of lists in which nothing is yet."""
    return np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32)


def as_keys(values: np.ndarray) -> np.ndarray:
    """Similarities to merge keys: the exact 0 of a constant candidate goes below every real one, in all layers alike."""
    return np.where(values == 0, np.float32(_CONSTANT), values)


def from_keys(keys: np.ndarray) -> np.ndarray:
    """Merge keys to similarities: 0 for constant candidates, NaN where there is no candidate."""
    return np.where(np.isneginf(keys), np.float32(np.nan), np.where(keys == _CONSTANT, np.float32(0), keys))
