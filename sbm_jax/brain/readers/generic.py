"""Any study: per subject 4-D NIfTI, CIFTI or pairs of GIFTI files with a table whose rows are the trials, or arrays and tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from sbm_jax.brain.dataset import Dataset, Dropped
from sbm_jax.brain.readers import generic_arrays
from sbm_jax.brain.readers.generic_drafts import Draft, Trials, finish
from sbm_jax.brain.readers.generic_files import (
    ResponseFile,
    choose_space,
    find_responses,
    find_trial_table,
    rows_of,
    suffix_of,
    walk,
)
from sbm_jax.brain.readers.generic_masks import NIFTI_SUFFIXES, flat_mask, occupied_places
from sbm_jax.brain.readers.generic_rois import read_rois
from sbm_jax.brain.readers.generic_tables import TrialTable, read_trials
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.sessions import Piece, SessionResponses, TrialFile
from sbm_jax.brain.spaces import TEMPLATE_VERTICES, CiftiSpace, Space, SurfaceSpace, UnplacedSpace, VolumeSpace
from sbm_jax.errors import UserError

NAME = "generic"
LAYOUT = (
    "a folder per subject with sub-01_ses-01_run-1_betas.nii.gz (or .dtseries.nii, or hemi-L/hemi-R .func.gii) and "
    "sub-01_ses-01_run-1_trials.tsv, or with responses.npy, trials.csv and voxels.csv; images.csv or stimuli/"
)


def recognise(root: Path) -> bool:
    """True for a folder in which, or in a folder of which, lie files called `*betas` or an array with its table of trials."""
    return bool(_subjects(root))


def read(root: Path, options: ReadOptions) -> Dataset:
    """Read and check the tables and headers of a generic folder; docs/formats.md lists every name that is recognised.

    Raises UserError: no or two tables for a file, rows that are not the file's trials, files of different shapes or
    affines, a mask or ROI of another grid, an unknown image, a missing picture.
    """
    options.refuse(root, NAME, betas=())
    found = _subjects(root)
    if not found:
        raise UserError(f"{root}: expected {LAYOUT}")
    notes: list[str] = []
    drafts = [_read_subject(folder, root, options, notes) for folder in options.pick(root, found)]
    spaces = {type(draft.space).__name__ + " " + draft.space.name: draft.name for draft in drafts}
    if len(spaces) > 1:
        listed = ", ".join(f"{subject} in {space}" for space, subject in spaces.items())
        raise UserError(f"{root}: subjects in different spaces ({listed}); choose some with data.subjects")
    return finish(root, NAME, options, drafts, notes)


def _subjects(root: Path) -> dict[str, Path]:
    """Folders with responses, by subject; the folder itself if they lie in it directly."""
    if generic_arrays.is_subject(root) or any(suffix_of(path) for path in root.iterdir()):
        return {root.name: root}
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    return {
        folder.name: folder
        for folder in folders
        if generic_arrays.is_subject(folder) or any(suffix_of(path) for path in walk(folder))
    }


def _read_subject(folder: Path, root: Path, options: ReadOptions, notes: list[str]) -> Draft:
    if generic_arrays.is_subject(folder):
        if options.mask:
            raise UserError(
                f"{folder}: data.mask is {options.mask!r}, but arrays with tables have no masks; leave it out"
            )
        return generic_arrays.read_subject(folder, folder.name, options)
    files = walk(folder)
    responses = choose_space(folder, find_responses(files), options.space)
    return read_files(folder, responses, files, options.mask, root, notes)


def read_files(
    folder: Path, responses: list[ResponseFile], files: list[Path], mask: str, root: Path, notes: list[str]
) -> Draft:
    """A subject from its files of responses, all in one space, in the order of the trials."""
    opened = [tuple(open_trials(path, response.kind) for path in response.paths) for response in responses]
    _check_alike(responses, opened)
    trials = Trials()
    shown: list[np.ndarray] = []
    listed: dict[Path, TrialTable] = {}
    taken: dict[tuple[Path, int | None, int | None], Path] = {}
    for response, parts in zip(responses, opened, strict=True):
        path = find_trial_table(response, files)
        session, run = response.number("ses"), response.number("run")
        other = taken.setdefault((path, session, run), response.paths[0])
        if other != response.paths[0]:
            raise UserError(
                f"{response.paths[0]}: the same trials as in {other.name} ({path.name}); keep one of the two"
            )
        if path not in listed:
            listed[path] = read_trials(path)
        rows = rows_of(response, listed[path], parts[0].n_trials)
        shown.append(trials.add(listed[path], rows, session, run))
    space, dropped, mask_files = _columns(folder, responses[0], opened, mask, files, root, notes)
    rois, roi_files = read_rois(folder / "rois", space)
    if mask and not mask_files:
        space, rois, outside = _keep_roi(folder, mask, space, rois)
        dropped = (*dropped, outside)
    places = _places(space, opened[0])
    pieces = tuple(
        Piece(rows, tuple(zip(parts, places, strict=True)))
        for rows, parts in zip(shown, opened, strict=True)
        if len(rows)
    )
    if not pieces:
        raise UserError(f"{trials.tables[0]}: no trial with a picture; expected at least one")
    return Draft(folder.name, trials, SessionResponses(pieces), space, rois, (*mask_files, *roi_files), dropped)


def open_trials(path: Path, kind: str) -> TrialFile:
    """The file of a kind of `generic_files.SUFFIXES`."""
    from sbm_jax.brain.trialfiles import CiftiTrials, GiftiTrials, NiftiTrials

    return {"volume": NiftiTrials, "cifti": CiftiTrials, "surface": GiftiTrials}[kind](path)


def _check_alike(responses: list[ResponseFile], opened: list[tuple[TrialFile, ...]]) -> None:
    """Raise UserError unless all files have the places (and the affine, or the grayordinates) of the first."""
    first = opened[0]
    for response, parts in zip(responses, opened, strict=True):
        if len({part.n_trials for part in parts}) > 1:
            left, right = parts
            raise UserError(f"{left.path} holds {left.n_trials:,} trials, but {right.path} {right.n_trials:,}")
        for part, other in zip(parts, first, strict=True):
            shapes = [getattr(file, "shape", (file.n_places,)) for file in (part, other)]
            if shapes[0] != shapes[1]:
                raise UserError(f"{part.path}: the shape is {shapes[0]}, but that of {other.path} is {shapes[1]}")
            if response.kind == "volume" and not np.allclose(part.affine, other.affine, atol=1e-3):  # pyright: ignore
                raise UserError(
                    f"{part.path}: another affine than that of {other.path}; resample all files to one grid"
                )
            if response.kind == "cifti" and part.axis != other.axis:  # pyright: ignore
                raise UserError(f"{part.path}: other grayordinates than those of {other.path}")


def _columns(
    folder: Path,
    response: ResponseFile,
    opened: list[tuple[TrialFile, ...]],
    mask: str,
    files: list[Path],
    root: Path,
    notes: list[str],
) -> tuple[Space, tuple[Dropped, ...], tuple[Path, ...]]:
    """Where the columns lie: those of the mask for volumes; else every place that carries numbers."""
    first = opened[0]
    total = sum(part.n_places for part in first)
    mask_file = _mask_file(folder, root, mask, files, first[0].shape) if response.kind == "volume" else None  # pyright: ignore
    if mask_file is not None:
        places = [flat_mask(mask_file, first[0].shape)]  # pyright: ignore
        why = f"outside the mask {mask_file}"
    else:
        places = [occupied_places([parts[side] for parts in opened]) for side in range(len(first))]
        why = "NaN (or 0, for floats) in the first trial of every file"
        notes.append(f"no mask: columns are the places with numbers in the first trial of a file, of {total:,}")
    if not any(len(p) for p in places):
        raise UserError(f"{first[0].path}: no place carries numbers: all are NaN or 0 in the first trial")
    space = _space(response, first, places)
    left_out = total - space.n_columns
    dropped = (Dropped("places", left_out, why),) if left_out else ()
    return space, dropped, (mask_file,) if mask_file else ()


def _space(response: ResponseFile, parts: tuple[TrialFile, ...], places: list[np.ndarray]) -> Space:
    if response.kind == "volume":
        return VolumeSpace(response.space, parts[0].shape, parts[0].affine, places[0])  # pyright: ignore
    if response.kind == "cifti":
        return CiftiSpace(response.space, parts[0].axis, places[0])  # pyright: ignore
    counts = (parts[0].n_places, parts[1].n_places)
    template = next((name for name, n in TEMPLATE_VERTICES.items() if counts == (n, n)), response.space)
    hemi = np.repeat(["L", "R"], [len(places[0]), len(places[1])])
    return SurfaceSpace(response.entities.get("space", template), counts, hemi, np.concatenate(places))


def _places(space: Space, parts: tuple[TrialFile, ...]) -> list[np.ndarray]:
    """Places of the columns within each file that lies side by side."""
    if isinstance(space, SurfaceSpace):
        return [space.vertex[space.hemi == hemi] for hemi in "LR"]
    if isinstance(space, UnplacedSpace):
        raise ValueError("files of trials have places")
    return [space.index]


def _mask_file(folder: Path, root: Path, mask: str, files: list[Path], shape: tuple[int, int, int]) -> Path | None:
    """The mask that `data.mask` names, or the only `*_mask.nii[.gz]` of the subject; None where `data.mask` is an ROI."""
    if mask:
        candidates = (folder / mask, root / mask)
        path = next((path for path in candidates if path.is_file()), None)
        if path is None and mask.endswith(NIFTI_SUFFIXES):
            raise UserError(
                f"{folder / mask}: file not found; data.mask has to name a NIfTI file of the subject, or an ROI"
            )
        return path
    found = [path for path in files if path.name.endswith(tuple(f"_mask{s}" for s in NIFTI_SUFFIXES))]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise UserError(f"{folder}: several masks ({names}); set data.mask to one of them")
    return found[0] if found else None


def _keep_roi(
    folder: Path, mask: str, space: Space, rois: dict[str, np.ndarray]
) -> tuple[Space, dict[str, np.ndarray], Dropped]:
    """Only the columns of an ROI."""
    if mask not in rois:
        raise UserError(
            f"{folder}: data.mask is {mask!r}; expected a NIfTI file or an ROI of {folder / 'rois'} ({', '.join(rois) or 'none'})"
        )
    keep = rois[mask]
    if not keep.any():
        raise UserError(f"{folder}: data.mask {mask!r} leaves no column")
    outside = Dropped("places", int((~keep).sum()), f"outside the ROI {mask}")
    return take_columns(space, keep), {name: roi[keep] for name, roi in rois.items()}, outside


def take_columns(space: Space, keep: np.ndarray) -> Space:
    """A space with some of its columns; keep: bool [v]."""
    if isinstance(space, SurfaceSpace):
        return replace(space, hemi=space.hemi[keep], vertex=space.vertex[keep])
    if isinstance(space, VolumeSpace | CiftiSpace):
        return replace(space, index=space.index[keep])
    return replace(space, n_columns=int(keep.sum()))
