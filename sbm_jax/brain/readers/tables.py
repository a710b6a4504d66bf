"""The project's own layout `sbm-tables`: dataset.json, images.csv, and per subject responses.npy, trials.csv, voxels.csv."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from sbm_jax.brain import prf
from sbm_jax.brain.dataset import Dataset, Images, Subject, unique_ids
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.responses import NpyResponses
from sbm_jax.brain.rois import masks_from_names
from sbm_jax.brain.spaces import TEMPLATE_VERTICES, Space, SurfaceSpace, UnplacedSpace
from sbm_jax.brain.tables import floats, integers, read_json, read_table
from sbm_jax.errors import UserError

NAME = "sbm-tables"
VERSION = 1
LABEL_PREFIX = "label:"
# voxels.csv columns that hold places or numbers; every other column is an ROI atlas
_NOT_ATLASES = ("hemi", "vertex", "x", "y", "z", "i", "j", "k", "ncsnr", *prf.COLUMNS)
LAYOUT = "dataset.json, images.csv, and a folder per subject with responses.npy, trials.csv and voxels.csv"


def recognise(root: Path) -> bool:
    """True for a folder with a dataset.json, whatever it says."""
    return (root / "dataset.json").is_file()


def read(root: Path, options: ReadOptions) -> Dataset:
    """Read and check the tables of an `sbm-tables` folder.

    Raises UserError: a file is missing or unreadable; a table lacks a column, repeats an image or names an unknown one;
    session or run is not a number; responses do not have a row per trial and a column per voxel; an image is not on disk.
    """
    head = read_json(root / "dataset.json")
    _check_head(root / "dataset.json", head)
    space = str(head["space"])
    options.refuse(root, NAME, space=(space,), betas=(), mask=())
    images_file = root / "images.csv"
    table = read_table(images_file, ("image_id", "file"))
    ids = unique_ids(images_file, table["image_id"])
    index = {image_id: row for row, image_id in enumerate(ids)}
    folders = sorted(p for p in root.iterdir() if p.is_dir() and (p / "trials.csv").exists())
    if not folders:
        raise UserError(
            f"{root}: no subject found; expected folders such as subj01 with trials.csv, voxels.csv, responses.npy"
        )
    subjects = tuple(_read_subject(folder, index, space) for folder in folders)
    labels = {
        name.removeprefix(LABEL_PREFIX): floats(images_file, name, cells)
        for name, cells in table.items()
        if name.startswith(LABEL_PREFIX)
    }
    concepts = tuple(str(c) for c in head.get("concepts", labels))
    unlabelled = [c for c in concepts if labels and c not in labels]
    if unlabelled:
        raise UserError(
            f"{images_file}: dataset.json names the concept {unlabelled[0]!r}, but there is no column "
            f"label:{unlabelled[0]}"
        )
    images = Images(
        ids=ids,
        sources=_image_files(root, images_file, table["file"]),
        captions=tuple(table.get("caption", [""] * len(ids))),
        labels=labels,
        shared=_shared(images_file, table.get("shared"), subjects, len(ids)),
    )
    picked = tuple(options.pick(root, {subject.name: subject for subject in subjects}))
    files = (root / "dataset.json", images_file)
    return Dataset(root, str(head["name"]), NAME, space, concepts, images, picked, files)


def _check_head(path: Path, head: dict) -> None:
    if head.get("format") != NAME:
        raise UserError(f'{path}: expected "format": "{NAME}", found {head.get("format")!r}')
    if head.get("version") != VERSION:
        raise UserError(
            f'{path}: expected "version": {VERSION}, found {head.get("version")!r}; use a version that reads it'
        )
    for key in ("name", "space"):
        if not isinstance(head.get(key), str):
            raise UserError(f"{path}: expected the key {key!r} with a text, found {head.get(key)!r}")
    if not isinstance(head.get("concepts", []), list):
        raise UserError(f"{path}: expected a list under 'concepts', found {head['concepts']!r}")


def _image_files(root: Path, path: Path, cells: list[str]) -> tuple[Path, ...]:
    """Paths of the images; one listing per folder instead of one look-up per image."""
    listings: dict[Path, set[str]] = {}
    files = []
    for row, cell in enumerate(cells, start=1):
        relative = PurePosixPath(cell)
        if not cell or relative.is_absolute() or ".." in relative.parts:
            raise UserError(f"{path}, row {row}: column 'file' needs a path inside {root}, found {cell!r}")
        file = root / relative
        if file.parent not in listings:
            listings[file.parent] = {p.name for p in file.parent.iterdir()} if file.parent.is_dir() else set()
        if file.name not in listings[file.parent]:
            raise UserError(f"{path}, row {row}: the image file {file} does not exist")
        files.append(file)
    return tuple(files)


def _shared(path: Path, cells: list[str] | None, subjects: tuple[Subject, ...], n_images: int) -> np.ndarray:
    """The `shared` column, or else: seen by every subject."""
    if cells is not None:
        flags = integers(path, "shared", cells, 0)
        if flags.max(initial=0) > 1:
            raise UserError(
                f"{path}, row {int(np.argmax(flags > 1)) + 1}: column 'shared' needs 0 or 1, found {flags.max()}"
            )
        return flags == 1
    count = np.zeros(n_images, dtype=np.int64)
    for subject in subjects:
        count[subject.seen()] += 1
    return count == len(subjects)


def _read_subject(folder: Path, index: dict[str, int], space: str) -> Subject:
    trials_file, voxels_file = folder / "trials.csv", folder / "voxels.csv"
    trials = read_table(trials_file, ("image_id", "session", "run"))
    rows = [index.get(image_id, -1) for image_id in trials["image_id"]]
    if -1 in rows:
        row = rows.index(-1)
        raise UserError(
            f"{trials_file}, row {row + 1}: image_id {trials['image_id'][row]!r} is not in images.csv; add "
            "it there or remove the trial"
        )
    voxels = read_table(voxels_file, ("hemi", "vertex") if space in TEMPLATE_VERTICES else ())
    n_voxels = len(next(iter(voxels.values()), []))
    trial_image = np.array(rows, dtype=np.int64)
    return Subject(
        name=folder.name,
        responses=NpyResponses(folder / "responses.npy", len(rows), n_voxels),
        trial_image=trial_image,
        session=integers(trials_file, "session", trials["session"], 1),
        run=integers(trials_file, "run", trials["run"], 1),
        space=_space(voxels_file, voxels, n_voxels, space),
        rois=masks_from_names({name: cells for name, cells in voxels.items() if name not in _NOT_ATLASES}),
        ncsnr=floats(voxels_file, "ncsnr", voxels["ncsnr"]) if "ncsnr" in voxels else None,
        tables=(trials_file, voxels_file),
        prf=prf.from_table(voxels_file, voxels),
    )


def _space(path: Path, voxels: dict[str, list[str]], n_voxels: int, space: str) -> Space:
    """Hemisphere and vertex of every column, checked against the surface if the space is one."""
    if "hemi" not in voxels or "vertex" not in voxels:
        return UnplacedSpace(space, n_voxels)
    hemi = np.array(voxels["hemi"], dtype=str)
    wrong = np.flatnonzero((hemi != "L") & (hemi != "R"))
    if len(wrong):
        raise UserError(f"{path}, row {wrong[0] + 1}: column 'hemi' needs L or R, found {str(hemi[wrong[0]])!r}")
    vertex = integers(path, "vertex", voxels["vertex"], 0)
    limit = TEMPLATE_VERTICES.get(space)
    if limit is not None and n_voxels and vertex.max() >= limit:
        row = int(np.argmax(vertex >= limit))
        raise UserError(
            f"{path}, row {row + 1}: {space} has the vertices 0 to {limit - 1} per hemisphere, found {vertex[row]}"
        )
    place = vertex * 2 + (hemi == "R")
    order = np.argsort(place, kind="stable")
    twice = np.flatnonzero(place[order][1:] == place[order][:-1])
    if len(twice):
        first, second = order[twice[0]], order[twice[0] + 1]
        raise UserError(
            f"{path}: rows {first + 1} and {second + 1} are both vertex {vertex[first]} of hemisphere "
            f"{hemi[first]}; list it once"
        )
    widest = limit or int(vertex.max(initial=-1)) + 1
    return SurfaceSpace(space, (widest, widest), hemi, vertex)
