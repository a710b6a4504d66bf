"""Sessions out of trial files: any start, any budget, hemispheres side by side, columns on their own."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from sbm_jax.brain.sessions import Piece, SessionResponses, TrialFile
from sbm_jax.brain.trialfiles import Hdf5Array, Hdf5Vertices, MghTrials, NiftiTrials

T, V = 13, 60
AFFINE = np.eye(4)


def make_mgh(path: Path, dtype: str) -> tuple[TrialFile, np.ndarray]:
    values_tv = np.random.default_rng(3).integers(-3000, 3000, (T, V)).astype(dtype)
    nib.save(nib.MGHImage(values_tv.T.reshape(V, 1, 1, T), AFFINE), path)
    return MghTrials(path), values_tv


def make_hdf5(path: Path) -> tuple[TrialFile, np.ndarray]:
    """In NSD's chunks of one vertex with all its trials."""
    values_tv = np.random.default_rng(4).integers(-3000, 3000, (T, V)).astype(np.int16)
    with h5py.File(path, "w") as handle:
        handle.create_dataset("betas", data=values_tv, chunks=(T, 1))
    return Hdf5Vertices(path), values_tv


def session_files(folder: Path) -> tuple[SessionResponses, np.ndarray]:
    """Two sessions of two hemispheres, of different dtypes and kinds, with a gap in the rows of the first."""
    rng = np.random.default_rng(0)
    pieces, expected = [], []
    for session, rows in enumerate([np.array([0, 2, 3, 7, 12]), np.arange(T)]):
        parts, columns = [], []
        for hemi, dtype in (("lh", "int16"), ("rh", "float32")):
            place = folder / f"{session}{hemi}"
            place.mkdir()
            file, values = make_mgh(place / ("lh.mgz" if session else "lh.mgh"), dtype)
            places = rng.permutation(V)[:9] if hemi == "lh" else np.arange(3, 14)
            parts.append((file, places))
            columns.append(values[rows][:, places])
        pieces.append(Piece(rows, tuple(parts)))
        expected.append(np.concatenate(columns, axis=1))
    return SessionResponses(tuple(pieces)), np.concatenate(expected)


def test_sessions_resume_from_any_row(tmp_path: Path):
    """From every row, under budgets of one row and of all, the same trials; the blocks' heights never exceed the budget."""
    responses, expected = session_files(tmp_path)
    assert responses.dtype == np.float32
    assert not responses.by_voxel
    working = [sum(file.working_bytes() for file, _ in piece.parts) for piece in responses.pieces]
    per_row = 3 * responses.n_voxels * 4
    for start in range(responses.n_trials + 1):
        for budget in (0, max(working) + 3 * per_row, 10**9):
            blocks = list(responses.iter_trials(start, budget))
            assert all(len(block) == 1 or min(working) + len(block) * per_row <= budget for block in blocks)
            np.testing.assert_array_equal(np.concatenate([expected[:0], *blocks]), expected[start:])


@pytest.mark.parametrize("kind", ["nii.gz", "hdf5", "mgh"])
def test_sessions_stay_within_the_budget(kind: str, tmp_path: Path):
    """Everything allocated while a file of 28 MB is read, the caller's block included, stays below the budget given."""
    values = np.random.default_rng(0).integers(-9, 9, (40, 25, 20, 700)).astype(np.int16)
    if kind == "nii.gz":
        with gzip.open(tmp_path / "a.nii.gz", "wb", compresslevel=1) as handle:
            header = nib.Nifti1Image(values, AFFINE).header
            header.set_data_offset(352)
            handle.write(header.binaryblock + bytes(4) + values.tobytes(order="F"))
        files = (NiftiTrials(tmp_path / "a.nii.gz"),)
    elif kind == "hdf5":
        with h5py.File(tmp_path / "a.hdf5", "w") as handle:
            handle.create_dataset("betas", data=values.reshape(20000, 700, order="F"), chunks=(1, 700))
        files = (Hdf5Array(tmp_path / "a.hdf5", "betas", "vt"),)
    else:
        nib.save(nib.MGHImage(values.reshape(20000, 1, 1, 700, order="F"), AFFINE), tmp_path / "a.mgh")
        files = (MghTrials(tmp_path / "a.mgh"), MghTrials(tmp_path / "a.mgh"))
    places = np.arange(0, 20000, 1 if kind != "mgh" else 2)
    responses = SessionResponses((Piece(np.arange(700), tuple((file, places) for file in files)),))
    expected = values.reshape(20000, 700, order="F")
    budget = 22 << 20
    assert next(iter(responses.iter_trials(0, budget))).shape[1] == 20000  # imports, and tables made once
    tracemalloc.start()
    try:
        row = 0
        for block in responses.iter_trials(0, budget):
            assert block[-1, 0] == expected[places[0], row + len(block) - 1]
            row += len(block)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert row == 700
    assert 4 << 20 < peak < budget


def test_sessions_by_voxel(tmp_path: Path):
    """Files whose places lie together are read by columns across sessions and hemispheres."""
    pieces, expected = [], []
    for session, rows in enumerate([np.array([1, 2, 5]), np.arange(T)]):
        parts, columns = [], []
        for hemi, places in (("lh", np.array([4, 2, 9])), ("rh", np.arange(20, 31))):
            place = tmp_path / f"{session}{hemi}"
            place.mkdir()
            file, values = make_hdf5(place / "lh.hdf5")
            parts.append((file, places))
            columns.append(values[rows][:, places])
        pieces.append(Piece(rows, tuple(parts)))
        expected.append(np.concatenate(columns, axis=1))
    responses, expected = SessionResponses(tuple(pieces)), np.concatenate(expected)
    assert responses.by_voxel
    for start, stop in itertools.combinations(range(responses.n_voxels + 1), 2):
        np.testing.assert_array_equal(responses.read_voxels(slice(start, stop)), expected[:, start:stop])
    np.testing.assert_array_equal(np.concatenate(list(responses.iter_trials(1, 0))), expected[1:])
