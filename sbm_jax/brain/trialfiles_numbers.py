"""What trial files share: stored numbers and what they become, exact reads, selections, and their errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbm_jax.errors import UserError

Selection = slice | np.ndarray


@dataclass(frozen=True)
class Numbers:
    """Numbers as a file stores them. Handed out: stored * slope + inter in float32 where a scale is set, else unchanged.

    stored: dtype with the file's byte order.
    """

    stored: np.dtype
    slope: float = 1.0
    inter: float = 0.0

    @property
    def scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)

    @property
    def dtype(self) -> np.dtype:
        """Of what is handed out: native byte order."""
        return np.dtype(np.float32) if self.scaled else self.stored.newbyteorder("=")

    @property
    def unchanged(self) -> bool:
        """The bytes of the file are the bytes handed out."""
        return self.stored.isnative and not self.scaled

    def convert(self, raw: np.ndarray, out: np.ndarray) -> None:
        """Write stored numbers into `out` of the same shape and of `dtype`."""
        out[...] = raw
        if self.scaled:
            out *= np.float32(self.slope)
            out += np.float32(self.inter)


def real_numbers(path: Path, stored: np.dtype) -> np.dtype:
    """The dtype, if it is of real numbers of at most 8 bytes; raises UserError otherwise."""
    if stored.kind not in "iuf" or stored.itemsize > 8:
        raise UserError(f"{path}: expected real numbers (integers or floats of at most 64 bits), found {stored}")
    return stored


def need_trials(path: Path, n_trials: int, n_places: int) -> None:
    """Raise UserError for a file that holds nothing."""
    if n_trials < 1 or n_places < 1:
        raise UserError(f"{path}: expected at least one trial and one place, found {n_trials} x {n_places}")


def need_bytes(path: Path, expected: int) -> None:
    """Raise UserError if the file is shorter than what its header announces."""
    found = path.stat().st_size
    if found < expected:
        raise cut_short(path, expected, found)


def cut_short(path: Path, expected: int, found: int) -> UserError:
    """The error for a file that ends too early."""
    return UserError(
        f"{path}: cut short: its header announces {expected:,} bytes, found {found:,}; copy or download it again"
    )


def need_file(path: Path, what: str) -> Path:
    """The path, if there is a file. Raises UserError otherwise; `what` says what it should hold."""
    if not path.is_file():
        raise UserError(f"{path}: file not found; expected {what}")
    return path


def read_exactly(descriptor: int, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill a buffer of bytes from a place in a file. Raises UserError if the file ends before, or cannot be read."""
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            raise UserError(f"{path}: cannot be read at byte {offset + done:,}: {error.strerror}") from error
        if count == 0:
            raise cut_short(path, offset + len(buffer), offset + done)
        done += count


def selection(indices: np.ndarray) -> Selection:
    """Indices as a slice where they are consecutive."""
    if len(indices) == 0:
        return slice(0, 0)
    first, last = int(indices[0]), int(indices[-1])
    if last - first == len(indices) - 1 and (np.diff(indices) == 1).all():
        return slice(first, last + 1)
    return indices


def check_indices(rows: np.ndarray, places: np.ndarray, n_trials: int, n_places: int) -> None:
    """Raise ValueError unless rows ascend within the trials and places lie within the file: a reader's mistake."""
    if len(rows) and (rows[0] < 0 or rows[-1] >= n_trials or (np.diff(rows) <= 0).any()):
        raise ValueError(f"rows must ascend within 0 to {n_trials - 1}")
    if len(places) and not 0 <= places.min() <= places.max() < n_places:
        raise ValueError(f"places must lie within 0 to {n_places - 1}")


def split(rows: np.ndarray, height: int) -> Iterator[np.ndarray]:
    """Consecutive pieces of `height`; the last may be shorter."""
    if height < 1:
        raise ValueError(f"a block needs at least one row, not {height}")
    for first in range(0, len(rows), height):
        yield rows[first : first + height]
