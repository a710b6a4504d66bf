"""Per-voxel results: as files in the space of the columns, and on the fsaverage5 cortex where there is a way to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sbm_jax.brain.dataset import Subject
from sbm_jax.brain.maps import LabelMap, ScalarMap, VoxelMap, write_maps
from sbm_jax.brain.spaces import HEMIS, SurfaceSpace
from sbm_jax.brain.surfaces import N_VERTICES, load_fsaverage5
from sbm_jax.brain.transforms import Resampler, argmax_after, to_template, why_not
from sbm_jax.report.colormaps import category_colours, parse_hex
from sbm_jax.report.data import CortexData, Hemisphere, MapLayer, RoiAtlas
from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import responsive
from sbm_jax.stages.report_selection import map_note, told_over
from sbm_jax.statistics import ALPHA

SPACE = "fsaverage5"


@dataclass(frozen=True)
class SubjectMaps:
    """One subject's maps.

    by_voxel: values [v], a category's index or NaN. on_cortex: the same maps with values [left + right vertices] of
    fsaverage5, empty where the subject cannot be put there. atlases: its regions on fsaverage5. why_not: the reason.
    """

    by_voxel: list[MapLayer]
    on_cortex: list[MapLayer]
    atlases: list[RoiAtlas]
    why_not: str = ""


def cortex() -> CortexData:
    """The fsaverage5 surfaces."""
    hemis = {}
    for name, surface in zip(("left", "right"), load_fsaverage5(), strict=True):
        coords = {kind: surface.coords(kind) for kind in ("inflated", "pial", "flat")}
        hemis[name] = Hemisphere(coords, surface.faces, surface.sulc, surface.flat_faces)
    return CortexData(hemis)


def subject_maps(ctx: Context, subject: Subject) -> SubjectMaps:
    """All maps of one subject. Raises UserError for transform files that are there but damaged."""
    by_voxel = voxel_maps(ctx, subject)
    reason = why_not(subject.space, subject.transforms, SPACE)
    if reason:
        return SubjectMaps(by_voxel, [], [], reason)
    resampler = to_template(subject.space, subject.transforms, SPACE)
    on_cortex = [replace(layer, values=_drawn(ctx, subject, layer, resampler)) for layer in by_voxel]
    return SubjectMaps(by_voxel, on_cortex, atlases(subject, resampler))


def voxel_maps(ctx: Context, subject: Subject) -> list[MapLayer]:
    """What is shown of one subject with one value per voxel, the held-out score first. Without held-out scores their map and
    that of the depth, which is a mean weighted with them, are not there.
    """
    mode = ctx.config.report.mode
    align, betas = ctx.open(ctx.specs.align[subject.name]), ctx.open(ctx.specs.betas[subject.name])
    layers = ctx.open(ctx.specs.layers)
    alive = responsive(betas, ctx.config.align.min_ncsnr)
    held_out, in_sample = align.read(f"{mode}/held_out")[:, 0], align.read(f"{mode}/voxel_values")[:, 0]
    top = max(0.1, float(np.nanpercentile(in_sample, 99.8)))
    depth = max(1, len(ctx.facts.hooks) - 1)  # a scale needs two ends even when there is one layer
    best_layer = layers.read(f"{mode}/{subject.name}/best_layer").astype(float)
    centre = layers.read(f"{mode}/{subject.name}/depth")
    maps = [
        MapLayer(
            "held_out",
            "Held-out similarity of the best unit",
            "r",
            "sequential",
            held_out,
            0,
            top,
            threshold=0.2,
            note=map_note(ctx.config.align),
        ),
        MapLayer(
            "in_sample",
            "In-sample similarity of the best unit",
            "r",
            "sequential",
            in_sample,
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
            np.where(alive, best_layer, np.nan),
            0,
            depth,
            palette="lagoon",
            note="responsive voxels",
        ),
        MapLayer(
            "depth",
            "Depth (centre of mass of the layer profile)",
            "layer",
            "sequential",
            np.where(alive, centre, np.nan),
            0,
            depth,
            palette="lagoon",
            note="responsive voxels",
        ),
    ]
    if ctx.config.align.select == "none":
        maps = [layer for layer in maps if layer.name not in ("held_out", "depth")]
    maps += _significance_map(layers.read(f"{mode}/{subject.name}/significant"))
    maps += _category_map(ctx, mode, align.read(f"{mode}/voxel_units")[:, 0], alive)
    ncsnr = betas.read("ncsnr")
    if np.isfinite(ncsnr).any():
        maps.append(
            MapLayer("ncsnr", "ncsnr", "", "sequential", np.nan_to_num(ncsnr), 0, 1, palette="slate", threshold=0.1)
        )
    return maps


def _significance_map(significant_v: np.ndarray) -> list[MapLayer]:
    """The mask as a map of one category; none where no voxel is significant, or permutations are too few to tell."""
    if not significant_v.any():
        return []
    note = f"p of the best unit in sample, FDR {ALPHA:g} over responsive voxels"
    name, colour = "best unit significant", category_colours(1)[0]
    values = np.where(significant_v, 0.0, np.nan)
    return [MapLayer("significant", "Significant voxels", "", "categorical", values, 0, 0, [(name, colour)], note=note)]


def _category_map(ctx: Context, mode: str, units_v: np.ndarray, alive: np.ndarray) -> list[MapLayer]:
    roi = ctx.open(ctx.specs.roi)
    if mode not in ctx.config.roi.modes or not ctx.dataset.images.labels:
        return []
    concepts = list(ctx.dataset.images.labels)
    of_unit = roi.read(f"{mode}/concepts").reshape(-1)
    category = np.where(alive & (units_v >= 0), of_unit[units_v], -1)
    values = np.where(category >= 0, category, np.nan)
    colours = list(zip(concepts, category_colours(len(concepts)), strict=True))
    note = f"concept that the best unit follows most over {told_over(ctx.facts.n_shared)}; responsive voxels"
    last = len(concepts) - 1
    return [
        MapLayer("category", "Dictionary category", "", "categorical", values, 0, last, categories=colours, note=note)
    ]


def _drawn(ctx: Context, subject: Subject, layer: MapLayer, resampler: Resampler) -> np.ndarray:
    """The map on fsaverage5: scores interpolated, categories by the nearest voxel, the best layer of interpolated scores."""
    if layer.kind == "categorical":
        category = np.where(np.isfinite(layer.values), layer.values, -1).astype(np.int64)
        return _without(resampler.labels(category))
    if layer.name == "best_layer":
        profile = ctx.open(ctx.specs.align[subject.name]).read(f"{ctx.config.report.mode}/layer_values")
        # exactly 0 is a layer whose every unit is constant, which ranks below all others
        scored = np.where(np.isfinite(layer.values) & (profile != 0), profile, np.nan)
        return _without(argmax_after(resampler, scored))
    return resampler.scores(layer.values)


def _without(labels_r: np.ndarray) -> np.ndarray:
    return np.where(labels_r >= 0, labels_r, np.nan)


def atlases(subject: Subject, resampler: Resampler) -> list[RoiAtlas]:
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
        out.append(RoiAtlas(atlas, resampler.labels(taken, empty=0), names))
    return out


def write_files(folder: Path, subject: Subject, maps: SubjectMaps) -> list[Path]:
    """Every map in the space of the subject's columns, and on fsaverage5 where that is another; returns the files."""
    files = write_maps(folder, subject.name, subject.space, _files(maps.by_voxel))
    if maps.on_cortex and subject.space.name != SPACE:
        vertex = np.tile(np.arange(N_VERTICES), len(HEMIS))
        template = SurfaceSpace(SPACE, (N_VERTICES, N_VERTICES), np.repeat(HEMIS, N_VERTICES), vertex)
        files += write_maps(folder, subject.name, template, _files(maps.on_cortex))
    return files


def _files(layers: list[MapLayer]) -> dict[str, VoxelMap]:
    """Maps as they are written. A category's number in a file is its index + 1, since 0 there means none."""
    out: dict[str, VoxelMap] = {}
    for layer in layers:
        if layer.kind == "categorical":
            labels = np.where(np.isfinite(layer.values), layer.values + 1, 0).astype(np.int64)
            names = {key: name for key, (name, _) in enumerate(layer.categories, start=1)}
            rgb = [tuple((parse_hex(colour) / 255).tolist()) for _, colour in layer.categories]
            out[layer.name] = LabelMap(labels, names, dict(enumerate(rgb, start=1)), layer.label)
        else:
            out[layer.name] = ScalarMap(np.asarray(layer.values), layer.label)
    return out
