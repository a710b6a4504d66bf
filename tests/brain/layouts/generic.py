"""Writes the generic layouts: NIfTI, CIFTI or pairs of GIFTI files with tables of trials, and arrays with tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import h5py
import nibabel
import numpy as np
from nibabel.cifti2 import BrainModelAxis, LabelAxis, ScalarAxis, SeriesAxis
from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable
from PIL import Image

from tests.brain import planted

SHAPE = (6, 5, 4)
AFFINE = np.array([[2.5, 0, 0, -8], [0, 2.5, 0, -6], [0, 0, 2.5, -5], [0, 0, 0, 1]])
VERTICES = (40, 36)
FORMS = ("volume", "cifti", "surface", "arrays")
LABELS = {1: "early", 2: "late", 3: "empty"}


@dataclass(frozen=True)
class GenericSubject:
    """image: name per trial that showed one. rows: int64, these trials of all that are on disk. x_tp: float32 [trials on disk,
    places], NaN or 0 where `places` (int64, ascending) has no number. labels: int64 [places of the file]."""

    image: tuple[str, ...]
    rows: np.ndarray
    session: np.ndarray
    run: np.ndarray
    x_tp: np.ndarray
    places: np.ndarray
    planted: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class WrittenGeneric:
    root: Path
    subjects: dict[str, GenericSubject] = field(default_factory=dict)


def grayordinates() -> BrainModelAxis:
    """Some cortex of both hemispheres (holes as at the medial wall) and a few voxels."""
    left = BrainModelAxis.from_surface(np.arange(0, 40, 2), 40, "CortexLeft")
    right = BrainModelAxis.from_surface(np.arange(1, 36, 3), 36, "CortexRight")
    voxels = np.zeros(SHAPE, bool)
    voxels[2:4, 2, 1:3] = True
    return left + right + BrainModelAxis.from_mask(voxels, affine=AFFINE, name="ThalamusLeft")


def write_generic(
    root: Path,
    form: str = "volume",
    subjects: tuple[str, ...] = ("sub-01", "sub-02"),
    n_images: int = 20,
    sessions: int = 2,
    runs: int = 2,
    mask: bool = True,
    rois: bool = True,
    images_table: bool = True,
    side: int = 24,
) -> WrittenGeneric:
    """Every session shows every image once over its runs, and one blank trial (n/a) per run; the first four are shared."""
    pictures = planted.make_pictures(n_images, side)
    ids = [f"img{i:03d}" for i in range(n_images)]
    (root / "stimuli").mkdir(parents=True)
    for image_id, picture in zip(ids, pictures.images, strict=True):
        Image.fromarray(picture).save(root / "stimuli" / f"{image_id}.png")
    if images_table:
        lines = [f"{image_id},stimuli/{image_id}.png,{int(i < 4)}" for i, image_id in enumerate(ids)]
        (root / "images.csv").write_text("image_id,file,shared\n" + "\n".join(lines) + "\n")
    written = WrittenGeneric(root)
    n_places = {"volume": int(np.prod(SHAPE)), "cifti": len(grayordinates()), "surface": sum(VERTICES), "arrays": 30}[
        form
    ]
    for number, name in enumerate(subjects):
        rng = np.random.default_rng([4, number])
        order, session, run = [], [], []
        for s in range(sessions):
            for r, part in enumerate(np.array_split(rng.permutation(ids), runs)):
                shown = [*part.tolist(), "n/a"]
                order += shown
                session += [s + 1] * len(shown)
                run += [r + 1] * len(shown)
        where = np.arange(n_places) % 4 == 0
        latent = np.array([0.0 if i == "n/a" else pictures.latent_n[int(i[3:])] for i in order])
        x_tp = planted.plant(latent, where, number)
        places = np.arange(n_places) if form == "arrays" else np.flatnonzero(rng.random(n_places) < 0.7)
        outside = np.setdiff1d(np.arange(n_places), places)
        x_tp[:, outside] = np.where(np.arange(len(outside)) % 2, np.nan, 0)
        rows = np.array([t for t, i in enumerate(order) if i != "n/a"])
        labels = rng.integers(0, 3, n_places)
        session_t, run_t = np.array(session), np.array(run)
        made = GenericSubject(
            tuple(order[t] for t in rows), rows, session_t[rows], run_t[rows], x_tp, places, where, labels
        )
        written.subjects[name] = made
        folder = root / name
        folder.mkdir()
        if form == "arrays":
            _write_arrays(folder, made, order, session, run)
            continue
        for s in range(1, sessions + 1):
            for r in range(1, runs + 1):
                chosen = np.flatnonzero((session_t == s) & (run_t == r))
                base = folder / f"ses-{s:02d}" / f"{name}_ses-{s:02d}_task-view_run-{r}"
                base.parent.mkdir(exist_ok=True)
                write_betas(base, x_tp[chosen], form)
                Path(f"{base}_trials.tsv").write_text("onset\timage_id\n" + "".join(f"0\t{order[t]}\n" for t in chosen))
        if mask and form == "volume":
            volume = np.zeros(n_places, np.uint8)
            volume[places] = 1
            path = folder / f"{name}_desc-brain_mask.nii.gz"
            nibabel.save(nibabel.Nifti1Image(volume.reshape(SHAPE, order="F"), AFFINE), path)
        if rois:
            (folder / "rois").mkdir()
            write_labels(folder / "rois", labels, form)
    return written


def write_betas(base: Path, x_tp: np.ndarray, form: str) -> None:
    if form == "volume":
        image = nibabel.Nifti1Image(x_tp.T.reshape(*SHAPE, len(x_tp), order="F"), AFFINE)
        nibabel.save(image, f"{base}_betas.nii.gz")
    elif form == "cifti":
        header = nibabel.cifti2.Cifti2Header.from_axes((SeriesAxis(0, 1, len(x_tp)), grayordinates()))
        nibabel.save(nibabel.Cifti2Image(x_tp, header), f"{base}_betas.dtseries.nii")
    else:
        for hemi, x in zip("LR", np.split(x_tp, [VERTICES[0]], axis=1), strict=True):
            arrays = [
                GiftiDataArray(row.astype(np.float32), intent="NIFTI_INTENT_NONE", datatype="NIFTI_TYPE_FLOAT32")
                for row in x
            ]
            nibabel.save(GiftiImage(darrays=arrays), f"{base}_hemi-{hemi}_betas.func.gii")


def write_labels(folder: Path, labels: np.ndarray, form: str) -> None:
    """An atlas "areas" with three labels, one of them empty."""
    if form == "volume":
        volume = labels.reshape(SHAPE, order="F").astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, AFFINE), folder / "areas.nii.gz")
        (folder / "areas.tsv").write_text(
            "index\tname\n0\tunknown\n" + "".join(f"{n}\t{t}\n" for n, t in LABELS.items())
        )
    elif form == "cifti":
        table = {0: ("???", (0.0,) * 4)} | {n: (t, (1.0, 0.0, 0.0, 1.0)) for n, t in LABELS.items()}
        header = nibabel.cifti2.Cifti2Header.from_axes((LabelAxis(["areas"], [table]), grayordinates()))
        nibabel.save(nibabel.Cifti2Image(labels[None].astype(np.float32), header), folder / "areas.dlabel.nii")
    else:
        for hemi, part in zip("LR", np.split(labels, [VERTICES[0]]), strict=True):
            table = GiftiLabelTable()
            for n, text in ({0: "???"} | LABELS).items():
                label = GiftiLabel(n)
                label.label = text
                table.labels.append(label)
            array = GiftiDataArray(part.astype(np.int32), intent="NIFTI_INTENT_LABEL", datatype="NIFTI_TYPE_INT32")
            nibabel.save(GiftiImage(darrays=[array], labeltable=table), folder / f"hemi-{hemi}_areas.label.gii")


def write_scalars(base: Path, x_tp: np.ndarray) -> None:
    """A .dscalar.nii with one map per trial."""
    axes = (ScalarAxis([f"trial{i}" for i in range(len(x_tp))]), grayordinates())
    nibabel.save(nibabel.Cifti2Image(x_tp, nibabel.cifti2.Cifti2Header.from_axes(axes)), f"{base}_betas.dscalar.nii")


def _write_arrays(folder: Path, made: GenericSubject, order: list[str], session: list[int], run: list[int]) -> None:
    """responses.npy of the first subject, responses.h5 of the others."""
    if folder.name == "sub-01":
        np.save(folder / "responses.npy", made.x_tp)
    else:
        with h5py.File(folder / "responses.h5", "w") as file:
            file["responses"] = made.x_tp
    rows = zip(order, session, run, strict=True)
    (folder / "trials.csv").write_text("stimulus,session,run\n" + "".join(f"{i},{s},{r}\n" for i, s, r in rows))
    columns = [f"{'LR'[v % 2]},{v // 2},{LABELS.get(int(n), '')},0.{v:02d}" for v, n in enumerate(made.labels)]
    (folder / "voxels.csv").write_text("hemi,vertex,areas,ncsnr\n" + "\n".join(columns) + "\n")
