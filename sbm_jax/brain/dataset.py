"""What a dataset is, whatever its layout: an image table, and subjects with trials, responses, a space and ROIs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbm_jax.brain.prf import Prf
from sbm_jax.brain.responses import Responses, even_blocks
from sbm_jax.brain.spaces import Space, hemispheres, vertices
from sbm_jax.errors import UserError
from sbm_jax.images.sources import ImageSource


@dataclass(frozen=True)
class Images:
    """The image table.

    sources: where each picture is. labels: float64 [n] per concept, visible fraction of the picture, NaN where not given.
    shared: bool [n], images that score rather than select.
    """

    ids: tuple[str, ...]
    sources: tuple[ImageSource, ...]
    captions: tuple[str, ...]
    labels: dict[str, np.ndarray]
    shared: np.ndarray

    def rows(self, ids: list[str] | tuple[str, ...]) -> np.ndarray:
        """Row numbers of some image ids, int64. KeyError for an id that is not in the table."""
        index = {image_id: row for row, image_id in enumerate(self.ids)}
        return np.array([index[image_id] for image_id in ids], dtype=np.int64)

    def files(self) -> tuple[Path, ...]:
        """Every file that holds pictures, once."""
        return tuple(dict.fromkeys(s if isinstance(s, Path) else s.path for s in self.sources))


@dataclass(frozen=True)
class Dropped:
    """Something of the dataset that is not used: what, how many, and why. For `data check` and for the log."""

    what: str
    count: int
    why: str

    def __str__(self) -> str:
        return f"{self.count:,} {self.what}: {self.why}"


@dataclass(frozen=True)
class Subject:
    """One subject's data. Rows of responses are trials, columns are voxels (or vertices).

    trial_image: int64 [trials], row in the image table. session, run: int64 [trials], 1-based; runs are numbered within
    their session. space: where the columns lie. rois: bool [v] by name: "ATLAS" pools all labels, "ATLAS/LABEL" is one
    (it may be empty), and "prf-visualrois/V1" pools V1v and V1d (V2, V3 alike). averaged: the dataset brings one
    response per image, z-scored and averaged over repeats already. ncsnr, noise_ceiling: float64 [v] where the dataset
    brings them (the ceiling as a fraction of variance), None otherwise. tables: files that decide everything but the
    responses. sessions_missing: planned sessions whose files are not there. transforms: folder of NSD's transform files.
    prf: population receptive fields, where the dataset brings them.
    """

    name: str
    responses: Responses
    trial_image: np.ndarray
    session: np.ndarray
    run: np.ndarray
    space: Space
    rois: dict[str, np.ndarray]
    averaged: bool = False
    ncsnr: np.ndarray | None = None
    noise_ceiling: np.ndarray | None = None
    tables: tuple[Path, ...] = ()
    sessions_missing: tuple[int, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    transforms: Path | None = None
    prf: Prf | None = None

    def __post_init__(self) -> None:
        shape = (self.responses.n_trials, self.responses.n_voxels)
        if shape != (self.n_trials, self.n_voxels) or {len(self.session), len(self.run)} != {self.n_trials}:
            raise ValueError(f"{self.name}: responses {shape} for {self.n_trials} trials and {self.n_voxels} columns")

    @property
    def n_trials(self) -> int:
        return len(self.trial_image)

    @property
    def n_voxels(self) -> int:
        return self.space.n_columns

    @property
    def hemi(self) -> np.ndarray:
        """str [v]: "L", "R", or "" off the surface."""
        return hemispheres(self.space)

    @property
    def vertex(self) -> np.ndarray:
        """int64 [v]: vertex within the hemisphere, -1 off the surface."""
        return vertices(self.space)

    def iter_voxels(self, width: int, start: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of at most `width` voxels from voxel `start` on: (slice, float32 [trials, block] in percent signal change)."""
        for block in even_blocks(self.n_voxels, width, start):
            stored = self.responses.read_voxels(block)
            # copied: the z-score works in place on what may be a view of the file
            yield block, np.array(stored, dtype=np.float32) / np.float32(self.responses.divisor)

    def seen(self) -> np.ndarray:
        """Rows of the image table that this subject saw at least once, ascending."""
        return np.unique(self.trial_image)

    def files(self) -> tuple[Path, ...]:
        """The files that decide this subject's data, for fingerprints."""
        return (*self.tables, *self.responses.files)


@dataclass(frozen=True)
class HumanRdms:
    """Dissimilarities between all images of a dataset that brings no responses.

    region: where they were measured. subjects: float64 [sessions, pairs] by name; models: float64 [pairs] by name.
    Pairs are the strict upper triangle, row by row.
    """

    region: str
    subjects: dict[str, np.ndarray]
    models: dict[str, np.ndarray]


@dataclass(frozen=True)
class Dataset:
    """A dataset folder whose tables have been read and checked; responses stay on disk.

    format: the name of the reader. space: of the columns, as chosen. notes: facts about the folder worth telling.
    rdms: of a dataset that has dissimilarities and no subjects with responses.
    """

    root: Path
    name: str
    format: str
    space: str
    concepts: tuple[str, ...]
    images: Images
    subjects: tuple[Subject, ...]
    tables: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    rdms: HumanRdms | None = None

    def subject(self, name: str) -> Subject:
        """The subject of that name. Raises UserError listing the names there are."""
        for subject in self.subjects:
            if subject.name == name:
                return subject
        names = ", ".join(s.name for s in self.subjects)
        raise UserError(f"{self.root}: there is no subject {name!r}; found {names}")

    def image_sets(self, subject: Subject) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Ids of the shared and of the other (unique) images that a subject saw, both in the order of the table."""
        seen = subject.seen()
        shared = self.images.shared[seen]
        ids = self.images.ids
        return tuple(ids[i] for i in seen[shared]), tuple(ids[i] for i in seen[~shared])


def unique_ids(path: Path, ids: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Image ids of a table, each once. Raises UserError for an empty table, an empty id, or an id in two rows."""
    if not ids:
        raise UserError(f"{path}: the table has no rows; expected one row per image")
    first: dict[str, int] = {}
    for row, image_id in enumerate(ids, start=1):
        if not image_id:
            raise UserError(f"{path}, row {row}: empty image_id; every image needs its own")
        if image_id in first:
            raise UserError(
                f"{path}: image_id {image_id!r} is in rows {first[image_id]} and {row}; every image needs its own"
            )
        first[image_id] = row
    return tuple(ids)
