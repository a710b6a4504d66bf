"""The fsaverage5 cortical surface that nilearn ships, and GIFTI files of data on it.

Only files inside the installed nilearn package are read; nothing is ever downloaded.
"""

import colorsys
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from sbm_jax.brain.spaces import HEMIS, TEMPLATE_VERTICES
from sbm_jax.errors import UserError

N_VERTICES = TEMPLATE_VERTICES["fsaverage5"]  # per hemisphere, an icosahedron subdivided five times
KINDS = ("white", "pial", "inflated", "sphere", "flat")
_STRUCTURE = {"L": "CortexLeft", "R": "CortexRight"}
_SIDE = {"L": "left", "R": "right"}
_FILE_OF_KIND = {"white": "white", "pial": "pial", "inflated": "infl", "sphere": "sphere", "flat": "flat"}


@dataclass(frozen=True)
class Surface:
    """One hemisphere of fsaverage5, 10,242 vertices.

    Attributes:
        hemi: "L" or "R".
        white, pial: float32 [v, 3], millimetres in MNI305 (fsaverage) coordinates, x right, y front, z up.
        inflated, sphere: float32 [v, 3], same vertices, for display and for spherical geometry (radius 100).
        flat: float32 [v, 3], cut and flattened cortex (z is close to 0); meaningful only for vertices of
            flat_faces.
        faces: int32 [f, 3] for all closed surfaces; flat_faces: int32 [g, 3] for the flat map (cuts left
            out).
        sulc: float32 [v], sulcal depth, positive inside sulci; curv: float32 [v], mean curvature, same sign.
    """

    hemi: str
    white: np.ndarray
    pial: np.ndarray
    inflated: np.ndarray
    sphere: np.ndarray
    flat: np.ndarray
    faces: np.ndarray
    flat_faces: np.ndarray
    sulc: np.ndarray
    curv: np.ndarray

    def coords(self, kind: str) -> np.ndarray:
        """Vertex coordinates [v, 3] of one of KINDS."""
        if kind not in KINDS:
            raise ValueError(f"surface kind must be one of {', '.join(KINDS)}, not {kind!r}")
        return getattr(self, kind)

    def faces_of(self, kind: str) -> np.ndarray:
        """Triangles [f, 3] that go with `coords(kind)`."""
        return self.flat_faces if kind == "flat" else self.faces


def fsaverage_folder() -> Path:
    """Folder of fsaverage5 inside the installed nilearn. Raises UserError when it is not there.

    nilearn itself is not imported: that takes seconds, reading the files takes milliseconds.
    """
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The fsaverage5 surface comes with the Python package nilearn, which is not installed. "
            "Install it with: pip install 'nilearn>=0.12'"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data" / "fsaverage5"
    if not folder.is_dir():
        raise UserError(
            f"The installed nilearn has no folder {folder} with the fsaverage5 surface. "
            "Install a version that ships it: pip install 'nilearn>=0.12'"
        )
    return folder


@lru_cache(maxsize=2)
def load_surface(hemi: str) -> Surface:
    """fsaverage5 for one hemisphere ("L" or "R"); read once per process, arrays are read-only."""
    if hemi not in HEMIS:
        raise ValueError(f"hemi must be 'L' or 'R', not {hemi!r}")
    folder = fsaverage_folder()
    coords = {}
    faces = {}
    for kind, stem in _FILE_OF_KIND.items():
        coords[kind], faces[kind] = _read_mesh(folder / f"{stem}_{_SIDE[hemi]}.gii.gz")
    sulc = _read_gifti(folder / f"sulc_{_SIDE[hemi]}.gii.gz")[0]
    curv = _read_gifti(folder / f"curv_{_SIDE[hemi]}.gii.gz")[0]
    surface = Surface(hemi=hemi, faces=faces["white"], flat_faces=faces["flat"], sulc=sulc, curv=curv, **coords)
    for value in vars(surface).values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    return surface


def load_fsaverage5() -> tuple[Surface, Surface]:
    """Left and right hemisphere of fsaverage5."""
    return load_surface("L"), load_surface("R")


def _read_gifti(path: Path) -> list[np.ndarray]:
    from nibabel.gifti.gifti import GiftiImage  # third of a second: only where a surface is really read

    if not path.is_file():
        raise UserError(
            f"The installed nilearn lacks {path.name} in {path.parent}. "
            "Install a version that ships it: pip install 'nilearn>=0.12'"
        )
    return [np.array(array.data) for array in GiftiImage.from_filename(path).darrays]


