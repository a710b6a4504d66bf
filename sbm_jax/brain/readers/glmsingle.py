"""Output folders of GLMsingle, one per subject or per session, with a table of the trials that the user puts beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np

from sbm_jax.brain.dataset import Dataset, Dropped
from sbm_jax.brain.readers.generic_drafts import Draft, Trials, finish
from sbm_jax.brain.readers.generic_masks import flat_mask, read_volume
from sbm_jax.brain.readers.generic_rois import read_rois
from sbm_jax.brain.readers.generic_tables import find_table, label_number, read_trials
from sbm_jax.brain.readers.generic_voxelmajor import VoxelFile, VoxelMajorResponses
from sbm_jax.brain.readers.glmsingle_files import ArrayBetas, open_betas
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.responses import Responses
from sbm_jax.brain.sessions import Piece, SessionResponses, TrialFile
from sbm_jax.brain.spaces import Space, UnplacedSpace, VolumeSpace
from sbm_jax.errors import UserError

NAME = "glmsingle"
LAYOUT = (
    "GLMsingle: TYPED_FITHRF_GLMDENOISE_RR.hdf5 (or .mat, .npy) with trials.tsv (or .csv) in the folder, in one folder per "
    "subject, or in one per session below; mask.nii.gz beside it; images.csv or stimuli/"
)
# the best estimate first; TYPEA has no single trials
TYPES = ("TYPED", "TYPEC", "TYPEB")
_SUFFIXES = (".hdf5", ".mat", ".npy")
_FILE = re.compile(r"(TYPE[BCD])_FITHRF\w*\.(hdf5|mat|npy)")


def recognise(root: Path) -> bool:
    """True for a folder with GLMsingle's files in it or up to two folders deep."""
    return bool(_results(root))


def read(root: Path, options: ReadOptions) -> Dataset:
    """Read and check headers and tables of GLMsingle output; `data.betas` chooses TYPED (default), TYPEC or TYPEB.

    Raises UserError: no table of trials, rows that are not the trials, sessions of different shapes or kinds of file, a
    mask of another grid, an unknown image, a missing picture. A .npy or version 5 .mat file is read whole.
    """
    options.refuse(root, NAME, space=())
    results = _results(root)
    if not results:
        raise UserError(f"{root}: expected {LAYOUT}")
    there = {kind for kinds in results.values() for kind in kinds}
    betas = options.choose(root, "betas", tuple(kind for kind in TYPES if kind in there))
    subjects: dict[str, list[Path]] = {}
    for folder in results:
        subjects.setdefault(_owner(root, folder).name, []).append(folder)
    notes = [f"betas: {betas} of {', '.join(kind for kind in TYPES if kind in there)}"]
    drafts = []
    names = {name: name for name in subjects}
    for name in options.pick(root, names):
        files = []
        for folder in subjects[name]:
            if betas not in results[folder]:
                raise UserError(
                    f"{folder}: no {betas} file; found {', '.join(results[folder])}; choose with data.betas"
                )
            files.append(results[folder][betas])
        drafts.append(_read_subject(name, _owner(root, subjects[name][0]), files, options.mask, notes))
    return finish(root, NAME, options, drafts, notes)


def _owner(root: Path, folder: Path) -> Path:
    """The subject's folder: the child of the root, or the root itself if its children are sessions or results."""
    inside = folder.relative_to(root).parts
    return root if not inside or inside[0].lower().startswith(("ses", "glmsingle")) else root / inside[0]


def _results(root: Path) -> dict[Path, dict[str, Path]]:
    """Folders with GLMsingle's files, in order: {folder: {"TYPED": file}}; of several formats HDF5 first."""
    found: dict[Path, dict[str, Path]] = {}
    for pattern in ("TYPE*", "*/TYPE*", "*/*/TYPE*"):
        paths = [path for path in root.glob(pattern) if _FILE.fullmatch(path.name)]
        for path in sorted(paths, key=lambda p: (p.parent, _SUFFIXES.index(p.suffix))):
            found.setdefault(path.parent, {}).setdefault(path.name[:5], path)
    return found


