"""Damaged trial files: every error is the user's, names the file, and says what was expected and found."""

from __future__ import annotations

import gzip
import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

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
from sbm_jax.errors import UserError

RNG = np.random.default_rng(5)
VOLUME = RNG.integers(-9000, 9000, (12, 10, 8, 9)).astype(np.int16)
TABLE = VOLUME.reshape(960, 9)
SURFACE = RNG.standard_normal((700, 1, 1, 9)).astype(np.float32)


def drain(file: TrialFile) -> list[np.ndarray]:
    return list(file.iter_rows(np.arange(file.n_trials), np.arange(file.n_places), 2))


def make_nifti(path: Path, values: np.ndarray = VOLUME) -> Path:
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)  # pyright: ignore
    return path


def make_mgh(path: Path, values: np.ndarray = SURFACE) -> Path:
    nib.save(nib.MGHImage(values, np.eye(4)), path)  # pyright: ignore
    return path


def make_npy(path: Path, values: np.ndarray = TABLE) -> Path:
    np.save(path, values)
    return path


def make_hdf5(path: Path, values: np.ndarray = VOLUME.T, chunks: tuple[int, ...] | None = None) -> Path:
    with h5py.File(path, "w") as handle:
        handle.create_dataset("betas", data=values, chunks=chunks)
    return path


def make_gifti(path: Path, values: np.ndarray = SURFACE[:, 0, 0].T, intent: str = "NIFTI_INTENT_NONE") -> Path:
    arrays = [nib.gifti.GiftiDataArray(row, intent) for row in values]  # pyright: ignore
    nib.save(nib.gifti.GiftiImage(darrays=arrays), path)  # pyright: ignore
    return path


def make_cifti(path: Path) -> Path:
    models = nib.cifti2.BrainModelAxis.from_mask(np.ones(70, bool), name="CORTEX_LEFT")  # pyright: ignore
    image = nib.Cifti2Image(SURFACE[:70, 0, 0].T, (nib.cifti2.SeriesAxis(0, 2, 9), models))  # pyright: ignore
    nib.save(image, path)
    return path


FORMATS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], TrialFile]]] = {
    "a.nii": (make_nifti, NiftiTrials),
    "a.nii.gz": (make_nifti, NiftiTrials),
    "a.mgh": (make_mgh, MghTrials),
    "a.mgz": (make_mgh, MghTrials),
    "a.npy": (make_npy, NpyTrials),
    "a.hdf5": (make_hdf5, Hdf5Volumes),
    "chunks.hdf5": (lambda path: make_hdf5(path, chunks=(9, 1, 1, 1)), Hdf5Volumes),
    "a.func.gii": (make_gifti, GiftiTrials),
    "a.dtseries.nii": (make_cifti, CiftiTrials),
}


