"""Trial files that are one array behind a header: NIfTI, MGH and NumPy files."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.brain.sessions import TrialFile
from sbm_jax.brain.trialfiles_numbers import (
    Numbers,
    check_indices,
    need_bytes,
    need_file,
    need_trials,
    real_numbers,
)
from sbm_jax.brain.trialfiles_places import PLACES_BYTES, gather_places, place_row_blocks
from sbm_jax.brain.trialfiles_rows import inflate_bytes, inflate_row_blocks, read_row_blocks
from sbm_jax.errors import UserError


class FlatTrials(TrialFile):
    """A file whose numbers follow one another from byte `offset` on, [trials, places] or, `by_place`, [places, trials].

    gzipped: the offset is that of the decompressed bytes. Raises UserError for a dtype that is not real, for no trials
    and for a file that is too short (a gzipped one shows that only when it is read).
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        numbers: Numbers,
        offset: int,
        *,
        by_place: bool = False,
        gzipped: bool = False,
    ):
        real_numbers(path, numbers.stored)
        need_trials(path, *shape)
        self.path, self.numbers, self.offset = path, numbers, offset
        self.n_trials, self.n_places = shape
        self.dtype, self.by_place, self.gzipped = numbers.dtype, by_place, gzipped
        if not gzipped:
            need_bytes(path, offset + self.n_trials * self.n_places * numbers.stored.itemsize)

    def iter_rows(self, rows: np.ndarray, places: np.ndarray, height: int) -> Iterator[np.ndarray]:
        check_indices(rows, places, self.n_trials, self.n_places)
        shape = (self.n_trials, self.n_places)
        if self.by_place:
            yield from place_row_blocks(self.path, self._offsets(places), self.numbers, rows, height)
        elif self.gzipped:
            yield from inflate_row_blocks(self.path, self.offset, shape, self.numbers, rows, places, height)
        else:
            yield from read_row_blocks(self.path, self.offset, self.n_places, self.numbers, rows, places, height)

    def read_places(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        if not self.by_place:
            return super().read_places(rows, places)
        check_indices(rows, places, self.n_trials, self.n_places)
        out_tv = np.empty((len(rows), len(places)), dtype=self.dtype)
        gather_places(self.path, self._offsets(places), self.numbers, rows, out_tv)
        return out_tv

    def working_bytes(self) -> int:
        if self.by_place:
            return PLACES_BYTES + 32 * self.n_places  # offsets, their order, and what numpy makes between
        row = self.n_places * (self.numbers.stored.itemsize + 8)
        return row + inflate_bytes(row) if self.gzipped else row

    def _file_places(self, places: np.ndarray) -> np.ndarray:
        """Places in the order of the file."""
        return places

    def _offsets(self, places: np.ndarray) -> np.ndarray:
        return self.offset + self._file_places(places) * (self.n_trials * self.numbers.stored.itemsize)


def load_header(path: Path, what: str) -> Any:
    """nibabel's image, whose header is read and whose numbers are not. Raises UserError if it is not `what`."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.loadsave import load
    from nibabel.spatialimages import HeaderDataError

    need_file(path, what)
    try:
        return load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: expected {what}, found a file that cannot be read as one ({error})") from error


def nifti_numbers(image: Any) -> Numbers:
    """Stored dtype and scale of a NIfTI image; nibabel has made a slope of 0 (no scale) into 1."""
    return Numbers(image.dataobj.dtype, float(image.dataobj.slope), float(image.dataobj.inter))


class NiftiTrials(FlatTrials):
    """A NIfTI-1 or NIfTI-2 file [X, Y, Z, T], `.nii` or `.nii.gz`. Places are x + X * (y + Y * z).

    shape: (X, Y, Z). affine: float64 [4, 4], voxel index to millimetres. A `.nii.gz` is decompressed from its beginning by
    a thread that runs ahead; a `.nii` is read where the rows lie. scl_slope and scl_inter are applied, in float32, unless
    they are 1 and 0 or the slope is 0.

    Raises UserError: not a NIfTI file, not four axes, not real numbers, no trials, cut short, damaged.
    """

    def __init__(self, path: Path):
        what = "a NIfTI file [X, Y, Z, trials] (.nii or .nii.gz)"
        if not path.name.endswith((".nii", ".nii.gz")):
            raise UserError(f"{path}: expected {what}, found another ending")
        image = load_header(path, what)
        if len(image.shape) != 4:
            raise UserError(f"{path}: expected {what}, found the shape {image.shape}")
        x, y, z, n_trials = (int(s) for s in image.shape)
        self.shape, self.affine = (x, y, z), np.asarray(image.affine, dtype=np.float64)
        super().__init__(
            path,
            (n_trials, x * y * z),
            nifti_numbers(image),
            int(image.dataobj.offset),
            gzipped=path.name.endswith(".gz"),
        )


class MghTrials(FlatTrials):
    """A FreeSurfer file (V, 1, 1, T), `.mgh` or `.mgz`; big-endian in the file, native in what is handed out.

    Raises UserError: not an MGH file, a volume rather than one number per vertex, no trials, cut short, damaged.
    """

    def __init__(self, path: Path):
        what = "a FreeSurfer surface file (vertices, 1, 1, trials) (.mgh or .mgz)"
        if not path.name.endswith((".mgh", ".mgz", ".mgh.gz")):
            raise UserError(f"{path}: expected {what}, found another ending")
        gzipped = not path.name.endswith(".mgh")
        header = _mgh_header(path, what, gzipped)
        n_places, n_y, n_z, n_trials = (int(s) for s in header["dims"])
        if (n_y, n_z) != (1, 1):
            raise UserError(f"{path}: expected {what}, found the shape {(n_places, n_y, n_z, n_trials)}")
        numbers = Numbers(header.get_data_dtype())
        super().__init__(path, (n_trials, n_places), numbers, header.get_data_offset(), gzipped=gzipped)


def _mgh_header(path: Path, what: str, gzipped: bool) -> Any:
    """The header alone: loading an image reads the tags behind the numbers too, which decompresses all of a `.mgz`."""
    from nibabel.freesurfer.mghformat import MGHHeader
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    need_file(path, what)
    try:
        with gzip.open(path) if gzipped else path.open("rb") as file:
            header = MGHHeader(file.read(MGHHeader().get_data_offset()))
        header.get_data_dtype()
    except (OSError, EOFError, ValueError, KeyError, zlib.error, WrapStructError, HeaderDataError) as error:
        raise UserError(f"{path}: expected {what}, found a file that cannot be read as one ({error})") from error
    return header


class NpyTrials(FlatTrials):
    """A NumPy file of real numbers [T, V], or [X, Y, Z, T], in C or Fortran order. Never unpickles.

    shape: (X, Y, Z), or (V,). Places of a volume are x + X * (y + Y * z) in either order.

    Raises UserError: not a `.npy` of real numbers, pickled, of another rank, no trials, cut short.
    """

    def __init__(self, path: Path):
        what = "a NumPy .npy file of real numbers [trials, voxels] or [X, Y, Z, trials]"
        need_file(path, what)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path}: expected {what}, found another file, or one cut short ({error})") from error
        if not isinstance(array, np.memmap) or array.ndim not in (2, 4):
            raise UserError(f"{path}: expected {what}, found an array of shape {getattr(array, 'shape', 'unknown')}")
        self.shape = tuple(array.shape[:3] if array.ndim == 4 else array.shape[1:])
        n_trials = array.shape[-1] if array.ndim == 4 else array.shape[0]
        # trials vary fastest in [X, Y, Z, T] in C order and in [T, V] in Fortran order
        self._c_order = bool(array.flags.c_contiguous)
        by_place = self._c_order == (array.ndim == 4)
        shape = (int(n_trials), int(np.prod(self.shape)))
        super().__init__(path, shape, Numbers(array.dtype), int(array.offset), by_place=by_place)

    def _file_places(self, places: np.ndarray) -> np.ndarray:
        if len(self.shape) == 1 or not self._c_order:
            return places
        x, y, z = np.unravel_index(places, self.shape, order="F")
        return np.ravel_multi_index((x, y, z), self.shape)
