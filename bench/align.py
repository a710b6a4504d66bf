"""`python bench/align.py [--large | --dense] [--repeats 3]`: best unit of every voxel, ours against NumPy and SciPy's CSR product.

`--dense`: dense codes, 1,000 and 9,000 images, against the rates of products alone; each precision with its largest error.

All get unit columns of the responses and of the codes ready made (ours makes its own of the codes within the time), and are
taken in turn, so that ratios of one run count. `--large`: 9,000 images, 12 layers.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from sbm_jax.bench.common import gemm_rate, interleaved, median, save
from sbm_jax.kernels import SparseCodes, cosine_topk, cosine_topk_both, prepare_responses
from sbm_jax.kernels.codes import unit_values
from sbm_jax.kernels.cosine_topk import bounds, reference, sparse
from sbm_jax.kernels.cosine_topk.columns import columns
from sbm_jax.kernels.cosine_topk.paired import unit_rows
from sbm_jax.kernels.cosine_topk.precision import PRECISIONS, Precision, error_bound
from sbm_jax.kernels.cosine_topk.reference import CONSTANT


def zipf_codes(rng: np.random.Generator, n: int, u: int, k: int) -> SparseCodes:
    """k active units per image, firing Zipf-like (exponent 0.7): a few dense units and a long tail, as in `cases.py`."""
    weight = np.log(1.0 / (1.0 + np.arange(u)) ** 0.7).astype(np.float32)
    units = np.empty((n, k), np.int32)
    for i in range(n):
        units[i] = np.argpartition(-(rng.gumbel(size=u).astype(np.float32) + weight), k - 1)[:k]
    return SparseCodes(rng.gamma(2.0, size=units.shape).astype(np.float32), units, u)


def responses(rng: np.random.Generator, codes: SparseCodes, v: int, signal: bool) -> np.ndarray:
    """Noise; with a signal, each voxel also follows five units that fire on at least 2 % of the images, r about 0.1 to 0.6."""
    n = codes.n_images
    y = rng.normal(size=(n, v)).astype(np.float32)
    if not signal:
        return y
    values, units, shift, _ = unit_values(codes, True, CONSTANT)
    count = np.bincount(units.ravel(), minlength=codes.n_units + 1)[: codes.n_units]
    frequent = np.flatnonzero((count >= 0.02 * n) & (shift == 0))
    place = np.full(codes.n_units + 1, len(frequent))
    place[frequent] = np.arange(len(frequent))
    a = np.zeros((n, len(frequent) + 1), np.float32)
    a[np.arange(n)[:, None], place[units]] = values
    a = a[:, :-1] - a[:, :-1].mean(axis=0)
    strength = rng.uniform(0.1, 0.6, v).astype(np.float32)
    for _ in range(5):
        chosen = a[:, rng.integers(0, len(frequent), v)]
        y += chosen * strength * np.float32(np.sqrt(n))
    return y


def dense_argmax(a_un: np.ndarray, y_nv: np.ndarray, block: int = 1024) -> np.ndarray:
    """GEMM and argmax in voxel blocks, voxels first: argmax along rows is the fast one."""
    y_vn = y_nv.T
    return np.concatenate([(y_vn[i : i + block] @ a_un.T).argmax(axis=1) for i in range(0, len(y_vn), block)])


def scipy_argmax(a_un: Any, y_nv: np.ndarray, block: int = 64) -> np.ndarray:
    """CSR product and argmax in voxel blocks of the size that was fastest (of 64, 256, 1024), on one thread as SciPy does."""
    return np.concatenate([(a_un @ _block(y_nv, i, block)).argmax(axis=0) for i in range(0, y_nv.shape[1], block)])


def scipy_tuned(a_un: Any, y_nv: np.ndarray, pool: ThreadPoolExecutor, block: int = 256, tile: int = 128) -> Any:
    """The same with the argmax by hand (maxima of tiles of units first) and blocks spread over threads."""
    whole = a_un.shape[0] // tile * tile

    def one(i: int) -> np.ndarray:
        s = a_un @ _block(y_nv, i, block)
        top = s[:whole].reshape(-1, tile, s.shape[1]).max(axis=1)
        if whole < len(s):
            top = np.concatenate([top, s[whole:].max(axis=0)[None]])
        first = tile * top.argmax(axis=0)
        rows = np.minimum(first[:, None] + np.arange(tile), len(s) - 1)
        return first + s[rows, np.arange(s.shape[1])[:, None]].argmax(axis=1)

    return np.concatenate(list(pool.map(one, range(0, y_nv.shape[1], block))))


def _block(y_nv: np.ndarray, start: int, size: int) -> np.ndarray:
    return np.ascontiguousarray(y_nv[:, start : start + size])


def peak_during(call: Callable[[], Any]) -> float:
    """MB by which the process grows beyond what it held before (glibc gives back what is free, Linux resets the peak)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def row(name: str, layers: list[SparseCodes], y: np.ndarray, repeats: int, ceiling: float, *, dense: bool) -> dict:
    """Seconds of all layers by each way; the peers see only the units that fire, ours gets the codes as they are."""
    prepared = prepare_responses(y)
    y_nv = np.asarray(prepared.y_nv)
    rows = [_rows_of_units(codes) for codes in layers]
    pool = ThreadPoolExecutor(os.cpu_count())
    calls: dict[str, Callable[[], Any]] = {
        "sparse": lambda: [_fresh(codes, prepared)[0][1] for codes in layers],
        "scipy": lambda: [alive[scipy_argmax(a, y_nv)] for a, alive in rows],
        "scipy_tuned": lambda: [alive[scipy_tuned(a, y_nv, pool)] for a, alive in rows],
    }
    if dense:
        calls["xla"] = lambda: [cosine_topk(codes, prepared, 1, implementation="xla") for codes in layers]
        calls["numpy"] = lambda: [_numpy(codes, y_nv) for codes in layers]
    ours = np.stack([units[:, 0] for units in calls["sparse"]()])
    same = float(np.mean(ours == np.stack(calls["scipy"]())))
    peaks = {key: peak_during(calls[key]) for key in ("sparse", "scipy", "scipy_tuned")}
    taken = interleaved(calls, repeats)
    seconds = {key: median(value) for key, value in taken.items()}
    pool.shutdown()
    flops = sum(2.0 * codes.n_images * codes.n_units * y.shape[1] for codes in layers)
    stats = _fresh(layers[0], prepared)[1]
    return {
        "case": name,
        "shape": f"n={len(y)} u={layers[0].n_units} k={layers[0].values_nk.shape[1]} v={y.shape[1]} layers={len(layers)}",
        "seconds": seconds,
        "ratio": {key: seconds[key] / seconds["sparse"] for key in seconds},
        "same_unit_as_scipy": same,
        "share_pruned": stats.share_pruned,
        "share_ruled_out": ruled_out(layers[0], prepared),
        "units_real": stats.units_real,
        "columns": stats.columns,
        "phases": stats.phases,
        "peak_mb": peaks,
        "dense_seconds_at_gemm_rate": flops / ceiling,
        "samples": taken,
    }


