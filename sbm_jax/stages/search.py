"""The search of one subject's voxels over all layers of one mode: best units per voxel, best voxels per unit, and the null.

The unit x voxel matrix is never built: blocks of voxels meet pieces of the codes (`pieces`), and lists are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from sbm_jax.kernels import merge_topk
from sbm_jax.kernels.codes import count_units
from sbm_jax.kernels.cosine_topk.paired import paired_rows, unit_rows
from sbm_jax.kernels.cosine_topk.prepared import Prepared
from sbm_jax.stages.inputs import Codes
from sbm_jax.stages.null import KEPT, Null
from sbm_jax.stages.ranking import Engine, Ranking, empty, from_keys, held_out_scores
from sbm_jax.statistics import fdr_adjusted


class Search:
    """Running results. Without held-out images every held-out score is NaN.

    A pass is: `begin`; for every block of voxels `start`, then `piece` for pieces in ascending order of units (blocks may come
    again with further pieces); `end`. The first pass finds the units, all take permutations as `null` says.
    """

    def __init__(
        self,
        n_voxels: int,
        n_layers: int,
        units_per_layer: int,
        k_voxel: int,
        k_unit: int,
        engine: Engine,
        null: Null,
    ):
        self.engine, self.null, self.units_per_layer = engine, null, units_per_layer
        self.list, self.k_unit = Ranking(n_voxels, k_voxel), k_unit
        self.layers = [Ranking(n_voxels, 1) for _ in range(n_layers)]
        self.unit_keys, self.unit_voxels = empty(n_layers, units_per_layer, k_unit)
        self.unit_signs = np.ones((n_layers, units_per_layer, k_unit), np.int8)
        self.shuffled = [Ranking(n_voxels, 1) for _ in range(min(null.shuffles, KEPT))]
        self.first = True

    def begin(self, room_bytes: int = 1 << 62) -> bool:
        """Begin a pass with as many permutations as fit; False: nothing is left to do."""
        return self.null.begin(room_bytes) or self.first

    def start(self, voxels: np.ndarray, y_select: np.ndarray, y_held_out: np.ndarray | None = None) -> None:
        """Begin a block: ascending voxels and their responses [n, block] to the images that select and that score."""
        self.block = voxels
        if self.first:
            self.select = self.engine.prepare(y_select)
        # [v, 0] where nothing is held out
        self.y_held_out = unit_rows(y_held_out.T) if y_held_out is not None else np.zeros((len(voxels), 0), np.float32)
        inside = np.isin(voxels, self.null.voxels, assume_unique=True)
        self.control = _Permuted(self.null, voxels, inside, y_select[:, inside], self.y_held_out[inside], self.engine)

    def piece(self, layer: int, first_unit: int, select: Codes, held_out: Codes | None = None) -> None:
        """Search some units of a layer, from `first_unit` on, for the current block of voxels."""
        self.shelf([(layer, first_unit, select, held_out)])

    def shelf(self, pieces: Sequence[tuple[int, int, Codes, Codes | None]]) -> None:
        """`piece` for several; permuted responses are made once for all of them."""
        if self.first:
            for layer, first_unit, select, held_out in pieces:
                self._observed(layer, first_unit, select, held_out)
        for group in self.control.groups:
            permuted = self.control.columns(group)
            for layer, first_unit, select, held_out in pieces:
                self._permuted(group, permuted, layer * self.units_per_layer + first_unit, select, held_out)

    def _observed(self, layer: int, first_unit: int, select: Codes, held_out: Codes | None) -> None:
        n_units, v, offset = count_units(select), self.block, layer * self.units_per_layer + first_unit
        k_voxel, k_unit = min(self.list.keys.shape[1], n_units), min(self.k_unit, len(v))
        found = self.engine.best(select, self.select, k_voxel, k_unit)
        keys, units, signs = found.keys_vk, found.units_vk, found.signs_vk
        scores = None if held_out is None else held_out_scores(self.list, v, found, held_out, self.y_held_out)
        self.list.bring(v, keys, units + offset, signs, scores)
        one = slice(0, 1)
        self.layers[layer].bring(
            v, keys[:, one], units[:, one] + offset, signs[:, one], None if scores is None else scores[:, one]
        )
        rows = slice(first_unit, first_unit + n_units)
        known, at = self.unit_keys[layer, rows], self.unit_voxels[layer, rows]
        # the sign travels in the index: voxel, or ~voxel
        at = np.where(self.unit_signs[layer, rows] > 0, at, ~at)
        new = v[found.voxels_uk].astype(np.int32)
        keys_uk, at_uk = merge_topk(known, at, found.keys_uk, np.where(found.signs_uk > 0, new, ~new), self.k_unit)
        at_uk = np.asarray(at_uk)
        self.unit_keys[layer, rows] = np.asarray(keys_uk)
        none = np.isneginf(self.unit_keys[layer, rows])
        negative = (at_uk < 0) & ~none
        self.unit_voxels[layer, rows] = np.where(negative, ~at_uk, at_uk)
        self.unit_signs[layer, rows] = np.where(negative, -1, 1)

    def _permuted(
        self, group: range, permuted: tuple[Prepared, np.ndarray], offset: int, select: Codes, held_out: Codes | None
    ) -> None:
        responses, y_held_out = permuted
        found = self.engine.best(select, responses, 1)
        size = len(self.control.voxels)
        keys = found.keys_vk.reshape(len(group), size)
        self.null.bring(group, self.control.places, keys)
        kept = [b for b in group if b < len(self.shuffled)]
        if not kept:
            return
        rows = slice(0, len(kept) * size)  # the first permutations come first
        units, signs, scores = found.units_vk[rows], found.signs_vk[rows], None
        if held_out is not None:
            better = keys[: len(kept)] > np.stack([self.shuffled[b].keys[self.control.voxels, 0] for b in kept])
            scores = signs * paired_rows(held_out, y_held_out[rows], np.where(better.reshape(-1, 1), units, -1))
        for i, b in enumerate(kept):
            mine = slice(i * size, (i + 1) * size)
            self.shuffled[b].bring(
                self.control.voxels,
                found.keys_vk[mine],
                units[mine] + offset,
                signs[mine],
                None if scores is None else scores[mine],
            )

    def end(self) -> None:
        """Close a pass over all pieces of the codes."""
        self.first = False
        self.null.end(self.list.keys[:, 0])

    def results(self) -> dict[str, np.ndarray]:
        """The arrays of the store; voxels that were left out have unit -1 and NaN."""
        out = self.null.p(self.list.keys[:, 0])
        out |= {
            "p_fdr": fdr_adjusted(out["p"]),
            "voxel_values": self.list.keys,
            "voxel_units": self.list.units,
            "held_out": self.list.scores,
            "layer_values": np.stack([layer.keys[:, 0] for layer in self.layers]),
            "layer_units": np.stack([layer.units[:, 0] for layer in self.layers]),
            "layer_held_out": np.stack([layer.scores[:, 0] for layer in self.layers]),
            "unit_values": self.unit_keys,
            "unit_voxels": self.unit_voxels,
            "shuffled_values": np.stack([one.keys[:, 0] for one in self.shuffled]),
            "shuffled_units": np.stack([one.units[:, 0] for one in self.shuffled]),
            "shuffled_held_out": np.stack([one.scores[:, 0] for one in self.shuffled]),
        }
        if self.engine.absolute:
            layers = np.stack([layer.signs[:, 0] for layer in self.layers])
            out |= {"voxel_signs": self.list.signs, "layer_signs": layers, "unit_signs": self.unit_signs}
        similarities = {key for key in out if key.endswith(("values", "held_out")) or key == "null_max"}
        return {key: from_keys(x) if key in similarities else x for key, x in out.items()}


@dataclass
class _Permuted:
    """The responses of a block's voxels under the permutations of a pass, as further columns of a search: the codes stay as
    they are. y [n, v] of the voxels `inside`; groups of permutations fit the budget.
    """

    null: Null
    block: np.ndarray
    inside: np.ndarray
    y_nv: np.ndarray
    y_held_out_vn: np.ndarray
    engine: Engine

    def __post_init__(self) -> None:
        self.voxels = self.block[self.inside]
        self.places = np.searchsorted(self.null.voxels, self.voxels)
        n, v = self.y_nv.shape
        numbers = self.null.numbers if v else range(0)
        size = max(1, self.engine.memory_bytes // (32 * n * max(1, v) * (1 + self.engine.absolute)))
        self.groups = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        self._prepared: Prepared | None = None

    def columns(self, group: range) -> tuple[Prepared, np.ndarray]:
        """Selection responses [n, group x v] and held-out unit rows [kept of group x v, n]."""
        orders = [self.null.order(b) for b in group]
        order_nb = np.stack([order for order, _ in orders], axis=1)
        if self.engine.mesh is None:
            # Unit columns stay unit columns in another order: making them again would cost more than the search.
            if self._prepared is None:
                self._prepared = self.engine.prepare(self.y_nv)
            unit, real = np.asarray(self._prepared.y_nv), np.asarray(self._prepared.real_v)
            v = len(self.voxels)
            halves = [unit[:, i : i + v][order_nb].reshape(len(unit), -1) for i in range(0, unit.shape[1], v)]
            select = np.concatenate(halves, axis=1)
            responses = Prepared(
                jnp.asarray(select),
                jnp.asarray(np.repeat(real.reshape(-1, v), len(group), axis=0).ravel()),
                select.shape[1],
                True,
                None,
            )
        else:
            responses = self.engine.prepare(self.y_nv[order_nb].reshape(len(self.y_nv), -1))
        kept = [held_out for b, (_, held_out) in zip(group, orders, strict=True) if b < KEPT]
        rows = [np.take(self.y_held_out_vn, order, axis=1) for order in kept]
        return responses, np.concatenate(rows) if rows else self.y_held_out_vn[:0]
