"""The files in which GLMsingle keeps single-trial betas: HDF5 of Python, .mat of MATLAB, pickled .npy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sbm_jax.brain.readers.generic_voxelmajor import VoxelFile
from sbm_jax.brain.sessions import TrialFile
from sbm_jax.errors import UserError

# Python writes betasmd, MATLAB modelmd
KEYS = ("betasmd", "modelmd")


class Hdf5Betas(VoxelFile):
    """Python's `TYPED_FITHRF_GLMDENOISE_RR.hdf5`: `betasmd` [X, Y, Z, T], or [V, 1, 1, T] or [V, T]; trials run fastest.

    shape: (X, Y, Z), or None for voxels without a volume. Voxels are numbered z + Z * (y + Y * x), as in the file.
    """

    def __init__(self, path: Path):
        import h5py

        self.path = path
        try:
            with h5py.File(path, "r") as file:
                self.key = _key(path, list(file))
                node = file[self.key]
                self.full, dtype = tuple(node.shape), node.dtype  # pyright: ignore[reportAttributeAccessIssue]
        except OSError as error:
            raise UserError(f"{path}: not a readable HDF5 file, or cut short ({error})") from error
        self.shape = volume_shape(path, self.full)
        self.dtype = real(path, dtype)
        self.n_trials = self.full[-1]
        self.n_voxels = int(np.prod(self.full[:-1]))

    def read(self, start: int, stop: int) -> np.ndarray:
        import h5py

        slab = int(np.prod(self.full[1:-1]))  # voxels per step of the first axis
        first, last = start // slab, -(-stop // slab)
        try:
            with h5py.File(self.path, "r") as file:
                block = file[self.key][first:last].reshape(-1, self.n_trials)  # pyright: ignore
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be read at voxel {start + 1}; damaged or cut short ({error})"
            ) from error
        return block[start - first * slab : stop - first * slab]


class ArrayBetas(VoxelFile):
    """Betas [X, Y, Z, T] (or [V, 1, 1, T], [V, T]) of a file that can only be read whole, held in memory."""

    def __init__(self, path: Path, betas: np.ndarray):
        self.path, self.full = path, betas.shape
        self.shape = volume_shape(path, betas.shape)
        self.dtype = real(path, betas.dtype)
        self.betas = betas.reshape(-1, betas.shape[-1]).astype(self.dtype, copy=False)
        self.n_voxels, self.n_trials = self.betas.shape

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.betas[start:stop]


def open_betas(path: Path) -> VoxelFile | TrialFile:
    """The betas of a file. A .mat of version 7.3 is a TrialFile: MATLAB's axes come reversed, so trials lie together.

    Raises UserError: no betas in it, damaged, or numbers that are not real.
    """
    if path.suffix == ".hdf5":
        return Hdf5Betas(path)
    if path.suffix == ".npy":
        return ArrayBetas(path, _from_pickle(path))
    with path.open("rb") as handle:
        old = handle.read(19) == b"MATLAB 5.0 MAT-file"
    return ArrayBetas(path, _from_old_mat(path)) if old else _from_new_mat(path)


def volume_shape(path: Path, full: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(X, Y, Z) of betas [X, Y, Z, T]; None for [V, T] and [V, 1, 1, T]. Raises UserError for another rank."""
    if len(full) not in (2, 4) or 0 in full:
        raise UserError(f"{path}: expected betas [X, Y, Z, trials] or [voxels, trials], found the shape {full}")
    return None if len(full) == 2 or full[1:3] == (1, 1) else (full[0], full[1], full[2])


def real(path: Path, dtype: np.dtype) -> np.dtype:
    """The dtype in native byte order. Raises UserError unless it is of floats or integers."""
    if dtype.kind not in "iuf":
        raise UserError(f"{path}: expected betas of real numbers, found {dtype}")
    return dtype.newbyteorder("=")


def _key(path: Path, names: list[str]) -> str:
    key = next((key for key in KEYS if key in names), None)
    if key is None:
        raise UserError(
            f"{path}: expected {' or '.join(KEYS)} (betas of single trials); found {', '.join(names) or 'nothing'}"
        )
    return key


def _from_pickle(path: Path) -> np.ndarray:
    from sbm_jax.brain.pickles import load_pickled_npy

    content = load_pickled_npy(path, arrays=True)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict of results as GLMsingle saves it, found {type(content).__name__}")
    betas = content[_key(path, [str(key) for key in content])]
    if not isinstance(betas, np.ndarray):
        raise UserError(f"{path}: expected an array under the key of the betas, found {type(betas).__name__}")
    return betas


def _from_old_mat(path: Path) -> np.ndarray:
    import scipy.io

    try:
        names = [name for name, _, _ in scipy.io.whosmat(path)]
        key = _key(path, names)
        return np.asarray(scipy.io.loadmat(path, variable_names=[key])[key])
    except UserError:
        raise
    except Exception as error:  # scipy lets errors of zlib, struct and its own through
        raise UserError(f"{path}: not a readable MATLAB file, or cut short ({error})") from error


def _from_new_mat(path: Path) -> TrialFile:
    import h5py

    from sbm_jax.brain.trialfiles import Hdf5Vertices, Hdf5Volumes

    try:
        with h5py.File(path, "r") as file:
            key = _key(path, [str(name) for name in file if name != "#refs#"])
            full = tuple(file[key].shape)  # pyright: ignore[reportAttributeAccessIssue]
    except OSError as error:
        raise UserError(f"{path}: neither a MATLAB file of version 5 nor of 7.3 ({error})") from error
    if len(full) == 4:
        return Hdf5Volumes(path, key)
    if len(full) == 2:
        return Hdf5Vertices(path, key)
    raise UserError(f"{path}: expected betas [X, Y, Z, trials] or [voxels, trials], found the shape {full[::-1]}")
