"""Writes BOLD5000 release 2 as shipped (names, axis order, run length of 37, lists of images) at small sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from tests.brain import planted

SHAPE = (6, 7, 5)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
RUN = 37
AREAS = ("EarlyVis", "PPA")
HEAD = "GLMbetas-TYPED-FITHRF-GLMDENOISE-RR"


@dataclass(frozen=True)
class Bold5000Subject:
    """image: name per trial. x_tv: float32 [trials, brain]. places: int64 [brain], x fastest. planted: bool [brain].

    rois: int64 places in the volume by side and area, "LHPPA".
    """

    image: tuple[str, ...]
    session: np.ndarray
    run: np.ndarray
    x_tv: np.ndarray
    places: np.ndarray
    planted: np.ndarray
    rois: dict[str, np.ndarray]


@dataclass(frozen=True)
class WrittenBold5000:
    root: Path
    repeated: tuple[str, ...]
    subjects: dict[str, Bold5000Subject] = field(default_factory=dict)


def write_bold5000(
    root: Path,
    form: str = "volumes",
    subjects: tuple[str, ...] = ("CSI1", "CSI4"),
    runs_of_session: tuple[int, ...] = (2, 1),
    n_repeated: int = 7,
    lists: bool = False,
    side: int = 24,
) -> WrittenBold5000:
    """form: "volumes" (session files), "arrays" (ROI arrays) or "both". lists: the lists per run, repeats marked rep_.

    Every subject sees all images, in an order of its own; the repeated ones four times.
    """
    n_trials = RUN * sum(runs_of_session)
    n_single = n_trials - 4 * n_repeated
    pictures = planted.make_pictures(n_single + n_repeated, side)
    kinds = ("COCO/COCO_train2014_{:012d}.jpg", "ImageNet/n01440764_{:05d}.JPEG", "Scene/amusementpark{}.jpg")
    relative = [kinds[i % 3].format(i) for i in range(n_single + n_repeated)]
    names = [path.split("/")[1] for path in relative]
    latent = dict(zip(names, pictures.latent_n, strict=True))
    shown = root / "BOLD5000_Stimuli" / "Scene_Stimuli" / "Presented_Stimuli"
    for path, picture in zip(relative, pictures.images, strict=True):
        (shown / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(shown / path, format="JPEG", quality=95)
    written = WrittenBold5000(root, tuple(names[:n_repeated]))
    session = np.repeat(np.arange(len(runs_of_session)) + 1, [RUN * runs for runs in runs_of_session])
    run = np.concatenate([np.arange(RUN * runs) // RUN + 1 for runs in runs_of_session])
    for number, subject in enumerate(subjects):
        rng = np.random.default_rng([5, number])
        order = rng.permutation([*names[:n_repeated] * 4, *names[n_repeated:]]).tolist()
        places = np.flatnonzero(rng.random(int(np.prod(SHAPE))) < 0.5)
        where = np.arange(len(places)) % 4 == 0
        x_tv = planted.plant(np.array([latent[name] for name in order]), where, number)
        rois = {f"{hemi}H{area}": rng.choice(places, 6, replace=False) for hemi in "LR" for area in AREAS}
        rois = {name: np.sort(roi) for name, roi in rois.items()}
        made = Bold5000Subject(tuple(order), session, run, x_tv, places, where, rois)
        written.subjects[subject] = made
        if form in ("volumes", "both"):
            _write_volumes(root, subject, made)
        if form in ("arrays", "both"):
            _write_arrays(root / "BOLD5000_GLMsingle_ROI_betas" / "py", subject, made)
        (root / f"{subject}_imgnames.txt").write_text("".join(f"{name}\n" for name in order))
        if lists:
            _write_lists(
                root / "BOLD5000_Stimuli" / "Stimuli_Presentation_Lists" / subject, made, set(written.repeated)
            )
    return written


def _write_volumes(root: Path, subject: str, made: Bold5000Subject) -> None:
    """NaN outside the brain; the brain mask and the ROI masks of OpenNeuro, one of them misspelt as there."""
    for session in np.unique(made.session):
        rows = np.flatnonzero(made.session == session)
        flat = np.full((int(np.prod(SHAPE)), len(rows)), np.nan, np.float32)
        flat[made.places] = made.x_tv[rows].T
        image = nibabel.Nifti1Image(flat.reshape(*SHAPE, len(rows), order="F"), AFFINE)
        nibabel.save(image, root / f"{subject}_{HEAD}_ses-{session:02d}.nii.gz")
    _write_mask(root / f"{subject}_brainmask.nii.gz", made.places)
    folder = root / "derivatives" / f"sub-{subject}"
    folder.mkdir(parents=True)
    for roi, places in made.rois.items():
        _write_mask(folder / f"sub-{subject}_mask-{roi}.nii.gz", places)


def _write_mask(path: Path, places: np.ndarray) -> None:
    mask = np.zeros(int(np.prod(SHAPE)), np.uint8)
    mask[places] = 1
    nibabel.save(nibabel.Nifti1Image(mask.reshape(SHAPE, order="F"), AFFINE), path)


def _write_arrays(folder: Path, subject: str, made: Bold5000Subject) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for roi, places in made.rois.items():
        columns = np.searchsorted(made.places, places)
        np.save(folder / f"{subject}_{HEAD}_allses_{roi}.npy", made.x_tv[:, columns].astype(np.float64))


def _write_lists(folder: Path, made: Bold5000Subject, repeated: set[str]) -> None:
    for session in np.unique(made.session):
        for run in np.unique(made.run[made.session == session]):
            rows = np.flatnonzero((made.session == session) & (made.run == run))
            names = [("rep_" if made.image[row] in repeated else "") + made.image[row] for row in rows]
            path = folder / f"CSI_sess{session:02d}" / f"CSI_sess{session:02d}_run{run:02d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{name}\n" for name in names))
