"""Similarity of many (unit, field, voxel) triples from sums over images, in one pass over the patches of a subject's images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from sbm_jax.sae.stream import Activations
from sbm_jax.stages.fields import Fields
from sbm_jax.stages.local_codes import padded, pooled_sums, read_through
from sbm_jax.stages.members import Code, Member

# A column whose norm after centring is at most 1e-6 of its norm before is constant, as everywhere (kernels/cosine_topk).
_CONSTANT = 1e-12
_ROUND = 64


@dataclass(frozen=True)
class Patches:
    """The patches of a subject's images, and the autoencoder of every layer.

    names: array of each layer in `acts`, [images, t, d]. rows_n: its row of each of the subject's n images. batch: images per
    step, a multiple of the mesh's size. advance: called after every layer of a batch.
    """

    acts: Activations
    names: tuple[str, ...]
    rows_n: np.ndarray
    members: tuple[Member, ...]
    code: Code
    mesh: Mesh
    batch: int
    advance: Callable[[], None] = lambda: None

    @property
    def tokens(self) -> int:
        return self.acts.array(self.names[0]).shape[1]

    @property
    def units(self) -> int:
        """Units per layer."""
        return self.members[0].params.b_enc.shape[0]

    def batches(self, places: np.ndarray) -> Iterator[tuple[slice, int, np.ndarray]]:
        """(piece of `places`, layer, activations [batch, t, d]) of some of the images, zeros behind the last; layers of one
        piece follow each other, so that activations that are computed are computed once.
        """
        for start in range(0, len(places), self.batch):
            piece = slice(start, min(start + self.batch, len(places)))
            for layer, name in enumerate(self.names):
                x = self.acts.read(name, self.rows_n[places[piece]])
                yield piece, layer, np.pad(x, [(0, self.batch - len(x)), (0, 0), (0, 0)])
                self.advance()

    def read(self, places: np.ndarray, unit_p: np.ndarray, weights_tp: np.ndarray) -> np.ndarray:
        """Pooled code of images n of unit p (layer x units + unit; -1: 0 everywhere) through field p; float32 [n, p]."""
        out = np.zeros((len(places), len(unit_p)), np.float32)
        function = read_through(self.mesh, self.code)
        columns = [
            _columns(np.flatnonzero(unit_p // self.units == i), unit_p, self.units) for i in range(len(self.names))
        ]
        c, p = _lengths(columns)
        weights = [padded(weights_tp[:, columns_l.pairs], p) for columns_l in columns]
        for piece, layer, x in self.batches(places):
            mine = columns[layer]
            if len(mine.pairs):
                units, column = padded(mine.units, c, self.units), padded(mine.column, p)
                seen = function(self.members[layer], x, units, column, weights[layer])
                out[piece, mine.pairs] = np.asarray(seen)[: piece.stop - piece.start, : len(mine.pairs)]
        return out


class _Columns(NamedTuple):
    """Pairs of one layer (places in a list), its different units within the layer, and for each pair the place of its unit."""

    pairs: np.ndarray
    units: np.ndarray
    column: np.ndarray


def _columns(pairs: np.ndarray, unit_p: np.ndarray, units: int) -> _Columns:
    different, column = np.unique(unit_p[pairs] % units, return_inverse=True)
    return _Columns(pairs, different.astype(np.int32), column.astype(np.int32))


def _lengths(columns: Sequence[_Columns]) -> tuple[int, int]:
    """Units and pairs of the largest layer, rounded up: one program for all layers, and few for a run."""
    units, pairs = (max(len(getattr(x, name)) for x in columns) for name in ("units", "pairs"))
    return -(-units // _ROUND) * _ROUND, -(-pairs // (8 * _ROUND)) * 8 * _ROUND


class PairSums:
    """Sums over groups of images for pairs (unit, row of responses), float64.

    Args: unit_p: layer x units + unit, ascending. row_p: rows of responses [w]. fields: those that every pair is seen
    through. own_tp: [t, p] a further field of each pair, or None; it has the index after the last of `fields`.

    Sums of the pooled code x, the response y, x^2, y^2 and x y per group, so that r over any union of groups follows:
    r = (Sxy - Sx Sy / n) / sqrt((Sxx - Sx^2 / n) (Syy - Sy^2 / n)). Devices sum x minus its mean over their images of a batch in
    float32; means, batches and devices are put together in float64, so that no digits are lost where x varies little.
    """

    def __init__(
        self,
        patches: Patches,
        unit_p: np.ndarray,
        row_p: np.ndarray,
        fields: Fields,
        own_tp: np.ndarray | None,
        groups: Sequence[np.ndarray],
        responses: Callable[[np.ndarray], np.ndarray],
    ):
        """groups: places of images, disjoint. responses: places [b] to float32 [w, b]; rows of about unit variance, centred."""
        self.patches, self.row_p, self.fields, self.own_tp = patches, row_p, fields, own_tp
        layers, p, f, g = len(patches.names), len(unit_p), len(groups), len(fields)
        edges = np.searchsorted(unit_p, np.arange(layers + 1) * patches.units)
        pairs = np.arange(p)
        self.columns = [_columns(pairs[a:b], unit_p, patches.units) for a, b in pairwise(edges)]
        self.width = _lengths(self.columns)
        w = int(row_p.max(initial=-1)) + 1
        c = self.width[0]
        self.n = np.array([len(group) for group in groups])
        self.x, self.xx = np.zeros((f, layers, g, c)), np.zeros((f, layers, g, c))
        self.xy = np.zeros((f, g, p))
        self.y, self.yy = np.zeros((f, w)), np.zeros((f, w))
        self.own = np.zeros((f, 3, p if own_tp is not None else 0))
        for group, places in enumerate(groups):
            self._group(group, places, responses)

    def _group(self, group: int, places: np.ndarray, responses: Callable[[np.ndarray], np.ndarray]) -> None:
        y_wb = np.zeros((0, 0), np.float32)
        for piece, layer, x in self.patches.batches(places):
            if layer == 0:
                y_wb = responses(places[piece])[: len(self.y[group])]
                self.y[group] += y_wb.sum(axis=1, dtype=np.float64)
                self.yy[group] += np.square(y_wb, dtype=np.float64).sum(axis=1)
            if len(self.columns[layer].pairs):
                self._add(group, layer, x, y_wb)

    def _add(self, group: int, layer: int, x: np.ndarray, y_wb: np.ndarray) -> None:
        patches, (pairs, units_c, column_p) = self.patches, self.columns[layer]
        c, p = self.width
        real = np.zeros(patches.batch, np.float32)
        real[: y_wb.shape[1]] = 1
        units, column = padded(units_c, c, patches.units), padded(column_p, p)
        row, y = padded(self.row_p[pairs].astype(np.int32), p), padded(y_wb, patches.batch)

        fields = self.fields.weights_gt
        found = pooled_sums(patches.mesh, patches.code)(patches.members[layer], x, units, fields, real, y, column, row)
        n_d = real.reshape(patches.mesh.size, -1).sum(axis=1)
        y_dw = y.reshape(len(y), patches.mesh.size, -1).sum(axis=2, dtype=np.float64).T
        for n, y_w, mean, x_gc, xx_gc, xy_gp in zip(
            n_d, y_dw, *(np.asarray(a, np.float64) for a in found), strict=True
        ):
            self.x[group, layer] += x_gc + n * mean
            self.xx[group, layer] += xx_gc + 2 * mean * x_gc + n * mean**2
            self.xy[group][:, pairs] += (xy_gp + mean[:, column] * y_w[row])[:, : len(pairs)]
        if self.own_tp is not None:
            weights = padded(self.own_tp[:, pairs], p)
            seen = read_through(patches.mesh, patches.code)(patches.members[layer], x, units, column, weights)
            seen_bp = np.asarray(seen, np.float64)[: y_wb.shape[1], : len(pairs)]
            y_bp = y_wb[self.row_p[pairs]].T
            self.own[group][:, pairs] += [seen_bp.sum(axis=0), (seen_bp**2).sum(axis=0), (seen_bp * y_bp).sum(axis=0)]

    def similarity(self, groups: Sequence[int]) -> np.ndarray:
        """r over the images of some groups, float32 [fields (and one more of the pair's own), p]; 0 where either is constant."""
        chosen = list(groups)
        n, y, yy = self.n[chosen].sum(), self.y[chosen].sum(axis=0), self.yy[chosen].sum(axis=0)
        out = np.zeros((len(self.fields) + (self.own_tp is not None), len(self.row_p)), np.float32)
        y_p, yy_p = y[self.row_p], yy[self.row_p]
        for layer, (pairs, _, column) in enumerate(self.columns):
            x, xx = (a[chosen, layer].sum(axis=0)[:, column] for a in (self.x, self.xx))
            xy = self.xy[chosen][:, :, pairs].sum(axis=0)
            out[: len(self.fields), pairs] = _r(n, x, xx, xy, y_p[pairs], yy_p[pairs])
        if self.own_tp is not None:
            x, xx, xy = self.own[chosen].sum(axis=0)
            out[-1] = _r(n, x, xx, xy, y_p, yy_p)
        return out


def _r(n: int, x: np.ndarray, xx: np.ndarray, xy: np.ndarray, y: np.ndarray, yy: np.ndarray) -> np.ndarray:
    """Pearson's r from sums; 0 where x or y is constant."""
    x_var, y_var = xx - x * x / n, yy - y * y / n
    real = (x_var > _CONSTANT * xx) & (y_var > _CONSTANT * yy)
    return np.where(real, (xy - x * y / n) / np.sqrt(np.where(real, x_var * y_var, 1)), 0)
