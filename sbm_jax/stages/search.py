"""One search over all layers: best units per voxel, best voxels per unit, and the same with the images permuted.

The unit x voxel matrix is never built: voxel blocks x layers stream through `cosine_topk_both`, lists are merged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from sbm_jax.kernels import cosine_topk, cosine_topk_both, merge_topk, prepare_responses
from sbm_jax.kernels.cosine_topk.paired import paired_rows, unit_rows
from sbm_jax.kernels.cosine_topk.prepared import Prepared
from sbm_jax.stages.inputs import Codes
from sbm_jax.statistics import familywise_p, fdr_adjusted, permutation_p

_CONSTANT = -2.0
# Units that fire on the same images tie exactly, also across permutations. In float32 such similarities differ by a few
# 2^-24, as sums of unit columns in another order do; what is this near counts against significance.
_TIE = 1e-6


@dataclass
class Search:
    """Running results of one mode over voxel blocks and layers. Without held-out images every held-out score is NaN."""

    n_voxels: int
    n_layers: int
    units_per_layer: int
    k_voxel: int
    k_unit: int
    shuffles: int
    mesh: Any
    seed: int
    memory_bytes: int
    values: np.ndarray = field(init=False)
    units: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        v, layers, u = self.n_voxels, self.n_layers, self.units_per_layer
        self.values, self.units = empty(v, self.k_voxel)
        self.held_out = np.full((v, self.k_voxel), np.nan, np.float32)
        self.layer_values, self.layer_units = empty(layers, v)
        self.layer_held_out = np.full((layers, v), np.nan, np.float32)
        self.unit_values, self.unit_voxels = empty(layers, u, self.k_unit)
        self.shuffled_values, self.shuffled_units = empty(self.shuffles, v)
        self.shuffled_held_out = np.full((self.shuffles, v), np.nan, np.float32)

    def start(
        self, voxels: np.ndarray, shuffled: np.ndarray, y_select: np.ndarray, y_held_out: np.ndarray | None = None
    ) -> None:
        """Begin a block of voxels: responses [n, block]; `shuffled` [block] says which also take part in the control."""
        self.block, self.control = voxels, voxels[shuffled]
        self.select = prepare_responses(y_select, mesh=self.mesh)
        # [v, 0] where nothing is held out
        self.y_held_out = unit_rows(y_held_out.T) if y_held_out is not None else np.zeros((len(voxels), 0), np.float32)
        self.held_codes: list[Codes] = []
        self.null = Null(
            y_select[:, shuffled], self.y_held_out[shuffled], self.shuffles, self.seed, self.mesh, self.memory_bytes
        )

    def layer(self, layer: int, select: Codes, held_out: Codes | None = None) -> None:
        """Search one layer's units for the current block of voxels; layers come in ascending order."""
        v, u, offset = self.block, self.units_per_layer, layer * self.units_per_layer
        values_vk, units_vk, values_uk, at_uk = cosine_topk_both(
            select, self.select, min(self.k_voxel, u), min(self.k_unit, len(v)), memory_bytes=self.memory_bytes
        )
        values_vk, values_uk = as_keys(values_vk), as_keys(values_uk)
        self.layer_values[layer, v], self.layer_units[layer, v] = values_vk[:, 0], units_vk[:, 0] + offset
        if held_out is not None:
            self.layer_held_out[layer, v] = paired_rows(held_out, self.y_held_out, units_vk[:, :1])[:, 0]
            self.held_codes.append(held_out)
        merged = merge_topk(self.values[v], self.units[v], values_vk, units_vk + offset, self.k_voxel)
        self.values[v], self.units[v] = (np.asarray(x) for x in merged)
        merged = merge_topk(
            self.unit_values[layer], self.unit_voxels[layer], values_uk, v[at_uk].astype(np.int32), self.k_unit
        )
        self.unit_values[layer], self.unit_voxels[layer] = (np.asarray(x) for x in merged)
        if len(self.control):
            self._shuffled(select, held_out, offset)

    def _shuffled(self, select: Codes, held_out: Codes | None, offset: int) -> None:
        for group in self.null.groups:
            responses, y_held_out = self.null.columns(group)
            values, units = cosine_topk(select, responses, 1, memory_bytes=self.memory_bytes)
            values, at = as_keys(values), np.ix_(np.asarray(group), self.control)
            better = values > self.shuffled_values[at].reshape(-1, 1)
            results = [(self.shuffled_values, values), (self.shuffled_units, units + offset)]
            if held_out is not None:
                scores = paired_rows(held_out, y_held_out, np.where(better, units, -1))
                results.append((self.shuffled_held_out, scores))
            for known, found in results:
                known[at] = np.where(better, found, known[at].reshape(-1, 1)).reshape(len(group), -1)

    def finish(self) -> None:
        """Score the lists of the current block on the held-out images."""
        units = self.units[self.block]
        for layer, codes in enumerate(self.held_codes):
            mine = units // self.units_per_layer == layer
            scores = paired_rows(codes, self.y_held_out, np.where(mine, units % self.units_per_layer, -1))
            self.held_out[self.block] = np.where(mine, scores, self.held_out[self.block])

    def results(self) -> dict[str, np.ndarray]:
        """The arrays of the store; voxels that were left out have unit -1 and NaN."""
        taken = self.shuffled_units[0] >= 0
        best = np.where(taken, self.values[:, 0], np.nan)
        p = permutation_p(best, self.shuffled_values, tie=_TIE)
        out = {
            "p": p,
            "p_fdr": fdr_adjusted(p),
            "p_fwe": familywise_p(best, self.shuffled_values, tie=_TIE),
            "voxel_values": self.values,
            "voxel_units": self.units,
            "held_out": self.held_out,
            "layer_values": self.layer_values,
            "layer_units": self.layer_units,
            "layer_held_out": self.layer_held_out,
            "unit_values": self.unit_values,
            "unit_voxels": self.unit_voxels,
            "shuffled_values": self.shuffled_values,
            "shuffled_units": self.shuffled_units,
            "shuffled_held_out": self.shuffled_held_out if self.y_held_out.shape[1] else self.shuffled_held_out[:1],
        }
        return {key: from_keys(x) if x.dtype.kind == "f" else x for key, x in out.items()}


