"""Files in which all trials of a place are one run of bytes: columns where they lie, and rows by transposing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sbm_jax.brain.trialfiles_numbers import Numbers, read_exactly, selection, split

_WINDOW = 1 << 23  # bytes read at a time
_GAP = 1 << 16  # bytes worth reading through rather than seeking over
_TILE = 1 << 18  # bytes transposed at a time: stays in the second-level cache
PLACES_BYTES = _WINDOW + 2 * _TILE


def gather_places(
    path: Path, offsets_v: np.ndarray, numbers: Numbers, rows: np.ndarray, out_tv: np.ndarray, fill: float = 0
) -> None:
    """Fill out [rows, v] with the numbers that start at byte `offsets_v` [v] of a file, one per trial from the 0th on.

    The file is read forwards in windows; what lies between wanted places is read too where it is short. A negative
    offset is a place that is not in the file: `fill`.
    """
    if out_tv.size == 0:
        return
    first, span = int(rows[0]), int(rows[-1] - rows[0]) + 1
    pick = selection(rows - first)
    run = span * numbers.stored.itemsize
    order = np.argsort(offsets_v, kind="stable")
    absent = int(np.searchsorted(offsets_v[order], 0))
    if absent:
        out_tv[:, order[:absent]] = fill
        order = order[absent:]
    starts = offsets_v[order] + first * numbers.stored.itemsize
    tile = max(1, _TILE // run)
    buffer = np.empty(max(_WINDOW, run), dtype=np.uint8)
    with path.open("rb", buffering=0) as file:
        for a, b in _windows(starts, run, len(buffer)):
            base, stop = int(starts[a]), int(starts[b - 1]) + run
            read_exactly(file.fileno(), buffer.data[: stop - base], base, path)
            # every byte of the window as the start of one run: picks runs at any alignment with one copy each
            runs = np.ndarray((stop - base - run + 1,), dtype=f"V{run}", buffer=buffer.data, strides=(1,))
            for c in range(a, b, tile):
                d = min(c + tile, b)
                raw_vt = runs[starts[c:d] - base].view(numbers.stored).reshape(d - c, span)
                columns = selection(order[c:d])
                if isinstance(columns, slice):
                    numbers.convert(raw_vt.T[pick], out_tv[:, columns])
                else:
                    values = np.empty((len(rows), d - c), dtype=numbers.dtype)
                    numbers.convert(raw_vt.T[pick], values)
                    out_tv[:, columns] = values


def place_row_blocks(
    path: Path, offsets_v: np.ndarray, numbers: Numbers, rows: np.ndarray, height: int, fill: float = 0
) -> Iterator[np.ndarray]:
    """Blocks [at most `height`, v] of such a file; every block reads it once."""
    for piece in split(rows, height):
        block = np.empty((len(piece), len(offsets_v)), dtype=numbers.dtype)
        gather_places(path, offsets_v, numbers, piece, block, fill)
        yield block
        del block


def _windows(starts: np.ndarray, run: int, largest: int) -> Iterator[tuple[int, int]]:
    """Ranges of ascending starts whose runs lie within `largest` bytes, without gaps that are worth a seek."""
    if len(starts) == 0:
        return
    edges = [0, *(np.flatnonzero(np.diff(starts) > run + _GAP) + 1).tolist(), len(starts)]
    for low, high in itertools.pairwise(edges):
        while low < high:
            # at least one run fits, so this moves on
            end = low + int(np.searchsorted(starts[low:high], starts[low] + largest - run, side="right"))
            yield low, end
            low = end
