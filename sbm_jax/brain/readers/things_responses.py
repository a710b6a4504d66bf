"""THINGS-fMRI's `sub-0X_ResponseData`: voxels x trials as pandas wrote them to HDF5 (fixed or table form), or as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sbm_jax.brain.readers.generic_voxelmajor import VoxelFile
from sbm_jax.brain.trialfiles_numbers import selection
from sbm_jax.errors import UserError

_TABLE_ROWS = 1000
_SCAN = 1 << 24  # bytes at a time when the lines of a CSV file are looked for


class Hdf5Frame(VoxelFile):
    """A data frame in HDF5, read without pandas: pandas would unpickle the names of rows and columns.

    The columns are those named "0", "1" ...; where their names are a pickle, their order in the file is taken.

    Raises UserError: not an HDF5 file, no data frame in it, another size than the tables, other voxels than theirs.
    """

    def __init__(self, path: Path, n_trials: int, voxel_id: np.ndarray):
        import h5py

        self.path, self.n_trials, self.n_voxels = path, n_trials, len(voxel_id)
        try:
            with h5py.File(path, "r") as file:
                self._find(file, voxel_id)
        except OSError as error:
            raise UserError(f"{path}: not a readable HDF5 file, or cut short ({error})") from error

    def _find(self, file, voxel_id: np.ndarray) -> None:
        blocks = _blocks(file)
        if not blocks:
            raise UserError(
                f"{self.path}: expected a data frame of voxels x trials as pandas writes it (block0_values or table); "
                f"found {', '.join(file) or 'nothing'}"
            )
        self.dataset, self.field, names, shape, self.dtype = max(blocks, key=lambda block: block[3][1])
        width = shape[1]
        if shape[0] != self.n_voxels:
            raise UserError(
                f"{self.path}: expected {self.n_voxels:,} voxels (rows of the voxel table), found an array of "
                f"{shape[0]:,} x {width:,}"
            )
        self.columns = np.arange(self.n_trials)
        if names is not None and len(names) == width:
            place = {name: column for column, name in enumerate(names)}
            wanted = [str(trial) for trial in range(self.n_trials)]
            extra = (
                [name for name in names if name not in wanted and name != "voxel_id"] if width > self.n_trials else []
            )
            if extra or any(name not in place for name in wanted):
                raise UserError(
                    f"{self.path}: expected {self.n_trials:,} columns named 0 to {self.n_trials - 1} (rows of the stimulus "
                    f"table), found {width:,} from {names[0]!r} to {names[-1]!r}"
                )
            self.columns = np.array([place[name] for name in wanted])
        elif width == self.n_trials + 1:
            self.columns += 1  # voxel_id is the first column of the frame
            if not self.field:  # of a table only whole rows can be read, which are all the responses
                self._check_voxels(file[self.dataset][:, 0], voxel_id)
        elif width != self.n_trials:
            raise UserError(
                f"{self.path}: expected {self.n_trials:,} trials (rows of the stimulus table), found an array of "
                f"{shape[0]:,} x {width:,}"
            )
        for dataset, field, _, block, _ in blocks:
            if block == (self.n_voxels, 1) and (dataset, field) != (self.dataset, self.field):
                # of a table a field is read with all the responses between, so the first rows have to do
                values = file[dataset].fields(field)[:_TABLE_ROWS] if field else file[dataset][:]
                self._check_voxels(np.asarray(values)[:, 0], voxel_id)

    def _check_voxels(self, found: np.ndarray, voxel_id: np.ndarray) -> None:
        wrong = np.flatnonzero(found != voxel_id[: len(found)])
        if len(wrong):
            row = wrong[0]
            raise UserError(
                f"{self.path}: row {row + 1} is voxel {found[row]:g}, but the voxel table has {voxel_id[row]:g} there; "
                "take both files of the same release"
            )

    def _read(self, file, start: int, stop: int) -> np.ndarray:
        values = file[self.dataset]
        return values.fields(self.field)[start:stop] if self.field else values[start:stop]

    def read(self, start: int, stop: int) -> np.ndarray:
        import h5py

        try:
            with h5py.File(self.path, "r") as file:
                return self._read(file, start, stop)[:, selection(self.columns)].astype(self.dtype, copy=False)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be read at voxel {start + 1}; damaged or cut short ({error})"
            ) from error


class CsvFrame(VoxelFile):
    """The same frame as text: a header `voxel_id,0,1,...` and one line per voxel. Lines are found at the first read.

    Raises UserError: no such header, another number of trials; later another number of voxels, a cell that is no number.
    """

    dtype = np.dtype(np.float64)

    def __init__(self, path: Path, n_trials: int, n_voxels: int):
        self.path, self.n_trials, self.n_voxels = path, n_trials, n_voxels
        with path.open("rb") as handle:
            self.header = [name.strip().strip('"') for name in handle.readline().decode("utf-8-sig").split(",")]
        place = {name: column for column, name in enumerate(self.header)}
        missing = [str(trial) for trial in range(n_trials) if str(trial) not in place]
        if missing or str(n_trials) in place:
            raise UserError(
                f"{path}: expected {n_trials:,} columns named 0 to {n_trials - 1} (rows of the stimulus table), found "
                f"{len(self.header):,} from {self.header[0]!r} to {self.header[-1]!r}"
            )
        self.columns = np.array([place[str(trial)] for trial in range(n_trials)])
        self._starts: np.ndarray | None = None

    def read(self, start: int, stop: int) -> np.ndarray:
        if self._starts is None:
            self._starts = self._line_starts()
        with self.path.open("rb") as handle:
            handle.seek(self._starts[start])
            text = handle.read(int(self._starts[stop] - self._starts[start]))
        return np.stack([self._row(line, start + row) for row, line in enumerate(text.splitlines())])

    def _row(self, line: bytes, voxel: int) -> np.ndarray:
        cells = line.split(b",")
        if len(cells) != len(self.header):
            raise UserError(
                f"{self.path}, voxel {voxel + 1}: expected {len(self.header):,} cells as in the header, found {len(cells):,}"
            )
        try:
            return np.array([cell or b"nan" for cell in cells]).astype(np.float64)[self.columns]
        except ValueError as error:
            raise UserError(f"{self.path}, voxel {voxel + 1}: a cell is not a number ({error})") from error

    def _line_starts(self) -> np.ndarray:
        """Byte at which every voxel's line starts, and the end of the file; int64 [voxels + 1]."""
        ends, position, last = [], 0, b"\n"
        with self.path.open("rb") as handle:
            while chunk := handle.read(_SCAN):
                ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + position + 1)
                position += len(chunk)
                last = chunk[-1:]
        starts = np.concatenate([*ends, [] if last == b"\n" else [position]]).astype(np.int64)
        if len(starts) - 1 != self.n_voxels:
            raise UserError(
                f"{self.path}: expected {self.n_voxels:,} lines below the header (rows of the voxel table), found "
                f"{len(starts) - 1:,}"
            )
        return starts


