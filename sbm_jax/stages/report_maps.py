"""Per-voxel results as maps on the cortical surface, and as GIFTI files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sbm_jax.brain.dataset import Subject
from sbm_jax.brain.surfaces import N_VERTICES, load_fsaverage5, write_func_gii
from sbm_jax.report.colormaps import CATEGORY_COLOURS
from sbm_jax.report.data import CortexData, Hemisphere, MapLayer, RoiAtlas
from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import responsive

SPACE = "fsaverage5"


def cortex() -> CortexData:
    """The fsaverage5 surfaces."""
    hemis = {}
    for name, surface in zip(("left", "right"), load_fsaverage5(), strict=True):
        coords = {kind: surface.coords(kind) for kind in ("inflated", "pial", "flat")}
        hemis[name] = Hemisphere(coords, surface.faces, surface.sulc, surface.flat_faces)
    return CortexData(hemis)


def on_surface(subject: Subject, values_v: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """[left + right vertices] from one value per voxel; `empty` where the subject has no voxel."""
    out = np.full(2 * N_VERTICES, empty, np.float64)
    out[subject.vertex + N_VERTICES * (subject.hemi == "R")] = values_v
    return out


def subject_maps(ctx: Context, subject: Subject) -> list[MapLayer]:
    """What the viewer offers for one subject, the held-out score first."""
    mode = ctx.config.report.mode
    align, betas = ctx.open(ctx.specs.align[subject.name]), ctx.open(ctx.specs.betas[subject.name])
    layers = ctx.open(ctx.specs.layers)
    alive = responsive(betas, ctx.config.align.min_ncsnr)
    held_out, in_sample = align.read(f"{mode}/held_out")[:, 0], align.read(f"{mode}/voxel_values")[:, 0]
    top = max(0.1, float(np.nanpercentile(in_sample, 99.8)))
    depth = max(1, len(ctx.facts.hooks) - 1)  # a scale needs two ends even when there is one layer

    def here(values: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        return on_surface(subject, np.where(mask, values, np.nan) if mask is not None else values)

    best_layer = layers.read(f"{mode}/{subject.name}/best_layer").astype(float)
    maps = [
        MapLayer(
            "held_out",
            "Held-out similarity of the best unit",
            "r",
            "sequential",
            here(held_out),
            0,
            top,
            threshold=0.2,
            note="selected on unique images, scored on shared ones",
        ),
        MapLayer(
            "in_sample",
            "In-sample similarity of the best unit",
            "r",
            "sequential",
            here(in_sample),
            0,
            top,
            threshold=0.2,
            note="selected and scored on the same images: biased upwards",
        ),
        MapLayer(
            "best_layer",
            "Layer of the best unit",
            "layer",
            "sequential",
            here(best_layer, alive),
            0,
            depth,
            palette="lagoon",
            note="responsive vertices",
        ),
        MapLayer(
            "depth",
            "Depth (centre of mass of the layer profile)",
            "layer",
            "sequential",
            here(layers.read(f"{mode}/{subject.name}/depth"), alive),
            0,
            depth,
            palette="lagoon",
            note="responsive vertices",
        ),
    ]
    maps += _category_map(ctx, subject, mode, align.read(f"{mode}/voxel_units")[:, 0], alive)
    ncsnr = np.nan_to_num(betas.read("ncsnr"))
    maps.append(MapLayer("ncsnr", "ncsnr", "", "sequential", here(ncsnr), 0, 1, palette="slate", threshold=0.1))
    return maps


def _category_map(ctx: Context, subject: Subject, mode: str, units_v: np.ndarray, alive: np.ndarray) -> list[MapLayer]:
    roi = ctx.open(ctx.specs.roi)
    if mode not in ctx.config.roi.modes or not ctx.dataset.images.labels:
        return []
    concepts = list(ctx.dataset.images.labels)
    of_unit = roi.read(f"{mode}/concepts").reshape(-1)
    category = np.where(alive & (units_v >= 0), of_unit[units_v], -1)
    values = on_surface(subject, np.where(category >= 0, category, np.nan))
    colours = list(zip(concepts, CATEGORY_COLOURS, strict=False))
    note = "concept that the best unit follows most over the shared images; responsive vertices"
    last = len(concepts) - 1
    return [
        MapLayer("category", "Dictionary category", "", "categorical", values, 0, last, categories=colours, note=note)
    ]


def atlases(subject: Subject) -> list[RoiAtlas]:
    """Regions whose borders are drawn: every atlas with its labels."""
    out = []
    for atlas in [name for name in subject.rois if "/" not in name]:
        labels = [name for name in subject.rois if name.startswith(atlas + "/")]
        taken = np.zeros(subject.n_voxels, int)
        names = []
        for name in labels:
            # Pooled areas such as V1 lie on top of their parts; parts come first and keep their vertices.
            fresh = subject.rois[name] & (taken == 0)
            if fresh.any():
                names.append(name.removeprefix(atlas + "/"))
                taken[fresh] = len(names)
        out.append(RoiAtlas(atlas, on_surface(subject, taken, 0).astype(int), names))
    return out


def write_gifti(folder: Path, subject: str, layer: MapLayer) -> list[str]:
    """One `.func.gii` per hemisphere; returns the file names."""
    names = []
    for hemi, part in (("L", slice(0, N_VERTICES)), ("R", slice(N_VERTICES, None))):
        name = f"{subject}_space-{SPACE}_hemi-{hemi}_desc-{layer.name.replace('_', '')}.func.gii"
        write_func_gii(folder / name, np.asarray(layer.values[part], np.float32), hemi, layer.label)
        names.append(name)
    return names
