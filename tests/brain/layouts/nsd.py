"""Writes NSD's native tree as shipped (names, dtypes, byte order, axis order, scale, index bases) at small sizes."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import h5py
import nibabel
import numpy as np
import scipy.io

from tests.brain import planted

SHAPE = (9, 8, 7)
NATIVE = (70, 66)
FSAVERAGE = 163_842
BETAS = {"b3": "betas_fithrf_GLMdenoise_RR", "b2": "betas_fithrf", "b1": "betas_assumehrf"}
AFFINE = np.array([[1.8, 0, 0, -7.2], [0, 1.8, 0, -6.3], [0, 0, 1.8, -5.4], [0, 0, 0, 1]])
VISUAL = ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4")
FACES = ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces")
STREAMS = ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal")


@dataclass(frozen=True)
class NsdPlan:
    """What nsd_expdesign.mat holds, counting from 1 as there."""

    masterordering: np.ndarray  # [30000], 1 to 10000
    subjectim: np.ndarray  # [8, 10000], 1 to 73000
    sharedix: np.ndarray  # [1000], ascending
    stimpattern: np.ndarray  # [40, 12, 75]


@dataclass(frozen=True)
class NsdSubject:
    """What was written of a subject. Places are those of the file(s), left before right; rows are trials as on disk.

    image: NSD ids from 0. stored: numbers [trials, places written] as in the files. places: int64 of these columns.
    general, planted, missing: bool over them; missing has no data in the last session. ncsnr: float32 [places written].
    labels: int64 [places written] by ROI.
    """

    sessions: tuple[int, ...]
    image: np.ndarray
    session: np.ndarray
    run: np.ndarray
    stored: np.ndarray
    places: np.ndarray
    n_places: tuple[int, ...]
    general: np.ndarray
    planted: np.ndarray
    missing: np.ndarray
    ncsnr: np.ndarray
    labels: dict[str, np.ndarray]


@dataclass(frozen=True)
class WrittenNsd:
    """A tree: what was planted by subject number; pictures by NSD id (from 0)."""

    root: Path
    plan: NsdPlan
    pictures: dict[int, np.ndarray]
    subjects: dict[int, NsdSubject] = field(default_factory=dict)


@lru_cache(maxsize=2)
def make_plan(seed: int = 0) -> NsdPlan:
    """A plan of the true shapes, ranges and run lengths, in which every image comes three times."""
    rng = np.random.default_rng([11, seed])
    shared = np.sort(np.concatenate([rng.choice(np.arange(2952, 72_949), 998, replace=False), [2951, 72_949]]))
    others = rng.permutation(np.setdiff1d(np.arange(1, 73_001), shared)).reshape(8, 9000)
    subjectim = np.concatenate([np.tile(shared, (8, 1)), others], axis=1)
    pattern = np.zeros((40, 12, 75), dtype=np.uint8)
    for session in range(40):
        for run in range(12):
            # three blank trials at the start, four at the end; odd runs 63 of the 68 between, even runs 62
            pattern[session, run, 3 + rng.choice(68, 63 - run % 2, replace=False)] = 1
    order = rng.permutation(np.repeat(np.arange(1, 10_001), 3))
    return NsdPlan(order, subjectim, shared, pattern)


def few_images(plan: NsdPlan, sessions: tuple[int, ...], n: int, seed: int = 0) -> NsdPlan:
    """The plan with `n` images only in some sessions, half of them shared: for runs of the whole engine on tiny trees."""
    rng = np.random.default_rng([12, seed])
    order = plan.masterordering.reshape(40, 750).copy()
    chosen = np.concatenate([1 + np.arange(n // 2), 1001 + np.arange(n - n // 2)])
    for session in sessions:
        order[session - 1] = rng.permutation(np.resize(chosen, 750))
    return NsdPlan(order.ravel(), plan.subjectim, plan.sharedix, plan.stimpattern)


def write_nsd(
    root: Path,
    sessions: dict[int, tuple[int, ...]] | None = None,
    space: str = "func1pt8mm",
    suffix: str = "",
    betas: str = "b3",
    side: int = 8,
    plan: NsdPlan | None = None,
    mat: bool = True,
    table: bool = False,
    noise: float = 0.5,
    seed: int = 0,
) -> WrittenNsd:
    """Write a tree with 750 trials per session, all subjects seeing pictures of which planted columns follow the latent.

    sessions: written sessions by subject number. suffix: nii.gz or hdf5 for volumes. mat, table: which design files.
    """
    sessions = sessions or {1: (1, 2)}
    plan = plan or make_plan(seed)
    experiment = root / "nsddata/experiments/nsd"
    experiment.mkdir(parents=True, exist_ok=True)
    if mat:
        write_mat(experiment / "nsd_expdesign.mat", plan)
    if table:
        write_table(experiment / "nsd_stim_info_merged.csv", plan)
    images = {s: trial_images(plan, s, n) for s, n in sessions.items()}
    seen = np.unique(np.concatenate(list(images.values())))
    pictures = planted.make_pictures(len(seen), side, seed)
    write_brick(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", seen, pictures.images)
    written = WrittenNsd(root, plan, dict(zip(seen.tolist(), pictures.images, strict=True)))
    for s, numbers in sessions.items():
        latent_t = pictures.latent_n[np.searchsorted(seen, images[s])]
        rng = np.random.default_rng([13, seed, s])
        subject = _subject(space, rng, plan, numbers, images[s], latent_t, noise, planted.plant, seed + s)
        betas_folder = root / "nsddata_betas/ppdata" / f"subj{s:02d}" / space / BETAS[betas]
        betas_folder.mkdir(parents=True, exist_ok=True)
        for row, session in enumerate(numbers):
            block = subject.stored[row * 750 : (row + 1) * 750]
            write_session(betas_folder, space, suffix, session, subject, block)
        _write_maps(root, s, space, betas_folder, subject)
        written.subjects[s] = subject
    return written


def trial_images(plan: NsdPlan, subject: int, sessions: tuple[int, ...]) -> np.ndarray:
    """NSD ids (from 0) of the trials of some sessions, one by one as the manual says."""
    found = []
    for session in sessions:
        for trial in range(750 * (session - 1) + 1, 750 * session + 1):  # MATLAB's t
            id10k = plan.masterordering[trial - 1]
            found.append(plan.subjectim[subject - 1, id10k - 1] - 1)
    return np.array(found, dtype=np.int64)


def trial_runs(plan: NsdPlan, sessions: tuple[int, ...]) -> np.ndarray:
    """Run (from 1) of the trials of some sessions."""
    return np.array([run + 1 for s in sessions for run in range(12) for slot in plan.stimpattern[s - 1, run] if slot])


def _subject(space, rng, plan, sessions, image, latent_t, noise, plant, seed) -> NsdSubject:
    if space == "fsaverage":
        n_places: tuple[int, ...] = (FSAVERAGE, FSAVERAGE)
        places = np.concatenate([np.arange(5000, 5060), FSAVERAGE + np.arange(90_000, 90_050)])
    elif space == "nativesurface":
        n_places, places = NATIVE, np.arange(sum(NATIVE))
    else:
        n_places = SHAPE
        places = np.sort(rng.choice(int(np.prod(SHAPE)), 300, replace=False))
    width = len(places)
    # on fsaverage the maps are of the template and the same for all
    chance = np.random.default_rng(14) if space == "fsaverage" else rng
    general = np.zeros(width, bool)
    general[chance.choice(width, 60, replace=False)] = True
    inside = np.flatnonzero(general)
    planted_v, missing = np.zeros(width, bool), np.zeros(width, bool)
    planted_v[rng.choice(inside, 20, replace=False)] = True
    missing[rng.choice(np.setdiff1d(inside, np.flatnonzero(planted_v)), 3, replace=False)] = True
    psc = plant(latent_t, planted_v, seed, noise)
    if space == "fsaverage":
        stored = psc.astype(np.float32)
        stored[-750:, missing] = np.nan
    else:
        stored = np.clip(np.round(psc * 300), -32768, 32767).astype(np.int16)
        stored[stored == 0] = 1  # a voxel with data is not 0 throughout; a single 0 is a value, set here:
        stored[5, :] = 0
        stored[-750:, missing] = 0
    labels = {"nsdgeneral": general.astype(np.int64)}
    for name, count in (("prf-visualrois", len(VISUAL)), ("floc-faces", len(FACES)), ("streams", len(STREAMS))):
        labels[name] = chance.integers(-1, count + 1, width)
        labels[name][labels[name] == count] = 0  # the last label has no place in this subject
    ncsnr = rng.uniform(0, 1, width).astype(np.float32)
    session = np.repeat(sessions, 750)
    run = trial_runs(plan, sessions)
    return NsdSubject(
        tuple(sessions), image, session, run, stored, places, n_places, general, planted_v, missing, ncsnr, labels
    )


def write_mat(path: Path, plan: NsdPlan, **changed: np.ndarray) -> None:
    """nsd_expdesign.mat (MATLAB 5), numbers as doubles, rows as rows."""
    content = {
        "masterordering": plan.masterordering[None].astype(np.float64),
        "subjectim": plan.subjectim.astype(np.float64),
        "sharedix": plan.sharedix[None].astype(np.float64),
        "basiccnt": np.zeros((3, 40)),
        "stimpattern": plan.stimpattern.astype(np.float64),
    }
    scipy.io.savemat(path, {**content, **changed})


def write_table(path: Path, plan: NsdPlan) -> None:
    """nsd_stim_info_merged.csv: 73,000 rows, 41 columns, nsdId from 0, trials in the rep columns from 1, 0 is none."""
    reps = np.zeros((73_000, 8, 3), dtype=np.int64)
    for s in range(8):
        ids = plan.subjectim[s, plan.masterordering - 1] - 1
        count = np.zeros(73_000, dtype=np.int64)
        for trial, number in enumerate(ids.tolist(), start=1):
            reps[number, s, count[number]] = trial
            count[number] += 1
    shared = np.zeros(73_000, dtype=bool)
    shared[plan.sharedix - 1] = True
    header = ["", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000"]
    header += [f"subject{s}" for s in range(1, 9)] + [f"subject{s}_rep{k}" for s in range(1, 9) for k in range(3)]
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        for n in range(73_000):
            seen = (reps[n] > 0).any(axis=1).astype(int).tolist()
            start = [n, 400_000 + n, "train2017", "(0.0, 0.0, 0.1, 0.1)", 0.1, n, False, False, bool(shared[n])]
            writer.writerow([*start, *seen, *reps[n].ravel().tolist()])


def write_brick(path: Path, ids: np.ndarray, images: np.ndarray) -> None:
    """imgBrick uint8 [73000, side, side, 3]; rows without a picture take no space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = images.shape[1]
    with h5py.File(path, "w") as file:
        brick = file.create_dataset("imgBrick", (73_000, side, side, 3), np.uint8, chunks=(1, side, side, 3))
        for number, image in zip(ids.tolist(), images, strict=True):
            brick.id.write_direct_chunk((number, 0, 0, 0), np.ascontiguousarray(image).tobytes())


