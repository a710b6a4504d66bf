"""Volumes and label files that choose or name the columns: masks, ROI volumes, surface labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sbm_jax.brain.readers.generic_tables import read_columns
from sbm_jax.brain.rois import masks_from_numbers, read_colour_table
from sbm_jax.brain.sessions import TrialFile
from sbm_jax.brain.tables import integers
from sbm_jax.errors import UserError

NIFTI_SUFFIXES = (".nii.gz", ".nii")


def without_suffix(path: Path) -> str:
    """The file name without .nii.gz, .nii, .label.gii, .func.gii or another suffix."""
    for suffix in (*NIFTI_SUFFIXES, ".label.gii", ".func.gii"):
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def read_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A NIfTI volume [X, Y, Z] in the numbers that it means, and its affine [4, 4].

    Raises UserError if it cannot be read or is not of three dimensions.
    """
    import nibabel

    try:
        image = nibabel.load(path)
        volume = np.asanyarray(image.dataobj)  # pyright: ignore[reportAttributeAccessIssue]
        affine = np.asarray(image.affine, dtype=np.float64)  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # nibabel lets errors of gzip, zlib and struct through
        raise UserError(f"{path}: not a readable NIfTI volume ({error})") from error
    if volume.ndim == 4 and volume.shape[3] == 1:
        volume = volume[..., 0]
    if volume.ndim != 3:
        raise UserError(f"{path}: expected a volume of three dimensions, found the shape {volume.shape}")
    return volume, affine


def flat_volume(path: Path, shape: tuple[int, int, int], what: str) -> np.ndarray:
    """A NIfTI volume as [X * Y * Z] in the order x + X * (y + Y * z). Raises UserError if its shape is not `shape`."""
    volume, _ = read_volume(path)
    if volume.shape != shape:
        raise UserError(
            f"{path}: {what} has the shape {volume.shape}, but the responses lie in {shape}; use one of that grid"
        )
    return volume.ravel(order="F")


def flat_mask(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Places (int64, ascending) where a NIfTI mask is above zero. Raises UserError for another shape or an empty mask."""
    places = np.flatnonzero(np.nan_to_num(flat_volume(path, shape, "this mask")) > 0)
    if len(places) == 0:
        raise UserError(f"{path}: the mask is empty; expected voxels above 0")
    return places


def occupied_places(files: Sequence[TrialFile]) -> np.ndarray:
    """Places (int64, ascending) that carry numbers: not NaN, and for floats not 0, in the first trial of any of the files.

    Exactly 0 is a usual value of rounded integers, so these keep all their places.
    """
    occupied = np.zeros(files[0].n_places, dtype=bool)
    for file in files:
        first = next(iter(file.iter_rows(np.zeros(1, np.int64), np.arange(file.n_places), 1)))[0]
        occupied |= (first != 0) & ~np.isnan(first) if first.dtype.kind == "f" else True
    return np.flatnonzero(occupied)


def label_names(path: Path) -> dict[int, str]:
    """Names of the labels of `NAME.nii.gz`: beside it NAME.ctab, NAME.nii.gz.ctab, NAME.mgz.ctab or NAME.tsv (index, name)."""
    base = without_suffix(path)
    for name in (f"{base}.ctab", f"{path.name}.ctab", f"{base}.mgz.ctab"):
        if (path.parent / name).is_file():
            return read_colour_table(path.parent / name)
    table = path.parent / f"{base}.tsv"
    if not table.is_file():
        return {}
    columns = read_columns(table, ("index", "name"))
    numbers = integers(table, "index", columns["index"], 0)
    return {int(number): name for number, name in zip(numbers, columns["name"], strict=True) if number > 0}


def volume_rois(
    folder: Path, shape: tuple[int, int, int], places: np.ndarray
) -> tuple[dict[str, np.ndarray], list[Path]]:
    """ROIs of the NIfTI files of a folder over the columns at `places`, and the files read.

    A volume of 0 and 1 without names is one ROI, called like its file. Raises UserError for another grid.
    """
    rois: dict[str, np.ndarray] = {}
    files = sorted(
        path for path in folder.iterdir() if path.name.endswith(NIFTI_SUFFIXES) and ".dlabel." not in path.name
    )
    for path in files:
        labels = np.nan_to_num(flat_volume(path, shape, "this ROI volume"))[places]
        rois |= named_rois(without_suffix(path), labels, label_names(path))
    return rois, files


def named_rois(atlas: str, labels: np.ndarray, names: dict[int, str]) -> dict[str, np.ndarray]:
    """`masks_from_numbers`, but one mask alone where the labels are 0 and 1 without a name."""
    if not names and labels.max(initial=0) <= 1:
        return {atlas: labels > 0}
    return masks_from_numbers(atlas, labels, names)


def surface_labels(path: Path, n_vertices: int) -> tuple[np.ndarray, dict[int, str]]:
    """Label numbers int64 [V] of a .label.gii and their names. Raises UserError if damaged or of another surface."""
    import nibabel

    try:
        image = nibabel.load(path)
        labels = np.asarray(image.agg_data()).astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]
        names = image.labeltable.get_labels_as_dict()  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # nibabel lets errors of expat, zlib and base64 through
        raise UserError(f"{path}: not a readable GIFTI label file ({error})") from error
    if labels.shape != (n_vertices,):
        raise UserError(f"{path}: expected {n_vertices:,} vertices as in the responses, found the shape {labels.shape}")
    return labels, {int(number): name for number, name in names.items() if number > 0}
