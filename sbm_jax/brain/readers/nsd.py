"""The Natural Scenes Dataset in its native tree: betas per session in volumes, fsaverage or native surfaces."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbm_jax.brain.dataset import Dataset, Dropped, Subject
from sbm_jax.brain.readers.nsd_design import N_TRIALS, Design, read_design, read_shared
from sbm_jax.brain.readers.nsd_images import find_pictures, image_table
from sbm_jax.brain.readers.nsd_rois import HEMIS, Atlases, Places, brain_mask, read_atlases, read_prf, valid_sessions
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.sessions import Piece, SessionResponses, TrialFile
from sbm_jax.brain.spaces import TEMPLATE_VERTICES, Space, SurfaceSpace, VolumeSpace
from sbm_jax.errors import UserError

NAME = "nsd"
LAYOUT = (
    "nsddata_betas/ppdata/subj0S/SPACE/betas_*/ with betas_sessionBB files, nsddata/experiments/nsd/nsd_expdesign.mat, "
    "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
)
SPACES = ("func1pt8mm", "func1mm", "fsaverage", "nativesurface", "MNI")
BETAS = {"b3": "betas_fithrf_GLMdenoise_RR", "b2": "betas_fithrf", "b1": "betas_assumehrf"}
PERCENT = 300.0  # int16 files hold percent signal change times this
# Of two files of one session the former is read: it stores a voxel's trials together, the latter is one gzip stream.
_VOLUME_SUFFIXES = ("hdf5", "nii.gz", "nii")
_SURFACE_SUFFIXES = {"fsaverage": ("mgh",), "nativesurface": ("hdf5",)}


@dataclass(frozen=True)
class _Choice:
    """What was chosen of a folder."""

    root: Path
    space: str
    betas: str
    mask: str

    @property
    def volume(self) -> bool:
        return self.space not in _SURFACE_SUFFIXES

    def folder(self, name: str) -> Path:
        return self.root / "nsddata_betas/ppdata" / name / self.space / BETAS[self.betas]


def recognise(root: Path) -> bool:
    """True for a folder with nsddata_betas/ppdata, or one whose only such subfolder has it."""
    return _home(root) is not None


def read(root: Path, options: ReadOptions) -> Dataset:
    """Read the tables, headers and maps of an NSD tree; betas stay on disk.

    `shared` are NSD's 1,000 shared images, or those that data.shared lists.

    Raises UserError: no betas of the wanted space or version; a session has one hemisphere only, another shape than the
    others, another number of trials than 750, or numbers that are neither NSD's int16 nor its float32; no design, or two
    that disagree; a map of another size; an unknown mask; an empty mask; no pictures; anything damaged or cut short.
    """
    home = _home(root)
    if home is None:
        raise UserError(f"{root}: expected {LAYOUT}")
    ppdata = home / "nsddata_betas/ppdata"
    offers = {f.name: _offers(f) for f in sorted(ppdata.glob("subj0[1-8]")) if f.is_dir()}
    empty = [name for name, offer in offers.items() if not offer]
    if len(empty) == len(offers):
        raise UserError(f"{ppdata}: no betas found; expected {LAYOUT}")
    names = options.pick(root, {name: name for name, offer in offers.items() if offer})
    chosen = _choose(home, options, {name: offers[name] for name in names})
    numbers = {name: int(name[-1]) for name in names}
    design = read_design(home / "nsddata/experiments/nsd", tuple(numbers.values()))
    sessions = {name: _sessions(chosen, name) for name in names}
    seen = np.unique(np.concatenate([design.trials(numbers[n], tuple(sessions[n]))[0] for n in names]))
    images = image_table(
        seen,
        find_pictures(home, options.stimuli, seen),
        read_shared(options.shared) if options.shared else design.shared,
    )
    if options.shared and not images.shared.any():
        raise UserError(f"{options.shared}: none of these images was seen in the sessions that are there")
    subjects = tuple(_subject(chosen, name, design, sessions[name], seen) for name in names)
    notes = (
        f"betas {chosen.betas} ({BETAS[chosen.betas]}) in {chosen.space}",
        *design.notes,
        *([f"shared images are those of {options.shared}"] if options.shared else []),
        *_notes(chosen, sessions, subjects),
    )
    dropped = (Dropped("subjects", len(empty), f"no betas ({', '.join(empty)})"),) if empty else ()
    return Dataset(root, "NSD", NAME, chosen.space, (), images, subjects, design.files, notes, dropped)


def _choose(home: Path, options: ReadOptions, offers: dict[str, dict[str, tuple[str, ...]]]) -> _Choice:
    """Space and beta version: the first that all picked subjects have, unless the options name another."""
    space = options.choose(home, "space", _common(home, {n: tuple(o) for n, o in offers.items()}, SPACES))
    versions = _common(home, {n: o[space] for n, o in offers.items()}, tuple(BETAS))
    short = {folder: name for name, folder in BETAS.items()}
    wanted = dataclasses.replace(options, betas=short.get(options.betas, options.betas))
    return _Choice(home, space, wanted.choose(home, "betas", versions), options.mask)


def _home(root: Path) -> Path | None:
    mark = "nsddata_betas/ppdata"
    if (root / mark).is_dir():
        return root
    inside = [f.parents[1] for f in root.glob(f"*/{mark}") if f.is_dir()]
    return inside[0] if len(inside) == 1 else None


def _offers(folder: Path) -> dict[str, tuple[str, ...]]:
    """Beta versions by space that have at least one session of this subject."""
    found = {}
    for space in SPACES:
        versions = tuple(b for b, name in BETAS.items() if any((folder / space / name).glob("*betas_session*")))
        if versions:
            found[space] = versions
    return found


def _common(root: Path, offers: dict[str, tuple[str, ...]], known: tuple[str, ...]) -> tuple[str, ...]:
    """What every picked subject has, in the order of `known`."""
    common = tuple(k for k in known if all(k in offer for offer in offers.values()))
    if not common:
        each = "; ".join(f"{name}: {', '.join(offer) or 'nothing'}" for name, offer in offers.items())
        raise UserError(
            f"{root}: the subjects have none of {', '.join(known)} in common ({each}); name some in data.subjects"
        )
    return common


def _sessions(chosen: _Choice, name: str) -> dict[int, tuple[Path, ...]]:
    """Files by session number, ascending: one volume, or the left and the right surface."""
    folder = chosen.folder(name)
    suffixes = _SURFACE_SUFFIXES.get(chosen.space, _VOLUME_SUFFIXES)
    pattern = re.compile(
        rf"({'' if chosen.volume else 'lh.|rh.'})betas_session(\d\d)\.({'|'.join(map(re.escape, suffixes))})"
    )
    matches = [m for file in sorted(folder.iterdir()) if (m := pattern.fullmatch(file.name))]
    sessions: dict[int, tuple[Path, ...]] = {}
    for number in sorted({int(m[2]) for m in matches}):
        mine = sorted((m for m in matches if int(m[2]) == number), key=lambda m: (m[1], suffixes.index(m[3])))
        if not 1 <= number <= 40:
            raise UserError(f"{folder / mine[0].string}: NSD has the sessions 01 to 40")
        if not chosen.volume and len(mine) != len(HEMIS):
            other = "rh." if mine[0][1] == "lh." else "lh."
            raise UserError(f"{folder / mine[0].string}: the other hemisphere, {other}{mine[0].string[3:]}, is missing")
        sessions[number] = tuple(folder / m.string for m in (mine[:1] if chosen.volume else mine))
    if not sessions:
        raise UserError(f"{folder}: expected files such as betas_session01.{suffixes[0]}, found none")
    return sessions


def _open(chosen: _Choice, path: Path) -> TrialFile:
    """A beta file, checked for what NSD's own files have in common."""
    from sbm_jax.brain.trialfiles import Hdf5Vertices, Hdf5Volumes, MghTrials, NiftiTrials

    if path.suffix == ".hdf5":
        file = Hdf5Volumes(path) if chosen.volume else Hdf5Vertices(path)
    else:
        file = NiftiTrials(path) if chosen.volume else MghTrials(path)
    dtype = np.dtype(np.float32 if chosen.space == "fsaverage" else np.int16)
    if file.dtype != dtype:
        unit = "percent signal change" if dtype == np.float32 else "percent signal change x 300"
        raise UserError(f"{path}: NSD's betas in {chosen.space} are {dtype} ({unit}), found {file.dtype}")
    if file.n_trials != N_TRIALS:
        raise UserError(f"{path}: expected the {N_TRIALS} trials of a session, found {file.n_trials}")
    return file