def ruled_out(codes: SparseCodes, prepared: Any) -> float:
    """Share of the pairs of a column and a voxel whose bound is below the voxel's best: what could be left out at most."""
    c = columns(codes, True)
    best = sparse.search(codes, prepared, 1, 0)[0][0][:, 0]
    ms = [1 << power for power in range(c.n.bit_length() - 1)]
    limits = bounds.most_similar(prepared.y_nv, ms, not c.negative)
    # Norms are at most 1 / sqrt(1 - m / n).
    shares = [np.mean(best > limit / np.sqrt(1 - m / c.n)) for m, limit in zip(ms, limits, strict=True)]
    at = np.searchsorted(ms, c.m_c[c.shift_c == 0])
    return float(np.append(shares, 0.0)[np.minimum(at, len(ms))].sum() / len(c.m_c))


def _fresh(codes: SparseCodes, prepared: Any) -> Any:
    """A search that finds its bounds anew: they count."""
    prepared._limits.clear()
    return sparse.search(codes, prepared, 1, 0)


def _rows_of_units(codes: SparseCodes) -> tuple[csr_array, np.ndarray]:
    """CSR of the unit-norm columns of the units that fire, and which these are."""
    values, units, _, _ = unit_values(codes, True, CONSTANT)
    n, k = values.shape
    a: Any = csr_array((values.ravel(), units.ravel(), k * np.arange(n + 1)), (n, codes.n_units + 1)).T.tocsr()[:-1]
    a.sort_indices()
    alive = np.flatnonzero(np.diff(a.indptr))
    a = a[alive]
    return csr_array((a.data, a.indices.astype(np.int32), a.indptr.astype(np.int32)), a.shape), alive


def _numpy(codes: SparseCodes, y_nv: np.ndarray) -> np.ndarray:
    values, units, shift, _ = unit_values(codes, True, CONSTANT)
    a_un = np.repeat(-np.append(shift, 0)[:, None], codes.n_images, axis=1)
    a_un[units, np.arange(codes.n_images)[:, None]] = values
    return dense_argmax(a_un[:-1], y_nv)


