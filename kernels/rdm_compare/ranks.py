"""Average ranks: sorted once, ranked under any whole-number weights by one running sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sorted:
    """The order of p values and where groups of equal ones end: enough to rank them again under other weights.

    order: int [p], indices from smallest to largest. ends: int64 [groups], the position after each group's last; None
    without ties.
    """

    order: np.ndarray
    ends: np.ndarray | None

    def ranks(self, weights_p: np.ndarray | None = None) -> np.ndarray:
        """float64 [p]: average ranks from 1 when value i is there weights_p[i] times (a weight of 0: any number)."""
        count = len(self.order)
        if weights_p is None:
            last = np.arange(1, count + 1) if self.ends is None else self.ends
        else:
            last = np.cumsum(weights_p[self.order], dtype=np.int64)
            last = last if self.ends is None else last[self.ends - 1]
        doubled = last + 1
        doubled[1:] += last[:-1]
        if self.ends is not None:
            doubled = np.repeat(doubled, np.diff(self.ends, prepend=0))
        # Half of the bytes to scatter where they hold the ranks: almost twice as fast for 4 million values.
        out = np.empty(count, np.uint32 if doubled.max(initial=0) < 2**32 else np.int64)
        out[self.order] = doubled
        return out * 0.5


def sort_values(x_p: np.ndarray) -> Sorted:
    """Sort finite values [p]. float32 with fewer than 2^32 of them in one sort of (value, index) packed into 64 bits, which
    is several times faster than an argsort; others by argsort in float64."""
    if x_p.dtype != np.float32 or len(x_p) >= 2**32:
        order = np.argsort(x_p, kind="stable")
        ordered = x_p[order]
        changes = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    else:
        packed = _keys(x_p).astype(np.uint64)
        packed <<= np.uint64(32)
        packed |= np.arange(len(x_p), dtype=np.uint32)
        packed.sort()
        high = packed.view(np.uint32)[1::2]  # little-endian, as every machine that JAX runs on
        changes = np.flatnonzero(high[1:] != high[:-1]) + 1
        packed &= np.uint64(2**32 - 1)
        order = packed.view(np.int64)
    if len(changes) + 1 == len(x_p):
        return Sorted(order, None)
    return Sorted(order, np.append(changes, len(x_p)))


def average_ranks(x_p: np.ndarray) -> np.ndarray:
    """float64 [p]: ranks from 1, ties at their mean, of finite values."""
    return sort_values(x_p).ranks()


def _keys(x_p: np.ndarray) -> np.ndarray:
    """uint32 with the order of the float32 values: IEEE bits, those of negative numbers flipped."""
    bits = (x_p + np.float32(0)).view(np.uint32)  # -0 becomes 0
    if x_p.min(initial=0) >= 0:
        return bits
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))
