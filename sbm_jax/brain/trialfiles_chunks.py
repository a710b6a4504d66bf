"""Where the chunks of an HDF5 dataset lie in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.brain.trialfiles_numbers import need_bytes

_BATCH = 1 << 13
WALK_BYTES = 256 * _BATCH  # corners and offsets of a batch as Python numbers


def chunk_starts(path: Path, values: Any, trial_axis: int) -> np.ndarray:
    """First byte of every chunk of an h5py dataset whose chunks are one place with all its trials; int64 [places], in
    the order of the other axes with the last one fastest. -1 where no chunk was ever written.

    One walk over the index, about 2 microseconds per chunk; asking for single chunks walks it every time.
    Raises UserError if a chunk lies behind the end of the file.
    """
    others = [size for axis, size in enumerate(values.shape) if axis != trial_axis]
    starts = np.full(int(np.prod(others)), -1, dtype=np.int64)
    corners: list[tuple[int, ...]] = []
    offsets: list[int] = []

    def flush() -> None:
        if offsets:
            index = np.delete(np.array(corners, dtype=np.int64), trial_axis, axis=1)
            starts[np.ravel_multi_index(tuple(index.T), others)] = offsets
            corners.clear()
            offsets.clear()

    def take(chunk: Any) -> None:
        corners.append(chunk.chunk_offset)
        offsets.append(chunk.byte_offset)
        if len(offsets) == _BATCH:
            flush()

    values.id.chunk_iter(take)
    flush()
    need_bytes(path, int(starts.max()) + values.shape[trial_axis] * values.dtype.itemsize)
    return starts
