"""Every trial file against the plain read by nibabel, h5py or NumPy: the same numbers for any rows, places and heights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbm_jax.brain.sessions import TrialFile
from sbm_jax.brain.trialfiles import (
    CiftiTrials,
    GiftiTrials,
    Hdf5Array,
    Hdf5Vertices,
    Hdf5Volumes,
    MghTrials,
    NiftiTrials,
    NpyTrials,
)
from sbm_jax.brain.trialfiles_places import _windows

X, Y, Z, T = 5, 4, 3, 13
V = X * Y * Z
AFFINE = np.array([[1.8, 0, 0, -7], [0, 1.7, 0, 3], [0, 0, 2, 1], [0, 0, 0, 1.0]])


def numbers(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    values = np.random.default_rng(3).integers(-3000, 3000, shape)
    return (values / 7 if np.dtype(dtype).kind == "f" else values).astype(dtype)


def in_order(volume: np.ndarray) -> np.ndarray:
    """[X, Y, Z, T] -> [T, x + X * (y + Y * z)]."""
    return volume.reshape(V, T, order="F").T


def nifti(path: Path, volume: np.ndarray, kind: type = nib.Nifti1Image, order: str = "<", scale=(1.0, 0.0)) -> None:
    header = kind.header_class(endianness=order)
    header.set_data_dtype(volume.dtype)
    image = kind(volume, AFFINE, header)
    image.header.set_slope_inter(*scale)
    nib.save(image, path)


def make_nifti(folder: Path, ending: str, dtype: str, kind: type, order: str) -> tuple[TrialFile, np.ndarray]:
    volume = numbers(dtype, (X, Y, Z, T))
    nifti(folder / f"betas{ending}", volume, kind, order)
    file = NiftiTrials(folder / f"betas{ending}")
    assert file.shape == (X, Y, Z)
    np.testing.assert_allclose(file.affine, AFFINE, rtol=1e-6)
    return file, in_order(volume)


def make_scaled(folder: Path, ending: str) -> tuple[TrialFile, np.ndarray]:
    """Slope and inter are applied in float32: three roundings (slope, product, sum) away from nibabel's float64."""
    path = folder / f"scaled{ending}"
    nifti(path, numbers("int16", (X, Y, Z, T)), scale=(1 / 300, 0.25))
    image = nib.load(path)
    assert image.dataobj.slope == np.float32(1 / 300)
    plain = in_order(image.get_fdata())
    scaled = in_order(np.asarray(image.dataobj.get_unscaled())).astype(np.float32) * np.float32(1 / 300) + np.float32(
        0.25
    )
    np.testing.assert_allclose(scaled, plain, rtol=0, atol=3 * 2**-24 * np.abs(plain).max())
    return NiftiTrials(path), scaled


def make_mgh(folder: Path, ending: str, dtype: str) -> tuple[TrialFile, np.ndarray]:
    values = numbers(dtype, (V, 1, 1, T))
    if values.dtype.kind == "f":
        values[3, 0, 0, 2:5] = np.nan
    nib.save(nib.MGHImage(values, AFFINE), folder / f"lh.betas{ending}")
    return MghTrials(folder / f"lh.betas{ending}"), values[:, 0, 0].T


def make_npy(folder: Path, volume: bool, order: str, dtype: str) -> tuple[TrialFile, np.ndarray]:
    values = np.array(numbers(dtype, (X, Y, Z, T) if volume else (T, V)), order=order)  # pyright: ignore
    np.save(folder / "betas.npy", values)
    file = NpyTrials(folder / "betas.npy")
    assert file.shape == ((X, Y, Z) if volume else (V,))
    assert file.by_place == (volume == (order == "C"))
    return file, in_order(values) if volume else values


def make_hdf5(
    folder: Path, axes: str, options: dict, by_place: bool, dtype: str = "<i2"
) -> tuple[TrialFile, np.ndarray]:
    sizes = {"t": T, "v": V, "x": X, "y": Y, "z": Z}
    values = numbers(dtype, tuple(sizes[axis] for axis in axes))
    with h5py.File(folder / "betas.hdf5", "w", userblock_size=options.get("userblock", 0)) as handle:
        chosen = {key: value for key, value in options.items() if key != "userblock"}
        handle.create_dataset("group/betas", data=values, **chosen)
    if axes == "tzyx":
        file = Hdf5Volumes(folder / "betas.hdf5", "group/betas")
    elif axes == "tv":
        file = Hdf5Vertices(folder / "betas.hdf5", "group/betas")
    else:
        file = Hdf5Array(folder / "betas.hdf5", "group/betas", axes)
    assert file.by_place == by_place
    volume = [axes.index(axis) for axis in ("zyx" if "x" in axes else "v")]
    return file, values.transpose([axes.index("t"), *volume]).reshape(T, V)


