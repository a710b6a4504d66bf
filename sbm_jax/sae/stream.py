"""Shuffled token batches from activation stores, as a pure function of (seed, step), so that a resumed run sees the same.

Per token kind and epoch the images are permuted; consecutive slices of the permutation fill an in-memory pool; the
pool's tokens are permuted and dealt out in batches. Two tokens of one image thus meet in a batch no more often than by
chance within a pool of `pool_tokens` tokens. All layers share one order.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sbm_jax.errors import UserError
from sbm_jax.store.store import Store


def array_name(hook: str, kind: str) -> str:
    """Where the activation store keeps the tokens of one hook: `cls` is [n, d], `patch` is [n, t, d]."""
    return f"{hook}/{kind}"


@dataclass
class TokenStream:
    """Batches [l, b, d] of one token kind, all hooks side by side.

    Args:
        store: finished activation store. hooks: its layers. kind: `cls` or `patch`.
        images: integer [m], the rows that may be used. batch: tokens per batch.
        pool_tokens: tokens held in memory per layer.
    Raises UserError when there are fewer tokens than one batch.
    """

    store: Store
    hooks: tuple[str, ...]
    kind: str
    images: np.ndarray
    batch: int
    pool_tokens: int
    seed: int

    def __post_init__(self) -> None:
        shape = self.store.array(array_name(self.hooks[0], self.kind)).shape
        self.tokens_per_image = 1 if self.kind == "cls" else shape[1]
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
        self._pool: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None

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

    def _load(self, epoch: int, pool: int) -> tuple[np.ndarray, np.ndarray]:
        if self._pool is None or self._pool[0] != (epoch, pool):
            order = self._rng(epoch).permutation(self.images)
            rows = np.sort(order[self.bounds[pool] : self.bounds[pool + 1]])
            self._pool = None  # let the old pool go before the new one is read
            first = self.store.read(array_name(self.hooks[0], self.kind), rows)
            tokens = np.empty((len(self.hooks), len(rows) * self.tokens_per_image, first.shape[-1]), first.dtype)
            tokens[0] = first.reshape(tokens.shape[1:])
            for layer, hook in enumerate(self.hooks[1:], start=1):
                tokens[layer] = self.store.read(array_name(hook, self.kind), rows).reshape(tokens.shape[1:])
            self._pool = ((epoch, pool), tokens, self._rng(epoch, pool + 1).permutation(tokens.shape[1]))
        return self._pool[1], self._pool[2]

    def at(self, step: int) -> np.ndarray:
        """The batch of one step, [l, b, d] in the store's dtype."""
        epoch, pool, index = self.locate(step)
        tokens, order = self._load(epoch, pool)
        return tokens[:, order[index * self.batch : (index + 1) * self.batch]]


def batches(streams: list[TokenStream], start: int, stop: int, ahead: int = 2) -> Iterator[np.ndarray]:
    """Batches [a, b, d] of steps start..stop-1 (kinds stacked in order), made in a thread `ahead` steps early."""

    def make(step: int) -> np.ndarray:
        return np.concatenate([stream.at(step) for stream in streams])

    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(make, step) for step in range(start, min(stop, start + ahead))]
        for step in range(start, stop):
            batch = waiting.pop(0).result()
            if step + ahead < stop:
                waiting.append(pool.submit(make, step + ahead))
            yield batch
