"""Shuffled token batches from activations, as a pure function of (seed, step), so that a resumed run sees the same.

Per token kind and epoch the images are permuted; consecutive slices of the permutation fill an in-memory pool; the
pool's tokens are permuted and dealt out in batches. Two tokens of one image thus meet in a batch no more often than by
chance within a pool of `pool_tokens` tokens. All layers share one order.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from sbm_jax.errors import UserError
from sbm_jax.progress import log


class Activations(Protocol):
    """What is read from: a `Store`, or activations that are computed when asked for. Methods may be called by threads."""

    def array(self, name: str) -> Any:
        """Something with the shape and dtype of an array."""
        ...

    def read(self, name: str, rows: slice | np.ndarray | None = None) -> np.ndarray:
        """Rows of an array (None: all) in memory."""
        ...

    def parts(
        self, names: Sequence[str], rows: np.ndarray
    ) -> Iterator[tuple[slice | np.ndarray, dict[str, np.ndarray]]]:
        """Pieces (places in `rows`, {name: values}) that together hold all names at all rows, each image computed once."""
        ...


def array_name(hook: str, kind: str) -> str:
    """Where the activation store keeps the tokens of one hook: `cls` is [n, d], `patch` is [n, t, d]."""
    return f"{hook}/{kind}"


def read_many(
    source: Activations, names: Sequence[str], rows: np.ndarray, stopped: threading.Event | None = None
) -> dict[str, np.ndarray]:
    """Rows (at least one) of several arrays in memory; where they are computed, in one forward pass for all names.

    Raises CancelledError soon after `stopped` is set.
    """
    out: dict[str, np.ndarray] = {}
    for places, values in source.parts(names, rows):
        if stopped is not None and stopped.is_set():
            raise CancelledError
        for name, x in values.items():
            if len(x) == len(rows):
                out[name] = x
                continue
            if name not in out:
                out[name] = np.empty((len(rows), *x.shape[1:]), x.dtype)
            out[name][places] = x
    return out


class Pool(NamedTuple):
    """Tokens in memory, [tokens, d] per hook, and the order in which they are dealt out."""

    tokens: list[np.ndarray]
    order: np.ndarray


@dataclass
class TokenStream:
    """Batches [l, b, d] of one token kind, all hooks side by side.

    Args:
        store: where activations are read. hooks: its layers. kind: `cls` or `patch`.
        images: integer [m], the rows that may be used. batch: tokens per batch.
        pool_tokens: tokens per layer of one pool; `batches` holds two pools, the one in use and the next.
    Raises UserError when there are fewer tokens than one batch.
    """

    store: Activations
    hooks: tuple[str, ...]
    kind: str
    images: np.ndarray
    batch: int
    pool_tokens: int
    seed: int
    stopped: threading.Event = field(default_factory=threading.Event, repr=False)

    def __post_init__(self) -> None:
        array = self.store.array(array_name(self.hooks[0], self.kind))
        self.tokens_per_image = 1 if self.kind == "cls" else array.shape[1]
        self.width: int = array.shape[-1]
        self.dtype = np.dtype(array.dtype.name)  # TensorStore's dtypes are not NumPy's
        n_tokens = len(self.images) * self.tokens_per_image
        if n_tokens < self.batch:
            raise UserError(
                f"train.batch is {self.batch} tokens, but {len(self.images)} training images have only {n_tokens} "
                f"{self.kind} tokens. Lower train.batch or give more images."
            )
        pool_images = max(1, min(len(self.images), self.pool_tokens // self.tokens_per_image))
        n_pools = -(-len(self.images) // pool_images)
        # Pools of nearly equal size, so that no epoch ends in a pool smaller than a batch.
        self.bounds = np.linspace(0, len(self.images), n_pools + 1).astype(int)
        self.batches = [int(size) * self.tokens_per_image // self.batch for size in np.diff(self.bounds)]
        if min(self.batches) == 0:
            raise UserError(
                f"a pool of {pool_images} images holds fewer {self.kind} tokens than train.batch ({self.batch}). "
                "Raise train.pool_tokens or lower train.batch."
            )
        self.images_read, self.seconds_reading = 0, 0.0
        self._pool: tuple[tuple[int, int], Pool] | None = None
        self._next: tuple[tuple[int, int], Future[Pool]] | None = None

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(self.kind.encode()), *key])

    def locate(self, step: int) -> tuple[int, int, int]:
        """(epoch, pool, batch within the pool) of a step."""
        epoch, rest = divmod(step, sum(self.batches))
        for pool, count in enumerate(self.batches):
            if rest < count:
                return epoch, pool, rest
            rest -= count
        raise AssertionError

    def _read(self, epoch: int, pool: int, held: Pool | None) -> Pool:
        """One pool; `held` has its tokens, in the order of another epoch."""
        if held is not None:
            tokens = held.tokens
        else:
            begun = time.perf_counter()
            order = self._rng(epoch).permutation(self.images)
            rows = np.sort(order[self.bounds[pool] : self.bounds[pool + 1]])
            names = [array_name(hook, self.kind) for hook in self.hooks]
            arrays = read_many(self.store, names, rows, self.stopped)
            tokens = [arrays[name].reshape(-1, self.width) for name in names]
            self.images_read += len(rows)
            self.seconds_reading += time.perf_counter() - begun
        return Pool(tokens, self._rng(epoch, pool + 1).permutation(len(tokens[0])))

    def load(self, step: int) -> Pool:
        """The pool of a step, from memory if it is there."""
        key = self.locate(step)[:2]
        if self._pool is None or self._pool[0] != key:
            held = self._reusable()
            self._pool = None  # let the old pool go before the new one is read
            ahead = self._next[1] if self._next is not None and self._next[0] == key else None
            pool = ahead.result() if ahead is not None else self._read(*key, held)
            self._pool, self._next = (key, pool), None
        return self._pool[1]

    def _reusable(self) -> Pool | None:
        """The pool in memory where every epoch has the same, a single one."""
        return self._pool[1] if self._pool is not None and len(self.batches) == 1 else None

    def load_next(self, step: int, stop: int, reader: Executor) -> None:
        """Have `reader` read the pool after that of `step`, unless it begins at step `stop` or later; `load` finds it."""
        _, pool, index = self.locate(step)
        first = step - index + self.batches[pool]
        if self._next is None and first < stop:
            key = self.locate(first)[:2]
            self._next = key, reader.submit(self._read, *key, self._reusable())

    def reset(self) -> None:
        """Forget what was to be read, after whoever read it has ended."""
        self._next = None
        self.stopped.clear()

    def fill(self, step: int, out_lbd: np.ndarray) -> None:
        """Write the batch of one step."""
        pool, index = self.load(step), self.locate(step)[2]
        chosen = pool.order[index * self.batch : (index + 1) * self.batch]
        for tokens, out_bd in zip(pool.tokens, out_lbd, strict=True):
            np.take(tokens, chosen, axis=0, out=out_bd, mode="clip")  # the default mode copies once more

    def at(self, step: int) -> np.ndarray:
        """The batch of one step, [l, b, d] in the store's dtype."""
        out = np.empty((len(self.hooks), self.batch, self.width), self.dtype)
        self.fill(step, out)
        return out