def make_gifti(folder: Path, encoding: str, order: str, dtype: str, form: str) -> tuple[TrialFile, np.ndarray]:
    values = numbers(dtype, (T, V))
    code = nib.nifti1.data_type_codes.code[dtype]
    image = nib.gifti.GiftiImage()
    for row in values if form == "many" else [values.T]:
        array = nib.gifti.GiftiDataArray(row, "NIFTI_INTENT_TIME_SERIES", code, encoding, order)
        array.ind_ord = nib.gifti.gifti.array_index_order_codes.code[
            "ColumnMajorOrder" if form == "column" else "RowMajorOrder"
        ]
        image.add_gifti_data_array(array)
    nib.save(image, folder / "lh.betas.func.gii")
    plain = [array.data for array in nib.load(folder / "lh.betas.func.gii").darrays]
    expected = np.stack(plain) if form == "many" else plain[0].T
    np.testing.assert_allclose(expected, values, rtol=1e-5)  # the six digits of ASCII
    return GiftiTrials(folder / "lh.betas.func.gii"), expected


def make_cifti(folder: Path, kind: str, dtype: str) -> tuple[TrialFile, np.ndarray]:
    models = nib.cifti2.BrainModelAxis.from_mask(np.arange(40) % 3 > 0, name="CORTEX_LEFT")
    models += nib.cifti2.BrainModelAxis.from_mask(np.ones((3, 3, 3), bool), name="THALAMUS_LEFT", affine=AFFINE)
    values = numbers(dtype, (T, len(models)))
    trials = (
        nib.cifti2.SeriesAxis(0, 2, T) if kind == "dtseries" else nib.cifti2.ScalarAxis([f"t{t}" for t in range(T)])
    )
    nib.save(nib.Cifti2Image(values, (trials, models)), folder / f"betas.{kind}.nii")
    file = CiftiTrials(folder / f"betas.{kind}.nii")
    assert file.axis == models
    assert file.by_place
    return file, np.asarray(nib.load(folder / f"betas.{kind}.nii").dataobj)


CASES: dict[str, Callable[[Path], tuple[TrialFile, np.ndarray]]] = {
    **{
        f"nifti{ending}-{dtype}-{kind.__name__}-{order}": lambda p, a=(ending, dtype, kind, order): make_nifti(p, *a)
        for ending, dtype, kind, order in [
            (".nii.gz", "int16", nib.Nifti1Image, "<"),
            (".nii.gz", "float32", nib.Nifti1Image, ">"),
            (".nii.gz", "uint8", nib.Nifti2Image, "<"),
            (".nii", "int16", nib.Nifti1Image, "<"),
            (".nii", "int16", nib.Nifti2Image, ">"),
            (".nii", "float64", nib.Nifti2Image, "<"),
        ]
    },
    "scaled.nii": lambda p: make_scaled(p, ".nii"),
    "scaled.nii.gz": lambda p: make_scaled(p, ".nii.gz"),
    "mgh-f4": lambda p: make_mgh(p, ".mgh", "float32"),
    "mgh-i2": lambda p: make_mgh(p, ".mgh", "int16"),
    "mgz-f4": lambda p: make_mgh(p, ".mgz", "float32"),
    **{
        f"npy-{volume}-{order}-{dtype}": lambda p, a=(volume, order, dtype): make_npy(p, *a)
        for volume, order, dtype in [
            (False, "C", "<f4"),
            (False, "F", "<f8"),
            (True, "C", "<f2"),
            (True, "F", ">i2"),
            (True, "C", ">f4"),
        ]
    },
    **{
        f"hdf5-{axes}-{name}": lambda p, a=(axes, options, by_place): make_hdf5(p, *a)
        for axes, name, options, by_place in [
            ("tzyx", "places", {"chunks": (T, 1, 1, 1)}, True),
            ("tzyx", "places-gzip", {"chunks": (T, 1, 1, 1), "compression": "gzip"}, False),
            ("tzyx", "part of the trials", {"chunks": (6, 1, 1, 1)}, False),
            ("tzyx", "odd", {"chunks": (5, 2, 3, 2), "shuffle": True}, False),
            ("tzyx", "trial", {"chunks": (1, Z, Y, X)}, False),
            ("tzyx", "contiguous", {}, False),
            ("tzyx", "userblock", {"userblock": 512}, False),
            ("tzyx", "places-userblock", {"userblock": 512, "chunks": (T, 1, 1, 1)}, False),
            ("tzyx", "compact", {"chunks": None}, False),
            ("tv", "vertices", {"chunks": (T, 1)}, True),
            ("tv", "contiguous", {}, False),
            ("tv", "gzip", {"chunks": (4, 7), "compression": "gzip"}, False),
            ("vt", "contiguous", {}, True),
            ("vt", "vertices", {"chunks": (1, T)}, True),
            ("vt", "gzip", {"chunks": (9, T), "compression": "lzf"}, False),
            ("xyzt", "contiguous", {}, True),
            ("xyzt", "chunks", {"chunks": (2, 2, 2, 5)}, False),
            ("xyzt", "places", {"chunks": (1, 1, 1, T)}, True),
        ]
    },
    "hdf5-big-endian": lambda p: make_hdf5(p, "tzyx", {"chunks": (T, 1, 1, 1)}, True, ">i2"),
    "hdf5-big-endian-slabs": lambda p: make_hdf5(p, "tv", {"chunks": (4, 7)}, False, ">f4"),
    "hdf5-f8": lambda p: make_hdf5(p, "vt", {}, True, "<f8"),
    **{
        f"gifti-{encoding}-{order}-{dtype}-{form}": lambda p, a=(encoding, order, dtype, form): make_gifti(p, *a)
        for encoding, order, dtype, form in [
            ("GIFTI_ENCODING_B64GZ", "little", "float32", "many"),
            ("GIFTI_ENCODING_B64BIN", "little", "int32", "many"),
            ("GIFTI_ENCODING_ASCII", "little", "float32", "many"),
            ("GIFTI_ENCODING_B64GZ", "little", "float32", "one"),
            ("GIFTI_ENCODING_B64BIN", "little", "uint8", "column"),
        ]
    },
    "cifti-dtseries": lambda p: make_cifti(p, "dtseries", "float32"),
    "cifti-dscalar": lambda p: make_cifti(p, "dscalar", "float32"),
}


