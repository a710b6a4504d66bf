"""NSD's maps (one number per place): ROIs with their names, brain masks, shipped noise-ceiling SNR, valid voxels."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sbm_jax.brain.dataset import Dropped
from sbm_jax.brain.prf import Prf, from_polar
from sbm_jax.brain.rois import masks_from_numbers, read_colour_table
from sbm_jax.errors import UserError

HEMIS = ("lh", "rh")
Shape = tuple[int, int, int] | tuple[int, int]  # X, Y, Z of a volume, or vertices of the left and the right surface


@dataclass(frozen=True)
class Places:
    """Where a subject's maps lie, and how many places there are.

    shape: (X, Y, Z), or vertices left and right. source: the file that gave it. betas: folder of the beta files.
    func: folder of the subject's volumes, None on surfaces. rois, names: folders of ROI maps and of their colour tables.
    files: the maps that were read.
    """

    shape: Shape
    source: Path
    betas: Path
    func: Path | None
    rois: Path | None
    names: Path | None
    files: list[Path] = field(default_factory=list)

    @property
    def volume(self) -> bool:
        return len(self.shape) == 3

    @property
    def count(self) -> int:
        return int(np.prod(self.shape)) if self.volume else int(np.sum(self.shape))

    def read(self, folder: Path, name: str) -> np.ndarray:
        """A map at all places, [places]; the left surface comes before the right. UserError as `read_map`, or another size."""
        if self.volume:
            return self._sized(folder / f"{name}.nii.gz", tuple(self.shape))
        suffix = "mgh" if (folder / f"lh.{name}.mgh").is_file() else "mgz"
        files = [folder / f"{hemi}.{name}.{suffix}" for hemi in HEMIS]
        return np.concatenate([self._sized(f, (n,)) for f, n in zip(files, self.shape, strict=True)])

    def has(self, folder: Path | None, name: str) -> bool:
        """Whether there is a map of that name for these places (on surfaces: of either hemisphere)."""
        if folder is None:
            return False
        sided = [f"{hemi}.{name}.{suffix}" for hemi in HEMIS for suffix in ("mgh", "mgz")]
        files = [f"{name}.nii.gz"] if self.volume else sided
        return any((folder / file).is_file() for file in files)

    def _sized(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        values, found = read_map(path)
        self.files.append(path)
        if found != shape:
            expected, there = ("x".join(map(str, s)) for s in (shape, found))
            what = "voxels" if self.volume else "vertices"
            raise UserError(
                f"{path}: expected {expected} {what} as in {self.source}, found {there}; a map and the betas must be of "
                "one subject and one space"
            )
        return values


@dataclass
class Atlases:
    """ROI maps of a subject: label numbers int16 [places] and the names of the numbers by atlas, and what was not used."""

    labels: dict[str, np.ndarray] = field(default_factory=dict)
    names: dict[str, dict[int, str]] = field(default_factory=dict)
    tables: tuple[Path, ...] = ()
    dropped: tuple[Dropped, ...] = ()

    def masks(self, columns: np.ndarray) -> dict[str, np.ndarray]:
        """bool [columns] by "ATLAS" and "ATLAS/LABEL" at some places (int64)."""
        rois: dict[str, np.ndarray] = {}
        for atlas, label_p in self.labels.items():
            rois |= masks_from_numbers(atlas, label_p[columns], self.names[atlas])
        return rois

    def mask(self, roi: str) -> np.ndarray | None:
        """bool [places] of one ROI, None if there is none of that name."""
        atlas = roi.split("/")[0]
        if atlas not in self.labels:
            return None
        return masks_from_numbers(atlas, self.labels[atlas], self.names[atlas]).get(roi)


def read_map(path: Path) -> tuple[np.ndarray, tuple[int, ...]]:
    """Numbers [places] of a .nii(.gz), .mgh or .mgz, and the shape without axes of length 1 at its end.

    Volumes are flattened with x running fastest. Raises UserError for a file that is missing, damaged or cut short.
    """
    import nibabel  # heavy
    from nibabel.filebasedimages import ImageFileError
    from nibabel.openers import ImageOpener
    from nibabel.spatialimages import HeaderDataError

    if not path.is_file():
        raise UserError(f"{path}: file not found; expected a map in the space of the betas")
    try:
        if path.suffix in (".mgh", ".mgz"):
            # read here: nibabel.load leaves the file of such a header open
            with ImageOpener(str(path)) as handle:
                image = nibabel.MGHImage.from_bytes(handle.read())
        else:
            image = nibabel.load(path)
        values = np.asarray(image.dataobj)  # pyright: ignore[reportAttributeAccessIssue]
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: not a readable image, or cut short ({error}); copy or download it again") from None
    shape = values.shape
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:  # a volume of one slice
        shape = (*shape, 1)
    return values.ravel(order="F"), shape


def read_atlases(places: Places) -> Atlases:
    """All ROI maps there are for these places, with names out of NAME.mgz.ctab where that is there.

    -1 (not cortex, or the other hemisphere) and 0 (cortex without label) are no label. Of volumes the file for both
    hemispheres is read, or lh. and rh. where there is none. Maps of other than whole numbers are no ROIs and are dropped.
    Raises UserError for a damaged map, one of another size, or one hemisphere without the other.
    """
    if places.rois is None or not places.rois.is_dir():
        return Atlases()
    atlases, maps, tables = Atlases(), [], []
    for name in _names(places.rois, places.volume):
        label_p = _labels(places, places.rois, name)
        if not np.array_equal(label_p, np.rint(label_p)) or (len(label_p) and label_p.max() > 10_000):
            maps.append(name)
            continue
        table = places.names / f"{name}.mgz.ctab" if places.names is not None else None
        named = table is not None and table.is_file()
        tables += [table] if named else []
        atlases.names[name] = read_colour_table(table) if table is not None and named else {}
        atlases.labels[name] = label_p.astype(np.int16)
    if maps:
        shown = ", ".join(maps[:5]) + (", ..." if len(maps) > 5 else "")
        atlases.dropped = (Dropped("label files", len(maps), f"not whole numbers, so no ROIs ({shown})"),)
    atlases.tables = tuple(tables)
    return atlases


def read_prf(places: Places, columns: np.ndarray) -> Prf | None:
    """Population receptive fields of some places out of NSD's prf_angle, prf_eccentricity and prf_size maps; None without them.

    Volumes have them in the subject's folder, native surfaces as [lh,rh].prfangle.mgz among the labels. Angles are Cartesian
    (0 right, 90 up), missing at eccentricity 0 (NSD data manual, pRF experiment). Raises UserError as `Places.read`.
    """
    folder, prefix = (places.func, "prf_") if places.volume else (places.rois, "prf")
    names = [prefix + part for part in ("angle", "eccentricity", "size")]
    if folder is None or not all(places.has(folder, name) for name in names):
        return None
    return from_polar(*(places.read(folder, name)[columns].astype(np.float64) for name in names))


def brain_mask(places: Places) -> np.ndarray:
    """bool [places] of the voxels with data: brainmask, else those of any valid_session, else of a non-zero ncsnr.

    Raises UserError when none of these is there.
    """
    if places.func is not None and places.has(places.func, "brainmask"):
        return places.read(places.func, "brainmask") > 0
    valid = valid_sessions(places)
    if valid:
        return np.logical_or.reduce([places.read(folder, name) > 0 for folder, name in valid.values()])
    if places.has(places.betas, "ncsnr"):
        ncsnr = places.read(places.betas, "ncsnr")
        return np.isfinite(ncsnr) & (ncsnr != 0)
    raise UserError(
        f"{places.func or places.betas}: data.mask is brain, but neither brainmask.nii.gz nor valid_session*.nii.gz nor "
        "ncsnr.nii.gz says where the brain is; copy one there, or set data.mask to an ROI"
    )


def valid_sessions(places: Places) -> dict[int, tuple[Path, str]]:
    """Folder and name of the valid_sessionBB maps of volumes by session, beside the betas or in the subject's folder."""
    found: dict[int, tuple[Path, str]] = {}
    for folder in (places.func, places.betas.parent, places.betas):
        for file in sorted(folder.glob("valid_session[0-9][0-9].nii.gz")) if folder is not None else ():
            found[int(file.name[13:15])] = (file.parent, file.name.removesuffix(".nii.gz"))
    return found if places.volume else {}


def _names(folder: Path, volume: bool) -> list[str]:
    return sorted({stem for file in folder.iterdir() if (stem := _stem(file, volume))})


def _stem(file: Path, volume: bool) -> str:
    """NAME of [lh.|rh.]NAME.nii.gz or {lh,rh}.NAME.mgz; "" for any other file."""
    suffix = ".nii.gz" if volume else ".mgz"
    stem = file.name.removesuffix(suffix)
    sided = stem[:3] in ("lh.", "rh.")
    if stem == file.name or file.name.startswith(".") or not (volume or sided):
        return ""
    return stem[3:] if sided else stem


def _labels(places: Places, folder: Path, name: str) -> np.ndarray:
    if not places.volume or places.has(folder, name):
        return places.read(folder, name)
    left, right = (places.read(folder, f"{hemi}.{name}") for hemi in HEMIS)
    return np.maximum(left, right)  # each is -1 in the other hemisphere