def _blocks(file) -> list[tuple[str, str, Sequence[str] | None, tuple[int, int], np.dtype]]:
    """(dataset, field, names, shape, dtype) of every block of numbers of the data frames in a file."""
    blocks = []
    for key in file:
        group = file[key]
        if not hasattr(group, "keys"):
            continue
        for name in group:
            node = group[name]
            if not hasattr(node, "shape"):
                continue
            if (
                name.endswith("_values")
                and name.startswith("block")
                and len(node.shape) == 2
                and node.dtype.kind in "iuf"
            ):
                items = group.get(name.replace("_values", "_items"))
                # names of mixed kinds are stored as a pickle, which is not opened
                names = None
                if items is not None and items.dtype.kind == "S":
                    names = [item.decode() for item in items[:]]
                elif items is not None and items.dtype.kind in "iu":
                    names = [str(item) for item in items[:]]
                blocks.append((f"{key}/{name}", "", names, node.shape, node.dtype.newbyteorder("=")))
            elif name == "table" and node.dtype.names:
                for field in node.dtype.names:
                    base, inner = node.dtype[field].base, node.dtype[field].shape
                    if field.startswith("values_block") and base.kind in "iuf":
                        shape = (node.shape[0], inner[0] if inner else 1)
                        blocks.append((f"{key}/{name}", field, None, shape, base.newbyteorder("=")))
    return blocks