def write_session(folder: Path, space: str, suffix: str, session: int, subject: NsdSubject, block: np.ndarray) -> None:
    """One session's file (or two) of stored numbers [750, places written]."""
    name = f"betas_session{session:02d}"
    if space == "fsaverage":
        for hemi, first in (("lh", 0), ("rh", FSAVERAGE)):
            mine = (subject.places >= first) & (subject.places < first + FSAVERAGE)
            write_mgh(folder / f"{hemi}.{name}.mgh", subject.places[mine] - first, block[:, mine])
        return
    whole_tp = np.zeros((len(block), int(np.prod(SHAPE) if len(subject.n_places) == 3 else sum(NATIVE))), np.int16)
    whole_tp[:, subject.places] = block
    if space == "nativesurface":
        for hemi, part in (("lh", whole_tp[:, : NATIVE[0]]), ("rh", whole_tp[:, NATIVE[0] :])):
            _write_hdf5(folder / f"{hemi}.{name}.hdf5", np.ascontiguousarray(part), (len(part), 1))
        return
    volume_xyzt = whole_tp.T.reshape(*SHAPE, len(block), order="F")  # x fastest, as MATLAB and NIfTI count
    if (suffix or "nii.gz") == "hdf5":
        # MATLAB writes X x Y x Z x 750; h5py sees the axes reversed
        _write_hdf5(folder / f"{name}.hdf5", volume_xyzt.transpose(3, 2, 1, 0), (len(block), 1, 1, 1))
    else:
        nibabel.save(nibabel.Nifti1Image(volume_xyzt, AFFINE), folder / f"{name}.nii.gz")


