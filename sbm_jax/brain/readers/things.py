"""THINGS-fMRI: single-trial responses as tables (`betas_csv`) or as volumes per run (`betas_vol`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sbm_jax.brain.dataset import Dataset, Dropped, Images, Subject
from sbm_jax.brain.readers import things_volumes
from sbm_jax.brain.readers.generic_masks import flat_mask, read_volume
from sbm_jax.brain.readers.generic_stimuli import PictureFolder, shared_by_list, stimuli_folder
from sbm_jax.brain.readers.generic_voxelmajor import VoxelFile, VoxelMajorResponses
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.readers.things_responses import CsvFrame, Hdf5Frame
from sbm_jax.brain.readers.things_voxels import VoxelTable, read_voxel_table
from sbm_jax.brain.spaces import Space, UnplacedSpace, VolumeSpace
from sbm_jax.brain.tables import integers, read_table
from sbm_jax.errors import UserError

NAME = "things"
LAYOUT = (
    "THINGS-fMRI: betas_csv/ with sub-0X_ResponseData.h5, sub-0X_StimulusMetadata.csv and sub-0X_VoxelMetadata.csv, or "
    "betas_vol/ with sub-0X/ses-thingsNN/*_betas.nii.gz and *_conditions.tsv"
)
_TABLE = "_StimulusMetadata.csv"
USUAL_STIMULI = ("stimuli", "images", "object_images", "_images")


def recognise(root: Path) -> bool:
    """True for a folder with `betas_csv` or `betas_vol` (or one of these, or one whose derivatives hold them)."""
    return bool(_forms(root))


def read(root: Path, options: ReadOptions) -> Dataset:
    """Read and check the tables of THINGS-fMRI; `data.betas` chooses betas_csv (default) or betas_vol.

    The columns are the voxels of the voxel table; `data.mask` (an ROI column such as IT or prf/V1, or a NIfTI file on the
    grid of the brain mask) chooses among them. Shared images are those of the test trials.

    Raises UserError: a file is missing or damaged; the tables and the responses differ in size or in their voxels; an
    image is in both training and test trials; a picture is missing; a voxel lies outside the brain mask.
    """
    forms = _forms(root)
    options.refuse(root, NAME, space=("T1w",))
    form = options.choose(root, "betas", tuple(forms))
    if not forms:
        raise UserError(f"{root}: expected {LAYOUT}")
    if form == "betas_vol":
        return things_volumes.read(root, forms[form], options, USUAL_STIMULI)
    folder = forms[form]
    names = [path.name.removesuffix(_TABLE) for path in sorted(folder.glob(f"sub-*{_TABLE}"))]
    loaded = [_read_tables(folder, name) for name in options.pick(root, {name: name for name in names})]
    images = _images(root, folder, options, [tables for tables, _ in loaded])
    index = {image_id: row for row, image_id in enumerate(images.ids)}
    subjects = tuple(_subject(folder, tables, dropped, index, options) for tables, dropped in loaded)
    notes = [
        "shared images: " + (f"those listed in {options.shared}" if options.shared else "those of the test trials"),
        "noise ceiling: nc_testset, of the average of all repeats of a test image (nc_singletrial is left unread)",
    ]
    for subject in subjects:
        if isinstance(subject.space, UnplacedSpace):
            notes.append(
                f"{subject.name}: no brain mask {_mask_name(subject.name)} in brainmasks/, so shape and affine of the "
                "volume are unknown and results cannot be written as volumes; the voxel table keeps voxel_x, y, z"
            )
    return Dataset(root, "THINGS-fMRI", NAME, subjects[0].space.name, (), images, subjects, notes=tuple(notes))


class _Tables:
    """The two tables of a subject and the trials that are used."""

    def __init__(self, folder: Path, name: str):
        self.name, self.path = name, folder / f"{name}{_TABLE}"
        self.columns = read_table(self.path, ("trial_type", "session", "run", "stimulus"))
        self.voxels = read_voxel_table(folder / f"{name}_VoxelMetadata.csv")
        self.trial_type = np.array(self.columns["trial_type"], dtype=str)
        self.rows = np.flatnonzero(self.trial_type != "catch")
        unknown = sorted(set(self.trial_type) - {"train", "test", "catch"})
        if unknown:
            raise UserError(f"{self.path}: column 'trial_type' holds train, test or catch, found {str(unknown[0])!r}")
        if not len(self.rows):
            raise UserError(f"{self.path}: no trials of type train or test")
        self.stimulus = [self.columns["stimulus"][row] for row in self.rows]

    def files(self) -> tuple[Path, ...]:
        return (self.path, self.path.with_name(f"{self.name}_VoxelMetadata.csv"))


def _read_tables(folder: Path, name: str) -> tuple[_Tables, tuple[Dropped, ...]]:
    tables = _Tables(folder, name)
    dropped = []
    if catch := len(tables.trial_type) - len(tables.rows):
        dropped.append(Dropped("trials", catch, "catch trials"))
    if tables.voxels.ignored:
        why = f"neither numbers that are used nor ROI flags of 0 and 1: {', '.join(tables.voxels.ignored)}"
        dropped.append(Dropped("columns of the voxel table", len(tables.voxels.ignored), why))
    return tables, tuple(dropped)


def _images(root: Path, folder: Path, options: ReadOptions, subjects: list[_Tables]) -> Images:
    kinds: dict[str, str] = {}
    concepts: dict[str, str] = {}
    for tables in subjects:
        concept = tables.columns.get("concept", [""] * len(tables.trial_type))
        for row, stimulus in zip(tables.rows, tables.stimulus, strict=True):
            kind = tables.trial_type[row]
            if kinds.setdefault(stimulus, kind) != kind:
                raise UserError(f"{tables.path}, row {row + 1}: {stimulus!r} is in a training and in a test trial")
            concepts.setdefault(stimulus, concept[row])
    ids = tuple(sorted(kinds))
    pictures = PictureFolder(stimuli_folder(_home(root, folder), options, USUAL_STIMULI))
    files = pictures.find_all([f"{concepts[i]}/{i}" if concepts[i] else i for i in ids], subjects[0].path)
    shared = np.array([kinds[i] == "test" for i in ids], dtype=bool)
    if options.shared is not None:
        shared = shared_by_list(options.shared, ids)
    return Images(ids, files, tuple(concepts[i].replace("_", " ") for i in ids), {}, shared)


def _subject(
    folder: Path, tables: _Tables, dropped: tuple[Dropped, ...], index: dict[str, int], options: ReadOptions
) -> Subject:
    voxels = tables.voxels
    space = _space(folder, tables)
    rois = voxels.rois()
    columns = _columns(folder, options.mask, rois, space)
    file = _response_file(folder, tables.name, len(tables.trial_type), voxels)
    session = integers(tables.path, "session", tables.columns["session"], 1)
    run = integers(tables.path, "run", tables.columns["run"], 1)
    ceiling = voxels.numbers.get("nc_testset")
    if isinstance(space, VolumeSpace):
        space = VolumeSpace(space.name, space.shape, space.affine, space.index[columns])
    else:
        space = UnplacedSpace(space.name, len(columns))
    return Subject(
        name=tables.name,
        responses=VoxelMajorResponses(((file, tables.rows),), columns),
        trial_image=np.array([index[stimulus] for stimulus in tables.stimulus], dtype=np.int64),
        session=session[tables.rows],
        run=run[tables.rows],
        space=space,
        rois={name: mask[columns] for name, mask in rois.items()},
        noise_ceiling=None if ceiling is None else ceiling[columns] / 100.0,
        tables=tables.files(),
        dropped=dropped,
    )


def _response_file(folder: Path, name: str, n_trials: int, voxels: VoxelTable) -> VoxelFile:
    h5, text = folder / f"{name}_ResponseData.h5", folder / f"{name}_ResponseData.csv"
    if h5.is_file():
        return Hdf5Frame(h5, n_trials, voxels.numbers["voxel_id"])
    if text.is_file():
        return CsvFrame(text, n_trials, len(voxels))
    raise UserError(f"{h5}: file not found; expected the responses as HDF5 (or as {text.name})")


def _space(folder: Path, tables: _Tables) -> Space:
    """Voxels of the volume of the subject's brain mask; unplaced where there is none or the table has no coordinates."""
    numbers = tables.voxels.numbers
    axes = [numbers.get(f"voxel_{axis}") for axis in "xyz"]
    path = next(
        (p for p in (f / "brainmasks" / _mask_name(tables.name) for f in (folder, folder.parent)) if p.is_file()),
        None,
    )
    if path is None or any(axis is None for axis in axes):
        return UnplacedSpace("T1w", len(tables.voxels))
    mask, affine = read_volume(path)
    xyz = np.stack([axis for axis in axes if axis is not None], axis=1)
    ijk = np.nan_to_num(xyz, nan=-1).astype(np.int64)
    inside = ((ijk == xyz) & (ijk >= 0) & (ijk < mask.shape)).all(axis=1)
    inside[inside] = mask[tuple(ijk[inside].T)] > 0
    if not inside.all():
        row = int(np.argmin(inside))
        raise UserError(
            f"{tables.files()[1]}, row {row + 1}: the voxel {xyz[row].tolist()} lies outside the brain mask {path} of shape "
            f"{mask.shape} ({int((~inside).sum()):,} voxels do); take both of the same release"
        )
    x, y, _ = mask.shape
    index = ijk[:, 0] + x * (ijk[:, 1] + y * ijk[:, 2])
    if len(np.unique(index)) < len(index):
        raise UserError(f"{tables.files()[1]}: two rows have the same voxel_x, voxel_y, voxel_z")
    return VolumeSpace("T1w", (int(x), int(y), int(mask.shape[2])), affine, index)


