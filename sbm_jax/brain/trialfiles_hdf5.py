"""HDF5 arrays of trials x places, by the quickest road that their layout on disk allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.brain.sessions import TrialFile
from sbm_jax.brain.trialfiles_chunks import WALK_BYTES, chunk_starts
from sbm_jax.brain.trialfiles_numbers import Numbers, check_indices, need_file, need_trials, real_numbers, split
from sbm_jax.brain.trialfiles_places import PLACES_BYTES, gather_places, place_row_blocks
from sbm_jax.brain.trialfiles_rows import read_row_blocks
from sbm_jax.errors import UserError

_SLAB = 1 << 25  # bytes that h5py reads at a time


class Hdf5Array(TrialFile):
    """A dataset of real numbers in an HDF5 file.

    dataset: its name. axes: one letter per axis as Python sees them, "t" for trials and "v", or "x", "y", "z" in any order
    for a volume, whose places are x + X * (y + Y * z). shape: (X, Y, Z), or (V,).

    Three roads: runs of bytes where the array is not chunked, or where every chunk is one place with all its trials (as
    NSD writes; h5py would take one call into the library per chunk); otherwise slabs by h5py, with decompression.
    Places can be read on their own where a place's trials lie together.

    Raises UserError: no HDF5 file, cut short, no such dataset, other axes, not real numbers, no trials.
    """

    def __init__(self, path: Path, dataset: str, axes: str):
        self.path, self.dataset, self.axes = path, dataset, axes
        with self._opened() as values:
            if values.ndim != len(axes):
                raise UserError(
                    f"{path}: expected {dataset!r} to have {len(axes)} axes ({', '.join(axes)} as Python sees them), "
                    f"found the shape {values.shape}"
                )
            self.numbers = Numbers(real_numbers(path, values.dtype))
            sizes = dict(zip(axes, (int(s) for s in values.shape), strict=True))
            self._offset, self._chunks = _road(values, axes)
            self._fill = values.fillvalue
        self.n_trials = sizes.pop("t")
        self._file_shape = tuple(sizes.values())
        self.shape = tuple(sizes[axis] for axis in sorted(sizes))
        self.n_places = int(np.prod(self.shape))
        self.dtype = self.numbers.dtype
        need_trials(path, self.n_trials, self.n_places)
        self.by_place = self._chunks or (self._offset is not None and axes[-1] == "t")
        self._expected: tuple[np.ndarray, np.ndarray] | None = None

    def iter_rows(self, rows: np.ndarray, places: np.ndarray, height: int) -> Iterator[np.ndarray]:
        check_indices(rows, places, self.n_trials, self.n_places)
        if len(rows) == 0:
            return
        if self.by_place:
            yield from place_row_blocks(self.path, self._starts(places), self.numbers, rows, height, self._fill)
        elif self._offset is not None and self.axes[0] == "t":
            n, at = self.n_places, self._file_places(places)
            yield from read_row_blocks(self.path, self._offset, n, self.numbers, rows, at, height)
        else:
            yield from self._slab_blocks(rows, self._file_places(places), height)

    def expect(self, places: np.ndarray) -> None:
        if self._chunks:
            known = np.unique(places)
            self._expected = known, self._chunk_starts()[self._file_places(known)]

    def read_places(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        if not self.by_place:
            return super().read_places(rows, places)
        check_indices(rows, places, self.n_trials, self.n_places)
        out_tv = np.empty((len(rows), len(places)), dtype=self.dtype)
        gather_places(self.path, self._starts(places), self.numbers, rows, out_tv, self._fill)
        return out_tv

    def working_bytes(self) -> int:
        if self.by_place:
            return PLACES_BYTES + WALK_BYTES + 40 * self.n_places  # the table of chunks, and what numpy makes of it
        return 2 * _SLAB + 16 * self.n_places

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The h5py dataset; failures of the library become messages that name the file."""
        import h5py

        need_file(self.path, f"an HDF5 file with the dataset {self.dataset!r}")
        try:
            with h5py.File(self.path, "r") as file:
                values = file.get(self.dataset)
                if not isinstance(values, h5py.Dataset):
                    found = ", ".join(file) or "nothing"
                    raise UserError(f"{self.path}: expected a dataset {self.dataset!r}, found {found}")
                yield values
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{self.path}: not a readable HDF5 file: damaged or cut short ({error}); copy or download it again"
            ) from error

    def _file_places(self, places: np.ndarray) -> np.ndarray:
        """Places in the file's order of its axes but that of the trials, the last one fastest."""
        order = self.axes.replace("t", "")
        if order in ("v", "zyx"):
            return places
        index = dict(zip("xyz", np.unravel_index(places, self.shape, order="F"), strict=True))
        return np.ravel_multi_index([index[axis] for axis in order], self._file_shape)

    def _starts(self, places: np.ndarray) -> np.ndarray:
        """First byte of every place's trials, int64 [v]."""
        if self._offset is not None:
            return self._offset + self._file_places(places) * (self.n_trials * self.dtype.itemsize)
        if self._expected is None:
            return self._chunk_starts()[self._file_places(places)]
        known, starts = self._expected
        at = np.searchsorted(known, places)
        if len(places) and (at.max() == len(known) or (known[at] != places).any()):
            raise ValueError("places that were not expected")
        return starts[at]

    def _chunk_starts(self) -> np.ndarray:
        with self._opened() as values:
            return chunk_starts(self.path, values, self.axes.index("t"))

    def _slab_blocks(self, rows: np.ndarray, at: np.ndarray, height: int) -> Iterator[np.ndarray]:
        """Blocks by h5py: trials at a time and slices of the first other axis at a time, whole chunks where they fit."""
        with self._opened() as values:
            for piece in split(rows, height):
                block = np.empty((len(piece), len(at)), dtype=self.dtype)
                self._fill_block(values, piece, at, block)
                yield block
                del block

    def _fill_block(self, values: Any, rows: np.ndarray, at: np.ndarray, block: np.ndarray) -> None:
        trial_axis = self.axes.index("t")
        slow_axis = 1 if trial_axis == 0 else 0
        per_slice = self.n_places // self._file_shape[0]
        chunks = values.chunks or (1,) * len(self.axes)
        first, stop = int(rows[0]), int(rows[-1]) + 1
        # a slab of a whole chunk's trials, as many chunks of slices as fit, and then as many trials as fit
        trials = min(chunks[trial_axis], stop - first)
        slices = _steps(chunks[slow_axis], _SLAB // (trials * per_slice * self.dtype.itemsize))
        slices = min(slices, self._file_shape[0])
        trials = _steps(trials, _SLAB // (slices * per_slice * self.dtype.itemsize))
        which = at // per_slice
        for t in range(first - first % chunks[trial_axis], stop, trials):
            low, high = max(t, first), min(t + trials, stop)
            lines = np.flatnonzero((rows >= low) & (rows < high))
            if not len(lines):
                continue
            for s in range(0, self._file_shape[0], slices):
                columns = np.flatnonzero((which >= s) & (which < s + slices))
                if not len(columns):
                    continue
                index: list[slice] = [slice(None)] * len(self.axes)
                index[trial_axis], index[slow_axis] = slice(low, high), slice(s, s + slices)
                slab = np.moveaxis(values[tuple(index)], trial_axis, 0).reshape(high - low, -1)
                block[np.ix_(lines, columns)] = slab[np.ix_(rows[lines] - low, at[columns] - s * per_slice)]


class Hdf5Volumes(Hdf5Array):
    """[T, Z, Y, X], as MATLAB writes X x Y x Z x T and as NSD's `betas_sessionBB.hdf5` is. shape: (X, Y, Z)."""

    def __init__(self, path: Path, dataset: str = "betas"):
        super().__init__(path, dataset, "tzyx")


class Hdf5Vertices(Hdf5Array):
    """[T, V], as NSD's `lh.betas_sessionBB.hdf5` is."""

    def __init__(self, path: Path, dataset: str = "betas"):
        super().__init__(path, dataset, "tv")


def _steps(unit: int, limit: int) -> int:
    """The largest multiple of `unit` up to `limit`, at least one."""
    return unit * max(1, limit // unit)


def _road(values: Any, axes: str) -> tuple[int | None, bool]:
    """(first byte of an array that lies in one run, or None; whether every chunk is one place with all its trials)."""
    plain = values.dtype.hasobject is False and values.id.get_create_plist().get_nfilters() == 0
    # offsets and user blocks: versions of the library disagree on whether the block is counted
    if not plain or values.file.userblock_size or values.is_virtual or values.external or not values.size:
        return None, False
    if values.chunks is None:
        return values.id.get_offset(), False
    one_place = tuple(size if axis == "t" else 1 for axis, size in zip(axes, values.shape, strict=True))
    return None, values.chunks == one_place