def batches(streams: list[TokenStream], start: int, stop: int, ahead: int = 2) -> Iterator[np.ndarray]:
    """Batches [a, b, d] of steps start..stop-1 (kinds stacked in order), made in a thread `ahead` steps early.

    The next pool of every stream is read meanwhile. A line at the end says how long the caller had to wait.
    """
    hooks = [len(stream.hooks) for stream in streams]
    edges = np.concatenate([[0], np.cumsum(hooks)])
    # Most tokens per image first: a forward pass for patch tokens leaves the CLS tokens at hand, not the other way.
    order = sorted(range(len(streams)), key=lambda i: -streams[i].tokens_per_image)

    def make(step: int) -> np.ndarray:
        for i in order:
            streams[i].load(step)
        for i in order:
            streams[i].load_next(step, stop, reader)
        out = np.empty((int(edges[-1]), streams[0].batch, streams[0].width), streams[0].dtype)
        for stream, low, high in zip(streams, edges, edges[1:], strict=False):
            stream.fill(step, out[low:high])
        return out

    maker, reader = ThreadPoolExecutor(1, "batches"), ThreadPoolExecutor(len(streams), "pools")
    waits, begun = [], time.perf_counter()
    try:
        waiting = [maker.submit(make, step) for step in range(start, min(stop, start + ahead))]
        for step in range(start, stop):
            asked = time.perf_counter()
            batch = waiting.pop(0).result()
            waits.append(time.perf_counter() - asked)
            if step + ahead < stop:
                waiting.append(maker.submit(make, step + ahead))
            yield batch
    finally:
        for stream in streams:
            stream.stopped.set()
        maker.shutdown(cancel_futures=True)
        reader.shutdown(cancel_futures=True)
        for stream in streams:
            stream.reset()
    if waits:
        log(_rates(streams, waits, time.perf_counter() - begun))


def _rates(streams: list[TokenStream], waits: list[float], seconds: float) -> str:
    images, reading = sum(s.images_read for s in streams), sum(s.seconds_reading for s in streams)
    tokens = sum(s.batch for s in streams) * len(waits)
    return (
        f"train: {sum(waits[1:]):.1f} of {seconds - waits[0]:.1f} s waiting for tokens (and {waits[0]:.1f} s for the first); "
        f"{images:,} images read at {images / max(reading, 1e-9):,.0f}/s, tokens used at {tokens / seconds:,.0f}/s"
    )
