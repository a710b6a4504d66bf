"""Per-voxel results as files in the space of the columns: NIfTI volumes, GIFTI pairs, CIFTI-2 or a table."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.brain.spaces import HEMIS, CiftiSpace, Space, SurfaceSpace, VolumeSpace
from sbm_jax.brain.surfaces import label_colours, write_func_gii, write_label_gii


@dataclass(frozen=True)
class ScalarMap:
    """A number per column. values: [v], NaN where there is none. label: what viewers show."""

    values: np.ndarray
    label: str = ""


@dataclass(frozen=True)
class LabelMap:
    """A named integer per column.

    labels: int [v], 0 where there is none. names: of every other number. colours: red, green, blue in 0..1 by number;
    evenly spaced hues where not given. label: what viewers show.
    """

    labels: np.ndarray
    names: Mapping[int, str]
    colours: Mapping[int, tuple[float, float, float]] = field(default_factory=dict)
    label: str = ""


VoxelMap = ScalarMap | LabelMap


def write_maps(folder: Path, stem: str, space: Space, maps: Mapping[str, VoxelMap]) -> list[Path]:
    """Write every map into `folder`; the same arguments give the same bytes.

    Scores are float32 with NaN outside the columns, labels int32 with 0 there. Names, for a map `held_out` of `subj01`:

    - volume: `subj01_space-func1pt8mm_desc-heldout.nii.gz`; labels `..._dseg.nii.gz` with their names in `..._dseg.tsv`
      (BIDS: index, name, color). One volume per map, since viewers colour each by its own scale.
    - surface: `subj01_space-fsaverage_hemi-L_desc-heldout.func.gii` (labels `.label.gii`) and the same for R. Both are
      written where only one hemisphere has columns; a hemisphere without vertices has no file.
    - CIFTI: `subj01_space-fsLR_desc-heldout.dscalar.nii` (labels `.dlabel.nii`), over all grayordinates of the source.
    - no known place: one table `subj01_space-NAME_maps.tsv`, a row per column in order, `n/a` for missing.

    Raises ValueError: a map is not as long as the space has columns, a label has no name, or two maps get one file name.
    """
    for name, map_ in maps.items():
        if _values(map_).shape != (space.n_columns,):
            raise ValueError(f"map {name!r}: shape {_values(map_).shape} for {space.n_columns} columns of {space.name}")
        if isinstance(map_, LabelMap):
            unknown = set(np.unique(map_.labels).tolist()) - set(map_.names) - {0}
            if unknown or map_.labels.dtype.kind not in "iu":
                raise ValueError(f"map {name!r}: labels must be integers with names; without one: {sorted(unknown)}")
    if len({_plain(name) for name in maps}) < len(maps):
        raise ValueError(f"maps {', '.join(maps)}: two names differ only in what a file name cannot hold")
    base = f"{stem}_space-{_plain(space.name)}"
    if isinstance(space, SurfaceSpace):
        return [
            folder / file for name, map_ in maps.items() for file in _surface(folder, base, space, _plain(name), map_)
        ]
    if isinstance(space, VolumeSpace):
        return [
            path for name, map_ in maps.items() for path in _volume(folder, f"{base}_desc-{_plain(name)}", space, map_)
        ]
    if isinstance(space, CiftiSpace):
        return [_cifti(folder, f"{base}_desc-{_plain(name)}", space, map_) for name, map_ in maps.items()]
    return [_table(folder / f"{base}_maps.tsv", maps)]


def on_places(values_v: np.ndarray, index_v: np.ndarray, n_places: int, *, empty: float) -> np.ndarray:
    """[n_places] with the values at their places and `empty` elsewhere: float32 for floats, int32 for integers."""
    out = np.full(n_places, empty, np.float32 if values_v.dtype.kind == "f" else np.int32)
    out[index_v] = values_v
    return out


def _values(map_: VoxelMap) -> np.ndarray:
    """float32 scores or int32 labels."""
    return np.asarray(map_.labels, np.int32) if isinstance(map_, LabelMap) else np.asarray(map_.values, np.float32)


def _empty(map_: VoxelMap) -> float:
    return 0 if isinstance(map_, LabelMap) else np.nan


def _plain(name: str) -> str:
    """Letters and digits: what BIDS allows in the value of an entity."""
    return re.sub(r"[^A-Za-z0-9]", "", name)


def _surface(folder: Path, base: str, space: SurfaceSpace, name: str, map_: VoxelMap) -> list[str]:
    files = []
    for hemi, n_vertices in zip(HEMIS, space.n_vertices, strict=True):
        if not n_vertices:
            continue
        mine = space.hemi == hemi
        data = on_places(_values(map_)[mine], space.vertex[mine], n_vertices, empty=_empty(map_))
        file = f"{base}_hemi-{hemi}_desc-{name}"
        if isinstance(map_, LabelMap):
            file += ".label.gii"
            write_label_gii(folder / file, data, hemi, dict(map_.names), dict(map_.colours), map_.label or name)
        else:
            file += ".func.gii"
            write_func_gii(folder / file, data, hemi, map_.label or name)
        files.append(file)
    return files


def _volume(folder: Path, base: str, space: VolumeSpace, map_: VoxelMap) -> list[Path]:
    from nibabel.nifti1 import Nifti1Image

    n_places = int(np.prod(space.shape))
    data = on_places(_values(map_), space.index, n_places, empty=_empty(map_)).reshape(space.shape, order="F")
    image = Nifti1Image(data, np.asarray(space.affine, np.float64))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = map_.label.encode("ascii", "replace")[:79]
    labelled = isinstance(map_, LabelMap)
    path = folder / f"{base}{'_dseg' if labelled else ''}.nii.gz"
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
    if not labelled:
        return [path]
    colours = label_colours(sorted({*map_.names, 0}), map_.colours)
    rows = [
        (key, map_.names[key], "#" + "".join(f"{round(255 * part):02x}" for part in colours[key]))
        for key in sorted(map_.names)
    ]
    return [path, _write_tsv(folder / f"{base}_dseg.tsv", ("index", "name", "color"), rows)]


def _cifti(folder: Path, base: str, space: CiftiSpace, map_: VoxelMap) -> Path:
    from nibabel.cifti2 import cifti2, cifti2_axes

    brain: Any = space.axis
    data = on_places(_values(map_), space.index, len(brain), empty=_empty(map_))[None]
    label = map_.label or base
    if isinstance(map_, LabelMap):
        colours = label_colours(sorted({*map_.names, 0}), map_.colours)
        table = {key: (map_.names.get(key, "???"), (*colours[key], float(key != 0))) for key in sorted(colours)}
        axis: Any = cifti2_axes.LabelAxis([label], [table])
        kind, intent = "dlabel", "ConnDenseLabel"
    else:
        axis = cifti2_axes.ScalarAxis([label])
        kind, intent = "dscalar", "ConnDenseScalar"
    image: Any = cifti2.Cifti2Image(data, header=cifti2.Cifti2Header.from_axes((axis, brain)))
    image.nifti_header.set_intent(intent)
    path = folder / f"{base}.{kind}.nii"
    path.write_bytes(image.to_bytes())
    return path


def _table(path: Path, maps: Mapping[str, VoxelMap]) -> Path:
    columns = [
        [map_.names.get(int(key), "n/a") for key in map_.labels]
        if isinstance(map_, LabelMap)
        else [f"{x:.9g}" if np.isfinite(x) else "n/a" for x in _values(map_).tolist()]
        for map_ in maps.values()
    ]
    return _write_tsv(path, tuple(maps), zip(*columns, strict=True))


def _write_tsv(path: Path, header: tuple[str, ...], rows: Any) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return path
