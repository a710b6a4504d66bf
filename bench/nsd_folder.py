"""Writes an NSD-shaped folder of betas at full size, one format at a time, for bench/convert.py. The numbers are noise.

    python bench/nsd_folder.py FOLDER --format nii.gz|hdf5|mgh [--sessions 10] [--trials 750] [--shape 81 104 83]

On disk per session of 750 trials: nii.gz 0.41 GB and hdf5 1.10 GB (81 x 104 x 83 voxels, 303,950 of them in the brain),
mgh 0.98 GB (163,842 vertices per hemisphere). Memory: one trial; for hdf5 one plane of all trials (13 MB).
"""

from __future__ import annotations

import argparse
import gzip
import struct
import time
from pathlib import Path

import numpy as np

FUNC1PT8MM = (81, 104, 83)  # subj01
FSAVERAGE = 163_842
TRIALS = 750
FORMATS = ("nii.gz", "hdf5", "mgh")


def brain_mask(shape: tuple[int, int, int], radius: float = 0.47) -> np.ndarray:
    """bool [X, Y, Z]: an ellipsoid that fills the frame but for a rim, 43 % of it, as a brain mask does."""
    axes = [(np.arange(size) - (size - 1) / 2) / (radius * size) for size in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 <= 1


def mask_places(shape: tuple[int, int, int], radius: float = 0.47) -> np.ndarray:
    """Places x + X * (y + Y * z) inside the mask, ascending."""
    return np.flatnonzero(brain_mask(shape, radius).ravel(order="F"))


def betas(rng: np.random.Generator, size: int) -> np.ndarray:
    """int16 [size]: percent signal change x 300 with an SD of 2 %, which compresses to about 10 bits a number."""
    return np.rint(rng.standard_normal(size, dtype=np.float32) * 600).astype("<i2")


def write_nii_gz(path: Path, shape: tuple[int, int, int], n_trials: int, seed: int) -> None:
    """int16 [X, Y, Z, T], 0 outside the mask, one trial after the other."""
    import nibabel as nib

    rng, places = np.random.default_rng(seed), mask_places(shape)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((*shape, n_trials))
    header.set_zooms((1.8, 1.8, 1.8, 1.0))
    header.set_data_offset(352)
    volume = np.zeros(int(np.prod(shape)), dtype="<i2")
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(n_trials):
            volume[places] = betas(rng, len(places))
            file.write(volume.tobytes())


def write_hdf5(path: Path, shape: tuple[int, int, int], n_trials: int, seed: int) -> None:
    """int16 `betas` [T, Z, Y, X] in chunks of one voxel with all its trials, uncompressed, written plane by plane."""
    import h5py

    rng, mask = np.random.default_rng(seed), brain_mask(shape)
    x, y, z = shape
    with h5py.File(path, "w") as file:
        values = file.create_dataset("betas", (n_trials, z, y, x), "<i2", chunks=(n_trials, 1, 1, 1))
        plane = np.empty((n_trials, y, x), dtype="<i2")
        for level in range(z):
            plane[...] = 0
            inside = mask[:, :, level].T
            plane[:, inside] = betas(rng, n_trials * int(inside.sum())).reshape(n_trials, -1)
            values[:, level] = plane


def write_mgh(path: Path, n_vertices: int, n_trials: int, seed: int) -> None:
    """float32 big-endian (V, 1, 1, T) in percent signal change behind a header of 284 bytes, one trial after the other."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack(">iiiiiiih", 1, n_vertices, 1, 1, n_trials, 3, 0, 0).ljust(284, b"\0"))
        for _ in range(n_trials):
            file.write((rng.standard_normal(n_vertices, dtype=np.float32) * 2).astype(">f4").tobytes())


def session_files(folder: Path, form: str, session: int) -> list[Path]:
    """The files of one session (from 1), as NSD names them."""
    name = f"betas_session{session:02d}.{form}"
    version = "betas_fithrf_GLMdenoise_RR"
    space = "fsaverage" if form == "mgh" else "func1pt8mm"
    place = folder / "nsddata_betas" / "ppdata" / "subj01" / space / version
    return [place / f"{hemi}.{name}" for hemi in ("lh", "rh")] if form == "mgh" else [place / name]


def write_session(
    folder: Path, form: str, session: int, shape: tuple[int, int, int], n_vertices: int, n_trials: int
) -> None:
    """Write the files of one session."""
    for number, path in enumerate(session_files(folder, form, session)):
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = 2 * session + number
        if form == "nii.gz":
            write_nii_gz(path, shape, n_trials, seed)
        elif form == "hdf5":
            write_hdf5(path, shape, n_trials, seed)
        else:
            write_mgh(path, n_vertices, n_trials, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--shape", type=int, nargs=3, default=FUNC1PT8MM)
    parser.add_argument("--vertices", type=int, default=FSAVERAGE)
    options = parser.parse_args()
    total = 0
    for session in range(1, options.sessions + 1):
        start = time.perf_counter()
        write_session(options.folder, options.format, session, tuple(options.shape), options.vertices, options.trials)
        size = sum(path.stat().st_size for path in session_files(options.folder, options.format, session))
        total += size
        print(
            f"session {session}: {size / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s, {total / 1e9:.2f} GB in all"
        )


if __name__ == "__main__":
    main()