def _columns(folder: Path, mask: str, rois: dict[str, np.ndarray], space: Space) -> np.ndarray:
    """Rows of the voxel table that are used, int64, ascending."""
    if not mask:
        return np.arange(space.n_columns)
    if mask in rois:
        columns = np.flatnonzero(rois[mask])
    elif isinstance(space, VolumeSpace) and mask.endswith((".nii", ".nii.gz")):
        columns = np.flatnonzero(np.isin(space.index, flat_mask(folder / mask, space.shape)))
    else:
        raise UserError(
            f"{folder}: data.mask is {mask!r}; expected an ROI ({', '.join(list(rois)[:8])}, ...) or a NIfTI file"
        )
    if not len(columns):
        raise UserError(f"{folder}: data.mask {mask!r} leaves no voxel")
    return columns


def _mask_name(subject: str) -> str:
    return f"{subject}_space-T1w_brainmask.nii.gz"


def _home(root: Path, folder: Path) -> Path:
    """Where the folder of pictures is looked for: beside the folder of betas, or in it."""
    return folder.parent if folder == root and not any((root / name).is_dir() for name in USUAL_STIMULI) else root


def _forms(root: Path) -> dict[str, Path]:
    """The folders of responses that are there, by form."""
    forms: dict[str, Path] = {}
    for form, pattern in (("betas_csv", f"sub-*{_TABLE}"), ("betas_vol", "sub-*/ses-*/*_conditions.tsv")):
        # the published archive unpacks to betas_csv/betas_csv
        for folder in (root, root / form, root / form / form, root / "derivatives" / form):
            if next(folder.glob(pattern), None) is not None:
                forms[form] = folder
                break
    return forms
