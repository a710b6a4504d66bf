"""Writes THINGS-fMRI's betas_csv and betas_vol as shipped (names, dtypes, axis order, index bases) at small sizes."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import nibabel
import numpy as np
from PIL import Image

from tests.brain import planted

SHAPE = (7, 6, 5)
AFFINE = np.array([[2.0, 0, 0, -7], [0, 2, 0, -6], [0, 0, 2, -5], [0, 0, 0, 1]])
SESSIONS, RUNS = 12, 2
FLAGS = ("V1", "V2", "LO1 (prf)", "lFFA", "rFFA", "IT", "glasser-V1", "glasser-p9-\n46v")


@dataclass(frozen=True)
class ThingsSubject:
    """What was written of a subject; rows are trials in the order of the files, catch trials left out.

    image: name per trial. x_tv: float64 [trials, voxels] in the order of the voxel table. index: int64 [v], places in the
    volume with x fastest. planted: bool [v]. nc_testset: percent [v]. flags: bool [v] by column.
    """

    image: tuple[str, ...]
    session: np.ndarray
    run: np.ndarray
    x_tv: np.ndarray
    index: np.ndarray
    planted: np.ndarray
    nc_testset: np.ndarray
    flags: dict[str, np.ndarray]


@dataclass(frozen=True)
class WrittenThings:
    """root: the folder that holds betas_csv or betas_vol, brainmasks and images. test: names of the test images."""

    root: Path
    test: tuple[str, ...]
    subjects: dict[str, ThingsSubject] = field(default_factory=dict)


def write_things(
    root: Path,
    form: str = "fixed",
    integer_names: bool = False,
    subjects: tuple[str, ...] = ("sub-01", "sub-02"),
    n_train: int = 48,
    n_test: int = 6,
    side: int = 24,
    brainmask: bool = True,
) -> WrittenThings:
    """form: "fixed" or "table" (HDF5 as pandas writes it), "csv", or "volumes" (betas_vol).

    integer_names: columns are numbers in the frame, which pandas stores as a pickle.
    """
    pictures = planted.make_pictures(n_train + n_test, side)
    names = [f"concept{i // 3:03d}_{i % 3 + 1:02d}s.jpg" for i in range(n_train)]
    test = [f"probe{i:02d}_14s.jpg" for i in range(n_test)]
    latent = dict(zip([*names, *test], pictures.latent_n, strict=True))
    for name, picture in zip([*names, *test], pictures.images, strict=True):
        path = root / "images" / name.rsplit("_", 1)[0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, quality=95)
    written = WrittenThings(root, tuple(test))
    for number, subject in enumerate(subjects):
        rng = np.random.default_rng([3, number])
        mask = rng.random(SHAPE) < 0.4
        xyz = np.argwhere(mask)  # x slowest, as in the published table
        where = np.arange(len(xyz)) % 5 == 0
        image, session, run = _plan(rng, names, test, sort_runs=form == "volumes")
        x_tv = planted.plant(np.array([latent[i] for i in image]), where, number).astype(np.float64)
        flags = {column: rng.random(len(xyz)) < 0.3 for column in FLAGS}
        nc = rng.uniform(0, 60, len(xyz)).round(6)
        made = ThingsSubject(
            image=tuple(image),
            session=session,
            run=run,
            x_tv=x_tv.astype(np.float32).astype(np.float64) if form == "volumes" else x_tv,
            index=xyz[:, 0] + SHAPE[0] * (xyz[:, 1] + SHAPE[1] * xyz[:, 2]),
            planted=where,
            nc_testset=nc,
            flags=flags,
        )
        written.subjects[subject] = made
        if brainmask:
            path = root / "brainmasks" / f"{subject}_space-T1w_brainmask.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), AFFINE), path)
        if form == "volumes":
            _write_volumes(root / "betas_vol" / subject, subject, made)
        else:
            _write_tables(root / "betas_csv", subject, made, xyz, set(test), form, integer_names)
    return written


def _plan(
    rng: np.random.Generator, names: list[str], test: list[str], sort_runs: bool
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Every training image once, every test image once per session; runs of a session equally long."""
    order = rng.permutation(names)
    image: list[str] = []
    for part in np.array_split(order, SESSIONS):
        shown = rng.permutation([*part, *test])
        for run in np.array_split(shown, RUNS):
            image += sorted(run.tolist()) if sort_runs else run.tolist()
    per_run, rest = divmod(len(image), SESSIONS * RUNS)
    assert not rest, "every run needs as many trials"
    index = np.arange(len(image)) // per_run
    return image, index // RUNS + 1, index % RUNS + 1


