"""The codes of one mode in pieces that fit a budget: each is read once and serves every subject."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sbm_jax.axes import SAE_MODES
from sbm_jax.errors import UserError
from sbm_jax.kernels.codes import SparseCodes
from sbm_jax.stages.inputs import Codes, n_units, read_codes, read_sparse
from sbm_jax.store.store import Store

_READ_IMAGES = 2048  # at a time, where units of a layer are picked out of sparse codes


@dataclass(frozen=True)
class Piece:
    """Units `first` to `last` of a layer; bytes: what they take in memory for the images that are read."""

    layer: int
    hook: str
    first: int
    last: int
    bytes: int


class Pieces:
    """Codes of some images (ascending rows of the image table) over all layers of a mode.

    A shelf is as many pieces as fit into the budget, one at least. A layer that does not fit is cut by units: dense codes are
    read by columns; sparse ones are stored by image, so each of their pieces reads the layer again.
    """

    def __init__(self, codes: Store, saes: Store, mode: str, hooks: tuple[str, ...], rows: np.ndarray, budget: int):
        self.codes, self.mode, self.rows, self.units = codes, mode, rows, n_units(codes, saes, mode, hooks[0])
        self.shelves: list[list[Piece]] = [[]]
        for layer, hook in enumerate(hooks):
            size = self._bytes(hook)
            parts = min(self.units, -(-size // budget))
            cuts = np.linspace(0, self.units, parts + 1).astype(int)
            for first, last in pairwise(cuts):
                if self.shelves[-1] and sum(p.bytes for p in self.shelves[-1]) + size // parts > budget:
                    self.shelves.append([])
                self.shelves[-1].append(Piece(layer, hook, int(first), int(last), size // parts))
        self._last: list[tuple[Piece, Codes]] = []

    def __len__(self) -> int:
        return sum(map(len, self.shelves))

    def _bytes(self, hook: str) -> int:
        if self.mode not in SAE_MODES:
            return 4 * len(self.rows) * self.units
        widest = int(self.codes.read(f"{self.mode}/{hook}/active", self.rows).max(initial=1))
        return 8 * len(self.rows) * widest

    def read(self) -> Iterator[list[tuple[Piece, Codes]]]:
        """The shelves one after another, read; a single one is read once and kept."""
        if self._last:
            yield self._last
            return
        for shelf in self.shelves:
            loaded = [(piece, self._read(piece)) for piece in shelf]
            if len(self.shelves) == 1:
                self._last = loaded
            yield loaded

    def _read(self, piece: Piece) -> Codes:
        units = slice(piece.first, piece.last)
        if piece.last - piece.first == self.units:
            out = read_codes(self.codes, self.mode, piece.hook, self.rows, self.units)
        elif self.mode not in SAE_MODES:
            out = self.codes.read_columns(f"{self.mode}/{piece.hook}", units)[self.rows]
        else:
            some = (self.rows[i : i + _READ_IMAGES] for i in range(0, len(self.rows), _READ_IMAGES))
            layer = (read_sparse(self.codes, self.mode, piece.hook, rows, self.units) for rows in some)
            out = _stacked([_some_units(codes, units) for codes in layer])
        values = out.values_nk if isinstance(out, SparseCodes) else out
        if not np.isfinite(values).all():
            raise UserError(
                f"align: the {self.mode} codes at {piece.hook} hold NaN or infinity. Check the activations and the training."
            )
        return out


def _some_units(codes: SparseCodes, units: slice) -> SparseCodes:
    """The entries of some units, moved to the front; units count from the first of them."""
    mine = (codes.values_nk != 0) & (codes.units_nk >= units.start) & (codes.units_nk < units.stop)
    order = np.argsort(~mine, axis=1, kind="stable")[:, : max(1, int(mine.sum(axis=1).max(initial=0)))]
    values, index = (np.take_along_axis(x, order, axis=1) for x in (codes.values_nk * mine, codes.units_nk))
    return SparseCodes(values, np.where(values != 0, index - units.start, 0), units.stop - units.start)


def _stacked(parts: list[SparseCodes]) -> SparseCodes:
    width = max(part.values_nk.shape[1] for part in parts)
    arrays = ([part.values_nk for part in parts], [part.units_nk for part in parts])
    values, units = (np.concatenate([np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in some]) for some in arrays)
    return SparseCodes(values, units, parts[0].n_units)
