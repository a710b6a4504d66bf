"""What local pooling gained, by ROI with bootstrap intervals, and how near fitted centres are to known ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sbm_jax.stages.fields import UNIFORM
from sbm_jax.stages.pooled_search import Tested

_AT_ONCE = 64  # draws
_CONSTANT = 1e-6  # share of a float32 variance that rounding may leave
_PERMUTED = 100  # orders of the known centres
_BINS = 8  # of known centres, for the page


def gain_draws(tested: Sequence[Tested], draws: int, seed: int) -> np.ndarray:
    """Gain of every voxel, mean over splits of r(local) - r(uniform), in draws of the scored images with replacement (within
    their split); the chosen units and fields stay. float64 [draws, v].
    """
    total = np.zeros((draws, tested[0].local.shape[1] if tested else 0))
    for number, part in enumerate(tested):
        n = len(part.responses)
        counts = np.random.default_rng([seed, n, number]).multinomial(n, np.full(n, 1 / n), size=draws)
        weights = (counts / n).astype(np.float32)
        part = Tested(*(a.astype(np.float32) for a in (part.local, part.uniform, part.responses)))
        for start in range(0, draws, _AT_ONCE):
            some = slice(start, min(start + _AT_ONCE, draws))
            local, uniform = weighted_r((part.local, part.uniform), part.responses, weights[some])
            total[some] += local - uniform
    return total / max(1, len(tested))


def weighted_r(codes: Sequence[np.ndarray], y_nv: np.ndarray, weights_bn: np.ndarray) -> list[np.ndarray]:
    """r of the columns of each array [n, v] with those of y, under weights of the rows that sum to 1, [b, v]; 0 where either is
    constant. Columns are centred over all rows, so that float32 products lose no digits.
    """
    y_mean = weights_bn @ y_nv
    y_square = weights_bn @ y_nv**2
    y_var = y_square - y_mean**2
    out = []
    for x_nv in codes:
        mean, square = weights_bn @ x_nv, weights_bn @ x_nv**2
        x_var = square - mean**2
        real = (x_var > _CONSTANT * square) & (y_var > _CONSTANT * y_square)
        both = weights_bn @ (x_nv * y_nv) - mean * y_mean
        out.append(np.where(real, both / np.sqrt(np.where(real, x_var * y_var, 1)), 0))
    return out


def roi_record(arrays: dict[str, np.ndarray], mask: np.ndarray, draws_b: np.ndarray | None) -> dict[str, Any]:
    """Means over the voxels of `mask` that were searched. draws_b: their mean gain in every bootstrap draw.

    gain = held_out - uniform_held_out with its 95 % percentile interval; local_share: voxels whose field is not uniform.
    Without held-out images scores are NaN.
    """
    inside = mask & (arrays["unit"] >= 0)
    held_out, uniform, shuffled = (
        arrays[key][inside].mean(dtype=np.float64) for key in ("held_out", "uniform_held_out", "shuffled_held_out")
    )
    low, high = (np.nan, np.nan) if draws_b is None else np.quantile(draws_b, [0.025, 0.975])
    out = {
        "voxels": int(inside.sum()),
        "held_out": held_out,
        "uniform_held_out": uniform,
        "gain": held_out - uniform,
        "gain_interval": [low, high],
        "shuffled_held_out": shuffled,
        "local_share": np.mean(arrays["field"][inside] != UNIFORM),
        "local_share_shuffled": np.mean(arrays["shuffled_field"][inside] != UNIFORM),
    }
    if "prf_held_out" in arrays:
        there = inside & (arrays["prf_unit"] >= 0)
        out["prf_voxels"] = int(there.sum())
        for key, name in (("prf_held_out", "prf_held_out"), ("held_out", "held_out_of_prf_voxels")):
            out[name] = arrays[key][there].mean(dtype=np.float64) if there.any() else np.nan
    return out


def centre_record(
    fitted: tuple[np.ndarray, ...], shuffled: tuple[np.ndarray, ...], known: tuple[np.ndarray, ...], seed: int
) -> dict[str, Any] | None:
    """Fitted against known centres, of the voxels that chose a local field and whose known centre lies within the image.

    fitted, shuffled, known: x, y, size [v], fractions of the image's side, NaN where there is none; `shuffled` was fitted to
    permuted images. Distances are Euclidean. permuted: median distance to the known centre of another of these voxels, mean
    over 100 orders. bins: (known, fitted) means within eighths of the known coordinate. None for fewer than 3 such voxels.
    """
    x, y, size = known
    with np.errstate(invalid="ignore"):
        inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    there = inside & np.isfinite(fitted[0])
    if there.sum() < 3:
        return None
    known_xy, fitted_xy = np.stack([x, y])[:, there], np.stack(fitted[:2])[:, there]
    rng = np.random.default_rng([seed, int(there.sum())])
    orders = (rng.permutation(there.sum()) for _ in range(_PERMUTED))
    null = inside & np.isfinite(shuffled[0])
    return {
        "voxels": int(there.sum()),
        "median_distance": _median_distance(fitted_xy, known_xy),
        "permuted": float(np.mean([_median_distance(fitted_xy, known_xy[:, order]) for order in orders])),
        "shuffled": _median_distance(np.stack(shuffled[:2])[:, null], np.stack([x, y])[:, null]),
        "r": {
            axis: _r(a[there], b[there]) for axis, a, b in zip(("x", "y", "size"), fitted, (x, y, size), strict=True)
        },
        "bins": {axis: _bins(a, b) for axis, a, b in zip("xy", known_xy, fitted_xy, strict=True)},
    }


def _median_distance(a_2v: np.ndarray, b_2v: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(a_2v - b_2v, axis=0))) if a_2v.size else float("nan")


def _r(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r, NaN where either is constant."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")


def _bins(known: np.ndarray, fitted: np.ndarray) -> list[tuple[float, float]]:
    parts: Iterable[np.ndarray] = np.array_split(np.argsort(known, kind="stable"), min(_BINS, len(known)))
    return [(float(known[part].mean()), float(fitted[part].mean())) for part in parts]
