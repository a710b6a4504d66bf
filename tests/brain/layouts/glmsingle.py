"""Writes GLMsingle's output (Python's HDF5 and pickled .npy, MATLAB's .mat of 7.3 and 5) with a table of trials."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import h5py
import nibabel
import numpy as np
import scipy.io
from PIL import Image

from tests.brain import planted

SHAPE = (5, 4, 6)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
FILE = "TYPED_FITHRF_GLMDENOISE_RR"
FORMS = ("hdf5", "npy", "mat73", "mat5")


@dataclass(frozen=True)
class GlmsingleSubject:
    """image: name per trial that showed one. rows: int64, these trials. x_tp: float32 [trials, X * Y * Z], x fastest.

    places: int64, ascending, inside the mask. planted: bool [X * Y * Z].
    """

    image: tuple[str, ...]
    rows: np.ndarray
    session: np.ndarray
    x_tp: np.ndarray
    places: np.ndarray
    planted: np.ndarray


@dataclass(frozen=True)
class WrittenGlmsingle:
    root: Path
    subjects: dict[str, GlmsingleSubject] = field(default_factory=dict)


def write_glmsingle(
    root: Path,
    form: str = "hdf5",
    subjects: tuple[str, ...] = ("sub-01", "sub-02"),
    n_images: int = 24,
    mask: bool = True,
    flat: bool = False,
    by_session: bool = False,
    table: str = "trials.tsv",
    side: int = 24,
) -> WrittenGlmsingle:
    """Two sessions of every image once and two blank trials each.

    flat: betas [V, 1, 1, T] of the voxels in the mask. by_session: a folder with a file and a table for each session.
    No subjects: the root itself is the only one.
    """
    pictures = planted.make_pictures(n_images, side)
    ids = [f"{i:04d}" for i in range(n_images)]
    (root / "stimuli").mkdir(parents=True)
    for image_id, picture in zip(ids, pictures.images, strict=True):
        Image.fromarray(picture).save(root / "stimuli" / f"{image_id}.png")
    written = WrittenGlmsingle(root)
    for number, name in enumerate(subjects or (root.name,)):
        rng = np.random.default_rng([6, number])
        order, session = [], []
        for s in (1, 2):
            order += rng.permutation([*ids, "n/a", "n/a"]).tolist()
            session += [s] * (n_images + 2)
        n_places = int(np.prod(SHAPE))
        where = np.arange(n_places) % 3 == 0
        latent = np.array([0.0 if i == "n/a" else pictures.latent_n[int(i)] for i in order])
        x_tp = planted.plant(latent, where, number)
        places = np.flatnonzero(rng.random(n_places) < 0.6)
        rows = np.array([t for t, i in enumerate(order) if i != "n/a"])
        made = GlmsingleSubject(tuple(order[t] for t in rows), rows, np.array(session)[rows], x_tp, places, where)
        written.subjects[name] = made
        folder = root / name if subjects else root
        folder.mkdir(exist_ok=True)
        if mask:
            volume = np.zeros(n_places, np.uint8)
            volume[places] = 1
            nibabel.save(nibabel.Nifti1Image(volume.reshape(SHAPE, order="F"), AFFINE), folder / "mask.nii.gz")
        half = len(order) // 2
        parts = (
            [(folder / "ses-01", slice(0, half)), (folder / "ses-02", slice(half, None))]
            if by_session
            else [(folder, slice(None))]
        )
        for place, chosen in parts:
            place.mkdir(exist_ok=True)
            tab = "\t" if table.endswith("tsv") else ","
            lines = [tab.join(("image_id", "session"))]
            lines += [tab.join((i, str(s))) for i, s in zip(order[chosen], session[chosen], strict=True)]
            (place / table).write_text("\n".join(lines) + "\n")
            _write_betas(place, x_tp[chosen], places, form, flat)
    return written


def _write_betas(folder: Path, x_tp: np.ndarray, places: np.ndarray, form: str, flat: bool) -> None:
    volumes = x_tp.T.reshape(*SHAPE, len(x_tp), order="F")  # X, Y, Z, T
    inside = np.zeros(int(np.prod(SHAPE)), bool)
    inside[places] = True
    inside = inside.reshape(SHAPE, order="F")
    matlab = form.startswith("mat")
    if flat:
        # voxels of a mask: NumPy's boolean index has z fastest, MATLAB's find has x fastest
        volumes = x_tp.T[places] if matlab else volumes[inside]
        volumes = volumes[:, None, None, :]
    if form == "hdf5":
        with h5py.File(folder / f"{FILE}.hdf5", "w") as file:
            file["betasmd"], file["R2"] = volumes, np.zeros(volumes.shape[:3], np.float32)
    elif form == "npy":
        results = np.array({"betasmd": volumes, "R2": np.zeros(volumes.shape[:3], np.float32)}, dtype=object)
        np.save(folder / f"{FILE}.npy", results, allow_pickle=True)
    elif form == "mat73":
        with h5py.File(folder / f"{FILE}.mat", "w", userblock_size=512) as file:
            file.create_dataset("modelmd", data=np.ascontiguousarray(volumes.T)).attrs["MATLAB_class"] = np.bytes_(
                "single"
            )
        with (folder / f"{FILE}.mat").open("r+b") as handle:
            handle.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    else:
        scipy.io.savemat(folder / f"{FILE}.mat", {"modelmd": volumes}, do_compression=True)