@pytest.mark.parametrize("case", CASES)
def test_same_numbers_as_the_plain_read(case: str, tmp_path: Path):
    """Any rows (also one), any places (unsorted, consecutive, one, none, all), any height; dtype native and as stored."""
    file, expected = CASES[case](tmp_path)
    rng = np.random.default_rng(1)
    assert (file.n_trials, file.n_places) == expected.shape
    assert file.dtype.isnative
    assert file.working_bytes() > 0
    n = file.n_places
    all_rows = [np.arange(T), np.array([0, 3, 4, 9]), np.array([T - 1]), np.arange(2, 8), np.array([], int)]
    all_places = [np.arange(n), rng.permutation(n)[:17], np.arange(7, 20), np.array([n - 1]), np.array([], int)]
    file.expect(np.arange(n))
    for (rows, places), height in itertools.product(itertools.product(all_rows, all_places), (1, 4, T)):
        blocks = list(file.iter_rows(rows, places, height))
        assert [len(block) for block in blocks[:-1]] == [height] * (len(blocks) - 1)
        assert sum(len(block) for block in blocks) == len(rows)
        for block, start in zip(blocks, range(0, T, height), strict=False):
            assert block.dtype == file.dtype
            np.testing.assert_array_equal(block, expected[rows[start : start + height]][:, places])
        if file.by_place:
            np.testing.assert_array_equal(file.read_places(rows, places), expected[rows][:, places])
    assert file.dtype == expected.dtype.newbyteorder("=")


def test_blocks_are_the_callers_own(tmp_path: Path):
    """A block handed out does not change when the next one is read, and a generator may be left in the middle."""
    file, expected = make_nifti(tmp_path, ".nii.gz", "int16", nib.Nifti1Image, "<")
    blocks = file.iter_rows(np.arange(T), np.arange(V), 2)
    first = next(blocks)
    next(blocks)
    blocks.close()  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(first, expected[:2])


def test_read_places_needs_places_together(tmp_path: Path):
    file, _ = make_mgh(tmp_path, ".mgh", "float32")
    with pytest.raises(NotImplementedError, match="trial by trial"):
        file.read_places(np.arange(2), np.arange(2))


@pytest.mark.parametrize(
    ("rows", "places"), [([1, 0], [0]), ([2, 2], [0]), ([-1], [0]), ([T], [0]), ([0], [V]), ([0], [-1])]
)
def test_a_readers_mistakes(tmp_path: Path, rows: list[int], places: list[int]):
    file, _ = make_mgh(tmp_path, ".mgh", "float32")
    with pytest.raises(ValueError, match="must"):
        list(file.iter_rows(np.array(rows), np.array(places), 3))


def test_places_that_were_not_expected(tmp_path: Path):
    file, _ = make_hdf5(tmp_path, "tv", {"chunks": (T, 1)}, True)
    file.expect(np.array([3, 9]))
    with pytest.raises(ValueError, match="expected"):
        file.read_places(np.arange(T), np.array([4]))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60), st.integers(1, 3000), st.integers(3000, 200_000))
def test_windows_hold_every_run_once(starts: list[int], run: int, largest: int):
    """Windows follow one another, cover all runs, and none is longer than allowed."""
    ordered = np.sort(np.array(starts))
    windows = list(_windows(ordered, run, largest))
    assert [a for a, _ in windows] == [0, *(b for _, b in windows[:-1])]
    assert windows[-1][1] == len(ordered)
    assert all(a < b and ordered[b - 1] + run - ordered[a] <= largest for a, b in windows)


@given(st.tuples(*[st.integers(1, 6)] * 3), st.data())
def test_places_of_a_volume(shape: tuple[int, int, int], data: st.DataObject):
    """place = x + X * (y + Y * z) comes back as the same voxel from C order, whatever the sizes."""
    x, y, z = (data.draw(st.integers(0, size - 1)) for size in shape)
    file = NpyTrials.__new__(NpyTrials)
    file.shape, file._c_order = shape, True
    place = np.array([x + shape[0] * (y + shape[1] * z)])
    assert file._file_places(place).tolist() == [(x * shape[1] + y) * shape[2] + z]
