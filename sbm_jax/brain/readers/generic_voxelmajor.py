"""Responses whose files keep all trials of a voxel together: any columns can be read, and nothing needs converting."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sbm_jax.brain.responses import Responses, even_blocks
from sbm_jax.brain.trialfiles_numbers import selection

_GAP = 16  # voxels in between that are read along: cheaper than a read of its own


class VoxelFile(ABC):
    """One file of voxels x trials. path: the file. n_voxels, n_trials: the shape. dtype: native, of the stored numbers."""

    path: Path
    n_voxels: int
    n_trials: int
    dtype: np.dtype

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Stored numbers [stop - start, trials] of consecutive voxels. Raises UserError if the file is damaged."""


class VoxelMajorResponses(Responses):
    """Files of voxels x trials, one after the other in time.

    parts: (file, rows int64, ascending trials of it that are used). voxels: int64 [v], ascending rows of the files.
    """

    by_voxel = True

    def __init__(self, parts: tuple[tuple[VoxelFile, np.ndarray], ...], voxels: np.ndarray):
        self.parts, self.voxels = parts, voxels
        self.n_trials = sum(len(rows) for _, rows in parts)
        self.n_voxels = len(voxels)
        self.dtype = np.result_type(*(file.dtype for file, _ in parts))

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file.path for file, _ in self.parts)

    def read_voxels(self, voxels: slice) -> np.ndarray:
        chosen = self.voxels[voxels]
        out = np.empty((self.n_trials, len(chosen)), dtype=self.dtype)
        edges = np.flatnonzero(np.diff(chosen) > _GAP) + 1
        for start, stop in itertools.pairwise([0, *edges.tolist(), len(chosen)]):
            first, row = int(chosen[start]), 0
            for file, trials in self.parts:
                run = file.read(first, int(chosen[stop - 1]) + 1)
                block = run[selection(chosen[start:stop] - first)][:, selection(trials)]
                out[row : row + len(trials), start:stop] = block.T
                row += len(trials)
        return out

    def iter_trials(self, start: int, memory_bytes: int) -> Iterator[np.ndarray]:
        """As the contract; every block of trials reads the whole files, so give it much memory, or read by voxel."""
        itemsize = self.dtype.itemsize
        height = max(1, memory_bytes // 2 // max(1, self.n_voxels * itemsize))
        width = max(1, memory_bytes // 4 // max(1, self.n_trials * itemsize))
        for first in range(start, self.n_trials, height):
            block = np.empty((min(height, self.n_trials - first), self.n_voxels), dtype=self.dtype)
            for voxels in even_blocks(self.n_voxels, width):
                block[:, voxels] = self.read_voxels(voxels)[first : first + len(block)]
            yield block

    def where(self, trial: int, voxel: int) -> str:
        for file, trials in self.parts:
            if trial < len(trials):
                return f"{file.path}: trial {trials[trial] + 1}, voxel {self.voxels[voxel] + 1}"
            trial -= len(trials)
        raise IndexError("no such trial")
