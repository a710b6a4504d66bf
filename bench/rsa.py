"""`python bench/rsa.py [--images 4000] [--voxels 5000] [--python PYTHON]`: two correlation RDMs and their Spearman correlation.

Ours beside NumPy + SciPy and, by the interpreter PYTHON that has it, rsatoolbox. Every sample is a process of its own (patterns
made, one warm-up, then the clock), taken in turn; peak memory is what the process grew by after the warm-up, and all it held.
Without peers, in bounded memory: `--images 10000 --ways ours --memory-mb 1024 --name rsa_large`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

WAYS = ("ours", "ours_binned", "numpy", "rsatoolbox")


def patterns(n: int, voxels: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Model features, and voxels that follow 20 of them in noise; float32."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, features), np.float32)
    y = x[:, :20] @ rng.standard_normal((20, voxels), np.float32) + 4 * rng.standard_normal((n, voxels), np.float32)
    return x, y


def numpy_spearman(x: np.ndarray, y: np.ndarray) -> float:
    """`np.corrcoef` on float32, upper triangles, SciPy's ranks."""
    from scipy.stats import rankdata

    def ranks(z: np.ndarray) -> np.ndarray:
        distances = 1 - np.corrcoef(z, dtype=np.float32)
        return rankdata(distances[np.triu_indices(len(z), 1)])

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def ours(x: np.ndarray, y: np.ndarray, memory_mb: float) -> dict[str, float]:
    from sbm_jax.kernels.rdm.tiles import pattern_tiles
    from sbm_jax.kernels.rdm_compare.streamed import spearman_tiles

    found = spearman_tiles([pattern_tiles(x)], [pattern_tiles(y)], memory_mb=memory_mb)
    return {"rho": float(found.rho_mk[0, 0]), "error_bound": float(found.bound_mk[0, 0]), "bins": found.bins}


def toolbox_spearman(x: np.ndarray, y: np.ndarray) -> float:
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, compare

    a, b = (calc_rdm(Dataset(z), "correlation") for z in (x, y))
    return float(compare(a, b, "spearman")[0, 0])


def one(way: str, n: int, voxels: int, features: int, memory_mb: float) -> dict[str, float]:
    """Seconds, peak MB (growth and whole process) and the value of one run in this process."""
    calls: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
        "ours": lambda x, y: ours(x, y, memory_mb),
        # 2^20 bins of two RDMs
        "ours_binned": lambda x, y: ours(x, y, 64),
        "numpy": lambda x, y: {"rho": numpy_spearman(x, y)},
        "rsatoolbox": lambda x, y: {"rho": toolbox_spearman(x, y)},
    }
    x, y = patterns(n, voxels, features)
    if way.startswith("ours"):
        calls[way](x, y)  # compiles for these shapes
    else:
        calls[way](x[:64], y[:64])
    before = _reset_peak()
    start = time.perf_counter()
    value = calls[way](x, y)
    seconds = time.perf_counter() - start
    peak = _status("VmHWM")
    return {"seconds": seconds, "peak_mb": (peak - before) / 1024, "peak_rss_mb": peak / 1024, **value}


def _reset_peak() -> int:
    """KB resident now; Linux starts its peak anew."""
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--voxels", type=int, default=5000)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-mb", type=float, default=1e5, help="budget of `ours`: above it ranks are to bins")
    parser.add_argument("--name", default="rsa", help="of the JSON file")
    parser.add_argument("--python", help="an interpreter that has rsatoolbox")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="all that can run if not given")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    shape = (args.images, args.voxels, args.features)
    if args.one:
        print(json.dumps(one(args.one, *shape, args.memory_mb)))
        return
    from sbm_jax.bench.common import gemm_rate, save

    ways = args.ways or [way for way in WAYS if way != "rsatoolbox" or args.python]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way in ways:
            python = args.python if way == "rsatoolbox" else sys.executable
            options = ["--images", args.images, "--voxels", args.voxels, "--features", args.features]
            options += ["--memory-mb", args.memory_mb]
            command = [python, __file__, "--one", way, *map(str, options)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    seconds = {way: statistics.median(s["seconds"] for s in samples) for way, samples in found.items()}
    rate = gemm_rate()
    row = {
        "shape": f"n={args.images} voxels={args.voxels} features={args.features}",
        "memory_mb": args.memory_mb,
        "seconds": seconds,
        "ratio": {way: s / seconds[ways[0]] for way, s in seconds.items()},
        "peak_mb": {way: statistics.median(s["peak_mb"] for s in samples) for way, samples in found.items()},
        "peak_rss_mb": {way: max(s["peak_rss_mb"] for s in samples) for way, samples in found.items()},
        "rho": {way: samples[0]["rho"] for way, samples in found.items()},
        "seconds_of_the_upper_triangle_at_gemm_rate": args.images**2 * (args.voxels + args.features) / rate,
        "samples": found,
    }
    save(args.name, {"gemm_flops_per_second": rate, "rows": [row]})


if __name__ == "__main__":
    main()
