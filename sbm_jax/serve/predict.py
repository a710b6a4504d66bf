"""From a picture's codes to voxels, through each voxel's best unit."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.kernels.codes import SparseCodes
from sbm_jax.report.data import MapLayer
from sbm_jax.serve.answers import Refused
from sbm_jax.serve.library import Library
from sbm_jax.stages.inputs import read_codes, short_roi, subject_images

_LEAST_SD = 1e-9


def code_moments(lib: Library, subject: str, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [l * u] of every unit's code over the images that the subject saw."""

    def make() -> tuple[np.ndarray, np.ndarray]:
        rows = subject_images(lib.betas(subject)).rows
        codes, width = lib.store(lib.ctx.specs.codes), lib.units_per_layer[mode]
        parts = [moments(read_codes(codes, mode, hook, rows, width), width) for hook in lib.hooks]
        mean, sd = (np.concatenate(part) for part in zip(*parts, strict=True))
        return mean, sd

    return lib.kept.get(("moments", subject, mode), make, lambda m: 2 * m[0].nbytes)


def moments(codes: SparseCodes | np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [u] over images."""
    if isinstance(codes, np.ndarray):
        return codes.mean(axis=0, dtype=np.float64), codes.std(axis=0, dtype=np.float64)
    n = codes.n_images
    values = np.asarray(codes.values_nk, np.float64).reshape(-1)
    units = np.asarray(codes.units_nk).reshape(-1)
    total = np.bincount(units, weights=values, minlength=width)[:width] / n
    square = np.bincount(units, weights=values**2, minlength=width)[:width] / n
    return total, np.sqrt(np.maximum(square - total**2, 0))


def predicted(lib: Library, subject: str, mode: str, code_u: np.ndarray, part: bool = False) -> np.ndarray:
    """[v] in standard deviations of the voxel's response: r (z - mean) / sd of its best unit's code, the least-squares
    prediction from that unit; r is the held-out score where there is one. part: the code is of a few patches alone, or a
    difference of codes; then r z / sd, what it adds. NaN for voxels that are not responsive or whose r
    is not above 0. Raises Refused where alignment was by absolute similarity, which does not say in which direction.
    """
    if lib.ctx.config.align.sign != "signed":
        raise Refused(
            409, "align.sign is not `signed`: the stored scores do not say in which direction a unit moves a voxel"
        )
    align = lib.align(subject)
    units = lib.array(align, f"{mode}/voxel_units")[:, 0]
    scored = lib.ctx.config.align.select != "none"
    r = lib.array(align, f"{mode}/held_out" if scored else f"{mode}/voxel_values")[:, 0]
    mean, sd = code_moments(lib, subject, mode)
    z = np.where(sd > _LEAST_SD, (code_u - (0 if part else mean)) / np.where(sd > _LEAST_SD, sd, 1), 0)
    there = lib.responsive(subject) & (units >= 0) & (r > 0)
    return np.where(there, r * z[np.maximum(units, 0)], np.nan)


def predicted_map(lib: Library, subject: str, mode: str, code_u: np.ndarray, part: bool) -> MapLayer:
    values = predicted(lib, subject, mode, code_u, part)
    what = "what the chosen patches add to the response" if part else "response"
    note = f"{what}, by each voxel's best unit, in standard deviations over images; responsive voxels with r above 0"
    return change_map("Predicted response", values, note)


def change_map(label: str, values: np.ndarray, note: str) -> MapLayer:
    finite = np.abs(values[np.isfinite(values)])
    most = max(0.02, float(np.percentile(finite, 99.5))) if finite.size else 0.02
    return MapLayer("predicted", label, "sd", "diverging", values, -most, most, note=note)


def by_region(lib: Library, subject: str, values_v: np.ndarray) -> list[dict[str, Any]]:
    """Mean over the voxels of each region that have a prediction, the largest first; regions with none are left out."""
    rows = []
    for name, inside in lib.subject(subject).rois.items():
        mine = inside & np.isfinite(values_v)
        if mine.any() and "/" not in name:
            rows.append({"region": short_roi(name), "mean": float(values_v[mine].mean()), "voxels": int(mine.sum())})
    return sorted(rows, key=lambda row: -row["mean"])
