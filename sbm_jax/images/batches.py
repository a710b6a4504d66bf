"""Batches of decoded images, read ahead by threads (Pillow releases the GIL while it decodes and resizes)."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from sbm_jax.images.geometry import Geometry
from sbm_jax.images.sources import ImageSource, open_image

# Batches decoded ahead of the consumer: enough to hide decoding, small against any model's activations.
AHEAD = 2


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def square_batches(
    sources: Sequence[ImageSource], geometry: Geometry, batch: int, workers: int | None = None
) -> Iterator[np.ndarray]:
    """Yield uint8 [batch, side, side, 3] in the order of `sources`; the last batch may be short.

    `workers` threads decode (default: one for each core) and write
    into the batch. At most AHEAD + 1 batches are in memory beside the caller's, and one decoded picture per worker;
    every batch is an array of its own, which the caller may keep. Raises UserError naming an unreadable image when
    its batch is due; the batches before it are delivered first.
    """
    workers = available_cores() if workers is None else workers
    if batch < 1 or workers < 1:
        raise ValueError(f"batch and workers must be at least 1, not {batch} and {workers}")
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[tuple[np.ndarray, list[Future[None]]]] = deque()

    def fill(out_bhwc: np.ndarray, i: int, source: ImageSource) -> None:
        out_bhwc[i] = geometry(open_image(source))

    def submit(part: Sequence[ImageSource]) -> None:
        out_bhwc = np.empty((len(part), geometry.side, geometry.side, 3), np.uint8)
        waiting.append((out_bhwc, [pool.submit(fill, out_bhwc, i, source) for i, source in enumerate(part)]))

    try:
        for start in range(0, len(sources) + AHEAD * batch, batch):
            if start < len(sources):
                submit(sources[start : start + batch])
            if start >= AHEAD * batch:
                out_bhwc, done = waiting.popleft()
                for future in done:
                    future.result()
                yield out_bhwc
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
