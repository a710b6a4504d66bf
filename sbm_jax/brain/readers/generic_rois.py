"""ROIs from the `rois` folder of a subject, for responses in volumes, on surfaces and in CIFTI files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sbm_jax.brain.readers.generic_masks import named_rois, surface_labels, volume_rois, without_suffix
from sbm_jax.brain.spaces import CiftiSpace, Space, SurfaceSpace, VolumeSpace
from sbm_jax.errors import UserError

_HEMI = re.compile(r"^(?P<fs>[lr])h\.|(?:^|_)hemi-(?P<bids>[LR])(?=_|$)")


def read_rois(folder: Path, space: Space) -> tuple[dict[str, np.ndarray], list[Path]]:
    """ROIs over the columns of a space, and the files read; nothing if there is no such folder.

    Volumes: NAME.nii[.gz] with NAME.ctab or NAME.tsv. Surfaces: hemi-L_NAME.label.gii or lh.NAME.label.gii and the right
    one. CIFTI: NAME.dlabel.nii. Raises UserError for a file that is damaged or of another grid or surface.
    """
    if not folder.is_dir():
        return {}, []
    match space:
        case VolumeSpace():
            return volume_rois(folder, space.shape, space.index)
        case SurfaceSpace():
            return _surface_rois(folder, space)
        case CiftiSpace():
            return _cifti_rois(folder, space)
    return {}, []


def _surface_rois(folder: Path, space: SurfaceSpace) -> tuple[dict[str, np.ndarray], list[Path]]:
    atlases: dict[str, tuple[np.ndarray, dict[int, str]]] = {}
    files = sorted(folder.glob("*.label.gii"))
    for path in files:
        stem = without_suffix(path)
        found = _HEMI.search(stem)
        if found is None:
            raise UserError(f"{path}: the name has to say the hemisphere: hemi-L_NAME.label.gii or lh.NAME.label.gii")
        left = (found["fs"] or found["bids"]).lower() == "l"
        atlas = _HEMI.sub("", stem).strip("_")
        labels, names = surface_labels(path, space.n_vertices[0 if left else 1])
        label_v, all_names = atlases.setdefault(atlas, (np.zeros(space.n_columns, np.int64), {}))
        for number, name in names.items():
            if all_names.setdefault(number, name) != name:
                raise UserError(
                    f"{path}: label {number} is {name!r} here and {all_names[number]!r} in the other hemisphere"
                )
        here = space.hemi == ("L" if left else "R")
        label_v[here] = labels[space.vertex[here]]
    rois: dict[str, np.ndarray] = {}
    for atlas, (label_v, names) in atlases.items():
        rois |= named_rois(atlas, label_v, names)
    return rois, files


def _cifti_rois(folder: Path, space: CiftiSpace) -> tuple[dict[str, np.ndarray], list[Path]]:
    import nibabel

    rois: dict[str, np.ndarray] = {}
    files = sorted(folder.glob("*.dlabel.nii"))
    for path in files:
        try:
            image = nibabel.load(path)
            maps, grayordinates = (image.header.get_axis(axis) for axis in (0, 1))  # pyright: ignore
            labels = np.asanyarray(image.dataobj).astype(np.int64)  # pyright: ignore
        except Exception as error:  # nibabel lets errors of expat, zlib and struct through
            raise UserError(f"{path}: not a readable CIFTI label file ({error})") from error
        if grayordinates != space.axis:
            raise UserError(
                f"{path}: its {len(grayordinates):,} grayordinates are not the {len(space.axis):,} of the responses"  # pyright: ignore
            )
        name = path.name.removesuffix(".dlabel.nii")
        for row in range(len(labels)):
            atlas = name if len(labels) == 1 else f"{name}-{maps.name[row]}"
            names = {number: text for number, (text, _) in maps.label[row].items() if number > 0}
            rois |= named_rois(atlas, labels[row][space.index], names)
    return rois, files