class Null:
    """Permuted responses of a block of voxels, as further columns of one search: the codes stay as they are.

    Permuting the images of the responses by the inverse is permuting those of the codes. One permutation of the images for all
    voxels and layers, so that their dependence stays.
    """

    def __init__(
        self, y_nv: np.ndarray, y_held_out_vn: np.ndarray, shuffles: int, seed: int, mesh: Any, memory_bytes: int
    ):
        self.y_held_out_vn, self.mesh = y_held_out_vn, mesh
        n, v = y_nv.shape
        prepared = prepare_responses(y_nv)
        self.y_nv, self.real_v = np.asarray(prepared.y_nv), np.asarray(prepared.real_v)
        rng = np.random.default_rng([seed, n, y_held_out_vn.shape[1]])
        self.orders = [
            tuple(np.argsort(rng.permutation(m)) for m in (n, y_held_out_vn.shape[1])) for _ in range(shuffles)
        ]
        size = max(1, memory_bytes // (32 * n * max(1, v)))
        self.groups = [range(b, min(b + size, shuffles)) for b in range(0, shuffles, size)]
        self._columns: tuple[Prepared, np.ndarray] | None = None

    def columns(self, group: range) -> tuple[Prepared, np.ndarray]:
        """Selection responses [n, group x v] and held-out unit rows [group x v, n]; kept where one group is all."""
        if self._columns is not None:
            return self._columns
        orders = [self.orders[b] for b in group]
        select = self.y_nv[np.stack([order for order, _ in orders], axis=1)].reshape(len(self.y_nv), -1)
        held_out = np.concatenate([np.take(self.y_held_out_vn, order, axis=1) for _, order in orders])
        if self.mesh is None:
            # Unit columns stay unit columns in another order: making them again would cost more than the search.
            real = jnp.tile(self.real_v, len(group))
            responses = Prepared(jnp.asarray(select), real, select.shape[1], center=True, mesh=None)
        else:
            responses = prepare_responses(select, mesh=self.mesh)
        if len(self.groups) == 1:
            self._columns = responses, held_out
        return responses, held_out


def empty(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge keys and indices of lists in which nothing is yet."""
    return np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32)


def as_keys(values: np.ndarray) -> np.ndarray:
    """Similarities to merge keys: the exact 0 of a constant candidate goes below every real one, in all layers alike."""
    return np.where(values == 0, np.float32(_CONSTANT), values)


def from_keys(keys: np.ndarray) -> np.ndarray:
    """Merge keys to similarities: 0 for constant candidates, NaN where there is no candidate."""
    return np.where(np.isneginf(keys), np.float32(np.nan), np.where(keys == _CONSTANT, np.float32(0), keys))
