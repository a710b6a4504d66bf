"""`cosine_topk` for sparse codes: work in proportion to the entries of the columns, dense units first, hopeless ones never.

A phase is a range of units by how many images m they fire on. After each phase the voxels whose k-th best is strictly
above what any unit left can reach (`bounds`) are finished; the next phase takes the others only. Per-unit lists need every
voxel (a unit is finished only when its k-th best voxel beats the bound of all voxels left, which all have about the same),
so with k_unit > 0 nothing is left out. Units that never fire cost nothing.

FLOPs: 2 V (entries + n D), D the units that fire on so many images that a product is faster. Bytes in flight per thread: a block of
voxels n bv, a row for each column of a phase rows bv.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np

from sbm_jax.kernels.codes import SparseCodes
from sbm_jax.kernels.cosine_topk import bounds, cost
from sbm_jax.kernels.cosine_topk.columns import Columns, Sizes, Tables, columns, pad, sizes, tables
from sbm_jax.kernels.cosine_topk.prepared import Prepared
from sbm_jax.kernels.cosine_topk.rows import search_rows
from sbm_jax.kernels.cosine_topk.xla import BELOW_ALL, NEVER

SAMPLE = 64  # voxels that tell how many others may be finished


@dataclass
class Statistics:
    """What a search did. Pairs are of columns (equal units count once) and voxels."""

    units: int
    units_real: int
    columns: int
    voxels: int
    dense_columns: int = 0
    pairs_evaluated: int = 0
    phases: list[dict[str, int]] = field(default_factory=list)

    @property
    def share_pruned(self) -> float:
        """Share of the pairs of a column and a voxel that were ruled out by a bound."""
        pairs = self.columns * self.voxels
        return 1 - self.pairs_evaluated / pairs if pairs else 0.0


def cosine_topk_both(
    codes: SparseCodes | np.ndarray,
    responses: Prepared,
    k_voxel: int,
    k_unit: int,
    *,
    memory_bytes: int = 1 << 29,
    precision: str = "f32",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `reference.cosine_topk_both`, float32. Raises NotImplementedError for dense codes, a mesh, another precision."""
    if precision != "f32":
        raise NotImplementedError(f"sums of entries are float32, not {precision}")
    return search(codes, responses, k_voxel, k_unit, memory_bytes=memory_bytes)[0]


def search(
    codes: SparseCodes | np.ndarray, responses: Prepared, k_voxel: int, k_unit: int, *, memory_bytes: int = 1 << 29
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Statistics]:
    """`cosine_topk_both` and what it did."""
    if not isinstance(codes, SparseCodes):
        raise NotImplementedError("codes are dense")
    if responses.mesh is not None:
        raise NotImplementedError("responses lie on a mesh")
    c = columns(codes, responses.center)
    run = _Run(responses, c, Blocks.choose(c.n, responses.n_voxels, k_unit, memory_bytes), k_voxel, k_unit)
    stats = Statistics(codes.n_units, int((c.column_u >= 0).sum()), len(c.m_c), responses.n_voxels)
    start, open_v = 0, np.arange(responses.n_voxels)
    while start < len(c.m_c):
        end, prune = run.next_phase(start, open_v)
        if prune:
            open_v = run.still_open(open_v, start)
            if not len(open_v):
                break
        dense, rows = run.phase(np.arange(start, end), open_v)
        stats.dense_columns += dense
        stats.pairs_evaluated += (end - start) * len(open_v)
        stats.phases.append(
            {"most_images": int(c.m_c[start:end].max()), "columns": end - start, "rows": rows, "voxels": len(open_v)}
        )
        start = end
    return run.results(codes.n_units), stats