def _shape(file: TrialFile) -> tuple[int, ...]:
    return getattr(file, "shape", (file.n_places,))


def _open_all(chosen: _Choice, sessions: dict[int, tuple[Path, ...]]) -> list[tuple[TrialFile, ...]]:
    opened: list[tuple[TrialFile, ...]] = []
    for paths in sessions.values():
        files = tuple(_open(chosen, path) for path in paths)
        for first, file in zip(opened[0] if opened else files, files, strict=True):
            if _shape(file) != _shape(first):
                raise UserError(
                    f"{file.path}: expected the shape {_shape(first)} of {first.path}, found {_shape(file)}"
                )
        opened.append(files)
    template = TEMPLATE_VERTICES.get(chosen.space)
    for file in opened[0]:
        if template is not None and file.n_places != template:
            raise UserError(
                f"{file.path}: {chosen.space} has {template} vertices per hemisphere, found {file.n_places}"
            )
    return opened


def _places(chosen: _Choice, name: str, files: tuple[TrialFile, ...]) -> Places:
    """Where the maps of a subject are."""
    data, betas = chosen.root / "nsddata", chosen.folder(name)
    owner = "fsaverage" if chosen.space == "fsaverage" else name
    labels = data / "freesurfer" / owner / "label"
    if not chosen.volume:
        shape = (files[0].n_places, files[1].n_places)
        return Places(shape, files[0].path, betas, None, labels, labels)
    x, y, z = _shape(files[0])
    if chosen.space == "MNI":  # NSD ships no ROIs there
        return Places((x, y, z), files[0].path, betas, None, None, None)
    func = data / "ppdata" / name / chosen.space
    return Places((x, y, z), files[0].path, betas, func, func / "roi", labels)


