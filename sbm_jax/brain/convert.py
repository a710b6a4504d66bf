"""Trials that can only be read in order, written once as an array of which any columns can be read: no session is read twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sbm_jax.brain.responses import Responses
from sbm_jax.store.buffer import ShardBuffer
from sbm_jax.store.store import Store, StoreWriter

ARRAY = "trials"
_SHARD_BYTES = 1 << 25
_CHUNK_VOXELS = 256


def trials_per_shard(n_voxels: int, itemsize: int) -> int:
    """Rows of a shard: the largest power of two below 32 MiB, so that shards do not depend on the memory budget."""
    return 1 << max(0, (_SHARD_BYTES // max(1, n_voxels * itemsize)).bit_length() - 1)


def finished_trials(responses: Responses, writer: StoreWriter) -> int:
    """Trials that an earlier try of `convert_trials` has left on disk."""
    shard = trials_per_shard(responses.n_voxels, responses.dtype.itemsize)
    return min(writer.cursor * shard, responses.n_trials)


def convert_trials(
    responses: Responses, writer: StoreWriter, memory_bytes: int, advance: Callable[[int], None] = lambda done: None
) -> None:
    """Write `trials` [t, v] in the files' own numbers, going on behind the last finished shard of an earlier try.

    Args:
        responses: any source; it is read in order, once.
        writer: of the store; its cursor counts finished shards.
        memory_bytes: working memory, of which a shard and its copies on the way to disk take 128 MiB at most.
        advance: called with the number of trials read since the last call.
    """
    shard = trials_per_shard(responses.n_voxels, responses.dtype.itemsize)
    writer.create(
        ARRAY,
        (responses.n_trials, responses.n_voxels),
        responses.dtype.name,
        shard_rows=shard,
        compress=False,
        dimensions=("t", "v"),
        attributes={"divisor": responses.divisor},
        chunk_columns=_CHUNK_VOXELS,
    )
    start = finished_trials(responses, writer)
    buffer = ShardBuffer(writer, min(shard, responses.n_trials), responses.n_trials, start, resumable=True)
    for block in responses.iter_trials(start, max(memory_bytes - 4 * _SHARD_BYTES, memory_bytes // 2)):
        buffer.add({ARRAY: block})
        advance(len(block))
    buffer.close()


class StoredTrials(Responses):
    """What `convert_trials` wrote, in place of the files it came from."""

    by_voxel = True

    def __init__(self, store: Store, source: Responses):
        self.store, self.source = store, source
        self.n_trials, self.n_voxels, self.dtype = source.n_trials, source.n_voxels, source.dtype
        self.divisor, self.zero_is_missing = source.divisor, source.zero_is_missing
        self._array = store.array(ARRAY)

    @property
    def files(self) -> tuple[Path, ...]:
        return self.source.files

    def iter_trials(self, start: int, memory_bytes: int) -> Iterator[np.ndarray]:
        height = max(1, memory_bytes // (2 * self.n_voxels * self.dtype.itemsize))
        for first in range(start, self.n_trials, height):
            yield self.store.read(ARRAY, slice(first, min(first + height, self.n_trials)))

    def read_voxels(self, voxels: slice) -> np.ndarray:
        return self.store.read_columns(ARRAY, voxels)

    def column(self, voxel: int) -> str:
        return self.source.column(voxel)

    def where(self, trial: int, voxel: int) -> str:
        return self.source.where(trial, voxel)
