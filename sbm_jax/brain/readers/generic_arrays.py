"""Arrays and tables without a dataset.json: per subject responses.npy or responses.h5, trials.csv, optionally voxels.csv."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sbm_jax.brain import prf
from sbm_jax.brain.readers.generic_drafts import Draft, Trials
from sbm_jax.brain.readers.generic_tables import find_table, read_columns, read_trials
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.responses import NpyResponses, Responses
from sbm_jax.brain.rois import masks_from_names
from sbm_jax.brain.sessions import Piece, SessionResponses, TrialFile
from sbm_jax.brain.spaces import TEMPLATE_VERTICES, Space, SurfaceSpace, UnplacedSpace
from sbm_jax.brain.tables import floats, integers
from sbm_jax.errors import UserError

_RESPONSES = ("responses.npy", "responses.h5", "responses.hdf5")
_NOT_ATLASES = ("hemi", "vertex", "x", "y", "z", "i", "j", "k", "ncsnr", "noise_ceiling", *prf.COLUMNS)


def response_array(folder: Path) -> Path | None:
    """The array of a subject's folder, or None."""
    return next((folder / name for name in _RESPONSES if (folder / name).is_file()), None)


def is_subject(folder: Path) -> bool:
    """True for a folder with responses and a table of trials."""
    return response_array(folder) is not None and find_table(folder, ("trials",)) is not None


def read_subject(folder: Path, name: str, options: ReadOptions) -> Draft:
    """One subject. Raises UserError: rows of a table and axes of the array differ, or a column holds something else."""
    array, table_file = response_array(folder), find_table(folder, ("trials",))
    if array is None or table_file is None:
        raise UserError(f"{folder}: expected responses.npy (or .h5) and trials.csv (or .tsv)")
    table = read_trials(table_file)
    voxels_file = find_table(folder, ("voxels",))
    voxels = read_columns(voxels_file) if voxels_file else {}
    file = _open(array)
    if file.n_trials != len(table):
        raise UserError(
            f"{array}: {file.n_trials:,} trials, but {table_file} has {len(table):,} rows; one row per trial is needed"
        )
    n_voxels = len(next(iter(voxels.values()))) if voxels else file.n_places
    if n_voxels != file.n_places:
        raise UserError(
            f"{array}: {file.n_places:,} voxels, but {voxels_file} has {n_voxels:,} rows; one row per voxel is needed"
        )
    trials = Trials()
    rows = trials.add(table, np.arange(len(table)), None, None)
    whole = len(rows) == len(table) and array.suffix == ".npy" and file.dtype.kind == "f"
    responses: Responses = (
        NpyResponses(array, len(table), n_voxels, (table_file.name, voxels_file.name if voxels_file else "the array"))
        if whole
        else SessionResponses((Piece(rows, ((file, np.arange(n_voxels)),)),))
    )
    atlases: dict[str, Sequence[str]] = {
        column: cells for column, cells in voxels.items() if column not in _NOT_ATLASES
    }
    numbers = {
        column: floats(voxels_file, column, voxels[column]) if voxels_file and column in voxels else None
        for column in ("ncsnr", "noise_ceiling")
    }
    return Draft(
        name=name,
        trials=trials,
        responses=responses,
        space=_space(voxels_file, voxels, n_voxels, options.space),
        rois=masks_from_names(atlases),
        tables=(voxels_file,) if voxels_file else (),
        ncsnr=numbers["ncsnr"],
        noise_ceiling=numbers["noise_ceiling"],
        prf=prf.from_table(voxels_file, voxels),
    )


def _open(path: Path) -> TrialFile:
    from sbm_jax.brain.trialfiles import Hdf5Vertices, NpyTrials

    if path.suffix == ".npy":
        return NpyTrials(path)
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = [str(name) for name in file if isinstance(file[name], h5py.Dataset)]
    except OSError as error:
        raise UserError(f"{path}: not a readable HDF5 file, or cut short ({error})") from error
    if "responses" not in names and len(names) != 1:
        raise UserError(
            f"{path}: expected the dataset 'responses' [trials, voxels]; found {', '.join(names) or 'none'}"
        )
    return Hdf5Vertices(path, "responses" if "responses" in names else names[0])


def _space(path: Path | None, voxels: dict[str, list[str]], n_voxels: int, wanted: str) -> Space:
    if path is None or "hemi" not in voxels or "vertex" not in voxels:
        return UnplacedSpace(wanted or "voxels", n_voxels)
    hemi = np.array(voxels["hemi"], dtype=str)
    wrong = np.flatnonzero((hemi != "L") & (hemi != "R"))
    if len(wrong):
        raise UserError(f"{path}, row {wrong[0] + 1}: column 'hemi' needs L or R, found {str(hemi[wrong[0]])!r}")
    vertex = integers(path, "vertex", voxels["vertex"], 0)
    return surface_space(path, hemi, vertex, wanted)


def surface_space(path: Path, hemi: np.ndarray, vertex: np.ndarray, wanted: str) -> SurfaceSpace:
    """Vertices listed in a table. Raises UserError for one that is listed twice or that the named template does not have."""
    largest = int(vertex.max(initial=-1)) + 1
    limit = TEMPLATE_VERTICES.get(wanted, largest)
    if largest > limit:
        row = int(np.argmax(vertex >= limit))
        raise UserError(
            f"{path}, row {row + 1}: {wanted} has {limit:,} vertices per hemisphere, found vertex {vertex[row]}"
        )
    _, first = np.unique(vertex * 2 + (hemi == "R"), return_index=True)
    if len(first) < len(vertex):
        row = int(np.setdiff1d(np.arange(len(vertex)), first)[0])
        raise UserError(f"{path}, row {row + 1}: vertex {vertex[row]} of hemisphere {hemi[row]} is listed twice")
    return SurfaceSpace(wanted or "surface", (limit, limit), hemi, vertex)