def _subject(
    chosen: _Choice, name: str, design: Design, sessions: dict[int, tuple[Path, ...]], seen: np.ndarray
) -> Subject:
    opened = _open_all(chosen, sessions)
    places = _places(chosen, name, opened[0])
    atlases = read_atlases(places)
    columns = np.flatnonzero(_mask(chosen, places, atlases))
    if not len(columns):
        raise UserError(
            f"{places.rois or places.betas}: the mask of {name} has no {'voxel' if places.volume else 'vertex'}"
        )
    if places.volume:
        parts = [columns]
    else:
        left = places.shape[0]
        parts = [columns[columns < left], columns[columns >= left] - left]
    rows = np.arange(N_TRIALS)
    pieces = tuple(Piece(rows, tuple(zip(files, parts, strict=True))) for files in opened)
    stored_whole = chosen.space != "fsaverage"
    responses = SessionResponses(pieces, PERCENT if stored_whole else 1.0, zero_is_missing=stored_whole)
    number = int(name[-1])
    image, session, run = design.trials(number, tuple(sessions))
    transforms = chosen.root / "nsddata/ppdata" / name / "transforms"
    ncsnr = places.read(places.betas, "ncsnr") if places.has(places.betas, "ncsnr") else None
    return Subject(
        name=name,
        responses=responses,
        trial_image=np.searchsorted(seen, image),
        session=session,
        run=run,
        space=_space(chosen, places, opened, columns, parts),
        rois=atlases.masks(columns),
        ncsnr=None if ncsnr is None else ncsnr[columns].astype(np.float64),
        prf=read_prf(places, columns),
        tables=(*design.files, *sorted({*places.files, *atlases.tables})),
        transforms=transforms if transforms.is_dir() else None,
        sessions_missing=tuple(s for s in range(1, 41) if s not in sessions),
        dropped=(
            *design.dropped(number, tuple(sessions), chosen.folder(name)),
            *atlases.dropped,
            *_invalid(places, columns, sessions),
        ),
    )


