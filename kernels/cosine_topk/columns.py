"""Columns of sparse codes as gather tables: which rows of y each unit adds up, in chunks of equal width, dense units first."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sbm_jax.kernels.codes import SparseCodes, unit_values
from sbm_jax.kernels.cosine_topk.reference import CONSTANT

# Padded numbers of images per unit, and how many units of that width make a chunk (about 768 entries: a few microseconds).
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
CHUNK = (128, 128, 128, 128, 96, 96, 64, 48, 32, 24)
WIDE = 32  # units that fire on more images: in pieces of so many entries,
WIDE_CHUNK = 16  # and so many units
DENSE_CHUNK = 8
GROUP = 32  # candidates whose maximum is looked at first
MARGIN_ROWS = max(CHUNK) + 1  # a chunk may write past the last row in use; the last row of all stays empty


class Columns(NamedTuple):
    """Distinct unit-norm columns, by descending number of images m; units that fire on one and the same image share a column.

    weights, images: entries of all columns, one after another; start_c, m_c: where those of column c lie. shift_c: the
    value -shift where the column is silent (0: silent is zero). column_u: column of each unit, -1 for constant ones.
    """

    n: int
    weights: np.ndarray
    images: np.ndarray
    start_c: np.ndarray
    m_c: np.ndarray
    shift_c: np.ndarray
    column_u: np.ndarray

    @property
    def negative(self) -> bool:
        """Whether any weight is below zero."""
        return bool(len(self.weights) and self.weights.min() < 0)


def columns(codes: SparseCodes, center: bool) -> Columns:
    """Columns of unit norm (after centring when `center`), as `codes.unit_values` makes them."""
    from scipy.sparse import csr_array

    values, units, shift, real = unit_values(codes, center, CONSTANT)
    n, k = values.shape
    rows = csr_array((values.ravel(), units.ravel(), k * np.arange(n + 1)), (n, codes.n_units + 1))
    table = rows[:, : codes.n_units].tocsc() if k else rows.tocsc()
    start, m = table.indptr[:-1][: codes.n_units], np.diff(table.indptr)[: codes.n_units]
    m = np.where(real, m, 0)
    # Key of a column: the unit itself, or image and sign where it fires on one image alone.
    key = np.arange(codes.n_units, dtype=np.int64)
    single = np.flatnonzero((m == 1) & (shift == 0))
    key[single] = -1 - 2 * table.indices[start[single]] - (table.data[start[single]] < 0)
    alive = np.flatnonzero(real)
    _, first, column = np.unique(key[alive], return_index=True, return_inverse=True)
    chosen = alive[first]
    order = np.lexsort((-m[chosen], shift[chosen] == 0))  # shifted columns are dense whatever m
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    column_u = np.full(codes.n_units, -1, np.int64)
    column_u[alive] = place[column]
    chosen = chosen[order]
    return Columns(
        n,
        table.data,
        table.indices.astype(np.int32),
        start[chosen].astype(np.int64),
        m[chosen],
        shift[chosen],
        column_u,
    )


def dense_rows(c: Columns, which: np.ndarray) -> np.ndarray:
    """Some columns written out, [len(which), n] float32."""
    out = np.repeat(-c.shift_c[which, None], c.n, axis=1).astype(np.float32)
    m = c.m_c[which]
    entry = np.repeat(c.start_c[which] - np.cumsum(m) + m, m) + np.arange(m.sum())
    out[np.repeat(np.arange(len(which)), m), c.images[entry]] = c.weights[entry]
    return out


class Tables(NamedTuple):
    """One phase of the search: how to make rows of similarities from y, and which candidates lie in which rows.

    dense [D, n] rows of a product; weights, images [E]: entries of all chunks; narrow [widths, 3]: first entry, first
    row, chunks; wide [W, 2]: first entry, pieces of `WIDE`; rows, units [P]: candidates by ascending unit; counts:
    chunks of dense rows, wide chunks, first wide row, groups of candidates.
    """

    dense: Any
    weights: Any
    images: Any
    narrow: Any
    wide: Any
    rows: Any
    units: Any
    counts: Any


class Sizes(NamedTuple):
    """Capacities, rounded up to powers of two, so that few programs are compiled."""

    dense: int
    entries: int
    wide: int
    rows: int
    positions: int


def tables(c: Columns, which: np.ndarray, dense_above: int, keep: int) -> tuple[Tables, np.ndarray, int]:
    """Tables of the columns `which`; those with more than `dense_above` entries, and shifted ones, become a product.

    keep: candidates per column (units that share a column beyond that number can be in no list).
    Returns the tables without padding, the row of each of `which`, and how many rows there are.
    """
    m, shifted = c.m_c[which], c.shift_c[which] != 0
    is_dense = shifted | (m > dense_above)
    row, at, entries = np.full(len(which), -1, np.int64), 0, 0
    row[is_dense] = np.arange(is_dense.sum())
    dense = dense_rows(c, which[is_dense])
    at = _round(len(dense), DENSE_CHUNK)
    weights, images = [], []

    def add(index: np.ndarray, units: int, width: int) -> None:
        """A block [units, width] of entries, zero beyond the m of each of `index` (places in `which`)."""
        nonlocal entries
        inside = np.arange(width) < m[index, None]
        entry = np.where(inside, c.start_c[which[index], None] + np.arange(width), 0)
        block = np.zeros((2, units, width), np.float32)
        block[0, : len(index)] = np.where(inside, c.weights[entry], 0)
        image = np.zeros((units, width), np.int32)
        image[: len(index)] = np.where(inside, c.images[entry], 0)
        weights.append(block[0])
        images.append(image)
        entries += units * width

    wide, first_wide = [], at
    index = np.flatnonzero(~is_dense & (m > WIDTHS[-1]))
    for i in range(0, len(index), WIDE_CHUNK):
        part = index[i : i + WIDE_CHUNK]
        pieces = -(-int(m[part].max()) // WIDE)
        wide.append((entries, pieces))
        add(part, WIDE_CHUNK, pieces * WIDE)
        # Piece by piece, so that one piece of all units of the chunk lies together.
        for flat in (weights, images):
            flat[-1] = flat[-1].reshape(WIDE_CHUNK, pieces, WIDE).transpose(1, 0, 2)
        row[part] = at + np.arange(len(part))
        at += WIDE_CHUNK
    narrow, below = [], 0
    for width, chunk in zip(WIDTHS, CHUNK, strict=True):
        index = np.flatnonzero(~is_dense & (m > below) & (m <= width))
        narrow.append((entries, at, -(-len(index) // chunk)))
        row[index] = at + np.arange(len(index))
        add(index, _round(len(index), chunk), width)
        at += _round(len(index), chunk)
        below = width
    units, rows = _candidates(c, which, row, keep)
    return (
        Tables(
            dense,
            np.concatenate([w.ravel() for w in weights]),
            np.concatenate([i.ravel() for i in images]),
            np.asarray(narrow, np.int32),
            np.asarray(wide, np.int32).reshape(-1, 2),
            rows,
            units,
            np.asarray([-(-len(dense) // DENSE_CHUNK), len(wide), first_wide, -(-len(units) // GROUP)], np.int32),
        ),
        row,
        at,
    )


def _candidates(c: Columns, which: np.ndarray, row: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Units by ascending index, at most the `keep` first of each column, and their rows."""
    if not keep:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    row_c = np.full(len(c.m_c) + 1, -1, np.int64)  # the last for units of no column
    row_c[which] = row
    units = np.flatnonzero(row_c[c.column_u] >= 0)
    column = c.column_u[units]
    by_column = np.argsort(column, kind="stable")
    start = np.searchsorted(column[by_column], column[by_column])
    kept = np.sort(by_column[np.arange(len(units)) - start < keep])
    return units[kept].astype(np.int32), row_c[column[kept]].astype(np.int32)


