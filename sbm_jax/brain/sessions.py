"""Responses that lie in one file per session (or run, or hemisphere): files stacked in time and laid side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbm_jax.brain.responses import Responses

_BLOCK_BYTES = 1 << 26  # of rows that cost the same in any number: larger blocks fall out of the caches
_STEP = 4  # rows that are copied side by side at a time


class TrialFile(ABC):
    """One file of trials x places. Opening checks the header; Raises UserError for a damaged file or another shape.

    path: the file. n_trials: along its trial axis. n_places: voxels, vertices or grayordinates of the whole file, in the
    file's own order (for volumes x + X * (y + Y * z)). dtype: native byte order, of the stored numbers. by_place: all
    trials of a place lie together, so that places can be read on their own.
    """

    path: Path
    n_trials: int
    n_places: int
    dtype: np.dtype
    by_place: bool = False

    @abstractmethod
    def iter_rows(self, rows: np.ndarray, places: np.ndarray, height: int) -> Iterator[np.ndarray]:
        """Stored numbers [at most `height`, places] of some trials (ascending int64 [r]) at some places (int64 [v]), in
        order; every block but the last has `height` rows.

        Raises UserError naming the file when it is cut short or damaged.
        """

    @abstractmethod
    def working_bytes(self) -> int:
        """Memory that reading takes beside the block handed out (a decompressed volume, for example)."""

    def expect(self, places: np.ndarray) -> None:
        """Look up where these places lie, before many calls of `read_places` for some of them at a time."""
        return None

    def read_places(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Stored numbers [rows, places], rows ascending; only where `by_place`. Raises as `iter_rows` does."""
        raise NotImplementedError(f"{type(self).__name__}: {self.path} is read trial by trial")


@dataclass(frozen=True)
class Piece:
    """Some trials: the files that hold them side by side (left and right hemisphere) and the columns taken of each.

    rows: int64 [r], ascending rows of the files that are used. parts: (file, places int64 [v of this file]).
    """

    rows: np.ndarray
    parts: tuple[tuple[TrialFile, np.ndarray], ...]


class SessionResponses(Responses):
    """Pieces one after the other; rows and columns in the order given.

    Raises ValueError if pieces disagree in their columns (a reader's mistake: files of other shapes are its to refuse).
    """

    def __init__(self, pieces: tuple[Piece, ...], divisor: float = 1.0, zero_is_missing: bool = False):
        widths = {tuple(len(places) for _, places in piece.parts) for piece in pieces}
        dtypes = {file.dtype for piece in pieces for file, _ in piece.parts}
        if len(widths) != 1:
            raise ValueError(f"pieces of different widths: {sorted(widths)}")
        self.pieces, self.divisor, self.zero_is_missing = pieces, divisor, zero_is_missing
        self.n_trials = sum(len(piece.rows) for piece in pieces)
        self.n_voxels = sum(next(iter(widths)))
        self.dtype = np.result_type(*dtypes)
        self.by_voxel = all(file.by_place for piece in pieces for file, _ in piece.parts)
        self._expected = False

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file.path for piece in self.pieces for file, _ in piece.parts)

    def iter_trials(self, start: int, memory_bytes: int) -> Iterator[np.ndarray]:
        first = 0
        for piece in self.pieces:
            skip = start - first
            first += len(piece.rows)
            if skip < len(piece.rows):
                yield from self._iter_piece(piece, max(0, skip), memory_bytes)

    def _iter_piece(self, piece: Piece, skip: int, memory_bytes: int) -> Iterator[np.ndarray]:
        rows = piece.rows[skip:]
        if len(rows) == 0:
            return
        working = sum(file.working_bytes() for file, _ in piece.parts)
        by_place = any(file.by_place for file, _ in piece.parts)
        # the block that the caller still holds and the next one; by place also the next one's parts, which are read whole
        per_row = (3 if by_place else 2) * self.n_voxels * self.dtype.itemsize
        height = (memory_bytes - working) // max(1, per_row)
        if not by_place:
            height = min(height, _BLOCK_BYTES // max(1, per_row))
        height = min(max(1, height), len(rows))
        if len(piece.parts) == 1 and piece.parts[0][0].dtype == self.dtype:
            yield from piece.parts[0][0].iter_rows(rows, piece.parts[0][1], height)
            return
        step = height if by_place else min(height, _STEP)
        height -= height % step
        parts = [(len(places), file.iter_rows(rows, places, step)) for file, places in piece.parts]
        for first in range(0, len(rows), height):
            block = np.empty((min(height, len(rows) - first), self.n_voxels), dtype=self.dtype)
            for low in range(0, len(block), step):
                column = 0
                for width, part in parts:
                    block[low : low + step, column : column + width] = next(part)
                    column += width
            yield block
            del block
        for _, part in parts:
            next(part, None)  # lets it close its file

    def read_voxels(self, voxels: slice) -> np.ndarray:
        if not self.by_voxel:
            return super().read_voxels(voxels)
        if not self._expected:
            for piece in self.pieces:
                for file, places in piece.parts:
                    file.expect(places)
            self._expected = True
        start, stop, _ = voxels.indices(self.n_voxels)
        out_tv = np.empty((self.n_trials, stop - start), dtype=self.dtype)
        row = 0
        for piece in self.pieces:
            column = 0
            for file, places in piece.parts:
                low, high = (min(max(edge - column, 0), len(places)) for edge in (start, stop))
                if low < high:
                    at = slice(column + low - start, column + high - start)
                    out_tv[row : row + len(piece.rows), at] = file.read_places(piece.rows, places[low:high])
                column += len(places)
            row += len(piece.rows)
        return out_tv

    def where(self, trial: int, voxel: int) -> str:
        """The file, the trial within it, and the place within the file, both from 1."""
        for piece in self.pieces:
            if trial >= len(piece.rows):
                trial -= len(piece.rows)
                continue
            for file, places in piece.parts:
                if voxel < len(places):
                    return f"{file.path}: trial {piece.rows[trial] + 1}, place {places[voxel] + 1}"
                voxel -= len(places)
        raise IndexError("no such trial or voxel")