@pytest.mark.parametrize("name", FORMATS)
def test_cut_short_anywhere(name: str, tmp_path: Path):
    """A file that ends anywhere before its last trial is refused on opening or on reading, and never read as zeros."""
    make, opened = FORMATS[name]
    whole = make(tmp_path / name).read_bytes()
    complete = np.concatenate(drain(opened(tmp_path / name)))
    # NIfTI ends with the last number; MGH has tags behind it, GIFTI and HDF5 close their structures
    tail = 20 if name == "a.mgh" else 0
    for size in [0, 3, 100, 300, len(whole) // 3, len(whole) // 2, len(whole) - tail - 1]:
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(UserError) as caught:
            drain(opened(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
    (tmp_path / name).write_bytes(whole)
    np.testing.assert_array_equal(np.concatenate(drain(opened(tmp_path / name))), complete)


@pytest.mark.parametrize("name", FORMATS)
def test_missing_and_foreign_files(name: str, tmp_path: Path):
    """No file, a folder, or another kind of file behind the name."""
    opened = FORMATS[name][1]
    with pytest.raises(UserError, match=r"file not found; expected"):
        opened(tmp_path / name)
    (tmp_path / name).write_bytes(b"something else altogether " * 60)
    with pytest.raises(UserError, match=name):
        opened(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="file not found"):
        opened(tmp_path / name)


def test_shrinks_after_opening(tmp_path: Path):
    """A file that is cut while it is in use is an error too (a memory map would end the program)."""
    path = make_mgh(tmp_path / "lh.mgh")
    file = MghTrials(path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"cut short: its header announces [\d,]+ bytes, found 9,000"):
        drain(file)


@pytest.mark.parametrize("where", [0.3, 0.6, 0.95])
def test_gzip_damage_shows_before_the_last_block(where: float, tmp_path: Path):
    """Flipped bits: a damaged stream, or a checksum that differs at the end, which is compared before the last block."""
    path = make_nifti(tmp_path / "a.nii.gz")
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x40
    path.write_bytes(content)
    got = []
    with pytest.raises(UserError, match=r"a.nii.gz: (damaged|cut short)"):
        for block in NiftiTrials(path).iter_rows(np.arange(9), np.arange(960), 3):
            got.append(block)
    assert len(got) < 3


def test_gzip_checksum(tmp_path: Path):
    """A wrong CRC or length alone."""
    path = make_mgh(tmp_path / "a.mgz")
    content = path.read_bytes()
    for tail in (b"\1\2\3\4" + content[-4:], content[-8:-4] + b"\1\2\3\4"):
        path.write_bytes(content[:-8] + tail)
        with pytest.raises(UserError, match="damaged: the gzip stream"):
            drain(MghTrials(path))


def test_gzip_members_and_padding(tmp_path: Path):
    """Several gzip members, and zeros behind the last, are one stream (bgzip and tape padding)."""
    path = make_nifti(tmp_path / "a.nii.gz")
    raw = gzip.decompress(path.read_bytes())
    cuts = [0, 100, 5000, 5000, len(raw)]
    members = [gzip.compress(raw[a:b]) for a, b in itertools.pairwise(cuts)]
    path.write_bytes(b"".join(members) + bytes(700))
    np.testing.assert_array_equal(np.concatenate(drain(NiftiTrials(path))), VOLUME.reshape(-1, 9, order="F").T)
    path.write_bytes(b"".join(members) + b"\0\0rubbish")
    with pytest.raises(UserError, match="damaged"):
        drain(NiftiTrials(path))


def refused(make: Callable[[], object], pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        make()


def test_nifti_of_another_kind(tmp_path: Path):
    path = tmp_path / "a.nii"
    refused(lambda: NiftiTrials(make_nifti(path, VOLUME[..., 0])), r"a.nii: .*trials.*found the shape \(12, 10, 8\)")
    refused(lambda: NiftiTrials(make_nifti(path, VOLUME[..., None])), r"found the shape \(12, 10, 8, 9, 1\)")
    refused(lambda: NiftiTrials(make_nifti(path, VOLUME.astype(np.complex64))), "expected real numbers.*complex64")
    rgb = np.zeros((2, 2, 2, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(lambda: NiftiTrials(make_nifti(path, rgb)), r"expected real numbers.*found \[")
    refused(lambda: NiftiTrials(make_nifti(path, VOLUME[..., :0])), "at least one trial")
    refused(lambda: NiftiTrials(make_mgh(tmp_path / "a.mgh")), "another ending")
    content = bytearray(make_nifti(path).read_bytes())
    content[70:72] = struct.pack("<h", 99)
    path.write_bytes(content)
    refused(lambda: NiftiTrials(path), "a.nii: expected a NIfTI file.*99")


def test_mgh_of_another_kind(tmp_path: Path):
    path = tmp_path / "a.mgh"
    refused(lambda: MghTrials(make_mgh(path, VOLUME)), r"vertices, 1, 1, trials.*found the shape \(12, 10, 8, 9\)")
    refused(lambda: MghTrials(make_nifti(tmp_path / "a.nii")), "another ending")
    content = bytearray(make_mgh(path).read_bytes())
    for at, value, pattern in ((0, 7, "MGH format version"), (20, 2, "a.mgh"), (16, 0, "at least one trial")):
        path.write_bytes(content[:at] + struct.pack(">i", value) + content[at + 4 :])
        refused(lambda: MghTrials(path), pattern)
    path.write_bytes(content[:4] + struct.pack(">i", -5) + content[8:])
    refused(lambda: MghTrials(path), "at least one")
    make_mgh(path, SURFACE[..., 0])
    assert MghTrials(path).n_trials == 1


def test_npy_of_another_kind(tmp_path: Path):
    path = tmp_path / "a.npy"
    refused(lambda: NpyTrials(make_npy(path, VOLUME[0])), r"found an array of shape \(10, 8, 9\)")
    refused(lambda: NpyTrials(make_npy(path, np.zeros((3, 4), complex))), "expected real numbers.*complex128")
    refused(lambda: NpyTrials(make_npy(path, np.zeros((3, 4), bool))), "expected real numbers.*bool")
    refused(lambda: NpyTrials(make_npy(path, np.zeros((0, 4)))), "a.npy: expected")
    np.save(path, np.array({"betasmd": 1}, dtype=object), allow_pickle=True)
    refused(lambda: NpyTrials(path), "a.npy: expected a NumPy .npy file of real numbers")
    with path.open("wb") as handle:
        np.savez(handle, a=np.zeros(3))
    refused(lambda: NpyTrials(path), "a.npy: expected")


def test_hdf5_of_another_kind(tmp_path: Path):
    path = make_hdf5(tmp_path / "a.hdf5")
    refused(lambda: Hdf5Vertices(path), r"'betas' to have 2 axes \(t, v as Python sees them\).*\(9, 8, 10, 12\)")
    refused(lambda: Hdf5Volumes(path, "responses"), "expected a dataset 'responses', found betas")
    refused(lambda: Hdf5Array(make_hdf5(path, np.zeros((3, 4), complex)), "betas", "vt"), "real numbers.*complex128")
    refused(lambda: Hdf5Array(make_hdf5(path, np.zeros((3, 0))), "betas", "vt"), "at least one trial")
    with h5py.File(path, "w") as handle:
        handle["betas"] = ["a", "b"]
        handle.create_group("group")
    refused(lambda: Hdf5Array(path, "betas", "t"), "expected real numbers")
    refused(lambda: Hdf5Vertices(path, "group"), "expected a dataset 'group'")


def test_hdf5_chunks_never_written(tmp_path: Path):
    """Chunks that are not in the file are the fill value, as h5py reads them."""
    with h5py.File(tmp_path / "a.hdf5", "w") as handle:
        values = handle.create_dataset("betas", (5, 6), "<i2", chunks=(5, 1), fillvalue=-7)
        values[:, 2] = np.arange(5)
    file = Hdf5Vertices(tmp_path / "a.hdf5")
    assert file.by_place
    expected = np.full((5, 6), -7)
    expected[:, 2] = np.arange(5)
    np.testing.assert_array_equal(np.concatenate(drain(file)), expected)
    np.testing.assert_array_equal(file.read_places(np.arange(5), np.array([4, 2])), expected[:, [4, 2]])
    np.testing.assert_array_equal(file.read_places(np.arange(5), np.array([3])), expected[:, [3]])


def test_gifti_of_another_kind(tmp_path: Path):
    path = tmp_path / "a.func.gii"
    values = SURFACE[:, 0, 0].T
    refused(lambda: GiftiTrials(make_gifti(path, values, "NIFTI_INTENT_LABEL")), "NIFTI_INTENT_LABEL")
    refused(lambda: GiftiTrials(make_gifti(path, [values.T, values.T])), "2 arrays of shape")  # pyright: ignore
    refused(lambda: GiftiTrials(make_gifti(path, values[:0])), "no data array")
    text = make_gifti(path).read_text()
    for old, new, pattern in [
        ('NumberOfDataArrays="9"', 'NumberOfDataArrays="8"', "expected 8 data arrays"),
        ('NumberOfDataArrays="9"', 'NumberOfDataArrays="x"', "NumberOfDataArrays"),
        ("NIFTI_TYPE_FLOAT32", "NIFTI_TYPE_COMPLEX64", "real numbers.*COMPLEX64"),
        ('Dim0="700"', 'Dim0="701"', "announces 701 numbers and holds 700"),
        ('Dim0="700"', 'Dim0="-"', "Dim"),
        ("GZipBase64Binary", "Base64Binary", "decoded|announces"),
        ("GZipBase64Binary", "Morse", "unknown encoding 'Morse'"),
    ]:
        assert old in text
        path.write_text(text.replace(old, new))
        refused(lambda: drain(GiftiTrials(path)), pattern)
    path.write_text(text.replace('Dim0="700"', 'Dim0="650"', 1))
    refused(lambda: drain(GiftiTrials(path)), "the first has 650|announces 650")
    refused(lambda: GiftiTrials(make_nifti(tmp_path / "a.nii")), "another ending")


def test_gifti_numbers_in_a_file_beside(tmp_path: Path):
    """ExternalFileBinary, as SPM writes it."""
    path = tmp_path / "a.func.gii"
    text = make_gifti(path).read_text()
    head, _, rest = text.partition("<DataArray")
    block = "<DataArray" + rest[: rest.index("</DataArray>")] + "</DataArray>\n"
    start, end = block.index("<Data>") + len("<Data>"), block.index("</Data>")
    block = block[:start] + block[end:]
    block = block.replace("GZipBase64Binary", "ExternalFileBinary").replace(
        'ExternalFileName=""', 'ExternalFileName="a.dat"'
    )
    arrays = [block.replace('ExternalFileOffset=""', f'ExternalFileOffset="{t * 2800}"') for t in range(9)]
    arrays = [
        array.replace('ExternalFileOffset="0"', f'ExternalFileOffset="{t * 2800}"') for t, array in enumerate(arrays)
    ]
    path.write_text(head + "".join(arrays) + "</GIFTI>")
    values = SURFACE[:, 0, 0].T
    (tmp_path / "a.dat").write_bytes(values.astype("<f4").tobytes())
    np.testing.assert_array_equal(np.concatenate(drain(GiftiTrials(path))), values)
    (tmp_path / "a.dat").write_bytes(bytes(3000))
    refused(lambda: drain(GiftiTrials(path)), "a.func.gii: a data array (announces|cannot)")
    (tmp_path / "a.dat").unlink()
    refused(lambda: drain(GiftiTrials(path)), "a.dat")


def test_cifti_of_another_kind(tmp_path: Path):
    path = make_cifti(tmp_path / "a.dtseries.nii")
    refused(lambda: CiftiTrials(path.with_name("a.dtseries.nii.gz")), "gunzip")
    refused(lambda: CiftiTrials(make_nifti(tmp_path / "plain.nii")), r"CIFTI-2.*found a Nifti1Image of shape")
    parcels = nib.cifti2.ParcelsAxis.from_brain_models([("one", nib.load(path).header.get_axis(1))])  # pyright: ignore
    image = nib.Cifti2Image(np.zeros((4, 1), np.float32), (nib.cifti2.SeriesAxis(0, 2, 4), parcels))  # pyright: ignore
    nib.save(image, tmp_path / "a.ptseries.nii")
    refused(lambda: CiftiTrials(tmp_path / "a.ptseries.nii"), "found ParcelsAxis of length 1")
