"""Pictures stored as rows of one HDF5 array, read by many threads at once."""

import os
import threading
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.errors import UserError

# HDF5 drops chunks larger than its cache and would decompress them again for every row; a chunk is at most this much.
CHUNK_CACHE = 64 << 20


class Brick:
    """An HDF5 array [n, h, w, 3] uint8, open for reading.

    A contiguous, uncompressed array is read at its place in the file, without HDF5 and its process-wide lock; any
    other layout is read through one h5py handle, whose lock lets one thread in at a time.
    """

    def __init__(self, path: Path, dataset: str):
        import h5py  # not needed by runs on image files

        self.name = f"{path}[{dataset}]"
        try:
            file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE)
        except OSError as error:
            raise UserError(f"{path}: not a readable HDF5 file ({error}); copy or download it again") from error
        try:
            found: Any = file.get(dataset)
            if not isinstance(found, h5py.Dataset):
                raise UserError(f"{path}: expected an array named {dataset!r}, found {sorted(file)}")
            if found.dtype != np.uint8 or found.ndim != 4 or found.shape[3] != 3 or 0 in found.shape:
                raise UserError(
                    f"{self.name}: expected pictures as uint8 [n, h, w, 3], found {found.dtype} {list(found.shape)}"
                )
            shape: tuple[int, ...] = found.shape
            # None for chunked, compact and virtual arrays, and before anything was written.
            offset = None if found.external else found.id.get_offset()
            where = found.file.filename  # an external link may lead to another file
        except BaseException:
            file.close()
            raise
        if offset is None:
            self.read = lambda row: found[row]
            weakref.finalize(self, file.close)
        else:
            file.close()
            descriptor = os.open(where, os.O_RDONLY)
            self.read = lambda row: _read_at(descriptor, offset, row, shape[1:])
            weakref.finalize(self, os.close, descriptor)
        self.shape = shape

    def __getitem__(self, row: int) -> np.ndarray:
        """One picture, uint8 [h, w, 3]."""
        if not 0 <= row < self.shape[0]:
            raise UserError(
                f"{self.name}: has {self.shape[0]} pictures (rows 0 to {self.shape[0] - 1}), but row {row} was asked "
                "for; check whether the image ids count from 0 or from 1"
            )
        try:
            return self.read(row)
        except OSError as error:
            raise UserError(f"{self.name}: row {row} is not readable ({error}); copy the file again") from error


def _read_at(descriptor: int, offset: int, row: int, shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty(shape, np.uint8)
    if os.preadv(descriptor, [out.data], offset + row * out.nbytes) != out.nbytes:
        raise OSError("the file ends inside this row")
    return out


_opening = threading.Lock()


@lru_cache(maxsize=8)
def _opened(path: Path, dataset: str, size: int, changed: int, process: int) -> Brick:
    return Brick(path, dataset)


def read_row(path: Path, dataset: str, row: int) -> np.ndarray:
    """One picture, uint8 [h, w, 3]. Files stay open between calls and are opened anew when they have changed.

    Raises UserError for a missing, foreign or truncated file, a wrong dtype or shape, or a row that is not there.
    """
    try:
        facts = path.stat()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image file") from error
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror})") from error
    with _opening:
        brick = _opened(path, dataset, facts.st_size, facts.st_mtime_ns, os.getpid())
    return brick[row]
