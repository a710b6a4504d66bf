"""Reader of the `sbm-tables` folder: an image table, and per subject responses with trial and voxel tables.

Layout: dataset.json, images.csv, and per subject a folder with responses.npy [trials, voxels], trials.csv and
voxels.csv (docs/formats.md).
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from sbm_jax.brain.tables import floats, integers, read_json, read_table
from sbm_jax.errors import UserError

FORMAT = "sbm-tables"
VERSION = 1
LABEL_PREFIX = "label:"
# voxels.csv columns that hold places or numbers; every other column is an ROI atlas
_NOT_ATLASES = ("hemi", "vertex", "x", "y", "z", "i", "j", "k", "ncsnr")
_VERTICES = {"fsaverage5": 10_242, "fsaverage6": 40_962, "fsaverage": 163_842}
# hand-drawn order of NSD's labels; labels of other studies follow alphabetically
_KNOWN_ORDER = (
    *("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    *("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    *("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    *("OPA", "PPA", "RSC"),
    *("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
)


@dataclass(frozen=True)
class Images:
    """The image table, in the order of images.csv.

    labels: float64 [n] per concept, visible fraction of the picture, NaN where not given. shared: bool [n].
    """

    ids: tuple[str, ...]
    files: tuple[Path, ...]
    captions: tuple[str, ...]
    labels: dict[str, np.ndarray]
    shared: np.ndarray

    def rows(self, ids: list[str] | tuple[str, ...]) -> np.ndarray:
        """Row numbers of some image ids, int64. KeyError for an id that is not in the table."""
        index = {image_id: row for row, image_id in enumerate(self.ids)}
        return np.array([index[image_id] for image_id in ids], dtype=np.int64)


@dataclass(frozen=True)
class Subject:
    """One subject's data. Rows of responses are trials, columns are voxels (or vertices).

    trial_image: int64 [trials], row in the image table. session, run: int64 [trials], 1-based.
    hemi: str [v], "L", "R" or "". vertex: int64 [v], 0-based within the hemisphere, -1 if not on a surface.
    rois: bool [v] by name: "ATLAS" pools all labels, "ATLAS/LABEL" is one, and "prf-visualrois/V1" pools V1v
    and V1d (V2, V3 alike).
    """

    name: str
    folder: Path
    trial_image: np.ndarray
    session: np.ndarray
    run: np.ndarray
    hemi: np.ndarray
    vertex: np.ndarray
    rois: dict[str, np.ndarray]

    @property
    def n_trials(self) -> int:
        return len(self.trial_image)

    @property
    def n_voxels(self) -> int:
        return len(self.vertex)

    @property
    def response_file(self) -> Path:
        return self.folder / "responses.npy"

    def responses(self) -> np.ndarray:
        """Memory-mapped [trials, voxels] in the file's dtype (percent signal change); nothing is read yet.

        Raises UserError if the file is missing, damaged, of another shape than the tables or not of floating
        point.
        """
        return _open_responses(self.response_file, self.n_trials, self.n_voxels)

    def iter_voxels(self, width: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of at most `width` voxels: (slice, float32 [trials, block]), evenly sized."""
        responses = self.responses()
        for block in even_blocks(self.n_voxels, width):
            yield block, np.ascontiguousarray(responses[:, block], dtype=np.float32)

    def iter_trials(self, height: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of at most `height` trials: (slice, float32 [block, voxels]), evenly sized."""
        responses = self.responses()
        for block in even_blocks(self.n_trials, height):
            yield block, np.asarray(responses[block], dtype=np.float32)

    def seen(self) -> np.ndarray:
        """Rows of the image table that this subject saw at least once, ascending."""
        return np.unique(self.trial_image)

    def files(self) -> tuple[Path, ...]:
        """The files that decide this subject's data, for fingerprints."""
        return tuple(self.folder / name for name in ("trials.csv", "voxels.csv", "responses.npy"))


@dataclass(frozen=True)
class Dataset:
    """A dataset folder whose tables have been read and checked; responses stay on disk."""

    root: Path
    name: str
    space: str
    concepts: tuple[str, ...]
    images: Images
    subjects: tuple[Subject, ...]

    def subject(self, name: str) -> Subject:
        """The subject of that name. Raises UserError listing the names there are."""
        for subject in self.subjects:
            if subject.name == name:
                return subject
        names = ", ".join(s.name for s in self.subjects)
        raise UserError(f"{self.root}: there is no subject {name!r}; found {names}")

    def image_sets(self, subject: Subject) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Ids of the shared and of the other (unique) images that a subject saw, both in images.csv order."""
        seen = subject.seen()
        shared = self.images.shared[seen]
        ids = self.images.ids
        return tuple(ids[i] for i in seen[shared]), tuple(ids[i] for i in seen[~shared])

    def files(self) -> tuple[Path, ...]:
        """The files that decide the image table, without the images themselves."""
        return self.root / "dataset.json", self.root / "images.csv"


def open_dataset(path: Path | str) -> Dataset:
    """Open and check an `sbm-tables` folder.

    Args:
        path: the folder with dataset.json, images.csv and one folder per subject (any folder that has a
            trials.csv).

    Raises:
        UserError: a file is missing or unreadable; a table lacks a column, repeats an image or names an
            unknown one; session
            or run is not a number; responses do not have a row per trial and a column per voxel; an image is
            not on disk.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(
            f"{root}: folder not found; expected a dataset with dataset.json, images.csv and a folder per subject"
        )
    head = read_json(root / "dataset.json")
    _check_head(root / "dataset.json", head)
    space = str(head["space"])
    images_file = root / "images.csv"
    table = read_table(images_file, ("image_id", "file"))
    ids = _unique_ids(images_file, table["image_id"])
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
        files=_image_files(root, images_file, table["file"]),
        captions=tuple(table.get("caption", [""] * len(ids))),
        labels=labels,
        shared=_shared(images_file, table.get("shared"), subjects, len(ids)),
    )
    return Dataset(root, str(head["name"]), space, concepts, images, subjects)


