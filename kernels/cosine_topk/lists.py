"""Running lists of the k best on the host: a block of similarities is compared with the worst kept, and little is sorted.

Candidates lie in groups of up to `WIDTH`, whose maxima are found in one pass. Only groups whose maximum beats the row's worst
kept value are looked into, and only what beats it is sorted. A row that has no list yet starts from a lower bound: the k-th
largest maximum of a group, which at least k candidates reach.
"""

from __future__ import annotations

import numpy as np

from sbm_jax.kernels.cosine_topk.xla import NEVER

WIDTH = 32
_AT_ONCE = 1 << 21  # candidates looked into together, at most
MOST_KEPT = 1 << 19  # a row, a value and a position share 64 bits


class Lists:
    """keys [rows, k] float32 (descending; NEVER where nothing is yet) and index [rows, k] int32."""

    def __init__(self, rows: int, k: int):
        self.keys, self.index = np.full((rows, k), NEVER, np.float32), np.zeros((rows, k), np.int32)

    def update(self, s_cr: np.ndarray, rows: np.ndarray, index_c: np.ndarray) -> None:
        """Take in candidates s[c, r] of some rows [r], at most 4,096 of each; ties go to what is in the list, then to the lowest c.

        index_c: what candidate c is called. Values at NEVER are no candidates; c is a multiple of `WIDTH`.
        """
        keys = self.keys[rows]
        k = keys.shape[1]
        width = WIDTH
        while width > 1 and len(s_cr) < 2 * k * width:
            width //= 2
        groups = s_cr.reshape(width, -1, s_cr.shape[1])  # candidate i n + j is number i of group j
        top = groups.max(axis=0)
        least = _least(keys[:, -1], top, k)
        better = top > least
        if width * np.count_nonzero(better) > _AT_ONCE and len(rows) > 1:
            half = len(rows) // 2
            self.update(s_cr[:, :half], rows[:half], index_c)
            self.update(s_cr[:, half:], rows[half:], index_c)
            return
        group, r = np.nonzero(better) if better.flags.c_contiguous else np.nonzero(better.T)[::-1]
        values = groups[:, group, r]
        i, pair = np.nonzero(values > least[r])
        if len(i):
            self._merge(keys, rows, values[i, pair], r[pair], i * len(top) + group[pair], index_c)

    def _merge(
        self, keys: np.ndarray, rows: np.ndarray, values: np.ndarray, r: np.ndarray, c: np.ndarray, index_c: np.ndarray
    ) -> None:
        """Sort the lists of the rows that get something new together with it: by row, value (descending) and position."""
        k = keys.shape[1]
        new = np.bincount(r, minlength=len(rows))
        touched = np.flatnonzero(new)
        place = np.cumsum(new > 0) - 1  # of a row among the touched
        bits = np.uint64(int(k + len(index_c)).bit_length())
        old = _pack(np.arange(len(touched))[:, None], keys[touched], np.arange(k)[None], bits)
        packed = np.concatenate([old.ravel(), _pack(place[r], values, k + c, bits)])
        packed.sort()
        count = k + new[touched]
        best = packed[(np.cumsum(count) - count)[:, None] + np.arange(k)]
        position = (best & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
        known = np.take_along_axis(self.index[rows[touched]], np.minimum(position, k - 1), axis=1)
        found = index_c[np.clip(position - k, 0, len(index_c) - 1)]
        self.keys[rows[touched]] = _unpack(best >> bits)
        self.index[rows[touched]] = np.where(position < k, known, found)


def _least(kept: np.ndarray, top: np.ndarray, k: int) -> np.ndarray:
    """[r] what a candidate must exceed to enter."""
    fresh = np.flatnonzero(kept == NEVER)
    if not len(fresh) or len(top) < k:
        return kept
    bound = np.partition(top.T[fresh], len(top) - k, axis=1)[:, len(top) - k]
    least = kept.copy()
    # A candidate may equal the bound.
    least[fresh] = np.maximum(np.nextafter(bound, np.float32(NEVER)), np.float32(NEVER))
    return least


def _pack(row: np.ndarray, value: np.ndarray, position: np.ndarray, bits: np.uint64) -> np.ndarray:
    """uint64 that sorts by row, descending value, position."""
    raw = (value + np.float32(0)).view(np.uint32)  # -0 is 0
    falling = np.where(raw >> 31, raw, raw ^ np.uint32(0x7FFFFFFF))
    high = (row.astype(np.uint64) << np.uint64(32)) | falling
    return (high << bits) | position.astype(np.uint64)


def _unpack(high: np.ndarray) -> np.ndarray:
    """The values of `_pack`, float32."""
    falling = high.astype(np.uint32)
    return np.where(falling >> 31, falling, falling ^ np.uint32(0x7FFFFFFF)).view(np.float32)
