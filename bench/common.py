"""What every benchmark shares: timing with all samples kept, the machine, and JSON files under bench/results."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sbm_jax.provenance import provenance

_folder = {"results": Path(__file__).parent / "results"}


def keep_results_in(folder: Path) -> None:
    """Where `save` writes, instead of bench/results."""
    _folder["results"] = folder


def samples(call: Callable[[], Any], repeats: int = 7) -> list[float]:
    """Seconds of each run after one warm-up (which compiles); waits for the device."""
    jax.block_until_ready(call())
    out = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        out.append(time.perf_counter() - start)
    return out


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int = 7) -> dict[str, list[float]]:
    """Samples of several calls taken in turn, so that a machine that slows down slows all of them."""
    for call in calls.values():
        jax.block_until_ready(call())
    out: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            out[name].append(time.perf_counter() - start)
    return out


def gemm_rate(size: int = 2048, repeats: int = 7) -> float:
    """Measured float32 GEMM rate of the device, FLOP/s (best of the samples: it is a ceiling)."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda x: jax.numpy.matmul(x, x, precision=jax.lax.Precision.HIGHEST))
    return 2 * size**3 / min(samples(lambda: product(a), repeats))


def copy_rate(megabytes: int = 256, repeats: int = 7) -> float:
    """Measured host copy rate, bytes read plus bytes written per second."""
    x = np.ones(megabytes << 18, np.float32)
    y = np.empty_like(x)
    return 2 * x.nbytes / min(samples(lambda: np.copyto(y, x), repeats))


def median(values: list[float]) -> float:
    return statistics.median(values)


def save(name: str, record: dict[str, Any]) -> None:
    """Write <name>-<platform>.json, and print the rows and the measured ceilings."""
    machine = {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **provenance([f"{d.platform}:{d.device_kind}" for d in jax.devices()]),
    }
    _folder["results"].mkdir(parents=True, exist_ok=True)
    path = _folder["results"] / f"{name}-{jax.devices()[0].platform}.json"
    path.write_text(json.dumps({"machine": machine, **record}, indent=1) + "\n")
    for row in record["rows"]:
        print("; ".join(f"{key} {_shown(value)}" for key, value in row.items() if not isinstance(value, list)))
    print("; ".join(f"{key} {_shown(value)}" for key, value in record.items() if key != "rows"))
    print(path)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(part)}" for key, part in value.items() if not isinstance(part, list))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