def even_blocks(total: int, largest: int) -> list[slice]:
    """Split range(total) into the fewest blocks of at most `largest`, of sizes that differ by at most one."""
    if largest < 1:
        raise ValueError(f"a block needs at least one column or row, not {largest}")
    count = -(-total // largest)
    edges = [total * i // count for i in range(count + 1)] if count else [0]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def fingerprint(files: tuple[Path, ...] | list[Path]) -> str:
    """SHA-256 (hex) of the names and contents of some files, in the given order."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        total.update(f"{path.name}\0{digest}\0".encode())
    return total.hexdigest()


def _check_head(path: Path, head: dict) -> None:
    if head.get("format") != FORMAT:
        raise UserError(f'{path}: expected "format": "{FORMAT}", found {head.get("format")!r}')
    if head.get("version") != VERSION:
        raise UserError(
            f'{path}: expected "version": {VERSION}, found {head.get("version")!r}; use a version that reads it'
        )
    for key in ("name", "space"):
        if not isinstance(head.get(key), str):
            raise UserError(f"{path}: expected the key {key!r} with a text, found {head.get(key)!r}")
    if not isinstance(head.get("concepts", []), list):
        raise UserError(f"{path}: expected a list under 'concepts', found {head['concepts']!r}")


def _unique_ids(path: Path, cells: list[str]) -> tuple[str, ...]:
    if not cells:
        raise UserError(f"{path}: the table has no rows; expected one row per image")
    first: dict[str, int] = {}
    for row, image_id in enumerate(cells, start=1):
        if not image_id:
            raise UserError(f"{path}, row {row}: empty image_id; every image needs its own")
        if image_id in first:
            raise UserError(
                f"{path}: image_id {image_id!r} is in rows {first[image_id]} and {row}; every image needs its own"
            )
        first[image_id] = row
    return tuple(cells)


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
    voxels = read_table(voxels_file, ("hemi", "vertex") if space in _VERTICES else ())
    n_voxels = len(next(iter(voxels.values()), []))
    hemi, vertex = _places(voxels_file, voxels, n_voxels, space)
    subject = Subject(
        name=folder.name,
        folder=folder,
        trial_image=np.array(rows, dtype=np.int64),
        session=integers(trials_file, "session", trials["session"], 1),
        run=integers(trials_file, "run", trials["run"], 1),
        hemi=hemi,
        vertex=vertex,
        rois=_roi_masks({name: cells for name, cells in voxels.items() if name not in _NOT_ATLASES}),
    )
    subject.responses()
    return subject


def _places(path: Path, voxels: dict[str, list[str]], n_voxels: int, space: str) -> tuple[np.ndarray, np.ndarray]:
    """Hemisphere and vertex of every column, checked against the surface if the space is one."""
    if "hemi" not in voxels or "vertex" not in voxels:
        return np.full(n_voxels, ""), np.full(n_voxels, -1, dtype=np.int64)
    hemi = np.array(voxels["hemi"], dtype=str)
    wrong = np.flatnonzero((hemi != "L") & (hemi != "R"))
    if len(wrong):
        raise UserError(f"{path}, row {wrong[0] + 1}: column 'hemi' needs L or R, found {str(hemi[wrong[0]])!r}")
    vertex = integers(path, "vertex", voxels["vertex"], 0)
    limit = _VERTICES.get(space)
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
    return hemi, vertex


def _roi_masks(atlases: dict[str, list[str]]) -> dict[str, np.ndarray]:
    rois: dict[str, np.ndarray] = {}
    rank = {label: position for position, label in enumerate(_KNOWN_ORDER)}
    for atlas, cells in atlases.items():
        label_v = np.array(cells, dtype=str)
        labels = sorted(set(cells) - {""}, key=lambda label: (rank.get(label, len(rank)), label))
        rois[atlas] = label_v != ""
        for label in labels:
            rois[f"{atlas}/{label}"] = label_v == label
        if atlas == "prf-visualrois":
            for area in ("V1", "V2", "V3"):
                halves = [rois[f"{atlas}/{area}{side}"] for side in "vd" if f"{atlas}/{area}{side}" in rois]
                if halves and f"{atlas}/{area}" not in rois:
                    rois[f"{atlas}/{area}"] = np.logical_or.reduce(halves)
    return rois


def _open_responses(path: Path, n_trials: int, n_voxels: int) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: file not found; expected responses as a NumPy array [trials, voxels]")
    try:
        responses = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable NumPy .npy array of numbers, or cut short ({error})") from error
    if responses.dtype.kind != "f" or responses.dtype.itemsize not in (2, 4, 8):
        raise UserError(
            f"{path}: expected float16, float32 or float64, found {responses.dtype}; save it as one of these"
        )
    if responses.shape != (n_trials, n_voxels):
        raise UserError(
            f"{path}: expected {n_trials} trials (rows of trials.csv) x {n_voxels} voxels (rows of "
            "voxels.csv), "
            f"found an array of shape {responses.shape}"
        )
    return responses
