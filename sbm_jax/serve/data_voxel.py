"""One voxel: its place, its best units with their null and ceiling, and its profile over layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.axes import MODE_TITLES, TOKEN_KIND
from sbm_jax.serve.answers import Refused
from sbm_jax.serve.data_maps import places
from sbm_jax.serve.data_names import names_of
from sbm_jax.serve.data_units import exemplar_list
from sbm_jax.serve.library import Library
from sbm_jax.stages.inputs import short_roi
from sbm_jax.store.store import Store

EXEMPLARS = 8


def voxel(lib: Library, subject: str, v: int, mode: str) -> dict[str, Any]:
    """Everything the panel shows of voxel `v` under one kind of features, beside the main scores under all others."""
    person = lib.subject(subject)
    lib.mode(mode)
    if not 0 <= v < person.n_voxels:
        raise Refused(404, f"{subject} has the voxels 0 to {person.n_voxels - 1}")
    align, betas = lib.align(subject), lib.betas(subject)
    return {
        "subject": subject,
        "voxel": v,
        "hemi": str(person.hemi[v]),
        "vertex": int(person.vertex[v]),
        "rois": [short_roi(name) for name, inside in person.rois.items() if inside[v] and "/" in name]
        or [short_roi(name) for name, inside in person.rois.items() if inside[v]],
        "responsive": bool(lib.responsive(subject)[v]),
        "ncsnr": lib.array(betas, "ncsnr")[v],
        "ceiling": lib.ceiling(subject)[v],
        "mode": mode,
        "title": MODE_TITLES[mode],
        "units": _units(lib, align, mode, v),
        "null": _null(lib, align, mode, v),
        "profile": _profile(lib, align, subject, mode, v),
        "modes": [_row(lib, align, m, v) for m in lib.modes],
    }


def _units(lib: Library, align: Store, mode: str, v: int) -> list[dict[str, Any]]:
    width, kind = lib.units_per_layer[mode], TOKEN_KIND[mode]
    flat, values, held_out = (
        lib.array(align, f"{mode}/{part}")[v] for part in ("voxel_units", "voxel_values", "held_out")
    )
    real = mode in lib.modes_of(kind)
    names = names_of(lib, kind, np.maximum(flat, 0)) if real else [{} for _ in flat]
    out = []
    for at, value, scored, called in zip(flat.tolist(), values, held_out, names, strict=True):
        if at < 0:
            continue
        layer, unit = divmod(at, width)
        hook = lib.hooks[layer]
        row = {"layer": layer, "hook": hook, "unit": unit, "in_sample": value, "held_out": scored, "names": called}
        if real:
            row |= {"kind": kind, "exemplars": exemplar_list(lib, kind, hook, unit, EXEMPLARS)}
        out.append(row)
    return out


def _null(lib: Library, align: Store, mode: str, v: int) -> dict[str, Any]:
    """The best of all units on permuted images, in sample and held out, and the p values."""
    p, fdr, fwe = (lib.array(align, f"{mode}/{part}")[v] for part in ("p", "p_fdr", "p_fwe"))
    return {
        "in_sample": lib.array(align, f"{mode}/shuffled_values")[:, v],
        "held_out": lib.array(align, f"{mode}/shuffled_held_out")[:, v],
        "p": p,
        "p_fdr": fdr,
        "p_fwe": fwe,
        "permutations": lib.permutations["most"],
    }


def _profile(lib: Library, align: Store, subject: str, mode: str, v: int) -> dict[str, Any]:
    """Per layer the score of its best unit in sample and held out, with the interval of the latter where it is known."""
    out: dict[str, Any] = {
        "in_sample": lib.array(align, f"{mode}/layer_values")[:, v],
        "held_out": lib.array(align, f"{mode}/layer_held_out")[:, v],
    }
    layers = lib.optional("layers")
    if layers is not None:
        base = f"{mode}/{subject}"
        out["depth"] = lib.array(layers, f"{base}/depth")[v]
        if (layers.path / base / "profile_low").is_dir():
            out |= {
                "low": lib.array(layers, f"{base}/profile_low")[:, v],
                "high": lib.array(layers, f"{base}/profile_high")[:, v],
            }
    return out


def _row(lib: Library, align: Store, mode: str, v: int) -> dict[str, Any]:
    null = lib.array(align, f"{mode}/shuffled_held_out")[:, v]
    return {
        "mode": mode,
        "title": MODE_TITLES[mode],
        "in_sample": lib.array(align, f"{mode}/voxel_values")[v, 0],
        "held_out": lib.array(align, f"{mode}/held_out")[v, 0],
        "shuffled": float(null.mean()) if len(null) else None,
        "p_fdr": lib.array(align, f"{mode}/p_fdr")[v],
    }


def top_voxels(lib: Library, subject: str, mode: str, count: int = 60) -> list[dict[str, Any]]:
    """The responsive voxels that are predicted best: a way in without a cortex."""
    align, person = lib.align(subject), lib.subject(subject)
    score = np.where(lib.responsive(subject), lib.array(align, f"{lib.mode(mode)}/held_out")[:, 0], np.nan)
    if not np.isfinite(score).any():
        score = np.where(lib.responsive(subject), lib.array(align, f"{mode}/voxel_values")[:, 0], np.nan)
    order = np.argsort(np.where(np.isfinite(score), -score, np.inf), kind="stable")[:count]
    hemi, vertex = person.hemi, person.vertex
    order = order[np.isfinite(score[order])]
    return [
        {"voxel": int(v), "hemi": str(hemi[v]), "vertex": int(vertex[v]), "score": score[v], **place}
        for v, place in zip(order, places(lib, subject, order.tolist()), strict=True)
    ]
