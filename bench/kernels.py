"""`python bench/kernels.py`: the alignment kernel against NumPy and against the measured GEMM rate, and exact top-k.

Each row keeps all samples; ratios are of medians taken in turn within one run.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from sbm_jax.bench.common import copy_rate, gemm_rate, interleaved, median, save
from sbm_jax.kernels import SparseCodes, cosine_topk, prepare_responses
from sbm_jax.kernels.cosine_topk.cases import CASES
from sbm_jax.kernels.cosine_topk.paired import unit_rows
from sbm_jax.kernels.rdm_compare.api import IMPLEMENTATIONS as compare
from sbm_jax.kernels.select import top_k


def numpy_argmax(codes: np.ndarray, y_nv: np.ndarray, block: int = 4096) -> np.ndarray:
    """The obvious script: normalise, multiply block by block, argmax."""
    a = unit_rows(codes.T)
    best, unit = np.full(y_nv.shape[1], -2.0, np.float32), np.zeros(y_nv.shape[1], np.int64)
    for start in range(0, len(a), block):
        s = a[start : start + block] @ y_nv
        at = s.argmax(axis=0)
        value = s[at, np.arange(s.shape[1])]
        better = value > best
        best[better], unit[better] = value[better], at[better] + start
    return unit


def align_row(name: str, ceiling: float) -> dict[str, Any]:
    """One named case: seconds of both, share of the GEMM ceiling, and how often both choose the same unit."""
    case = next(c for c in CASES if c.name == name)
    codes, y = case.make()
    dense = codes.to_dense() if isinstance(codes, SparseCodes) else codes
    prepared = prepare_responses(y)
    y_unit = np.ascontiguousarray(unit_rows(y.T).T)
    calls = {
        "sbm_jax": lambda: cosine_topk(codes, prepared, 1),
        "numpy": lambda: numpy_argmax(dense, y_unit),
    }
    taken = interleaved(calls, 3)
    flops = 2 * case.n * case.u * case.v
    agree = float(np.mean(calls["sbm_jax"]()[1][:, 0] == calls["numpy"]()))
    return {
        "case": name,
        "shape": f"n={case.n} u={case.u} v={case.v} k={case.k or 'dense'}",
        "seconds": {key: median(value) for key, value in taken.items()},
        "ratio_to_numpy": median(taken["numpy"]) / median(taken["sbm_jax"]),
        "share_of_gemm_rate": flops / median(taken["sbm_jax"]) / ceiling,
        "same_unit_as_numpy": agree,
        "samples": taken,
    }


def select_row(rows: int, u: int, k: int) -> dict[str, Any]:
    """Chunked exact top-k against lax.top_k."""
    x = jax.random.normal(jax.random.key(0), (rows, u))
    chunked, plain = jax.jit(lambda x: top_k(x, k)), jax.jit(lambda x: jax.lax.top_k(x, k))
    taken = interleaved({"top_k": lambda: chunked(x), "lax": lambda: plain(x)})
    return {
        "case": f"top {k} of {u}, {rows} rows",
        "seconds": {key: median(value) for key, value in taken.items()},
        "ratio_to_lax": median(taken["lax"]) / median(taken["top_k"]),
        "samples": taken,
    }


def spearman_row(pairs: int) -> dict[str, Any]:
    """Spearman of two RDM vectors: ranks by XLA against ranks on the host."""
    a, b = np.random.default_rng(0).random((2, pairs))
    calls = {name: (lambda name=name: compare[name](a, b, "spearman")) for name in compare}
    taken = interleaved(calls, 3)
    return {
        "case": f"spearman of {pairs} pairs",
        "seconds": {key: median(value) for key, value in taken.items()},
        "ratio_host_to_xla": median(taken["xla"]) / median(taken["reference"]),
        "samples": taken,
    }


def main() -> None:
    ceiling = gemm_rate()
    rows = [align_row(name, ceiling) for name in ("demo", "sparse NSD layer")]
    rows += [select_row(4096, 4096, 5), select_row(4096, 4096, 1), select_row(1024, 24576, 32)]
    rows.append(spearman_row(499_500))
    save("kernels", {"gemm_flops_per_second": ceiling, "copy_bytes_per_second": copy_rate(), "rows": rows})


if __name__ == "__main__":
    main()