def _write_tables(
    folder: Path, subject: str, made: ThingsSubject, xyz: np.ndarray, test: set[str], form: str, integer_names: bool
) -> None:
    folder.mkdir(exist_ok=True)
    number = int(subject[-2:])
    with (folder / f"{subject}_StimulusMetadata.csv").open("w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["trial_type", "session", "run", "subject_id", "trial_id", "stimulus", "concept"])
        for trial, (image, session, run) in enumerate(zip(made.image, made.session, made.run, strict=True)):
            kind = "test" if image in test else "train"
            out.writerow([kind, session, run, number, trial, image, image.rsplit("_", 1)[0]])
    with (folder / f"{subject}_VoxelMetadata.csv").open("w", newline="") as handle:
        out = csv.writer(handle)
        head = ["voxel_id", "subject_id", "voxel_x", "voxel_y", "voxel_z", "nc_singletrial", "nc_testset"]
        out.writerow([*head, "splithalf_uncorrected", "splithalf_corrected", "prf-eccentricity", "prf-size", *FLAGS])
        for v, (x, y, z) in enumerate(xyz):
            flags = [int(made.flags[column][v]) for column in FLAGS]
            nc = made.nc_testset[v]
            out.writerow([v, number, x, y, z, f"{nc / 8:.6f}", f"{nc:.6f}", 0.1, 0.2, "", 1.5, *flags])
    x_vt = np.ascontiguousarray(made.x_tv.T)
    if form == "csv":
        with (folder / f"{subject}_ResponseData.csv").open("w", newline="") as handle:
            out = csv.writer(handle, lineterminator="\n")
            out.writerow(["voxel_id", *range(x_vt.shape[1])])
            out.writerows([v, *map(repr, row.tolist())] for v, row in enumerate(x_vt))
    else:
        write_frame(folder / f"{subject}_ResponseData.h5", x_vt, form, integer_names)


def write_frame(path: Path, x_vt: np.ndarray, form: str, integer_names: bool) -> None:
    """A data frame with a column voxel_id and one column per trial, as pandas lays it out (pandas 3.1, PyTables 3.11)."""
    n_voxels, n_trials = x_vt.shape
    voxel_id = np.arange(n_voxels, dtype=np.int64)
    with h5py.File(path, "w") as file:
        file.attrs["CLASS"], file.attrs["PYTABLES_FORMAT_VERSION"] = np.bytes_("GROUP"), np.bytes_("2.1")
        group = file.create_group("ResponseData")
        if form == "table":
            fields = [("index", "<i8"), ("values_block_0", "<f8", (n_trials,)), ("values_block_1", "<i8", (1,))]
            table = np.zeros(n_voxels, dtype=fields)
            table["index"], table["values_block_0"], table["values_block_1"][:, 0] = voxel_id, x_vt, voxel_id
            group.attrs["pandas_type"] = np.bytes_("frame_table")
            group.create_dataset("table", data=table)
            group.create_group("_i_table/index")
            return
        group.attrs["pandas_type"] = np.bytes_("frame")
        group["axis1"] = voxel_id
        group["block0_values"], group["block1_values"] = x_vt, voxel_id[:, None]
        group["block1_items"] = np.array([b"voxel_id"])
        if integer_names:
            # bytes that are not to be opened: this is no pickle at all
            for name in ("axis0", "block0_items"):
                pickled = group.create_dataset(name, (1,), dtype=h5py.vlen_dtype(np.uint8))
                pickled[0] = np.frombuffer(b"never unpickled", np.uint8)
        else:
            group["block0_items"] = np.array([str(t).encode() for t in range(n_trials)])
            group["axis0"] = np.array([b"voxel_id", *(str(t).encode() for t in range(n_trials))])


def _write_volumes(folder: Path, subject: str, made: ThingsSubject) -> None:
    """One file per run with a catch trial in every run; trials are sorted by name, as the published design matrices are."""
    for session in range(1, SESSIONS + 1):
        for run in range(1, RUNS + 1):
            rows = np.flatnonzero((made.session == session) & (made.run == run))
            volumes = np.zeros((*SHAPE, len(rows) + 1))
            flat = volumes.reshape(-1, len(rows) + 1, order="F")
            flat[made.index, 1:] = made.x_tv[rows].T
            flat[made.index, 0] = 9.0
            base = folder / f"ses-things{session:02d}" / f"{subject}_ses-things{session:02d}_run-{run:02d}"
            base.parent.mkdir(parents=True, exist_ok=True)
            image = nibabel.Nifti1Image(flat.reshape(volumes.shape, order="F").astype(np.float32), AFFINE)
            nibabel.save(image, f"{base}_betas.nii.gz")
            names = ["images/catch_001.jpg", *(f"images/{made.image[row]}" for row in rows)]
            Path(f"{base}_conditions.tsv").write_text(
                "\timage_filename\n" + "".join(f"{i}\t{n}\n" for i, n in enumerate(names))
            )