def sizes(t: Tables, rows: int) -> Sizes:
    """Capacities for tables of so many rows."""
    return Sizes(
        dense=_capacity(len(t.dense), 64),
        entries=_capacity(len(t.weights), 8192),
        wide=_capacity(len(t.wide), 64),
        rows=_capacity(rows + MARGIN_ROWS, 2048),
        positions=_capacity(len(t.units), 32 * GROUP),
    )


def pad(t: Tables, s: Sizes) -> Tables:
    """Tables of the given capacities; the candidates that fill up lie in the last row, which stays empty."""
    last = np.iinfo(np.int32).max
    return t._replace(
        dense=np.pad(t.dense, ((0, s.dense - len(t.dense)), (0, 0))),
        weights=np.pad(t.weights, (0, s.entries - len(t.weights))),
        images=np.pad(t.images, (0, s.entries - len(t.images))),
        wide=np.pad(t.wide, ((0, s.wide - len(t.wide)), (0, 0))),
        rows=np.pad(t.rows, (0, s.positions - len(t.rows)), constant_values=s.rows - 1),
        units=np.pad(t.units, (0, s.positions - len(t.units)), constant_values=last),
    )


def _round(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


def _capacity(x: int, multiple: int) -> int:
    """x rounded up to a power of two times `multiple`: few different sizes, few compilations."""
    return multiple << (max(1, -(-x // multiple)) - 1).bit_length()
