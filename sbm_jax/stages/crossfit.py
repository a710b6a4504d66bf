"""Cross-fitted scores: units selected on the images outside of a fold and scored on those in it, in turn for every fold."""

from __future__ import annotations

import numpy as np

from sbm_jax.kernels.codes import count_units, rows_of
from sbm_jax.kernels.cosine_topk.paired import unit_rows
from sbm_jax.kernels.cosine_topk.prepared import Prepared
from sbm_jax.stages.inputs import Codes
from sbm_jax.stages.ranking import Engine, Ranking, held_out_scores


class CrossFit:
    """Running scores of one subject and mode over blocks of voxels and pieces of the codes, used like `search.Search`.

    The responses under one permutation of the images are further voxels of the same searches: the shuffled control.
    Args: folds_n [n], the fold of each image. taken bool [v]: which voxels take part in the control, in which image i has the
        response to image order_n[i].
    """

    def __init__(
        self,
        folds_n: np.ndarray,
        n_layers: int,
        units_per_layer: int,
        k_voxel: int,
        engine: Engine,
        taken: np.ndarray,
        order_n: np.ndarray,
    ):
        self.engine, self.units_per_layer, self.order_n = engine, units_per_layer, order_n
        self.n_voxels, self.controls = len(taken), np.flatnonzero(taken)
        rows = self.n_voxels + len(self.controls)
        tests = [folds_n == f for f in range(folds_n.max() + 1)]
        self.folds = [_Fold(test, rows, k_voxel, n_layers) for test in tests]

    def start(self, voxels: np.ndarray, y_nv: np.ndarray) -> None:
        """Begin a block of voxels: responses [n, block] to all images."""
        inside = np.isin(voxels, self.controls, assume_unique=True)
        both = np.concatenate([y_nv, y_nv[self.order_n][:, inside]], axis=1)
        # a voxel's own list, then that of its control
        at = np.concatenate([voxels, self.n_voxels + np.searchsorted(self.controls, voxels[inside])])
        for fold in self.folds:
            fold.at = at
            fold.responses = self.engine.prepare(both[~fold.test])
            fold.y_vn = unit_rows(both[fold.test].T)

    def piece(self, layer: int, first_unit: int, codes: Codes) -> None:
        """Search some units of a layer (codes of all images) for the current block of voxels."""
        for fold in self.folds:
            fold.piece(self.engine, layer, layer * self.units_per_layer + first_unit, codes)

    def results(self) -> dict[str, np.ndarray]:
        """The arrays of the store; voxels that were left out have unit -1 and NaN."""
        v = self.n_voxels
        scores, units = (
            np.stack([fold.list.scores for fold in self.folds]),
            np.stack([fold.list.units for fold in self.folds]),
        )
        layers = np.stack([[one.scores[:v, 0] for one in fold.layers] for fold in self.folds])
        shuffled, shuffled_units = np.full((1, v), np.nan, np.float32), np.full((len(self.folds), v), -1, np.int32)
        shuffled[0, self.controls] = scores[:, v:, 0].mean(axis=0, dtype=np.float64)
        shuffled_units[:, self.controls] = units[:, v:, 0]
        return {
            "held_out": scores[:, :v].mean(axis=0, dtype=np.float64).astype(np.float32),
            "layer_held_out": layers.mean(axis=0, dtype=np.float64).astype(np.float32),
            "shuffled_held_out": shuffled,
            "fold_held_out": scores[:, :v, 0],
            "fold_units": units[:, :v, 0],
            "shuffled_fold_units": shuffled_units,
        }


class _Fold:
    """Running lists of one fold, and the block of voxels that is searched now."""

    at: np.ndarray
    responses: Prepared
    y_vn: np.ndarray

    def __init__(self, test: np.ndarray, rows: int, k: int, n_layers: int):
        self.test, self.list = test, Ranking(rows, k)
        self.layers = [Ranking(rows, 1) for _ in range(n_layers)]

    def piece(self, engine: Engine, layer: int, offset: int, codes: Codes) -> None:
        """Bring in the best of some units, scored on the fold's images."""
        train, test = (rows_of(codes, np.flatnonzero(mask)) for mask in (~self.test, self.test))
        found = engine.best(train, self.responses, min(self.list.keys.shape[1], count_units(train)))
        keys, units, signs = found.keys_vk, found.units_vk, found.signs_vk
        scores = held_out_scores(self.list, self.at, found, test, self.y_vn)
        self.list.bring(self.at, keys, units + offset, signs, scores)
        one = slice(0, 1)
        self.layers[layer].bring(self.at, keys[:, one], units[:, one] + offset, signs[:, one], scores[:, one])