def _write_hdf5(path: Path, betas: np.ndarray, chunks: tuple[int, ...]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=betas, chunks=chunks)


def write_mgh(path: Path, vertices: np.ndarray, values: np.ndarray, n_vertices: int = FSAVERAGE) -> None:
    """An uncompressed .mgh (V, 1, 1, T) of float32, 0 at all other vertices: the file is sparse on disk."""
    header = nibabel.freesurfer.mghformat.MGHHeader()
    header.set_data_dtype(np.float32)
    header.set_data_shape((n_vertices, 1, 1, len(values)))
    first = int(vertices.min())
    span_tv = np.zeros((len(values), int(vertices.max()) - first + 1), dtype=">f4")
    span_tv[:, vertices - first] = values
    with path.open("wb") as handle:
        header.writehdr_to(handle)
        offset = header.get_data_offset()
        for trial, row in enumerate(span_tv):
            handle.seek(offset + 4 * (n_vertices * trial + first))
            handle.write(row.tobytes())
        handle.truncate(offset + 4 * n_vertices * len(values))
        header.writeftr_to(handle)


def _write_maps(root: Path, number: int, space: str, betas: Path, subject: NsdSubject) -> None:
    """ROIs with colour tables, brain mask, valid voxels per session, ncsnr."""
    owner = "fsaverage" if space == "fsaverage" else f"subj{number:02d}"
    label = root / "nsddata/freesurfer" / owner / "label"
    names_folder = label
    names_folder.mkdir(parents=True, exist_ok=True)
    _write_colour_tables(names_folder)
    surface = len(subject.n_places) == 2
    atlases = {n: v for n, v in subject.labels.items() if space != "fsaverage" or n in ("nsdgeneral", "streams")}
    if surface:
        left = subject.n_places[0]
        for name, values in {**atlases, "ncsnr": subject.ncsnr}.items():
            whole = np.full(sum(subject.n_places), np.nan if name == "ncsnr" else 0, dtype=np.float32)
            whole[subject.places] = values
            for hemi, part in (("lh", whole[:left]), ("rh", whole[left:])):
                image = nibabel.MGHImage(part.astype(np.float32)[:, None, None], np.eye(4))
                file = betas / f"{hemi}.ncsnr.mgh" if name == "ncsnr" else label / f"{hemi}.{name}.mgz"
                nibabel.save(image, file)
        return
    save_volume(betas / "ncsnr.nii.gz", subject, subject.ncsnr, np.float32, 0)
    if space == "MNI":
        return
    func = root / "nsddata/ppdata" / f"subj{number:02d}" / space
    (func / "roi").mkdir(parents=True, exist_ok=True)
    save_volume(func / "brainmask.nii.gz", subject, np.ones(len(subject.places)), np.int16, 0)
    for session in subject.sessions:
        valid = ~subject.missing if session == subject.sessions[-1] else np.ones(len(subject.places))
        save_volume(func / f"valid_session{session:02d}.nii.gz", subject, valid, np.int16, 0)
    right = np.arange(len(subject.places)) % 2 == 1
    for name, values in atlases.items():
        dtype = np.float32 if name == "streams" else np.int16
        if name != "floc-faces":  # this one comes by hemisphere only
            save_volume(func / "roi" / f"{name}.nii.gz", subject, values, dtype, -1)
        for hemi, mine in (("lh", ~right), ("rh", right)):
            save_volume(func / "roi" / f"{hemi}.{name}.nii.gz", subject, np.where(mine, values, -1), dtype, -1)


def save_volume(path: Path, subject: NsdSubject, values: np.ndarray, dtype: type, outside: float) -> None:
    """A volume of one number per voxel; `outside` where no betas were written."""
    whole = np.full(int(np.prod(SHAPE)), outside, dtype=dtype)
    whole[subject.places] = values
    nibabel.save(nibabel.Nifti1Image(whole.reshape(SHAPE, order="F"), AFFINE), path)


def _write_colour_tables(folder: Path) -> None:
    """Both forms that are met: bare lines, and a tab and colours after the name."""
    (folder / "nsdgeneral.mgz.ctab").write_text("0 Unknown\n1 nsdgeneral\n")
    for name, labels in (("prf-visualrois", VISUAL), ("floc-faces", FACES), ("streams", STREAMS)):
        tail = "" if name == "streams" else "\t255 0 0"
        lines = [f"{n} {label}{tail}" for n, label in enumerate(("Unknown", *labels))]
        (folder / f"{name}.mgz.ctab").write_text("\n".join(lines) + "\n")