def _mask(chosen: _Choice, places: Places, atlases: Atlases) -> np.ndarray:
    """bool [places]: the columns. By default nsdgeneral, else the brain of a volume, all vertices of a surface."""
    whole = "brain" if places.volume else "all"
    wanted = chosen.mask or ("nsdgeneral" if "nsdgeneral" in atlases.labels else whole)
    if wanted == whole:
        return brain_mask(places) if places.volume else np.ones(places.count, dtype=bool)
    mask = atlases.mask(wanted)
    if mask is None:
        raise UserError(
            f"{places.rois or places.betas}: data.mask is {wanted!r}; expected {', '.join([whole, *atlases.labels])}, or "
            "one label such as streams/ventral"
        )
    return mask


def _space(
    chosen: _Choice, places: Places, opened: list[tuple[TrialFile, ...]], columns: np.ndarray, parts: list[np.ndarray]
) -> Space:
    if len(places.shape) == 2:
        hemi = np.repeat(["L", "R"], [len(part) for part in parts])
        return SurfaceSpace(chosen.space, places.shape, hemi, np.concatenate(parts))
    return VolumeSpace(chosen.space, places.shape, _affine(places, opened), columns)


def _affine(places: Places, opened: list[tuple[TrialFile, ...]]) -> np.ndarray:
    """Of the betas where they are NIfTI, else of any NIfTI of the same shape beside them or in the subject's folder."""
    import nibabel  # heavy
    from nibabel.filebasedimages import ImageFileError

    for (file,) in opened:
        if hasattr(file, "affine"):
            return np.asarray(file.affine, dtype=np.float64)  # pyright: ignore[reportAttributeAccessIssue]
    for folder in (places.betas, places.func, places.rois):
        for path in sorted(folder.glob("*.nii.gz")) if folder is not None and folder.is_dir() else ():
            try:
                image = nibabel.load(path)
            except ImageFileError:
                continue  # this search needs one readable header; read_map reports damaged maps
            if image.shape[:3] == places.shape:  # pyright: ignore[reportAttributeAccessIssue]
                return np.asarray(image.affine, dtype=np.float64)  # pyright: ignore[reportAttributeAccessIssue]
    raise UserError(
        f"{places.source}: HDF5 betas do not say where their voxels lie; expected a NIfTI of shape {places.shape} beside "
        f"them (ncsnr.nii.gz) or in {places.func or places.betas.parent} (brainmask.nii.gz)"
    )


def _invalid(places: Places, columns: np.ndarray, sessions: dict[int, tuple[Path, ...]]) -> tuple[Dropped, ...]:
    """Voxels that NSD marks as without data in some session; their zeros become missing values."""
    found = []
    for session, (folder, name) in sorted(valid_sessions(places).items()):
        count = int((places.read(folder, name)[columns] == 0).sum()) if session in sessions else 0
        if count:
            found.append(Dropped("voxels", count, f"without data in session {session} ({name}.nii.gz): missing there"))
    return tuple(found)


def _notes(
    chosen: _Choice, sessions: dict[str, dict[int, tuple[Path, ...]]], subjects: tuple[Subject, ...]
) -> tuple[str, ...]:
    notes = []
    if chosen.volume and any(
        path.suffix == ".hdf5" and path.with_suffix(".nii.gz").is_file()
        for files in sessions.values()
        for (path,) in files.values()
    ):
        notes.append("sessions that are there as .hdf5 and as .nii.gz are read from .hdf5")
    if not chosen.mask and not any("nsdgeneral" in subject.rois for subject in subjects):
        notes.append("no nsdgeneral ROI here: all of the " + ("brain" if chosen.volume else "surface") + " is used")
    if chosen.space == "fsaverage" and not any("floc-faces" in subject.rois for subject in subjects):
        notes.append("floc and prf ROIs are drawn per subject and not shipped on fsaverage")
    if not any(subject.rois for subject in subjects):
        notes.append("no ROI maps were found")
    return tuple(notes)
