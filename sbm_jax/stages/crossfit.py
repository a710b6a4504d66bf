"""Cross-fitted scores: units selected on the images outside of a fold and scored on those in it, in turn for every fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sbm_jax.kernels import SparseCodes, cosine_topk, prepare_responses
from sbm_jax.kernels.cosine_topk.paired import paired_rows, unit_rows
from sbm_jax.kernels.cosine_topk.prepared import Prepared
from sbm_jax.stages.inputs import Codes
from sbm_jax.stages.search import as_keys, empty


class CrossFit:
    """Running scores of one mode over voxel blocks and layers, used like `search.Search`.

    The responses under one permutation of the images are further voxels of the same searches: the shuffled control.
    """

    def __init__(
        self,
        folds_n: np.ndarray,
        n_voxels: int,
        n_layers: int,
        units_per_layer: int,
        k_voxel: int,
        mesh: Any,
        memory_bytes: int,
    ):
        self.tests = [np.flatnonzero(folds_n == f) for f in range(folds_n.max() + 1)]
        self.trains = [np.flatnonzero(folds_n != f) for f in range(folds_n.max() + 1)]
        self.units_per_layer, self.k_voxel, self.mesh, self.memory_bytes = units_per_layer, k_voxel, mesh, memory_bytes
        v, f = n_voxels, len(self.tests)
        self.held_out = np.full((v, k_voxel), np.nan, np.float32)
        self.layer_held_out = np.full((n_layers, v), np.nan, np.float32)
        self.shuffled_held_out = np.full((1, v), np.nan, np.float32)
        self.fold_held_out = np.full((f, v), np.nan, np.float32)
        self.fold_units, self.shuffled_fold_units = np.full((f, v), -1, np.int32), np.full((f, v), -1, np.int32)

    def start(self, voxels: np.ndarray, shuffled: np.ndarray, y_nv: np.ndarray, order_n: np.ndarray) -> None:
        """Begin a block of voxels: responses [n, block] to all images; `shuffled` [block] says which also take part in the
        control, in which image i has the response to image order_n[i].
        """
        self.block, self.control = voxels, voxels[shuffled]
        both = np.concatenate([y_nv, y_nv[order_n][:, shuffled]], axis=1)
        self.folds = []
        for train, test in zip(self.trains, self.tests, strict=True):
            lists = (*empty(both.shape[1], self.k_voxel), np.full((both.shape[1], self.k_voxel), np.nan, np.float32))
            responses = prepare_responses(both[train], mesh=self.mesh)
            self.folds.append(_Fold(train, test, responses, unit_rows(both[test].T), *lists))

    def layer(self, layer: int, codes: Codes) -> None:
        """Search one layer's units (codes of all images) for the current block of voxels; layers come in ascending order."""
        offset = layer * self.units_per_layer
        scores = [fold.layer(codes, offset, self.memory_bytes) for fold in self.folds]
        self.layer_held_out[layer, self.block] = np.stack(scores).mean(axis=0, dtype=np.float64)[: len(self.block)]

    def finish(self) -> None:
        """Take the means over folds of the current block."""
        b = len(self.block)
        scores, units = np.stack([fold.scores for fold in self.folds]), np.stack([fold.units for fold in self.folds])
        mean = scores.mean(axis=0, dtype=np.float64)
        self.held_out[self.block], self.shuffled_held_out[0, self.control] = mean[:b], mean[b:, 0]
        self.fold_held_out[:, self.block] = scores[:, :b, 0]
        self.fold_units[:, self.block], self.shuffled_fold_units[:, self.control] = units[:, :b, 0], units[:, b:, 0]

    def results(self) -> dict[str, np.ndarray]:
        """The arrays of the store; voxels that were left out have unit -1 and NaN."""
        names = (
            "held_out",
            "layer_held_out",
            "shuffled_held_out",
            "fold_held_out",
            "fold_units",
            "shuffled_fold_units",
        )
        return {name: getattr(self, name) for name in names}


@dataclass
class _Fold:
    """Running lists of one fold: merge keys, units (layer x units + unit) and scores on the fold's images, each [v, k]."""

    train: np.ndarray
    test: np.ndarray
    responses: Prepared
    y_vn: np.ndarray
    keys: np.ndarray
    units: np.ndarray
    scores: np.ndarray

    def layer(self, codes: Codes, offset: int, memory_bytes: int) -> np.ndarray:
        """Bring in one layer's best units; the score [v] of its very best."""
        k = self.keys.shape[1]
        values, units = cosine_topk(_rows(codes, self.train), self.responses, k, memory_bytes=memory_bytes)
        keys = as_keys(values)
        entering = keys > self.keys[:, -1:]
        entering[:, 0] = True
        scores = paired_rows(_rows(codes, self.test), self.y_vn, np.where(entering, units, -1))
        # Stable: on equal keys the unit of the earlier layer comes first.
        best = np.argsort(-np.concatenate([self.keys, keys], axis=1), axis=1, kind="stable")[:, :k]
        for name, found in (("keys", keys), ("units", units + offset), ("scores", scores)):
            merged = np.concatenate([getattr(self, name), found], axis=1)
            setattr(self, name, np.take_along_axis(merged, best, axis=1))
        return scores[:, 0]


def _rows(codes: Codes, index: np.ndarray) -> Codes:
    return codes.rows(index) if isinstance(codes, SparseCodes) else codes[index]
