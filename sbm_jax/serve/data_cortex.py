"""The surfaces, maps and region borders as the page's scripts read them: quantised pieces in base64 inside JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.brain.surfaces import N_VERTICES
from sbm_jax.report.colormaps import PALETTES, lookup_table
from sbm_jax.report.data import HEMISPHERES, SURFACES, MapLayer
from sbm_jax.report.encode import Blobs
from sbm_jax.report.page import PAGE_VIEWS, atlas_payload, hemisphere_payload, map_payload
from sbm_jax.report.raster import CROSSED_VIEWS, camera
from sbm_jax.serve.data_maps import listing, map_by_voxel, on_cortex, resampler, why_unplaced
from sbm_jax.serve.library import Library
from sbm_jax.stages.report_maps import atlases, cortex

VERTICES = len(HEMISPHERES) * N_VERTICES


def surfaces() -> dict[str, Any]:
    """fsaverage5 with its surfaces, cameras and colour tables; nothing of a run."""
    blobs, data = Blobs(), cortex()
    hemis = {name: hemisphere_payload(data.hemis[name], SURFACES, blobs) for name in HEMISPHERES}
    return {
        "surfaces": list(SURFACES),
        "hemis": hemis,
        "views": {view: camera(view, "left").ravel().tolist() for view in PAGE_VIEWS},
        "crossed": list(CROSSED_VIEWS),
        "palettes": {name: blobs.add(lookup_table(name).tobytes()) for name in PALETTES},
        "blobs": blobs.texts,
    }


def subject_cortex(lib: Library, subject: str) -> dict[str, Any]:
    """A subject's maps by name, its region borders on fsaverage5, and why it has none there where that is so."""
    reason = why_unplaced(lib, subject)
    blobs = Blobs()
    drawn = [] if reason else atlases(lib.subject(subject), resampler(lib, subject))
    return {
        "name": subject,
        "why_not": reason,
        "maps": listing(lib, subject),
        "atlases": [atlas_payload(atlas, VERTICES, blobs) for atlas in drawn],
        "blobs": blobs.texts,
    }


def cortex_map(lib: Library, subject: str, name: str) -> dict[str, Any]:
    """One map on fsaverage5."""
    return packed(on_cortex(lib, subject, map_by_voxel(lib, subject, name), name), name)


def packed(layer: MapLayer, name: str) -> dict[str, Any]:
    blobs = Blobs()
    return {**map_payload(layer, VERTICES, blobs), "name": name, "blobs": blobs.texts}


def map_table(lib: Library, subject: str, name: str) -> tuple[list[str], list[list[Any]]]:
    """Header and one row per voxel: its number, its place on a surface where it has one, and the value."""
    layer, person = map_by_voxel(lib, subject, name), lib.subject(subject)
    values: list[Any] = layer.values.tolist()
    if layer.kind == "categorical":
        values = [layer.categories[int(v)][0] if np.isfinite(v) else None for v in layer.values]
    rows = zip(range(person.n_voxels), person.hemi.tolist(), person.vertex.tolist(), values, strict=True)
    return ["voxel", "hemi", "vertex", name], [list(row) for row in rows]