def dense_row(rng: np.random.Generator, n: int, u: int, v: int, k_voxel: int, k_unit: int, repeats: int) -> dict:
    """Seconds of dense codes by each way, rates as shares of those of products alone, errors of the named precisions.

    `product` is NumPy's (BLAS) alone, of ready unit columns in blocks that are not kept; `numpy` the same and argmax.
    """
    codes, y = (rng.normal(size=(n, size)).astype(np.float32) for size in (u, v))
    prepared = prepare_responses(y)
    y_nv = np.asarray(prepared.y_nv)
    a_un = unit_rows(codes.T)
    work = np.empty((2048, 2048), np.float32)

    def product() -> None:
        for i in range(0, u, 2048):
            for j in range(0, v, 2048):
                a, b = a_un[i : i + 2048], y_nv[:, j : j + 2048]
                np.matmul(a, b, out=work[: len(a), : b.shape[1]])

    def ours(implementation: str, precision: Precision = "f32") -> Any:
        options: dict[str, Any] = {"implementation": implementation, "precision": precision}
        return cosine_topk_both(codes, prepared, k_voxel, k_unit, **options)

    calls: dict[str, Callable[[], Any]] = {"product": product, "numpy": lambda: dense_argmax(a_un, y_nv)}
    calls["host"] = lambda: ours("host")
    calls |= {f"xla {name}": lambda name=name: ours("xla", name) for name in PRECISIONS}
    taken = interleaved(calls, repeats)
    seconds = {key: median(value) for key, value in taken.items()}
    some = slice(0, 64)
    exact = reference.similarity(codes, y[:, some], True)[0].T
    errors = {}
    for key in ("host", *(f"xla {name}" for name in PRECISIONS)):
        values, units = calls[key]()[:2]
        errors[key] = float(np.abs(values[some] - np.take_along_axis(exact, units[some], axis=1)).max())
    flops, ceiling = 2.0 * n * u * v, gemm_rate()
    return {
        "case": f"dense k_voxel={k_voxel} k_unit={k_unit}",
        "shape": f"n={n} u={u} v={v}",
        "seconds": seconds,
        "share_of_gemm_rate": {key: flops / value / ceiling for key, value in seconds.items()},
        "share_of_product": {key: seconds["product"] / value for key, value in seconds.items()},
        "largest_error": errors,
        "error_bound": {name: error_bound(name, n) for name in PRECISIONS},
        "gemm_flops_per_second": ceiling,
        "samples": taken,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--large", action="store_true", help="9,000 images, 12 layers; dense passes on one layer, 1,500 voxels"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dense", action="store_true", help="dense codes; 9,000 images with a fifth of the voxels")
    parser.add_argument("--voxels", type=int, default=15_000)
    parser.add_argument("--units", type=int, default=24_576, help="of dense codes")
    args = parser.parse_args(argv)
    rng, ceiling, u, v, repeats = np.random.default_rng(0), gemm_rate(), 24_576, args.voxels, args.repeats
    if args.dense:
        shapes = [(1000, v), (9000, v // 5)]
        lists = [(1, 0), (5, 0), (5, 5)]
        rows = [dense_row(rng, n, args.units, some, *k, repeats) for n, some in shapes for k in lists]
    elif args.large:
        layers = [zipf_codes(rng, 9000, u, 32) for _ in range(12)]
        noise, signal = (responses(rng, layers[0], v, s) for s in (False, True))
        rows = [
            row("no signal", layers, noise, repeats, ceiling, dense=False),
            row("signal", layers, signal, repeats, ceiling, dense=False),
            row("one layer, 1,500 voxels", layers[:1], signal[:, :1500], repeats, ceiling, dense=True),
        ]
    else:
        codes, pooled = zipf_codes(rng, 1000, u, 32), zipf_codes(rng, 1000, u, 1024)
        rows = [
            row("no signal", [codes], responses(rng, codes, v, False), repeats, ceiling, dense=True),
            row("signal", [codes], responses(rng, codes, v, True), repeats, ceiling, dense=True),
            row("pooled patches", [pooled], responses(rng, pooled, v, True), repeats, ceiling, dense=True),
        ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    name = "align-dense" if args.dense else "align-large" if args.large else "align"
    save(name, {"gemm_flops_per_second": ceiling, "peak_mb": peak, "rows": rows})


if __name__ == "__main__":
    main()
