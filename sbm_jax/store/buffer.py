"""Rows that arrive in blocks of any size, written as whole shards."""

from __future__ import annotations

import numpy as np

from sbm_jax.store.store import StoreWriter


class ShardBuffer:
    """Holds rows of several arrays (equal row counts) until a shard is full.

    Args:
        writer: where the arrays were declared. shard: rows per shard. total: rows in all. start: first row to come,
        a multiple of `shard`. resumable: advance the writer's cursor after each shard.
    """

    def __init__(self, writer: StoreWriter, shard: int, total: int, start: int = 0, *, resumable: bool):
        self.writer, self.shard, self.total, self.next = writer, shard, total, start
        self.resumable = resumable
        self._held: list[dict[str, np.ndarray]] = []
        self._count = 0

    def close(self) -> None:
        """Raise ValueError unless every row came: zeros must never pass for data."""
        if self.next != self.total or self._count:
            raise ValueError(f"{self.writer.path}: {self.next} of {self.total} rows came, {self._count} are left over")

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """Take a block of rows, [rows, ...] per array name; whole shards go to disk."""
        self._held.append(rows)
        self._count += len(next(iter(rows.values())))
        while self.next < self.total and self._count >= (take := min(self.shard, self.total - self.next)):
            merged = {name: np.concatenate([block[name] for block in self._held]) for name in self._held[0]}
            for name, x in merged.items():
                self.writer.write(name, self.next, x[:take])
            self.next += take
            self._held = [{name: x[take:] for name, x in merged.items()}]
            self._count -= take
            if self.resumable:
                self.writer.advance(-(-self.next // self.shard))
