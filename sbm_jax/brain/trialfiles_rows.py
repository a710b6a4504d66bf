"""Files in which a trial is one run of bytes: rows by position, or in order out of a gzip stream."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sbm_jax.brain.trialfiles_numbers import Numbers, read_exactly, selection, split
from sbm_jax.errors import UserError

_GZIP = 31  # zlib's window bits for a gzip member: it checks length and CRC itself
_READ = 1 << 18  # compressed bytes at a time
_INFLATE = 1 << 20  # decompressed bytes at a time, so that well-packed zeros cannot fill the memory
_SLAB = 1 << 22  # decompressed bytes handed from thread to thread at a time
_SLABS = 3  # one being filled, one waiting, one being read


def inflate_bytes(row_bytes: int) -> int:
    """Memory that decompressing rows of that size takes."""
    return _SLABS * max(_SLAB, row_bytes) + 4 * _INFLATE


def row_blocks(
    raw_rows: Iterator[np.ndarray], rows: np.ndarray, places: np.ndarray, numbers: Numbers, height: int
) -> Iterator[np.ndarray]:
    """Blocks [at most `height`, places] out of whole rows of stored numbers, one per entry of `rows`."""
    chosen = selection(places)
    scratch = np.empty(len(places), dtype=numbers.stored)
    for piece in split(rows, height):
        block = np.empty((len(piece), len(places)), dtype=numbers.dtype)
        for out, raw in zip(block, raw_rows, strict=False):
            if isinstance(chosen, slice):
                numbers.convert(raw[chosen], out)
            elif numbers.unchanged:
                # `clip` writes without a buffer between; the indices were checked before
                np.take(raw, chosen, out=out, mode="clip")
            else:
                numbers.convert(np.take(raw, chosen, out=scratch, mode="clip"), out)
        yield block
        del block


def read_row_blocks(
    path: Path, offset: int, n_places: int, numbers: Numbers, rows: np.ndarray, places: np.ndarray, height: int
) -> Iterator[np.ndarray]:
    """Blocks out of a file of rows [trials, places] that starts at byte `offset`; reads from the first to the last place.

    Positioned reads rather than a memory map: a file that shrinks meanwhile is an error and not a crash.
    """
    if len(places) == 0:
        yield from (np.empty((len(piece), 0), dtype=numbers.dtype) for piece in split(rows, height))
        return
    low, high = int(places.min()), int(places.max()) + 1

    def raw_rows(file: BinaryIO) -> Iterator[np.ndarray]:
        raw = np.empty(high - low, dtype=numbers.stored)
        view = raw.view(np.uint8).data
        for row in rows.tolist():
            start = offset + (row * n_places + low) * numbers.stored.itemsize
            read_exactly(file.fileno(), view, start, path)
            yield raw

    with path.open("rb", buffering=0) as file:
        yield from row_blocks(raw_rows(file), rows, places - low, numbers, height)


def inflate_row_blocks(
    path: Path,
    offset: int,
    shape: tuple[int, int],
    numbers: Numbers,
    rows: np.ndarray,
    places: np.ndarray,
    height: int,
) -> Iterator[np.ndarray]:
    """Blocks out of a gzipped file of rows `shape` (trials, places) that starts at decompressed byte `offset`.

    A thread decompresses ahead, once from the beginning to the last row wanted. Where that is the file's last row
    the rest is read too, so that the checksum is compared.
    """
    if len(rows) == 0:
        return
    n_trials, n_places = shape
    row_bytes = n_places * numbers.stored.itemsize
    first, last = int(rows[0]), int(rows[-1])
    to_the_end = last == n_trials - 1
    with _RowsAhead(path, offset, row_bytes, first, last, to_the_end) as ahead:

        def raw_rows() -> Iterator[np.ndarray]:
            wanted = iter(rows.tolist())
            row = next(wanted)
            for first, slab in ahead:
                while row - first < len(slab):
                    if row == last:
                        ahead.finish()  # damage must show before the last block is handed out
                        yield slab[row - first].view(numbers.stored)
                        return
                    yield slab[row - first].view(numbers.stored)
                    row = next(wanted)

        yield from row_blocks(raw_rows(), rows, places, numbers, height)


class _Inflater:
    """The decompressed bytes of a gzip file of one or several members, in order. Raises UserError for damage."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.member = zlib.decompressobj(_GZIP)
        self.compressed = b""
        self.ready = memoryview(b"")
        self.count = 0

    def _more(self) -> bool:
        """Decompress the next bytes into `ready`; False at the end of the file."""
        while True:
            if not self.compressed:
                self.compressed = self._read()
            if self.member.eof:
                # members may follow one another, with zeros between or behind (RFC 1952; padding as gzip allows)
                self.compressed = self.compressed.lstrip(b"\0") or self._read().lstrip(b"\0")
                if not self.compressed:
                    return False
                self.member = zlib.decompressobj(_GZIP)
            elif not self.compressed:
                raise UserError(
                    f"{self.path}: cut short: the gzip stream ends in the middle, after {self.count:,} decompressed "
                    "bytes; copy or download it again"
                )
            try:
                piece = self.member.decompress(self.compressed, _INFLATE)
            except zlib.error as error:
                raise UserError(
                    f"{self.path}: damaged: the gzip stream cannot be decompressed after {self.count:,} bytes "
                    f"({error}); copy or download it again"
                ) from error
            self.compressed = self.member.unused_data if self.member.eof else self.member.unconsumed_tail
            if piece:
                self.ready = memoryview(piece)
                self.count += len(piece)
                return True

    def _read(self) -> bytes:
        try:
            return self.file.read(_READ)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from error

    def take(self, most: int) -> memoryview:
        """The next bytes, at least one and at most `most`. Raises UserError at the end of the file."""
        if not len(self.ready) and not self._more():
            raise UserError(
                f"{self.path}: cut short: its header announces more than the {self.count:,} decompressed bytes there "
                "are; copy or download it again"
            )
        taken, self.ready = self.ready[:most], self.ready[most:]
        return taken

    def at_end(self) -> bool:
        """Decompress what comes next, to be dropped; True at the end of the file, whose checksum is then compared."""
        return not self._more()


