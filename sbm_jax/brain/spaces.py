"""Where the columns of a subject's responses lie: voxels of a volume, vertices of a surface, grayordinates, or nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

HEMIS = ("L", "R")
# Vertices per hemisphere of the icosahedral template surfaces; native surfaces have their own numbers.
TEMPLATE_VERTICES = {"fsaverage5": 10_242, "fsaverage6": 40_962, "fsaverage": 163_842}


@dataclass(frozen=True)
class VolumeSpace:
    """Voxels of a volume.

    name: "func1pt8mm", "T1w", ... shape: (X, Y, Z). affine: float64 [4, 4], voxel index to millimetres.
    index: int64 [v], flat position x + X * (y + Y * z) of every column (x runs fastest, as in the file).
    """

    name: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    index: np.ndarray

    @property
    def n_columns(self) -> int:
        return len(self.index)

    @cached_property
    def ijk(self) -> np.ndarray:
        """Voxel indices int64 [v, 3], from 0."""
        x, y, _ = self.shape
        return np.stack([self.index % x, self.index // x % y, self.index // (x * y)], axis=1)


@dataclass(frozen=True)
class SurfaceSpace:
    """Vertices of a pair of surfaces.

    name: "fsaverage", "nativesurface", ... n_vertices: of the left and the right surface. hemi: str [v], "L" or "R".
    vertex: int64 [v], from 0 within the hemisphere.
    """

    name: str
    n_vertices: tuple[int, int]
    hemi: np.ndarray
    vertex: np.ndarray

    @property
    def n_columns(self) -> int:
        return len(self.vertex)


@dataclass(frozen=True)
class CiftiSpace:
    """Grayordinates of a CIFTI-2 file.

    axis: nibabel's BrainModelAxis of the whole file. index: int64 [v], the grayordinate of every column.
    """

    name: str
    axis: object
    index: np.ndarray

    @property
    def n_columns(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class UnplacedSpace:
    """Columns without a known place (ROI arrays, tables without coordinates)."""

    name: str
    n_columns: int


Space = VolumeSpace | SurfaceSpace | CiftiSpace | UnplacedSpace


def hemispheres(space: Space) -> np.ndarray:
    """str [v]: "L", "R", or "" for columns that are on no surface."""
    if isinstance(space, SurfaceSpace):
        return space.hemi
    if isinstance(space, CiftiSpace):
        return _cifti_places(space)[0]
    return np.full(space.n_columns, "", dtype="<U1")


def vertices(space: Space) -> np.ndarray:
    """int64 [v]: vertex from 0 within the hemisphere, -1 for columns that are on no surface."""
    if isinstance(space, SurfaceSpace):
        return space.vertex
    if isinstance(space, CiftiSpace):
        return _cifti_places(space)[1]
    return np.full(space.n_columns, -1, dtype=np.int64)


def _cifti_places(space: CiftiSpace) -> tuple[np.ndarray, np.ndarray]:
    names = np.asarray(space.axis.name)[space.index]  # pyright: ignore[reportAttributeAccessIssue]
    hemi = np.full(len(names), "", dtype="<U1")
    hemi[names == "CIFTI_STRUCTURE_CORTEX_LEFT"] = "L"
    hemi[names == "CIFTI_STRUCTURE_CORTEX_RIGHT"] = "R"
    vertex = np.asarray(space.axis.vertex)[space.index]  # pyright: ignore[reportAttributeAccessIssue]
    return hemi, np.where(hemi != "", vertex, -1).astype(np.int64)
