"""Single-trial responses on disk: what every source of them offers, whatever the format."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sbm_jax.errors import UserError


class Responses(ABC):
    """Responses [trials, voxels] of one subject in the numbers of the files; nothing is read before it is asked for.

    n_trials, n_voxels: the shape. dtype: of the stored numbers. divisor: stored numbers over it are percent signal change
    (300 for NSD's int16 files, 1 where the files hold the unit itself). zero_is_missing: a voxel that is exactly 0 in all
    trials of a session has no data there. by_voxel: columns can be read on their own; otherwise the trials come in order, once.
    """

    n_trials: int
    n_voxels: int
    dtype: np.dtype
    divisor: float = 1.0
    zero_is_missing: bool = False
    by_voxel: bool = False

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files that hold the responses."""

    @abstractmethod
    def iter_trials(self, start: int, memory_bytes: int) -> Iterator[np.ndarray]:
        """Stored numbers of consecutive trials from row `start` to the last, [some, voxels] at a time.

        memory_bytes: working memory, including the block handed out; decides the blocks' height and nothing else.
        """

    def read_voxels(self, voxels: slice) -> np.ndarray:
        """Stored numbers [trials, block] of some columns; only where `by_voxel`."""
        raise NotImplementedError(f"{type(self).__name__} is read trial by trial; convert it first")

    def column(self, voxel: int) -> str:
        """Name of one column for messages."""
        return f"column {voxel + 1}"

    def where(self, trial: int, voxel: int) -> str:
        """Name of one number for messages: file, and its place there as far as known."""
        return (
            f"{self.files[0] if len(self.files) == 1 else self.files[0].parent}: trial {trial + 1}, column {voxel + 1}"
        )


class NpyResponses(Responses):
    """A NumPy file [trials, voxels] of float16, float32 or float64 in percent signal change, memory-mapped.

    Raises UserError if the file is missing, damaged, of another shape than the tables or not of floating point.
    """

    by_voxel = True

    def __init__(
        self, path: Path, n_trials: int, n_voxels: int, tables: tuple[str, str] = ("trials.csv", "voxels.csv")
    ):
        self.path, self.n_trials, self.n_voxels, self.tables = path, n_trials, n_voxels, tables
        self.dtype = self.open().dtype

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def open(self) -> np.ndarray:
        """The memory-mapped array."""
        return open_npy(self.path, (self.n_trials, self.n_voxels), self.tables)

    def iter_trials(self, start: int, memory_bytes: int) -> Iterator[np.ndarray]:
        responses = self.open()
        height = max(1, memory_bytes // max(1, 2 * self.n_voxels * self.dtype.itemsize))
        for first in range(start, self.n_trials, height):
            yield np.array(responses[first : first + height])

    def read_voxels(self, voxels: slice) -> np.ndarray:
        return np.ascontiguousarray(self.open()[:, voxels])

    def column(self, voxel: int) -> str:
        return f"row {voxel + 1} of {self.tables[1]}"

    def where(self, trial: int, voxel: int) -> str:
        rows, columns = self.tables
        return f"{self.path}: the response of trial {trial + 1} (row of {rows}) in voxel {voxel + 1} (row of {columns})"


def even_blocks(total: int, largest: int, start: int = 0) -> list[slice]:
    """Split range(start, total) into the fewest blocks of at most `largest`, of sizes that differ by at most one."""
    if largest < 1:
        raise ValueError(f"a block needs at least one column or row, not {largest}")
    length = total - start
    count = -(-length // largest)
    edges = [start + length * i // count for i in range(count + 1)] if count > 0 else [start]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def open_npy(path: Path, shape: tuple[int, int], tables: tuple[str, str]) -> np.ndarray:
    """Memory-map a `.npy` of responses. Raises UserError as `NpyResponses` does; `tables` name what gives the two lengths."""
    if not path.is_file():
        raise UserError(f"{path}: file not found; expected responses as a NumPy array [trials, voxels]")
    try:
        responses = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable NumPy .npy array of numbers, or cut short ({error})") from error
    if responses.dtype.kind != "f" or responses.dtype.itemsize not in (2, 4, 8):
        raise UserError(
            f"{path}: expected float16, float32 or float64, found {responses.dtype}; save it as one of these"
        )
    if responses.shape != shape:
        raise UserError(
            f"{path}: expected {shape[0]} trials (rows of {tables[0]}) x {shape[1]} voxels (rows of {tables[1]}), "
            f"found an array of shape {responses.shape}"
        )
    return responses
