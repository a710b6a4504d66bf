"""BOLD5000 release 2: one NIfTI file per session, or arrays of ROIs over all sessions, and a list of image names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sbm_jax.brain.dataset import Dataset, Dropped
from sbm_jax.brain.readers.bold5000_lists import Sessions, read_order
from sbm_jax.brain.readers.bold5000_names import ROI_FILE, SESSION_FILE, mask_rois, version
from sbm_jax.brain.readers.generic_drafts import Draft, Trials, finish
from sbm_jax.brain.readers.generic_files import walk
from sbm_jax.brain.readers.generic_masks import flat_mask, occupied_places
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.sessions import Piece, SessionResponses, TrialFile
from sbm_jax.brain.spaces import UnplacedSpace, VolumeSpace
from sbm_jax.errors import UserError

NAME = "bold5000"
LAYOUT = (
    "BOLD5000 release 2: CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_ses-01.nii.gz ... or ..._allses_LHPPA.npy ..., with "
    "CSI1_imgnames.txt and BOLD5000_Stimuli/"
)
USUAL_STIMULI = (
    "BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli",
    "Scene_Stimuli/Presented_Stimuli",
    "Presented_Stimuli",
    "stimuli",
)
SESSIONS = {"CSI1": 15, "CSI2": 15, "CSI3": 15, "CSI4": 9}
SPACES = ("native", "rois")


@dataclass
class _Files:
    """Files of a subject by beta version: sessions by number, ROI arrays by name."""

    sessions: dict[str, dict[int, Path]] = field(default_factory=dict)
    rois: dict[str, dict[str, Path]] = field(default_factory=dict)


def recognise(root: Path) -> bool:
    """True for a folder with files called CSI*_GLMbetas-TYPE*, up to two folders deep."""
    patterns = (f"{depth}CSI*_GLMbetas-*" for depth in ("", "*/", "*/*/"))
    return any(SESSION_FILE.fullmatch(p.name) or ROI_FILE.fullmatch(p.name) for pat in patterns for p in root.glob(pat))


def read(root: Path, options: ReadOptions) -> Dataset:
    """Read and check headers and lists of BOLD5000.

    `data.betas`: TYPED (default) to TYPEA. `data.space`: native (session volumes, default where there are any) or rois (the
    ROI arrays side by side). `data.mask`, for volumes: brainmask, an ROI whose mask files are there, or a NIfTI file; without
    it, every voxel with numbers. Shared are the images shown more than once (113 in the full dataset).

    Raises UserError: a session or array of another size than the list of names, files of different shapes, session
    boundaries that cannot be known, a missing picture.
    """
    files = walk(root)
    subjects = _subjects(files)
    if not subjects:
        raise UserError(f"{root}: expected {LAYOUT}")
    chosen = dict(zip(names, options.pick(root, subjects), strict=True)) if (names := options.subjects) else subjects
    versions = sorted({v for found in chosen.values() for v in (*found.sessions, *found.rois)}, reverse=True)
    betas = options.choose(root, "betas", tuple(versions))
    volumes = all(betas in found.sessions for found in chosen.values())
    arrays = all(betas in found.rois for found in chosen.values())
    there = tuple(space for space, has in zip(SPACES, (volumes, arrays), strict=True) if has)
    if not there:
        raise UserError(
            f"{root}: not every subject of {', '.join(chosen)} has {betas}; choose with data.betas, data.subjects"
        )
    space = options.choose(root, "space", there)
    if space == "rois" and options.mask:
        raise UserError(f"{root}: data.mask is {options.mask!r}, but ROI arrays have no mask; leave it out")
    read_one = _read_volumes if space == "native" else _read_arrays
    drafts = [read_one(name, found, betas, root, files, options.mask) for name, found in chosen.items()]
    return finish(root, NAME, options, drafts, [f"betas: {betas}"], USUAL_STIMULI, repeated=True)


def _subjects(files: list[Path]) -> dict[str, _Files]:
    found: dict[str, _Files] = {}
    for path in files:
        if match := SESSION_FILE.fullmatch(path.name):
            sessions = found.setdefault(match["subject"], _Files()).sessions.setdefault(version(match), {})
            first = sessions.setdefault(int(match["session"]), path)
            if first != path:
                raise UserError(f"{path}: the same session as {first}; keep one of them")
        elif match := ROI_FILE.fullmatch(path.name):
            found.setdefault(match["subject"], _Files()).rois.setdefault(version(match), {})[match["roi"]] = path
    return dict(sorted(found.items()))


def _read_volumes(name: str, found: _Files, betas: str, root: Path, files: list[Path], mask: str) -> Draft:
    from sbm_jax.brain.trialfiles import NiftiTrials

    volumes = {number: NiftiTrials(path) for number, path in sorted(found.sessions[betas].items())}
    first = next(iter(volumes.values()))
    for file in volumes.values():
        if file.shape != first.shape or not np.allclose(file.affine, first.affine, atol=1e-3):
            raise UserError(
                f"{file.path}: the shape {file.shape} or the affine is not that of {first.path}, {first.shape}"
            )
    order = read_order(name, root, files, {number: file.n_trials for number, file in volumes.items()})
    rois, roi_files = mask_rois(name, files, first.shape)
    places, why, mask_files = _places(name, mask, files, list(volumes.values()), rois)
    dropped = _dropped(order)
    if first.n_places > len(places):
        dropped.append(Dropped("voxels", first.n_places - len(places), why))
    pieces = tuple(Piece(np.arange(file.n_trials), ((file, places),)) for file in volumes.values())
    planned = range(1, SESSIONS.get(name, max(volumes)) + 1)
    return Draft(
        name=name,
        trials=_trials(order),
        responses=SessionResponses(pieces),
        space=VolumeSpace("native", first.shape, first.affine, places),
        rois={roi: where[places] for roi, where in rois.items()},
        tables=(*mask_files, *roi_files),
        dropped=tuple(dropped),
        sessions_missing=tuple(number for number in planned if number not in volumes),
    )


def _read_arrays(name: str, found: _Files, betas: str, root: Path, files: list[Path], mask: str) -> Draft:
    from sbm_jax.brain.trialfiles import NiftiTrials, NpyTrials

    arrays = {roi: NpyTrials(path) for roi, path in sorted(found.rois[betas].items())}
    first = next(iter(arrays.values()))
    for file in arrays.values():
        if file.n_trials != first.n_trials:
            raise UserError(f"{file.path}: {file.n_trials:,} trials, but {first.path} holds {first.n_trials:,}")
    volumes = next(iter(found.sessions.values()), {})
    known = {number: NiftiTrials(path).n_trials for number, path in sorted(volumes.items())}
    order = read_order(name, root, files, known if sum(known.values()) == first.n_trials else None, first.n_trials)
    widths = [file.n_places for file in arrays.values()]
    column_roi = np.repeat(np.arange(len(arrays)), widths)
    rois: dict[str, np.ndarray] = {}
    for number, roi in enumerate(arrays):
        side, area = roi[:2], roi[2:]
        rois[area] = rois.get(area, False) | (column_roi == number)
        rois[f"{area}/{side}"] = column_roi == number
    parts: tuple[tuple[TrialFile, np.ndarray], ...] = tuple(
        (file, np.arange(file.n_places)) for file in arrays.values()
    )
    return Draft(
        name=name,
        trials=_trials(order),
        responses=SessionResponses((Piece(np.arange(first.n_trials), parts),)),
        space=UnplacedSpace("rois", sum(widths)),
        rois=rois,
        dropped=tuple(_dropped(order)),
    )


def _trials(order: Sessions) -> Trials:
    return Trials(list(order.images), order.session.tolist(), order.run.tolist(), tables=list(order.files))


def _dropped(order: Sessions) -> list[Dropped]:
    return [Dropped("trials", order.absent, "of sessions whose files are not there")] if order.absent else []


def _places(
    name: str, mask: str, files: list[Path], volumes: list, rois: dict[str, np.ndarray]
) -> tuple[np.ndarray, str, tuple[Path, ...]]:
    """Voxels that are columns, why the others are not, and the mask file."""
    if not mask:
        places = occupied_places(volumes)
        if not len(places):
            raise UserError(f"{volumes[0].path}: no voxel carries numbers: all are NaN or 0 in the first trial")
        return places, "NaN or 0 in the first trial of every session (outside the brain)", ()
    if mask in rois:
        places = np.flatnonzero(rois[mask])
        if not len(places):
            raise UserError(f"{volumes[0].path.parent}: data.mask {mask!r} leaves no voxel of {name}")
        return places, f"outside the ROI {mask}", ()
    wanted = f"{name}_brainmask.nii.gz" if mask == "brainmask" else mask.replace("{subject}", name)
    path = next((p for p in files if p.name == wanted or str(p) == wanted), None)
    if path is None:
        raise UserError(
            f"{volumes[0].path.parent}: data.mask is {mask!r}; expected brainmask (there has to be {name}_brainmask.nii.gz), "
            f"an ROI ({', '.join(rois) or 'none here'}) or the name of a NIfTI file, {{subject}} standing for {name}"
        )
    return flat_mask(path, volumes[0].shape), f"outside the mask {path}", (path,)
