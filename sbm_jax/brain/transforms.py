"""From a subject's columns to the vertices of fsaverage: one sparse matrix for scores, one gather for labels."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sbm_jax.brain.spaces import HEMIS, TEMPLATE_VERTICES, Space, SurfaceSpace, UnplacedSpace, VolumeSpace
from sbm_jax.errors import UserError

if TYPE_CHECKING:
    from scipy import sparse

FINEST = "fsaverage"
# Share of a vertex's weight that columns with a value must carry, or the vertex stays empty. Rounding may take a little.
MIN_WEIGHT = 0.5 - 1e-6
# Cortical depths at which NSD samples its volumes, 25, 50 and 75 % between white matter and pia.
DEPTHS = ("layerB1", "layerB2", "layerB3")
# NSD's names of its volumes inside the names of its transform files.
_STEM = {"func1pt8mm": "func1pt8", "func1mm": "func1pt0"}
_SIDE = {"L": "lh", "R": "rh"}


@dataclass(frozen=True)
class Resampler:
    """Values of v columns to values of r vertices, the left hemisphere's first.

    weights: float64 [r, v], mean over the depths of trilinear weights, at most 1 in a row; what falls on voxels that are
    no columns is missing from it. nearest: int64 [depths, r], the column nearest to each sample, -1 where there is none.
    A vertex whose columns carry less than half of the weight is empty.
    """

    weights: sparse.csr_array
    nearest: np.ndarray

    @property
    def n_vertices(self) -> int:
        return self.nearest.shape[1]

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Interpolated values, [..., v] to float64 [..., r].

        out_r = sum_v w_rv x_v / sum_v w_rv over the columns with a finite value, NaN where these carry less than half.
        """
        values = np.asarray(values, np.float64)
        flat_vm = values.reshape(-1, values.shape[-1]).T
        finite = np.isfinite(flat_vm)
        share = self.weights @ finite.astype(np.float64)
        total = self.weights @ np.where(finite, flat_vm, 0)
        out = np.divide(total, share, out=np.full(total.shape, np.nan), where=share >= MIN_WEIGHT)
        return out.T.reshape(*values.shape[:-1], self.n_vertices)

    def labels(self, labels_v: np.ndarray, empty: int = -1) -> np.ndarray:
        """Labels of the nearest columns, int [v] to int [r]: the most frequent over the depths, the middle one's in a tie.

        `empty` where no sample is near a column. A column's own number for "no label" counts like any other label.
        """
        there = self.nearest >= 0
        votes = np.where(there, np.asarray(labels_v)[self.nearest], empty)
        count = np.stack(
            [((votes == vote) & there & here).sum(axis=0) for vote, here in zip(votes, there, strict=True)]
        )
        order = np.array(sorted(range(len(votes)), key=lambda depth: abs(depth - len(votes) // 2)))
        winner = order[count[order].argmax(axis=0)]
        taken = np.take_along_axis(votes, winner[None], axis=0)[0]
        return np.where(self.weights.sum(axis=1) >= MIN_WEIGHT, taken, empty)


def argmax_after(resampler: Resampler, scores_lv: np.ndarray) -> np.ndarray:
    """Row of the largest score at every vertex, from float [l, v] to int64 [r]; the lower row in a tie, -1 if all are NaN.

    The scores are interpolated first: the mean of row numbers would name rows that win nowhere nearby.
    """
    mapped = resampler.scores(scores_lv)
    return np.where(np.isfinite(mapped).any(axis=0), np.where(np.isnan(mapped), -np.inf, mapped).argmax(axis=0), -1)


def transform_files(space: Space) -> tuple[str, ...] | None:
    """Names of NSD's files that lead from a space to fsaverage; () if none are needed, None if there is no way."""
    if isinstance(space, SurfaceSpace) and space.name in TEMPLATE_VERTICES:
        return ()
    index = tuple(f"{side}.white-to-{FINEST}.mgz" for side in _SIDE.values())
    if isinstance(space, SurfaceSpace) and space.name == "nativesurface":
        return index
    if isinstance(space, VolumeSpace) and space.name in _STEM:
        stem = _STEM[space.name]
        return index + tuple(f"{side}.{stem}-to-{depth}.mgz" for side in _SIDE.values() for depth in DEPTHS)
    return None


def why_not(space: Space, transforms: Path | None, template: str = "fsaverage5") -> str:
    """Why values of this space cannot be put on a template, as a sentence without its end; empty if they can."""
    names = transform_files(space)
    if names is None and isinstance(space, UnplacedSpace):
        return f"the columns ({space.name}) come without places"
    if names is None:
        known = ", ".join((*_STEM, "nativesurface", *TEMPLATE_VERTICES))
        return f"there is no transform from {space.name} to {template} here; there is one from {known}"
    if not names:
        coarse = TEMPLATE_VERTICES[space.name] < TEMPLATE_VERTICES[template]
        return f"{space.name} has fewer vertices than {template}" if coarse else ""
    if transforms is None:
        return f"{space.name} needs NSD's transform files (ppdata/<subject>/transforms), which the dataset lacks"
    missing = [name for name in names if not (transforms / name).is_file()]
    return f"{transforms} lacks {', '.join(missing)}" if missing else ""


def to_template(space: Space, transforms: Path | None, template: str = "fsaverage5") -> Resampler:
    """The map from a subject's columns to both hemispheres of fsaverage5, fsaverage6 or fsaverage.

    fsaverage5 is the first 10,242 vertices of fsaverage: each finer icosahedron keeps the vertices of the coarser one.
    Volumes are sampled by trilinear interpolation at three cortical depths (NSD's own surface data: cubic), and native
    surfaces by the nearest vertex, as NSD does.

    Raises UserError: `why_not` has a reason; a transform file is damaged or has other sizes or numbers than NSD's.
    """
    reason = why_not(space, transforms, template)
    count = TEMPLATE_VERTICES[template]
    if not reason and isinstance(space, VolumeSpace) and transforms is not None:
        return _from_volume(space, transforms, count)
    if not reason and isinstance(space, SurfaceSpace):
        return _from_surface(space, transforms, count)
    raise UserError(f"no map to {template}: {reason}")


def _from_surface(space: SurfaceSpace, folder: Path | None, count: int) -> Resampler:
    from scipy import sparse  # a tenth of a second, which a dry run need not pay

    parts = []
    for hemi, n_vertices in zip(HEMIS, space.n_vertices, strict=True):
        native = np.arange(count)
        if folder is not None and space.name not in TEMPLATE_VERTICES:
            native = _white_to_fsaverage(folder, hemi, n_vertices)[:count]
        column = np.full(n_vertices, -1)
        mine = np.flatnonzero(space.hemi == hemi)
        column[space.vertex[mine]] = mine
        parts.append(column[native])
    nearest = np.concatenate(parts)
    rows = np.flatnonzero(nearest >= 0)
    shape = (len(nearest), space.n_columns)
    return Resampler(sparse.csr_array((np.ones(len(rows)), (rows, nearest[rows])), shape=shape), nearest[None])


def _from_volume(space: VolumeSpace, folder: Path, count: int) -> Resampler:
    from scipy import sparse  # a tenth of a second, which a dry run need not pay

    column = np.full(int(np.prod(space.shape)), -1)
    column[space.index] = np.arange(space.n_columns)
    samples = []
    for hemi in HEMIS:
        files = [folder / f"{_SIDE[hemi]}.{_STEM[space.name]}-to-{depth}.mgz" for depth in DEPTHS]
        coords = [_read_columns(path, 3) for path in files]
        for path, found in zip(files, coords, strict=True):
            if len(found) != len(coords[0]):
                raise UserError(
                    f"{path}: {len(found)} vertices, but {files[0].name} has {len(coords[0])}; these are not of one subject"
                )
        native = _white_to_fsaverage(folder, hemi, len(coords[0]))[:count]
        samples.append([xyz[native] for xyz in coords])
    nearest, rows, columns, weights = [], [], [], []
    for depth in range(len(DEPTHS)):
        xyz = np.concatenate([samples[side][depth] for side in range(len(HEMIS))])
        near, row, flat, weight = trilinear(xyz, space.shape)
        nearest.append(np.where(near >= 0, column[near], -1))
        there = column[flat] >= 0
        rows.append(row[there])
        columns.append(column[flat[there]])
        weights.append(weight[there] / len(DEPTHS))
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return Resampler(sparse.csr_array(entries, shape=(2 * count, space.n_columns)), np.stack(nearest))


def trilinear(xyz: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Voxels around 1-based coordinates float [n, 3]: nearest int [n] (-1: no valid sample), and (row, voxel, weight).

    Voxels are flat positions from 0, x fastest. A sample is valid from 1 to the size in each direction, as in
    nsd_mapdata.m; NSD's mark of an invalid one, 9999, lies beyond any volume.
    """
    last = np.array(shape) - 1
    valid = ((xyz >= 1) & (xyz <= last + 1)).all(axis=1)
    rows = np.flatnonzero(valid)
    at = xyz[rows] - 1
    strides = np.array([1, shape[0], shape[0] * shape[1]])
    nearest = np.full(len(xyz), -1)
    nearest[rows] = np.minimum(np.floor(at + 0.5).astype(np.int64), last) @ strides
    base = np.floor(at).astype(np.int64)
    fraction = at - base
    all_rows, voxels, weights = [], [], []
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(corner, fraction, 1 - fraction).prod(axis=1)
        used = weight > 0  # so a corner beyond the last plane, whose weight is 0, is never looked up
        all_rows.append(rows[used])
        voxels.append((base[used] + corner) @ strides)
        weights.append(weight[used])
    return nearest, np.concatenate(all_rows), np.concatenate(voxels), np.concatenate(weights)


def _white_to_fsaverage(folder: Path, hemi: str, n_native: int) -> np.ndarray:
    """int64 [163842]: the native vertex, from 0, of every fsaverage vertex. Here 9999 is a vertex like any other."""
    path = folder / f"{_SIDE[hemi]}.white-to-{FINEST}.mgz"
    index = _read_columns(path, 1)[:, 0]
    if len(index) != TEMPLATE_VERTICES[FINEST]:
        raise UserError(f"{path}: expected {TEMPLATE_VERTICES[FINEST]} vertices of {FINEST}, found {len(index)}")
    wrong = np.flatnonzero(~((index >= 1) & (index <= n_native) & (index == np.round(index))))
    if len(wrong):
        raise UserError(
            f"{path}, vertex {wrong[0]}: expected the number of a native vertex, 1 to {n_native}, found {index[wrong[0]]:g}; "
            "is it of this subject?"
        )
    return index.astype(np.int64) - 1


def _read_columns(path: Path, columns: int) -> np.ndarray:
    """float64 [vertices, columns] of a `.mgz`, the first three dimensions being one. UserError if it is not that."""
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        image: Any = nib.load(path)
        data = np.asarray(image.dataobj, np.float64)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise UserError(f"{path}: not a readable .mgz file, or cut short ({error})") from error
    data = data.reshape(-1, data.shape[3] if data.ndim == 4 else 1, order="F")
    if data.shape[1] != columns:
        raise UserError(f"{path}: expected vertices x 1 x 1 x {columns}, found an array of shape {image.shape}")
    return data