def _read_subject(name: str, home: Path, paths: list[Path], mask: str, notes: list[str]) -> Draft:
    trials, files, shown = Trials(), [], []
    for number, path in enumerate(paths, start=1):
        file = open_betas(path)
        table_path = _table(path.parent, home)
        table = read_trials(table_path)
        session = _session(path.parent, home, number)
        rows = np.arange(len(table))
        if len(paths) > 1 and table.session is not None:
            rows = np.flatnonzero(table.session == session)
        elif table.session is None and len(paths) == 1:
            notes.append(f"{table_path.name} has no column session: all trials count as one session")
        if len(rows) != file.n_trials:
            raise UserError(
                f"{table_path}: {len(rows):,} rows for {path}, which holds {file.n_trials:,} trials; the table needs one row "
                "per trial, in order (n/a for a blank one)"
            )
        shown.append(trials.add(table, rows, session, None))
        if files and _shape(file) != _shape(files[0]):
            raise UserError(f"{path}: voxels of the shape {_shape(file)}, but {files[0].path} has {_shape(files[0])}")
        if isinstance(file, ArrayBetas):
            notes.append(
                f"{path.name} can only be read whole: {file.betas.nbytes / 1e9:.1f} GB stay in memory per subject"
            )
        files.append(file)
    if not trials.images:
        raise UserError(f"{trials.tables[0]}: no trial with a picture; expected at least one")
    mask_file = _mask_file(home, paths[0].parent, mask)
    space, columns = _columns(files[0], mask_file)
    if mask_file is None:
        notes.append("no mask.nii.gz: every voxel is a column, and shape and affine of the volume stay unknown")
    elif _shape(files[0])[1:] == ():
        axis = "z" if _order(files[0]) == "C" else "x"
        notes.append(f"betas of a list of voxels: taken as those of {mask_file.name} with {axis} running fastest")
    rois, roi_files = read_rois(home / "rois", space)
    left_out = files[0].n_voxels - len(columns) if isinstance(files[0], VoxelFile) else files[0].n_places - len(columns)
    return Draft(
        name=name,
        trials=trials,
        responses=_responses(files, shown, columns),
        space=space,
        rois=rois,
        tables=(*((mask_file,) if mask_file else ()), *roi_files),
        dropped=(Dropped("voxels", left_out, f"outside the mask {mask_file}"),) if left_out else (),
    )


def _responses(files: list[VoxelFile | TrialFile], shown: list[np.ndarray], columns: np.ndarray) -> Responses:
    by_voxel = [(file, rows) for file, rows in zip(files, shown, strict=True) if isinstance(file, VoxelFile)]
    by_trial = [
        Piece(rows, ((file, columns),)) for file, rows in zip(files, shown, strict=True) if isinstance(file, TrialFile)
    ]
    if by_voxel and by_trial:
        raise UserError(f"{files[0].path}: MATLAB 7.3 files and others are mixed; save all sessions in one format")
    if by_voxel:
        return VoxelMajorResponses(tuple(by_voxel), columns)
    return SessionResponses(tuple(piece for piece in by_trial if len(piece.rows)))


def _table(folder: Path, home: Path) -> Path:
    """trials.tsv or trials.csv beside the betas or in a folder above, up to the subject's."""
    for place in (folder, *folder.parents):
        table = find_table(place, ("trials",))
        if table is not None:
            return table
        if place == home:
            break
    raise UserError(
        f"{folder}: GLMsingle keeps no table of trials, so one is needed: trials.tsv or trials.csv with one row per trial in "
        "the order of the design, a column image_id (or stimulus), and optionally session and run; n/a for a blank trial"
    )


def _session(folder: Path, home: Path, number: int) -> int:
    """The number that ends the name of a session's folder; else the place among the sessions."""
    parts = folder.relative_to(home).parts
    return next((label_number(part) or number for part in parts if part.startswith("ses")), number)


def _shape(file: VoxelFile | TrialFile) -> tuple[int, ...]:
    """(X, Y, Z), or (V,) for a list of voxels."""
    shape = getattr(file, "shape", None)
    if shape is None or shape[1:] == (1, 1):
        return (file.n_voxels if isinstance(file, VoxelFile) else file.n_places,)
    return tuple(shape)


def _mask_file(home: Path, folder: Path, mask: str) -> Path | None:
    names = (mask,) if mask else ("mask.nii.gz", "mask.nii")
    path = next((p for p in (place / name for place in (folder, home) for name in names) if p.is_file()), None)
    if mask and path is None:
        raise UserError(f"{home / mask}: file not found; for GLMsingle data.mask has to name a NIfTI file")
    return path


def _order(file: VoxelFile | TrialFile) -> Literal["C", "F"]:
    """How the voxels of a file are numbered. In a list of voxels: as NumPy ("C") or MATLAB ("F") index by a mask."""
    if len(_shape(file)) == 3:
        return "C" if isinstance(file, VoxelFile) else "F"
    return "F" if file.path.suffix == ".mat" else "C"


def _columns(file: VoxelFile | TrialFile, mask_file: Path | None) -> tuple[Space, np.ndarray]:
    """The space and the voxels of the file that are its columns, in ascending order of the file."""
    shape = _shape(file)
    n_voxels = int(np.prod(shape))
    if mask_file is None:
        return UnplacedSpace("volume", n_voxels), np.arange(n_voxels)
    mask, affine = read_volume(mask_file)
    grid = (int(mask.shape[0]), int(mask.shape[1]), int(mask.shape[2]))
    if len(shape) == 3:
        flat_mask(mask_file, (shape[0], shape[1], shape[2]))  # of the same grid, and not empty
    elif int((mask > 0).sum()) != n_voxels:
        raise UserError(
            f"{mask_file}: {int((mask > 0).sum()):,} voxels above 0, but {file.path} holds {n_voxels:,} voxels; a mask is "
            "needed that has exactly these"
        )
    order = _order(file)
    inside = np.flatnonzero(np.nan_to_num(mask).ravel(order=order) > 0)
    index = np.ravel_multi_index(np.unravel_index(inside, grid, order=order), grid, order="F")
    return VolumeSpace("volume", grid, affine, index), inside if len(shape) == 3 else np.arange(n_voxels)