class _RowsAhead:
    """Slabs of rows first..last decompressed by a thread. Iterating gives (number of the slab's first row, uint8 [some, row]);
    a slab is overwritten after the next one is asked for.
    """

    def __init__(self, path: Path, offset: int, row_bytes: int, first: int, last: int, to_the_end: bool):
        self.path, self.skip = path, offset + first * row_bytes
        self.first, self.last, self.to_the_end = first, last, to_the_end
        self.per_slab = max(1, _SLAB // row_bytes)
        self.free: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self.full: queue.SimpleQueue[np.ndarray | BaseException | None] = queue.SimpleQueue()
        self.stop = threading.Event()
        for _ in range(_SLABS):
            self.free.put(np.empty((self.per_slab, row_bytes), dtype=np.uint8))
        self.thread = threading.Thread(target=self._work, name=f"inflate {path.name}", daemon=True)

    def __enter__(self) -> _RowsAhead:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.free.put(None)  # wakes the thread if it waits for a slab
        self.thread.join()

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        first = self.first
        while (slab := self._next()) is not None:
            yield first, slab[: self.last + 1 - first]
            first += len(slab)
            self.free.put(slab)

    def finish(self) -> None:
        """Wait until the thread has read and checked the rest; raise what it found. The slab at hand stays."""
        while self._next() is not None:
            pass

    def _next(self) -> np.ndarray | None:
        item = self.full.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _work(self) -> None:
        try:
            with self.path.open("rb", buffering=0) as file:
                self._fill(_Inflater(self.path, file))
            self.full.put(None)
        except BaseException as error:  # for the thread that waits
            self.full.put(error)

    def _fill(self, source: _Inflater) -> None:
        left = self.skip
        while left and not self.stop.is_set():
            left -= len(source.take(left))
        for first in range(self.first, self.last + 1, self.per_slab):
            slab = self.free.get()
            if slab is None:
                return
            flat = slab[: self.last + 1 - first].reshape(-1).data
            done = 0
            while done < len(flat):
                piece = source.take(len(flat) - done)
                flat[done : done + len(piece)] = piece
                done += len(piece)
            self.full.put(slab)
        while self.to_the_end and not self.stop.is_set() and not source.at_end():
            pass
