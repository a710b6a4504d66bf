"""`cosine_topk` on the host: NumPy's matrix product (BLAS on all cores) block by block, and running lists beside it.

On a CPU the product of BLAS is faster than XLA's, and the selection costs a few per cent of it (`lists`). Memory in flight: the
responses as they lie, n bu + bu bv floats. FLOPs 2 n U V, U the units that are not constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sbm_jax.kernels.codes import SparseCodes, count_units, unit_values
from sbm_jax.kernels.cosine_topk import cost
from sbm_jax.kernels.cosine_topk.lists import MOST_KEPT, WIDTH, Lists
from sbm_jax.kernels.cosine_topk.prepared import Prepared
from sbm_jax.kernels.cosine_topk.reference import CONSTANT
from sbm_jax.kernels.cosine_topk.xla import NEVER

_SIDE = 2048  # units of a block; twice as many voxels, 32 MB: larger ones bring nothing


def cosine_topk_both(
    codes: SparseCodes | np.ndarray,
    responses: Prepared,
    k_voxel: int,
    k_unit: int,
    *,
    memory_bytes: int = 1 << 29,
    precision: str = "f32",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `reference.cosine_topk_both`, float32. Raises NotImplementedError where responses are not in this host's memory."""
    if precision != "f32":
        raise NotImplementedError("BLAS has no bfloat16 product")
    if not responses.on_host:
        raise NotImplementedError("responses do not lie in this host's memory")
    if max(k_voxel, k_unit) > MOST_KEPT:
        raise NotImplementedError(f"lists are longer than {MOST_KEPT}")
    n = responses.y_nv.shape[0]
    n_units = count_units(codes)
    bu, bv = block_sizes(n, memory_bytes)
    real_v = np.asarray(responses.real_v)[: responses.n_voxels]
    by_voxel, by_unit = Lists(responses.n_voxels, k_voxel), Lists(n_units, k_unit)
    real_u = np.zeros(n_units, bool)
    work = np.empty((min(bu, n_units) + WIDTH) * (min(bv, responses.n_voxels) + WIDTH), np.float32)
    threads = cost.threads()
    with ThreadPoolExecutor(threads) as pool:
        for units, a_nu in _unit_blocks(codes, responses.center, bu, pool, threads):
            real_u[units] = True
            for first, y_nv in _voxel_blocks(responses, bv):
                s = _product(a_nu, y_nv, work)
                voxels = np.arange(first, first + y_nv.shape[1], dtype=np.int32)
                jobs = []
                if k_voxel:
                    jobs += [(by_voxel, s[:, part], voxels[part], units) for part in _parts(len(voxels), threads)]
                list(pool.map(lambda job: job[0].update(*job[1:]), jobs))
                if k_unit:
                    s[:, : len(voxels)][:, ~real_v[voxels]] = NEVER
                    jobs = [(by_unit, s[part].T, units[part], voxels) for part in _parts(len(units), threads)]
                    list(pool.map(lambda job: job[0].update(*job[1:]), jobs))
    return *_voxel_lists(by_voxel, real_u), *_unit_lists(by_unit, real_u, real_v)


def block_sizes(n: int, memory_bytes: int) -> tuple[int, int]:
    """(units, voxels) per block: unit columns while they are made (thrice in float32) and similarities fit `memory_bytes`."""
    side = _SIDE
    while side > 64 and 4 * side * (3 * n + 2 * side) > memory_bytes:
        side //= 2
    return side, 2 * side


def _parts(size: int, parts: int) -> list[slice]:
    step = -(-size // parts)
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


def _product(a_nu: np.ndarray, y_nv: np.ndarray, work: np.ndarray) -> np.ndarray:
    """Similarities [u, v] in `work`, both sides rounded up to `WIDTH` and filled with NEVER."""
    u, v = a_nu.shape[1], y_nv.shape[1]
    rows, columns = -(-u // WIDTH) * WIDTH, -(-v // WIDTH) * WIDTH
    s = work[: rows * columns].reshape(rows, columns)
    np.matmul(a_nu.T, y_nv, out=s[:u, :v])
    s[u:], s[:u, v:] = NEVER, NEVER
    return s


def _voxel_blocks(responses: Prepared, bv: int) -> Iterator[tuple[int, np.ndarray]]:
    """First voxel and unit columns [n, <= bv] of each block, views of what every device holds."""
    shards = {(shard.index[1].start or 0): shard.data for shard in responses.y_nv.addressable_shards}
    for start, data in sorted(shards.items()):
        y_nv = np.asarray(data)[:, : max(0, responses.n_voxels - start)]
        for i in range(0, y_nv.shape[1], bv):
            yield start + i, y_nv[:, i : i + bv]


def _unit_blocks(
    codes: SparseCodes | np.ndarray, center: bool, bu: int, pool: ThreadPoolExecutor, threads: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The units of each block that are not constant, and their unit columns [n, <= bu]."""
    if isinstance(codes, SparseCodes):
        values, at, shift, real = unit_values(codes, center, CONSTANT)
        alive = np.flatnonzero(real).astype(np.int32)
        place = np.full(codes.n_units + 1, -1)
        place[alive] = np.arange(len(alive))
        place = place[at]
        for i in range(0, len(alive), bu):
            units = alive[i : i + bu]
            a_nu = np.repeat(-shift[None, units], codes.n_images, axis=0)
            image, slot = np.nonzero((place >= i) & (place < i + bu))
            a_nu[image, place[image, slot] - i] = values[image, slot]
            yield units, a_nu
        return
    for i in range(0, codes.shape[1], bu):
        x = codes[:, i : i + bu]
        a_nu = np.empty(x.shape, np.float32)
        parts = _parts(x.shape[1], threads)
        real = np.concatenate(
            list(pool.map(_unit_columns, [x[:, p] for p in parts], [a_nu[:, p] for p in parts], [center] * len(parts)))
        )
        if real.any():
            yield (i + np.flatnonzero(real)).astype(np.int32), a_nu if real.all() else a_nu[:, real]


def _unit_columns(x_nc: np.ndarray, out_nc: np.ndarray, center: bool) -> np.ndarray:
    """Write columns of unit norm (zero where constant), sums in float64; which are not constant."""
    mean = x_nc.mean(axis=0, dtype=np.float64) if center else np.zeros(x_nc.shape[1])
    np.subtract(x_nc, mean.astype(np.float32), out=out_nc, casting="same_kind")
    square = (out_nc * out_nc).sum(axis=0, dtype=np.float64)
    real = square > CONSTANT**2 * (square + len(x_nc) * mean**2)
    out_nc *= np.where(real, 1 / np.sqrt(np.where(real, square, 1)), 0).astype(np.float32)
    return real


def _voxel_lists(lists: Lists, real_u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Constant units, of value 0, take the slots for which there is no other."""
    constant = np.flatnonzero(~real_u)
    empty = lists.keys.shape[1] - (len(real_u) - len(constant))
    if empty > 0:
        lists.keys[:, -empty:], lists.index[:, -empty:] = 0, constant[:empty]
    return lists.keys, lists.index


def _unit_lists(lists: Lists, real_u: np.ndarray, real_v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for constant voxels; a constant unit has value 0 with every voxel."""
    constant, k = np.flatnonzero(~real_v), lists.keys.shape[1]
    empty = k - (len(real_v) - len(constant))
    if empty > 0:
        lists.keys[:, -empty:], lists.index[:, -empty:] = 0, constant[:empty]
    lists.keys[~real_u], lists.index[~real_u] = 0, np.argsort(~real_v, kind="stable")[:k]
    return lists.keys, lists.index
