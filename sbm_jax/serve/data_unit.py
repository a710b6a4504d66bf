"""A unit's own page: its exemplars, how it fires, where it lives on the cortex, and what matches it elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.axes import MODE_TITLES
from sbm_jax.report.data import MapLayer
from sbm_jax.serve.answers import Refused
from sbm_jax.serve.data_maps import places
from sbm_jax.serve.data_names import judgement, judges, names_of
from sbm_jax.serve.data_units import exemplar_list, firing_of
from sbm_jax.serve.library import Library
from sbm_jax.stages.image_sets import LEAST, image_sets
from sbm_jax.stages.inputs import read_codes, short_roi, subject_images, unit_columns
from sbm_jax.stages.match_lists import describe, matches_of

MOST_BETAS = 2 << 30  # bytes of responses that are read for one map; larger runs show the voxels that are stored


def unit(lib: Library, kind: str, hook: str, number: int) -> dict[str, Any]:
    layer, width = lib.unit_key(kind, hook, number)
    flat = layer * width + number
    firing = firing_of(lib, kind, hook)
    modes = lib.modes_of(kind)
    return {
        "kind": kind,
        "hook": hook,
        "layer": layer,
        "unit": number,
        "modes": [{"mode": mode, "title": MODE_TITLES[mode]} for mode in modes],
        "names": names_of(lib, kind, np.array([flat]))[0],
        "judged": _judged(lib, kind, flat),
        "firing": None if firing is None else {key: values[number] for key, values in vars(firing).items()},
        "exemplars": exemplar_list(lib, kind, hook, number, 40),
        "lives": [_lives(lib, mode, subject, layer, number, flat) for mode in modes for subject in lib.subjects],
        "matches": matches(lib, kind, hook, number),
        "whole_map": {name: betas_bytes(lib, name) <= MOST_BETAS for name in lib.subjects},
    }


def _judged(lib: Library, kind: str, flat: int) -> list[dict[str, Any]]:
    rows = []
    for judge in judges(lib):
        found = judgement(lib, judge, kind)
        if found is None or found.concept[flat] < 0:
            continue
        count = int(found.count[flat])
        rows.append(
            {
                "judge": judge,
                "concept": found.concepts[int(found.concept[flat])],
                "count": count if count >= 0 else None,
                "stable": bool(found.stable[flat]),
                "effect": found.effect[flat],
                "low": found.low[flat],
                "high": found.high[flat],
            }
        )
    return rows


def _lives(lib: Library, mode: str, subject: str, layer: int, number: int, flat: int) -> dict[str, Any]:
    """The voxels that follow the unit most, and in which regions lie the voxels whose best unit it is."""
    align, person = lib.align(subject), lib.subject(subject)
    voxels, values = (lib.array(align, f"{mode}/{part}")[layer, number] for part in ("unit_voxels", "unit_values"))
    best = lib.responsive(subject) & (lib.array(align, f"{mode}/voxel_units")[:, 0] == flat)
    held_out = lib.array(align, f"{mode}/held_out")[best, 0]
    regions = {short_roi(name): int((inside & best).sum()) for name, inside in person.rois.items() if "/" not in name}
    hemi, vertex = person.hemi, person.vertex
    return {
        "mode": mode,
        "subject": subject,
        "best_of": int(best.sum()),
        "held_out": float(held_out.mean()) if best.any() else None,
        "regions": {name: count for name, count in regions.items() if count},
        "voxels": [
            {"voxel": int(v), "hemi": str(hemi[v]), "vertex": int(vertex[v]), "r": r, **place}
            for v, r, place in zip(voxels, values, places(lib, subject, voxels.tolist()), strict=True)
            if v >= 0
        ],
    }


def betas_bytes(lib: Library, subject: str) -> int:
    array = lib.betas(subject).array("betas")
    return int(np.prod(array.shape)) * array.dtype.numpy_dtype.itemsize


def score_map(lib: Library, kind: str, hook: str, number: int, subject: str, mode: str) -> MapLayer:
    """A unit's similarity with every voxel over the images that score (all, where none does): a map by voxel.

    Pearson r of the unit's code and the response. Raises Refused where the responses are more than `MOST_BETAS`.
    """
    lib.unit_key(kind, hook, number)
    if mode not in lib.modes_of(kind):
        raise Refused(404, f"{mode!r} are no codes of {kind} tokens")
    if betas_bytes(lib, subject) > MOST_BETAS:
        raise Refused(
            409, "the responses are too many to be correlated with one unit while you wait; its best voxels are listed"
        )
    values, n, held_out = lib.kept.get(
        ("score", kind, hook, number, subject, mode),
        lambda: _scores(lib, hook, number, subject, mode),
        lambda x: x[0].nbytes,
    )
    finite = np.abs(values[np.isfinite(values)])
    most = max(0.1, float(np.percentile(finite, 99.8))) if finite.size else 0.1
    label = f"{mode.replace('_', ' ')}, {hook}, unit {number}"
    which = f"{n} images that score" if held_out else f"all {n} images"
    return MapLayer(
        "unit",
        label,
        "r",
        "diverging",
        values,
        -most,
        most,
        threshold=min(0.15, most / 2),
        note=f"Pearson r over the {which}",
    )


def _scores(lib: Library, hook: str, number: int, subject: str, mode: str) -> tuple[np.ndarray, int, bool]:
    betas, codes = lib.betas(subject), lib.store(lib.ctx.specs.codes)
    images = subject_images(betas)
    sets = image_sets(lib.ctx.config.align, subject, images.shared)
    chosen = np.flatnonzero(sets.held_out) if sets.held_out is not None else np.arange(len(images.rows))
    found = read_codes(codes, mode, hook, images.rows[chosen], lib.units_per_layer[mode])
    column = found.to_dense(np.float32)[:, number] if not isinstance(found, np.ndarray) else found[:, number]
    x = unit_columns(column[:, None])[:, 0]
    array = betas.array("betas")
    voxels = array.shape[0]
    out = np.full(voxels, np.nan)
    block = max(1, (64 << 20) // (4 * array.shape[1]))
    usable = betas.read("usable").astype(bool)
    for start in range(0, voxels, block):
        part = slice(start, min(voxels, start + block))
        y_nv = betas.read("betas", part)[:, chosen].T.astype(np.float32)
        out[part] = x @ unit_columns(np.nan_to_num(y_nv))
    return np.where(usable, out, np.nan), len(chosen), sets.held_out is not None and len(chosen) >= LEAST


def matches(lib: Library, kind: str, hook: str, number: int) -> dict[str, Any]:
    """Its best partner in every dictionary that its own was compared with, the most alike first."""
    store = lib.optional("match")
    if store is None:
        return {"there": False, "rows": []}
    own = store.json("match.json")["seed"]
    rows = []
    for match in sorted(matches_of(store, kind, hook, number), key=lambda m: -m.r):
        other = match.dictionary
        row: dict[str, Any] = {**match._asdict(), "here": False}
        # only the run's own autoencoders have pages here
        if other["other"] < 0 and other["seed"] == own and other["kind"] in lib.kinds and other["hook"] in lib.hooks:
            row |= {"here": True, "kind": other["kind"], "hook": other["hook"]}
            row["exemplars"] = exemplar_list(lib, other["kind"], other["hook"], match.unit, 6)
            layer, width = lib.unit_key(other["kind"], other["hook"], match.unit)
            row["names"] = names_of(lib, other["kind"], np.array([layer * width + match.unit]))[0]
        row["dictionary"] = describe(other)
        rows.append(row)
    return {"there": True, "rows": rows}
