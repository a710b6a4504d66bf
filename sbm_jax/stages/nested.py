"""Best units of every voxel when only some units are allowed: random nested subsets of 1/2, 1/4, ... of each layer's units.

With d draws, m sizes: a draw puts the units of a layer in random order, and the subset of size s_j is the first s_j of them.
The units between s_j and s_(j-1) form block j, so that one search over the blocks and a running maximum give every size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from sbm_jax.kernels import prepare_responses
from sbm_jax.kernels.cosine_topk.paired import paired_rows, unit_rows
from sbm_jax.kernels.cosine_topk.whole import cosine_keys
from sbm_jax.kernels.cosine_topk.xla import BELOW_ALL
from sbm_jax.stages.inputs import Codes
from sbm_jax.stages.ranking import empty, from_keys

_SMALLEST = 16
_BLOCK_BYTES = 1 << 27


def subset_sizes(units: int) -> list[int]:
    """Units per layer, ascending: all, and halves of halves as long as they are at least 16."""
    sizes = [units]
    while sizes[0] // 2 >= _SMALLEST:
        sizes.insert(0, sizes[0] // 2)
    return sizes


class Nested:
    """Running results of one mode over layers: best similarity and unit (layer x units + unit) per draw, size and voxel."""

    def __init__(
        self,
        y_select: np.ndarray,
        sizes: Sequence[int],
        draws: int,
        seed: int,
        memory_bytes: int,
        absolute: bool = False,
    ):
        """y_select [n, v]: responses to the images that select. sizes: ascending, the last is every unit of a layer.
        absolute: maximise |s| instead of s.
        """
        self.absolute = absolute
        self.sizes, self.draws, self.seed, self.memory_bytes = list(sizes), draws, seed, memory_bytes
        self.units_per_layer = self.sizes[-1]
        block = max(1, _BLOCK_BYTES // (12 * self.units_per_layer))
        voxels = y_select.shape[1]
        self.blocks = [slice(i, min(i + block, voxels)) for i in range(0, voxels, block)]
        self.responses = [prepare_responses(y_select[:, part]) for part in self.blocks]
        self.keys, self.units = empty(draws, len(self.sizes), voxels)
        self.signs = np.ones(self.units.shape, np.int8)

    def layer(self, layer: int, select: Codes) -> None:
        """Search one layer's units; layers come in ascending order. Ties go to the lowest unit, counted over layers."""
        order = [
            np.random.default_rng([self.seed, layer, draw]).permutation(self.units_per_layer)
            for draw in range(self.draws)
        ]
        edges = [0, *self.sizes]
        for part, responses in zip(self.blocks, self.responses, strict=True):
            s_vu = cosine_keys(select, responses, self.memory_bytes)
            keys_vu = np.where(s_vu == BELOW_ALL, s_vu, np.abs(s_vu)) if self.absolute else s_vu
            rows = np.arange(len(keys_vu))
            for d, units in enumerate(order):
                best, found = np.full(len(rows), -np.inf, np.float32), np.full(len(rows), -1, np.int32)
                for j, (low, high) in enumerate(itertools.pairwise(edges)):
                    block = np.sort(units[low:high])
                    among = keys_vu[:, block]
                    at = among.argmax(axis=1)
                    key, unit = among[rows, at], block[at].astype(np.int32)
                    better = (key > best) | ((key == best) & (unit < found))
                    best, found = np.where(better, key, best), np.where(better, unit, found)
                    known, of = self.keys[d, j, part], self.units[d, j, part]
                    higher = best > known
                    of[higher], known[higher] = found[higher] + layer * self.units_per_layer, best[higher]
                    if self.absolute:
                        negative = s_vu[rows, found] != best
                        self.signs[d, j, part][higher] = np.where(negative, -1, 1)[higher]

    @property
    def in_sample(self) -> np.ndarray:
        """Similarity of the best unit, [draws, sizes, v]; 0 where every unit is constant."""
        return from_keys(self.keys)

    def held_out(self, layers: Iterable[Codes], y_held_out: np.ndarray) -> np.ndarray:
        """Similarity [draws, sizes, v] of the same units on other images, times the sign of the selection: codes per layer,
        responses [n, v].
        """
        y_vn = unit_rows(y_held_out.T)
        units_vk = self.units.reshape(-1, self.units.shape[2]).T
        scores = np.full(units_vk.shape, np.nan, np.float32)
        for layer, codes in enumerate(layers):
            mine = units_vk // self.units_per_layer == layer
            found = paired_rows(codes, y_vn, np.where(mine, units_vk % self.units_per_layer, -1))
            scores = np.where(mine, found, scores)
        return self.signs * scores.T.reshape(self.units.shape)
