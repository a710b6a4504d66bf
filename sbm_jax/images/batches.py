"""Batches of decoded images, read ahead by threads (Pillow releases the GIL while it decodes and resizes)."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from sbm_jax.images.geometry import load_square

# Batches decoded ahead of the consumer: enough to hide decoding, small against any model's activations.
AHEAD = 2


def square_batches(paths: Sequence[Path], side: int, batch: int, workers: int = 4) -> Iterator[np.ndarray]:
    """Yield uint8 [batch, side, side, 3] in the order of `paths`; the last batch may be short.

    At most AHEAD + 1 batches are in memory. Raises UserError naming an unreadable file when its batch is due;
    the batches before it are delivered first.
    """
    if batch < 1 or workers < 1:
        raise ValueError(f"batch and workers must be at least 1, not {batch} and {workers}")
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[np.ndarray]] = deque()
    rest = iter(paths)
    try:
        while True:
            for path in islice(rest, (AHEAD + 1) * batch - len(waiting)):
                waiting.append(pool.submit(load_square, path, side))
            if not waiting:
                return
            yield np.stack([waiting.popleft().result() for _ in range(min(batch, len(waiting)))])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
