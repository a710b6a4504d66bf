"""What the ways to align cost, in nanoseconds per voxel and core as measured on a CPU, and the choices that follow."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from sbm_jax.kernels.codes import SparseCodes
from sbm_jax.kernels.cosine_topk.columns import Columns

GATHER = 0.16  # one entry: a row of y in the cache, multiplied and added
ROW = 0.45  # one row of similarities: written, and compared in a group
PRODUCT = 0.03  # one image of a dense row
BLAS = 0.016  # one image of a unit in the dense pass
PICK = 1.0  # one similarity in the dense pass: written and searched; for a unit's best voxels again,
PICK_UNIT = 2.0  # across the memory
UNIT_LIST = 5.0  # one similarity in the selection of a unit's best voxels
COPY = 5.0  # one image: taking a voxel out of its place into another phase
BOUND = 0.3  # one image: a voxel's bound
PHASE = 4000.0  # another phase
CALL = 3e6  # whole search, not per voxel

BLOCK, BLOCK_UNIT = 128, 256  # voxels at a time; the selection of a unit's voxels wants long rows
CACHE = 1 << 20  # bytes of a block of y, which should stay in a core's cache


def threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sparse_wins(codes: SparseCodes, n_voxels: int, k_unit: int) -> bool:
    """Whether the sparse search is faster than the dense pass on CPU, by entries and units that fire."""
    n = codes.n_images
    m = np.bincount(np.asarray(codes.units_nk)[np.asarray(codes.values_nk) != 0], minlength=codes.n_units)
    ours = np.minimum(m * GATHER, n * PRODUCT).sum() + (m > 0).sum() * (ROW + UNIT_LIST * (k_unit > 0)) + n * COPY
    theirs = (m > 0).sum() * (n * BLAS + PICK + PICK_UNIT * (k_unit > 0))
    return bool(ours * n_voxels + CALL < theirs * n_voxels)


def few_entries(n: int, n_units: int, entries: int, n_voxels: int) -> bool:
    """`sparse_wins` without lists of units, from the number of entries alone: a layer's codes need not be read to tell."""
    import jax

    if jax.default_backend() != "cpu":
        return False
    ours = entries * GATHER + min(n_units, entries) * ROW + n * COPY
    return bool(ours * n_voxels + CALL < n_units * (n * BLAS + PICK) * n_voxels)


@dataclass(frozen=True)
class Plan:
    """Phases of a search over columns by descending m. `cuts`: (column, m) from which on units fire on at most m images."""

    count: int
    n: int
    n_dense: int
    dense_above: int
    spent: np.ndarray
    norm_after: np.ndarray
    cuts: list[tuple[int, int]]

    @staticmethod
    def make(c: Columns, *, prune: bool) -> Plan:
        above = int(c.n * PRODUCT / GATHER)
        dense = (c.shift_c != 0) | (c.m_c > above)
        spent = np.concatenate([[0.0], np.cumsum(np.where(dense, c.n * PRODUCT, c.m_c * GATHER) + ROW)])
        square = np.concatenate([[0.0], np.cumsum(c.weights.astype(np.float64) ** 2)])
        norm = np.sqrt(square[c.start_c + c.m_c] - square[c.start_c])
        cuts = []
        for power in range(above.bit_length(), -1, -1) if prune else ():
            at = int(np.searchsorted(-np.where(dense, c.n, c.m_c), -(1 << power)))
            if int(dense.sum()) <= at < len(c.m_c) and at:
                cuts.append((at, 1 << power))
        return Plan(len(dense), c.n, int(dense.sum()), above, spent, np.maximum.accumulate(norm[::-1])[::-1], cuts)

    @property
    def first_end(self) -> int:
        """The first phase is as small as is worth a pass, if the rest is worth a bound."""
        again = PHASE + self.n * (COPY + BOUND)
        for at, _ in self.cuts:
            if self.spent[at] > again / 2 and self.spent[-1] - self.spent[at] > again / 2:
                return at
        return self.count

    def most_images(self, start: int) -> int:
        """The m of the last cut at or before `start`."""
        return [m for at, m in self.cuts if at <= start][-1]

    def next_end(self, start: int, open_share: np.ndarray) -> tuple[int, bool]:
        """End of the phase from `start`, and whether finding finished voxels pays; open_share: of the voxels, per cut."""
        here = [share for (at, _), share in zip(self.cuts, open_share, strict=True) if at <= start]
        prune = bool(here) and (1 - here[-1]) * (self.spent[-1] - self.spent[start]) > self.n * BOUND
        now = here[-1] if prune else 1.0
        best, end = 0.0, self.count
        for (at, _), share in zip(self.cuts, open_share, strict=True):
            saved = (now - share) * (self.spent[-1] - self.spent[at]) - (
                self.n * BOUND + share * (PHASE + self.n * COPY)
            )
            if at > start and saved > best:
                best, end = saved, at
        return end, prune
