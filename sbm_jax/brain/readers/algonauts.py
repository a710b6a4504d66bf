"""The Algonauts 2023 challenge: averaged fsaverage responses of NSD's subjects, one row per picture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbm_jax.brain.dataset import Dataset, Dropped, Subject
from sbm_jax.brain.pickles import load_pickled_npy
from sbm_jax.brain.readers.nsd_design import N_IMAGES, read_shared
from sbm_jax.brain.readers.nsd_images import image_table
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.rois import masks_from_numbers
from sbm_jax.brain.sessions import Piece, SessionResponses, TrialFile
from sbm_jax.brain.spaces import TEMPLATE_VERTICES, SurfaceSpace
from sbm_jax.errors import UserError

NAME = "algonauts"
LAYOUT = "subj0S/training_split/{training_images,training_fmri} and subj0S/roi_masks of the Algonauts 2023 challenge"
N_VERTICES = TEMPLATE_VERTICES["fsaverage"]
_TRAIN, _TEST = Path("training_split/training_fmri"), Path("test_split/test_fmri")


class ColumnResponses(SessionResponses):
    """Pieces of `.npy` files [trials, columns], which are memory-mapped where columns are read on their own."""

    def __init__(self, pieces: tuple[Piece, ...]):
        super().__init__(pieces)
        self.by_voxel = True

    def read_voxels(self, voxels: slice) -> np.ndarray:
        start, stop, _ = voxels.indices(self.n_voxels)
        out = np.empty((self.n_trials, stop - start), dtype=self.dtype)
        row = 0
        for piece in self.pieces:
            first = 0
            for file, places in piece.parts:
                a, b = max(start, first), min(stop, first + len(places))
                if a < b:
                    mapped = np.load(file.path, mmap_mode="r", allow_pickle=False)
                    out[row : row + len(piece.rows), a - start : b - start] = mapped[:, places[a - first : b - first]]
                first += len(places)
            row += len(piece.rows)
        return out


@dataclass(frozen=True)
class _Split:
    """Pictures of one split in the order of the rows: NSD ids (from 0) int64 [n] and files."""

    ids: np.ndarray
    files: tuple[Path, ...]


def recognise(root: Path) -> bool:
    """True for a folder of such subject folders, or one such folder."""
    return bool(_folders(root))


def read(root: Path, options: ReadOptions) -> Dataset:
    """Read names, masks and headers of the challenge's folders; responses stay on disk and are read by column.

    Training pictures are rows; test pictures too where test_fmri is there, else they are left out and reported. `shared`
    comes from data.shared, else from an nsd_expdesign.mat in the folder or beside it, else it is every picture that all
    subjects of the folder saw.

    Raises UserError: other options than the layout has; file names without NSD id or with one twice; responses of another
    number of rows or columns than pictures and vertices; masks of another length; a mapping that is no pickled table of
    names; nothing that says which pictures are shared.
    """
    options.refuse(root, NAME, space=("fsaverage",), betas=("b3",), stimuli=())
    folders = _folders(root)
    if not folders:
        raise UserError(f"{root}: expected {LAYOUT}")
    splits = {name: (_split(f, "training"), _split(f, "test")) for name, f in folders.items()}
    picked = options.pick(root, folders)
    shared, note = _shared(root, options.shared, splits)
    rows = {f.name: _with_responses(f, splits[f.name]) for f in picked}
    numbers = np.unique(np.concatenate([split.ids for chosen in rows.values() for split in chosen]))
    files: dict[int, Path] = {}
    for chosen in rows.values():
        for split in chosen:
            files = dict(zip(split.ids.tolist(), split.files, strict=True)) | files
    subjects = tuple(_subject(f, rows[f.name], splits[f.name][1], numbers, options.mask) for f in picked)
    images = image_table(numbers, tuple(files[int(n)] for n in numbers), shared)
    if not images.shared.any():
        raise UserError(f"{root}: none of the {len(numbers)} pictures is a shared one; {note}; set data.shared")
    notes = (
        "responses are z-scored and averaged over repeats already (betas b3, 1 to 3 repeats)",
        f"the training folder holds shared pictures too; {note}",
    )
    return Dataset(root, "Algonauts 2023", NAME, "fsaverage", (), images, subjects, (), notes)


def _folders(root: Path) -> dict[str, Path]:
    found = [root, *sorted(root.glob("subj[0-9][0-9]"))]
    return {f.name: f for f in found if (f / _TRAIN).is_dir()}


def _split(folder: Path, split: str) -> _Split:
    """Pictures of training_images or test_images, sorted by name as the rows are."""
    images = folder / f"{split}_split" / f"{split}_images"
    files = sorted(images.glob("*.png")) if images.is_dir() else []
    if not files and split == "training":
        raise UserError(f"{images}: expected pictures such as train-0001_nsd-00013.png, found none")
    ids: dict[int, Path] = {}
    for file in files:
        match = re.search(r"_nsd-(\d{5})$", file.stem)
        if match is None or int(match[1]) >= N_IMAGES:
            raise UserError(f"{file}: expected a name such as train-0001_nsd-00013.png (NSD id from 0)")
        if int(match[1]) in ids:
            raise UserError(f"{images}: {ids[int(match[1])].name} and {file.name} are both NSD image {int(match[1])}")
        ids[int(match[1])] = file
    return _Split(np.array(list(ids), dtype=np.int64), tuple(files))


def _with_responses(folder: Path, splits: tuple[_Split, _Split]) -> tuple[_Split, ...]:
    """The training split, and the test split where its responses are there."""
    train, test = splits
    twice = np.intersect1d(train.ids, test.ids)
    if len(twice):
        raise UserError(f"{folder}: NSD image {twice[0]} is a training and a test picture; expected it once")
    has_test = len(test.ids) and (folder / _TEST).is_dir()
    return (train, test) if has_test else (train,)


def _shared(root: Path, listed: Path | None, splits: dict[str, tuple[_Split, _Split]]) -> tuple[np.ndarray, str]:
    """NSD ids of the shared pictures, and a sentence on where that comes from."""
    beside = (root / "nsd_expdesign.mat", root.parent / "nsd_expdesign.mat")
    path = listed or next((p for p in beside if p.is_file()), None)
    if path is not None:
        return read_shared(path), f"shared pictures are those of {path}"
    if len(splits) == 1:
        raise UserError(
            f"{root}: the challenge does not say which pictures are shared, and one subject does not tell; set data.shared "
            "to NSD's nsd_expdesign.mat, or to a text file with one NSD id (from 0) per line"
        )
    seen = [set(train.ids.tolist()) | set(test.ids.tolist()) for train, test in splits.values()]
    common = np.array(sorted(set.intersection(*seen)), dtype=np.int64)
    return common, f"shared pictures are the {len(common)} that all {len(seen)} subjects of the folder saw"


def _subject(folder: Path, chosen: tuple[_Split, ...], test: _Split, numbers: np.ndarray, mask: str) -> Subject:
    masks = folder / "roi_masks"
    vertices = [_all_vertices(masks / f"{hemi}.all-vertices_fsaverage_space.npy") for hemi in ("lh", "rh")]
    widths = [len(v) for v in vertices]
    rois, tables = _rois(masks, vertices)
    columns = np.arange(sum(widths))
    if mask and mask not in rois:
        atlases = ", ".join(name for name in rois if "/" not in name)
        raise UserError(f"{masks}: data.mask is {mask!r}; expected {atlases}, or one label such as streams/ventral")
    if mask:
        columns = np.flatnonzero(rois[mask])
        if not len(columns):
            raise UserError(f"{masks}: the mask {mask} has no vertex in {folder.name}")
    parts = [columns[columns < widths[0]], columns[columns >= widths[0]] - widths[0]]
    ids = np.concatenate([split.ids for split in chosen])
    ones = np.ones(len(ids), dtype=np.int64)
    vertex = np.concatenate([v[part] for v, part in zip(vertices, parts, strict=True)])
    hemi = np.repeat(["L", "R"], [len(part) for part in parts])
    ceiling = _ceiling(folder, widths)
    left_out = Dropped("test pictures", len(test.ids), f"no responses to them in {folder / _TEST}")
    return Subject(
        name=folder.name,
        responses=_responses(folder, chosen, widths, parts),
        trial_image=np.searchsorted(numbers, ids),
        session=ones,
        run=ones.copy(),
        space=SurfaceSpace("fsaverage", (N_VERTICES, N_VERTICES), hemi, vertex),
        rois={name: roi[columns] for name, roi in rois.items()},
        averaged=True,
        noise_ceiling=None if ceiling is None else ceiling[columns],
        tables=tables,
        dropped=(left_out,) if len(chosen) == 1 and len(test.ids) else (),
    )


def _responses(folder: Path, chosen: tuple[_Split, ...], widths: list[int], parts: list[np.ndarray]) -> ColumnResponses:
    """Left and right responses side by side, the test split below the training one."""
    from sbm_jax.brain.trialfiles import NpyTrials

    pieces = []
    for split, place, word in zip(chosen, (_TRAIN, _TEST), ("training", "test"), strict=False):
        files = [NpyTrials(folder / place / f"{hemi}_{word}_fmri.npy") for hemi in ("lh", "rh")]
        for file, width in zip(files, widths, strict=True):
            _check(file, len(split.ids), width, folder / "roi_masks", word)
        pieces.append(Piece(np.arange(len(split.ids)), tuple(zip(files, parts, strict=True))))
    return ColumnResponses(tuple(pieces))


def _check(file: TrialFile, rows: int, width: int, masks: Path, word: str) -> None:
    if (file.n_trials, file.n_places) != (rows, width):
        raise UserError(
            f"{file.path}: expected {rows} rows (pictures in {word}_images) x {width} columns (vertices in "
            f"{masks.name}/*.all-vertices_fsaverage_space.npy of {masks.parent}), found {file.n_trials} x {file.n_places}"
        )
    if file.dtype.kind != "f":
        raise UserError(f"{file.path}: expected float32 responses, found {file.dtype}")


def _numbers(path: Path, length: int, what: str) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: file not found; expected {what}")
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable NumPy array of numbers, or cut short ({error})") from None
    if values.shape != (length,) or values.dtype.kind not in "iufb":
        raise UserError(f"{path}: expected {length} numbers ({what}), found {values.dtype} of shape {values.shape}")
    return values


def _all_vertices(path: Path) -> np.ndarray:
    """int64: fsaverage vertices that are the columns of a hemisphere."""
    flags = _numbers(path, N_VERTICES, "1 for every fsaverage vertex that is a column, else 0")
    if not np.isin(flags, (0, 1)).all():
        raise UserError(f"{path}: expected 0 and 1 only, found other numbers")
    return np.flatnonzero(flags)


def _rois(masks: Path, vertices: list[np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[Path, ...]]:
    """bool [columns] by ROI name, and the files that say so; the fsaverage masks must agree where they are there."""
    rois: dict[str, np.ndarray] = {}
    files: list[Path] = sorted(masks.glob("?h.all-vertices_fsaverage_space.npy"))
    stems = {file.name[3:].removesuffix("_challenge_space.npy") for file in masks.glob("?h.*_challenge_space.npy")}
    for atlas in sorted(stems):
        labels = []
        for hemi, vertex in zip(("lh", "rh"), vertices, strict=True):
            path, full = (masks / f"{hemi}.{atlas}_{space}_space.npy" for space in ("challenge", "fsaverage"))
            labels.append(_numbers(path, len(vertex), "a label number per column of this hemisphere"))
            files.append(path)
            if full.is_file() and not np.array_equal(
                _numbers(full, N_VERTICES, "a label number per vertex")[vertex], labels[-1]
            ):
                raise UserError(f"{path}: its labels are not those of {full.name} at the vertices of the columns")
        mapping = masks / f"mapping_{atlas}.npy"
        rois |= masks_from_numbers(atlas, np.concatenate(labels), _names(mapping))
        files.append(mapping)
    return rois, tuple(files)


def _names(path: Path) -> dict[int, str]:
    """ROI names by number, without 0 (unknown)."""
    table = load_pickled_npy(path)
    whole = isinstance(table, dict) and all(
        isinstance(k, (int, np.integer)) and isinstance(v, str) for k, v in table.items()
    )
    if not whole:
        raise UserError(f"{path}: expected a table of ROI names by number, found {type(table).__name__}")
    # a colour table with a tab after the name leaves colours in it
    return {int(k): str(v).split("\t")[0] for k, v in table.items() if k >= 1}


def _ceiling(folder: Path, widths: list[int]) -> np.ndarray | None:
    """float64 [columns], fraction of variance, of the test pictures; None where it is not there."""
    files = [folder / "test_split/noise_ceiling" / f"{hemi}_noise_ceiling.npy" for hemi in ("lh", "rh")]
    if not any(file.is_file() for file in files):
        return None
    parts = [_numbers(f, n, "a noise ceiling per column") for f, n in zip(files, widths, strict=True)]
    return np.concatenate(parts).astype(np.float64)
