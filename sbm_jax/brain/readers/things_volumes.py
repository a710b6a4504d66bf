"""THINGS-fMRI's `betas_vol`: one NIfTI file per run and a table of its trials, catch trials among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sbm_jax.brain.dataset import Dataset, Dropped
from sbm_jax.brain.readers.generic_drafts import Draft, Trials, finish
from sbm_jax.brain.readers.generic_masks import flat_mask, occupied_places
from sbm_jax.brain.readers.generic_tables import TrialTable, label_number, read_trials
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.sessions import Piece, SessionResponses
from sbm_jax.brain.spaces import VolumeSpace
from sbm_jax.errors import UserError

_TABLE, _BETAS = "_conditions.tsv", "_betas.nii.gz"


def read(root: Path, folder: Path, options: ReadOptions, usual: Sequence[str]) -> Dataset:
    """Read and check the tables and headers of `betas_vol`.

    Columns are the voxels of brainmasks/sub-XX_space-T1w_brainmask.nii.gz (or of the NIfTI file `data.mask`); without a
    mask, all with numbers in the first trial of a run. Catch trials are left out: their file names say `catch`.

    Raises UserError: a run without its volume or table, rows that are not its trials, a volume or mask of another shape.
    """
    found = {path.name: path for path in sorted(folder.glob("sub-*")) if any(path.glob(f"ses-*/*{_TABLE}"))}
    drafts = [_read_subject(path, options.mask) for path in options.pick(root, found)]
    home = root if any((root / name).is_dir() for name in usual) else folder.parent
    notes = ["betas_vol has no ROIs and no noise ceiling; betas_csv brings both"]
    return finish(root, "things", options, drafts, notes, usual, home, repeated=True)


def _read_subject(folder: Path, mask: str) -> Draft:
    from sbm_jax.brain.trialfiles import NiftiTrials

    trials, files, shown, catch = Trials(), [], [], 0
    for path in sorted(folder.glob(f"ses-*/*{_BETAS}")):
        table_path = path.with_name(path.name.replace(_BETAS, _TABLE))
        file, table = NiftiTrials(path), read_trials(table_path)
        if file.n_trials != len(table):
            raise UserError(
                f"{table_path}: {len(table):,} rows, but {path} holds {file.n_trials:,} trials; they have to agree"
            )
        if files and (file.shape != files[0].shape or not np.allclose(file.affine, files[0].affine, atol=1e-3)):
            raise UserError(
                f"{path}: the shape {file.shape} or the affine is not that of {files[0].path}, {files[0].shape}"
            )
        images = tuple("" if "catch" in image else image.rsplit("/", 1)[-1] for image in table.images)
        catch += images.count("")
        shown.append(
            trials.add(
                TrialTable(table_path, images, table.session, table.run),
                np.arange(len(table)),
                _number(path, "ses-"),
                _number(path, "run-"),
            )
        )
        files.append(file)
    tables = {path.name.replace(_TABLE, _BETAS) for path in folder.glob(f"ses-*/*{_TABLE}")}
    missing = sorted(tables - {file.path.name for file in files})
    if missing:
        raise UserError(f"{folder}: {missing[0]} not found, though its {_TABLE} is there; copy or download it again")
    trials.blank = 0  # said as catch trials
    shape = files[0].shape
    mask_file = _mask_file(folder, mask)
    if mask_file is None:
        places, why = (
            occupied_places(files),
            "NaN or 0 in the first trial of every run; there is no brain mask",
        )
    else:
        places, why = flat_mask(mask_file, shape), f"outside the mask {mask_file}"
    pieces = tuple(Piece(rows, ((file, places),)) for file, rows in zip(files, shown, strict=True) if len(rows))
    if not pieces:
        raise UserError(f"{trials.tables[0]}: no trial with a picture; expected at least one")
    dropped = [Dropped("trials", catch, "catch trials")] if catch else []
    if files[0].n_places > len(places):
        dropped.append(Dropped("places", files[0].n_places - len(places), why))
    return Draft(
        name=folder.name,
        trials=trials,
        responses=SessionResponses(pieces),
        space=VolumeSpace("T1w", shape, files[0].affine, places),
        rois={},
        tables=(mask_file,) if mask_file else (),
        dropped=tuple(dropped),
    )


def _number(path: Path, key: str) -> int:
    """The number of the session or run in the name of a file."""
    label = next((part.removeprefix(key) for part in path.name.split("_") if part.startswith(key)), "")
    number = label_number(label)
    if not number:
        raise UserError(f"{path}: expected a name such as sub-01_ses-things01_run-01{_BETAS}")
    return number


def _mask_file(folder: Path, mask: str) -> Path | None:
    if mask:
        path = folder / mask
        if not path.is_file():
            raise UserError(f"{path}: file not found; for betas_vol data.mask has to name a NIfTI file")
        return path
    name = f"{folder.name}_space-T1w_brainmask.nii.gz"
    # beside betas_vol, or in it
    return next(
        (p for p in (up / "brainmasks" / name for up in (folder.parent, folder.parent.parent)) if p.is_file()),
        None,
    )
