"""Whether the same units are found again: the search of some voxels on two halves of the images, and on permuted ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sbm_jax.kernels.codes import rows_of
from sbm_jax.kernels.cosine_topk.paired import chosen_columns, unit_rows
from sbm_jax.stages.inputs import Codes
from sbm_jax.stages.ranking import Engine, Ranking

MEASURES = ("same unit", "codes' r", "same layer", "held-out r")


class Split(NamedTuple):
    """Two sets of images that select, rows of a subject's images, and the order of those of the second that stands for chance."""

    one: np.ndarray
    two: np.ndarray
    order: np.ndarray


def splits(select_n: np.ndarray, draws: int, seed: int) -> list[Split]:
    """Random halves of the images that select (bool [n]), of equal size; one that is left over takes no part."""
    out, rows = [], np.flatnonzero(select_n)
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw, len(rows)])
        half = len(rows) // 2
        mixed = rng.permutation(rows)
        out.append(Split(np.sort(mixed[:half]), np.sort(mixed[half : 2 * half]), rng.permutation(half)))
    return out


@dataclass(frozen=True)
class Picks:
    """Best unit of every voxel (layer x units + unit; -1: none) and the sign of its r, int [draws, 3, v]: on the first half, on the
    second, on the second with permuted responses.
    """

    units: np.ndarray
    signs: np.ndarray
    units_per_layer: int


def pick(
    layers: Sequence[Callable[[], Codes]], units: int, y_nv: np.ndarray, parts: Sequence[Split], engine: Engine
) -> Picks:
    """The best unit of every voxel over all layers, on every part of every split. layers: what reads the codes of a layer, of the
    subject's images [n, u]; units: u. y_nv: responses to them.
    """
    sets = [(rows, y_nv[at]) for s in parts for rows, at in ((s.one, s.one), (s.two, s.two), (s.two, s.two[s.order]))]
    searches = [(rows, engine.prepare(y), Ranking(y_nv.shape[1], 1)) for rows, y in sets]
    every = np.arange(y_nv.shape[1])
    for layer, read in enumerate(layers):
        codes = read()
        for rows, responses, best in searches:
            found = engine.best(rows_of(codes, rows), responses, 1)
            best.bring(every, found.keys_vk, found.units_vk + layer * units, found.signs_vk, None)
    shape = (len(parts), 3, y_nv.shape[1])
    return Picks(
        np.stack([best.units[:, 0] for _, _, best in searches]).reshape(shape),
        np.stack([best.signs[:, 0] for _, _, best in searches]).reshape(shape),
        units,
    )


class Columns:
    """Unit columns of the codes of chosen units over all layers, float32 [w, n]: centred, of norm 1 (0 where constant)."""

    def __init__(self, layers: Sequence[Callable[[], Codes]], units: int, wanted: np.ndarray, rows: np.ndarray | None):
        """wanted: layer x units + unit, any shape, -1 left out. rows: of the codes' images, None: all."""
        self.wanted = np.unique(wanted[wanted >= 0])
        parts = []
        for layer, read in enumerate(layers):
            mine = self.wanted[self.wanted // units == layer] % units
            if len(mine):
                codes = read()
                parts.append(unit_rows(chosen_columns(codes if rows is None else rows_of(codes, rows), mine)))
        self.rows_wn = np.concatenate(parts)

    def r(self, one: np.ndarray, other_vn: np.ndarray) -> np.ndarray:
        """r of the units `one` [v] with unit rows [v, n], float64; NaN where a unit is -1."""
        found = np.einsum("vn,vn->v", self.of(one), other_vn, dtype=np.float64)
        return np.where(one >= 0, found, np.nan)

    def of(self, units_v: np.ndarray) -> np.ndarray:
        """Rows of units [v], some row where -1."""
        return self.rows_wn[np.minimum(np.searchsorted(self.wanted, units_v), len(self.wanted) - 1)]


def agreement(
    layers: Sequence[Callable[[], Codes]], picks: Picks, y_nv: np.ndarray, held_out_n: np.ndarray | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Measure -> (of the halves, by chance), float64 [draws] each, means over voxels.

    same unit: share of voxels with one and the same unit. codes' r: of the two units' codes over all of the subject's images.
    same layer: share. held-out r: of either half's unit with the voxel over the images `held_out_n` (bool [n]; None: NaN). By
    chance: the unit of the second half is that of permuted responses; its held-out r stands alone.
    """
    units, u = picks.units, picks.units_per_layer
    columns = Columns(layers, u, units, None)
    scores = np.full(units.shape, np.nan)
    if held_out_n is not None:
        kept = Columns(layers, u, units, np.flatnonzero(held_out_n))
        y_vn = unit_rows(y_nv[held_out_n].T)
        for at in np.ndindex(units.shape[:2]):
            scores[at] = picks.signs[at] * kept.r(units[at], y_vn)
    out = {name: (np.full(len(units), np.nan), np.full(len(units), np.nan)) for name in MEASURES}
    for draw, (one, *others) in enumerate(units):
        for i, other in enumerate(others):
            both = (one >= 0) & (other >= 0)
            values = {
                "same unit": (one == other)[both],
                "codes' r": columns.r(one, columns.of(other))[both],
                "same layer": (one // u == other // u)[both],
                "held-out r": scores[draw, 2] if i else scores[draw, :2],
            }
            for name, x in values.items():
                x = x[np.isfinite(x)]
                out[name][i][draw] = x.mean(dtype=np.float64) if x.size else np.nan
    return out