@dataclass(frozen=True)
class Blocks:
    """Voxels at a time (in the cache, and per call), threads, and how many rows and dense rows a phase may have."""

    bv: int
    per_call: int
    threads: int
    most_rows: int
    most_dense: int

    @staticmethod
    def choose(n: int, n_voxels: int, k_unit: int, memory_bytes: int) -> Blocks:
        threads = cost.threads()
        share = memory_bytes // (4 * threads)  # float32 numbers of a thread
        bv = cost.BLOCK_UNIT if k_unit else cost.BLOCK
        while bv > 32 and (4 * bv * n > min(cost.CACHE * (2 if k_unit else 1), share) or bv >= 2 * n_voxels):
            bv //= 2
        per_call = bv * -(-n_voxels // (2 * threads * bv))
        return Blocks(bv, per_call, threads, max(512, share // (4 * bv)), max(64, memory_bytes // (16 * n)))


class _Run:
    """Running lists of one search."""

    def __init__(self, responses: Prepared, c: Columns, shape: Blocks, k_voxel: int, k_unit: int):
        self.responses, self.c, self.shape = responses, c, shape
        v = responses.n_voxels
        self.y_nv, self.real_v = np.asarray(responses.y_nv), np.asarray(responses.real_v)
        self.keys = np.full((k_voxel, v), NEVER, np.float32)
        self.units = np.zeros((k_voxel, v), np.int32)
        self.keys_c = np.full((len(c.m_c), k_unit), NEVER, np.float32)
        self.voxels_c = np.zeros((len(c.m_c), k_unit), np.int32)
        self.plan = cost.Plan.make(c, prune=k_voxel > 0 and k_unit == 0)

    def next_phase(self, start: int, open_v: np.ndarray) -> tuple[int, bool]:
        """Where the phase from column `start` ends, and whether to look first which voxels are still open."""
        end, prune = self.plan.first_end if start == 0 else self.plan.count, False
        if self.plan.cuts and end < self.plan.count:
            # A few voxels tell whether it is worth while to search in phases at all.
            some = _spread(open_v)
            self.phase(np.arange(end), some)
            then, worth = self.plan.next_end(end, self.open_share(some))
            self.keys[:, some] = NEVER
            end = end if worth or then < self.plan.count else self.plan.count
        elif self.plan.cuts and start:
            end, prune = self.plan.next_end(start, self.open_share(_spread(open_v)))
        limit = start + self.shape.most_rows
        dense = self.plan.n_dense
        return min(end, limit, start + self.shape.most_dense if start + self.shape.most_dense < dense else end), prune

    def open_share(self, some: np.ndarray) -> np.ndarray:
        """Share of some voxels that columns from each cut on may still enter."""
        # A fixed number of voxels and of bounds, so that one program serves all.
        images = [m for _, m in self.plan.cuts]
        images += [1] * (self.plan.dense_above.bit_length() + 1 - len(images))
        most = bounds.most_similar(self.y_nv[:, some], images, not self.c.negative)
        norm = np.asarray([self.plan.norm_after[at] for at, _ in self.plan.cuts])
        return (self.keys[-1, some] <= most[: len(norm)] * norm[:, None]).mean(axis=1)

    def still_open(self, open_v: np.ndarray, start: int) -> np.ndarray:
        """The voxels that a column from `start` on may still enter; an equal value with a lower index may."""
        m = self.plan.most_images(start)
        limit = self.responses.most_similar(m, not self.c.negative) * self.plan.norm_after[start]
        return open_v[self.keys[-1, open_v] <= limit[open_v]]

    def phase(self, which: np.ndarray, open_v: np.ndarray) -> tuple[int, int]:
        """Search the columns `which` for some voxels. Returns numbers of dense columns and of rows."""
        table, row, rows = tables(self.c, which, self.plan.dense_above, len(self.keys))
        capacity = sizes(table, rows)
        padded = Tables(*(jnp.asarray(x) for x in pad(table, capacity)))
        step = self.shape.bv
        size = min(self.shape.per_call, step * -(-len(open_v) // (2 * self.shape.threads * step)))
        calls = [open_v[i : i + size] for i in range(0, len(open_v), size)]
        with ThreadPoolExecutor(self.shape.threads) as pool:
            for voxels, (keys, units, keys_u, voxels_u) in zip(
                calls, pool.map(lambda voxels: self._call(padded, capacity, voxels), calls), strict=True
            ):
                self.keys[:, voxels], self.units[:, voxels] = keys[:, : len(voxels)], units[:, : len(voxels)]
                if self.keys_c.shape[1]:
                    keys = np.concatenate([self.keys_c[which], keys_u[row]], axis=1)
                    found = np.concatenate(
                        [self.voxels_c[which], voxels[np.minimum(voxels_u[row], len(voxels) - 1)]], axis=1
                    )
                    best = np.argsort(-keys, axis=1, kind="stable")[:, : self.keys_c.shape[1]]
                    self.keys_c[which] = np.take_along_axis(keys, best, axis=1)
                    self.voxels_c[which] = np.take_along_axis(found, best, axis=1)
        return len(table.dense), rows

    def _call(self, table: Tables, capacity: Sizes, voxels: np.ndarray) -> tuple[np.ndarray, ...]:
        """New lists [k, voxels] of the voxels, and those of the rows."""
        bv, size = self.shape.bv, self.shape.per_call
        where = np.pad(voxels, (0, size - len(voxels)), mode="edge")

        def blocks(x_kv: np.ndarray) -> np.ndarray:
            return x_kv[:, where].reshape(len(x_kv), size // bv, bv).transpose(1, 0, 2)

        keys, units, keys_u, voxels_u = search_rows(
            table,
            self.responses.y_nv,
            self.responses.real_v,
            where.astype(np.int32).reshape(-1, bv),
            len(voxels),
            (blocks(self.keys), blocks(self.units)),
            n_rows=capacity.rows,
            k_unit=self.keys_c.shape[1],
        )
        lists = (np.asarray(x).transpose(1, 0, 2).reshape(len(self.keys), size) for x in (keys, units))
        return *lists, np.asarray(keys_u), np.asarray(voxels_u)

    def results(self, n_units: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Values and indices of both directions; constant units fill up the lists of voxels, and their own are of value 0."""
        constant = np.flatnonzero(self.c.column_u < 0)
        empty = len(self.keys) - (n_units - len(constant))
        if empty > 0:
            self.keys[-empty:] = NEVER
            self.units[-empty:] = constant[:empty, None]
        k_unit = self.keys_c.shape[1]
        order = np.argsort(~self.real_v[: self.responses.n_voxels], kind="stable")[:k_unit]
        keys_u = np.full((n_units, k_unit), NEVER, np.float32)
        voxels_u = np.broadcast_to(order.astype(np.int32), (n_units, k_unit)).copy()
        real = self.c.column_u >= 0
        keys_u[real], voxels_u[real] = self.keys_c[self.c.column_u[real]], self.voxels_c[self.c.column_u[real]]
        values_v, values_u = (np.where(x <= BELOW_ALL, np.float32(0), x) for x in (self.keys.T, keys_u))
        return values_v, np.ascontiguousarray(self.units.T), values_u, voxels_u


def _spread(voxels: np.ndarray) -> np.ndarray:
    """`SAMPLE` of the voxels (some more than once if they are few), ascending."""
    return voxels[np.linspace(0, len(voxels) - 1, SAMPLE).astype(np.int64)]