def _read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    coords, faces = _read_gifti(path)
    if coords.shape != (N_VERTICES, 3):
        raise UserError(f"{path}: expected {N_VERTICES} x 3 coordinates of fsaverage5, found {coords.shape}")
    return coords.astype(np.float32), faces.astype(np.int32)


def write_func_gii(path: Path, data_v: np.ndarray, hemi: str, names: str | list[str]) -> None:
    """Write one or several maps of one hemisphere as GIFTI (`.func.gii`), float32.

    nilearn, FreeSurfer's Freeview and Connectome Workbench open such files. The bytes depend on the arguments
    alone. NaN is kept and means no value.

    Args:
        path: where; the name should end in `.func.gii`, by which Workbench knows the kind of file.
        data_v: [v] or [v, maps], numbers.
        hemi: "L" or "R"; written as AnatomicalStructurePrimary.
        names: the name of the map, or one per column of data_v.
    """
    from nibabel.gifti import gifti

    names = [names] if isinstance(names, str) else list(names)
    columns = np.asarray(data_v, dtype=np.float32)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2 or columns.shape[1] != len(names):
        raise ValueError(f"{len(names)} map names for data of shape {np.shape(data_v)}")
    arrays = [
        gifti.GiftiDataArray(
            np.ascontiguousarray(columns[:, j]),
            intent="NIFTI_INTENT_NONE",  # what Workbench writes for a metric; FreeSurfer reads it as a frame
            datatype="NIFTI_TYPE_FLOAT32",
            meta=gifti.GiftiMetaData({"Name": name}),
        )
        for j, name in enumerate(names)
    ]
    _save(gifti.GiftiImage(darrays=arrays, meta=_meta(hemi)), path)


def write_label_gii(
    path: Path,
    labels_v: np.ndarray,
    hemi: str,
    names: dict[int, str],
    colours: dict[int, tuple[float, float, float]] | None = None,
    map_name: str = "labels",
) -> None:
    """Write one map of integer labels as GIFTI (`.label.gii`) with its table of names.

    Args:
        path: where; the name should end in `.label.gii`.
        labels_v: int [v]; 0 means no label.
        hemi: "L" or "R".
        names: name of every key found in labels_v; 0 is added as "???" (Workbench's name for unlabelled).
        colours: red, green, blue in 0..1 by key; evenly spaced hues for keys that are not given.
        map_name: the name of the map.
    """
    from nibabel.gifti import gifti

    labels = np.asarray(labels_v)
    unknown = sorted(set(np.unique(labels).tolist()) - set(names) - {0})
    if unknown:
        raise ValueError(f"labels without a name: {unknown}")
    table = gifti.GiftiLabelTable()
    for key, (red, green, blue) in label_colours(sorted({*names, 0}), colours or {}).items():
        label = gifti.GiftiLabel(key=key, red=red, green=green, blue=blue, alpha=float(key != 0))
        label.label = names.get(key, "???")  # pyright: ignore[reportAttributeAccessIssue]
        table.labels.append(label)
    array = gifti.GiftiDataArray(
        labels.astype(np.int32),
        intent="NIFTI_INTENT_LABEL",
        datatype="NIFTI_TYPE_INT32",
        meta=gifti.GiftiMetaData({"Name": map_name}),
    )
    _save(gifti.GiftiImage(darrays=[array], labeltable=table, meta=_meta(hemi)), path)


def label_colours(
    keys: Sequence[int], given: Mapping[int, tuple[float, float, float]]
) -> dict[int, tuple[float, float, float]]:
    """Red, green, blue in 0..1 for every key: the one given, or the next of evenly spaced hues."""
    hues = {key: colorsys.hsv_to_rgb(position / len(keys), 0.65, 0.9) for position, key in enumerate(keys)}
    return {key: given.get(key, hue) for key, hue in hues.items()}


def _meta(hemi: str):
    if hemi not in HEMIS:
        raise ValueError(f"hemi must be 'L' or 'R', not {hemi!r}")
    from nibabel.gifti import gifti

    return gifti.GiftiMetaData({"AnatomicalStructurePrimary": _STRUCTURE[hemi]})


def _save(image, path: Path) -> None:
    Path(path).write_bytes(image.to_bytes())
