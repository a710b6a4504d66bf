"""What the summary and the page say of joint models: one unit, several units, and ridge at an equal budget, side by side."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.axes import MODE_TITLES, WIDTH_MODES
from sbm_jax.brain.dataset import Subject
from sbm_jax.report.data import Column, LayerCurve, Table
from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import ALL_RESPONSIVE, region_masks, short_roi

_MODELS = ("unit", "omp", "ridge", "ridge_layer")
_KEYS = {"omp": "omp_chosen", "ridge": "ridge_held_out", "ridge_layer": "ridge_layer_held_out"}


def joint_summary(ctx: Context, subject: Subject, ceiling_v: np.ndarray) -> dict[str, Any]:
    """Per mode: facts of `joint.json`, mean number of atoms, held-out and in-sample r by number of atoms, and `rois`, over all
    responsive voxels and those of each ROI: mean held-out r of `unit`, `omp`, `ridge` and `ridge_layer`, each also `_of_ceiling`.

    ceiling_v [v]: noise ceiling as a share of variance, of the images that score. None where there is no score; empty where
    joint models were not asked for.
    """
    if subject.name not in ctx.specs.joint:
        return {}
    store = ctx.open(ctx.specs.joint[subject.name])
    facts = store.json("joint.json")
    ceiling = np.sqrt(np.where(ceiling_v > 0, ceiling_v, np.nan))
    modes: dict[str, Any] = {}
    for mode in ctx.config.joint_modes:
        atoms, curve = store.read(f"{mode}/omp_atoms"), store.read(f"{mode}/omp_held_out")
        fitted = atoms > 0
        scores = {"unit": curve[0]}
        scores |= {
            key: store.read(f"{mode}/{name}")
            for key, name in _KEYS.items()
            if key != "ridge_layer" or mode in WIDTH_MODES
        }
        masks = region_masks(ctx.config.roi, ctx.subjects, subject, fitted)
        modes[mode] = {
            **facts["modes"][mode],
            "atoms": float(atoms[fitted].mean()),
            "curve": [_mean(row[fitted]) for row in curve],
            "curve_in_sample": [_mean(row[fitted]) for row in store.read(f"{mode}/omp_in_sample")],
            "rois": {name: _row(scores, ceiling, mask) for name, mask in masks.items()},
        }
    return {"images": facts["images"], "voxels": facts["voxels"], "modes": modes}


def _row(scores: dict[str, np.ndarray], ceiling_v: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    row: dict[str, Any] = {"voxels": int(mask.sum())}
    for model in _MODELS:
        r = scores[model][mask] if model in scores else np.empty(0)
        row[model] = _mean(r)
        row[f"{model}_of_ceiling"] = _mean(r / ceiling_v[mask]) if len(r) else None
    return row


def _mean(x: np.ndarray) -> float | None:
    x = x[np.isfinite(x)]
    return float(x.mean(dtype=np.float64)) if x.size else None


def joint_tables(summary: dict[str, Any]) -> list[Table]:
    """Per subject all models over all responsive voxels, and r / ceiling of every ROI."""
    return [
        table
        for name, record in summary["joint"].items()
        if record
        for table in (_models(name, record), _by_roi(name, record))
    ]


def _models(name: str, record: dict[str, Any]) -> Table:
    columns = [
        "features",
        Column("predictors", "of ridge", help="p: the same for all kinds, unless no voxel lists more units"),
    ]
    columns += [
        Column(label, unit)
        for label in ("one unit", "several units", "ridge", "ridge, one layer")
        for unit in ("held-out r", "r / ceiling")
    ]
    columns.append(Column("units", "of several", digits=1, help="mean number, chosen on validation images"))
    rows = []
    for mode in _ordered(record):
        facts = record["modes"][mode]
        row = facts["rois"][ALL_RESPONSIVE]
        values = [row[f"{model}{end}"] for model in _MODELS for end in ("", "_of_ceiling")]
        rows.append([MODE_TITLES[mode], facts["predictors"], *values, facts["atoms"]])
    images = record["images"]
    note = (
        f"Means over {record['voxels']:,} responsive voxels. Several units: matching pursuit over the voxel's best units. Ridge: "
        "the p features that explain most over all voxels, of all layers. All is chosen and fitted on "
        f"{images['fit']:,} images (of which {images['validation']:,} choose the number of units, the penalty and the layer), or "
        "on those outside of a fold, and scored on others."
    )
    return Table(f"Joint models, {name}", note, columns, rows)


def _by_roi(name: str, record: dict[str, Any]) -> Table:
    modes = _ordered(record)
    labels = {"unit": "one unit", "omp": "several units", "ridge": "ridge"}
    columns = ["ROI", "voxels", *(Column(label, MODE_TITLES[mode]) for mode in modes for label in labels.values())]
    rois = record["modes"][modes[0]]["rois"]
    rows = [
        [
            short_roi(roi),
            row["voxels"],
            *(record["modes"][mode]["rois"][roi][model] for mode in modes for model in labels),
        ]
        for roi, row in rois.items()
    ]
    return Table(
        f"Joint models by ROI, {name}", "Mean held-out r over responsive voxels.", columns, rows, section="rois"
    )


def joint_curves(summary: dict[str, Any]) -> list[LayerCurve]:
    """Per subject held-out r against the number of units."""
    out = []
    for name, record in summary["joint"].items():
        series = {
            MODE_TITLES[mode]: ([np.nan if x is None else x for x in record["modes"][mode]["curve"]], None, None)
            for mode in _ordered(record)
        }
        if any(np.isfinite(values).any() for values, _, _ in series.values()):
            atoms = [str(i + 1) for i in range(len(next(iter(series.values()))[0]))]
            note = "Matching pursuit, mean over responsive voxels."
            out.append(
                LayerCurve(
                    f"Several units per voxel, {name}", atoms, series, "held-out r", "units", note, section="summary"
                )
            )
    return out


def _ordered(record: dict[str, Any]) -> list[str]:
    """Modes in the order of `axes.MODES`; JSON sorts its keys."""
    return [mode for mode in MODE_TITLES if mode in record.get("modes", {})]
