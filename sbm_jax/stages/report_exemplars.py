"""The units that ROIs prefer and the pictures that drive them most, patches lit, for the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sbm_jax.axes import MODE_TITLES, SAE_MODES, TOKEN_KIND
from sbm_jax.images.sources import open_image
from sbm_jax.report.data import RoiExemplars, Thumb, UnitCard
from sbm_jax.report.thumbs import lit, thumbnail
from sbm_jax.stages.context import Context
from sbm_jax.stages.exemplar_lists import Exemplars, read_exemplars
from sbm_jax.stages.inputs import relative_extents, short_roi
from sbm_jax.stages.pictures import seen_geometry
from sbm_jax.stages.probe import STIMULI, probe_sources
from sbm_jax.stages.roi_rankings import ranking_name

_LIT = "patches as light as their code, outlined from half of the largest on"


def roi_exemplars(ctx: Context) -> list[RoiExemplars]:
    """For each ROI of the first subject the units that contrast it most, over all layers, with their exemplars: those of the
    exemplars store where it holds the unit, else those of the roi store (the mode's own code of the stimuli).
    """
    config, mode = ctx.config.report, ctx.config.report.mode
    if mode not in ctx.config.roi.modes:
        return []
    roi = ctx.open(ctx.specs.roi)
    names, extents = relative_extents(ctx.dataset.images.labels)
    stimuli, subject = roi.read(f"{mode}/exemplars"), ctx.subjects[0].name
    lists, probe = _lists(ctx, mode), None
    pictures = Pictures(ctx.dataset.images.sources, _captions(ctx), None)
    if lists:
        probe = Pictures(
            probe_sources(ctx), _probe_captions(ctx), seen_geometry(ctx) if TOKEN_KIND[mode] == "patch" else None
        )
    labelled = ctx.config.exemplars.probe == STIMULI
    out = []
    for name in roi.json("rois.json")[subject]["rois"]:
        base = ranking_name(mode, subject, name, "contrast")
        units, scores = roi.read(f"{base}_units"), roi.read(f"{base}_scores")
        order = np.argsort(-scores[..., 0], axis=None, kind="stable")[: config.units_per_roi]
        cards = []
        for layer, rank in zip(*np.unravel_index(order, units.shape), strict=True):
            unit, found = int(units[layer, rank]), lists.get(int(layer))
            place = None if found is None else found.place(unit)
            if found is None or place is None or probe is None:
                rows, heat, source = stimuli[layer, unit], None, pictures
            else:
                rows = found.images[place][found.images[place] >= 0]
                heat, source = None if found.heat is None else found.heat[place], probe
            text = f"contrast {scores[layer, rank, 0]:.2f} in sample"
            if np.isfinite(scores[layer, rank, 1]):
                text += f", {scores[layer, rank, 1]:.2f} held out"
            shown = [source.thumb(int(row), heat, i) for i, row in enumerate(rows[: config.images_per_unit])]
            purity = _purity(rows, names, extents) if labelled or source is pictures else ""
            cards.append(UnitCard(ctx.facts.hooks[layer], unit, text, purity, shown))
        about = [subject, MODE_TITLES[mode], "all layers"]
        if lists and TOKEN_KIND[mode] == "patch":
            about.append(f"pictures by the {ctx.config.exemplars.score} over patches, {_LIT}")
        out.append(RoiExemplars(short_roi(name), ", ".join(about), cards))
    return out


class Pictures:
    """Small pictures of some sources, each decoded once. geometry: what the backbone saw, on which heat maps lie."""

    def __init__(self, sources: Any, captions: list[str], geometry: Callable[[Any], np.ndarray] | None):
        self.sources, self.captions, self.geometry = sources, captions, geometry
        self._decoded: dict[int, np.ndarray] = {}
        self._plain: dict[int, Thumb] = {}

    def _pixels(self, row: int) -> np.ndarray:
        if row not in self._decoded:
            picture = open_image(self.sources[row])
            self._decoded[row] = np.asarray(picture if self.geometry is None else self.geometry(picture))
        return self._decoded[row]

    def thumb(self, row: int, heat_egg: np.ndarray | None, place: int) -> Thumb:
        """Picture `row`, which has that place in its unit's list; lit where there are heat maps."""
        if heat_egg is not None:
            return thumbnail(lit(self._pixels(row), heat_egg[place]), self.captions[row])
        if row not in self._plain:
            self._plain[row] = thumbnail(self._pixels(row), self.captions[row])
        return self._plain[row]


def _lists(ctx: Context, mode: str) -> dict[int, Exemplars]:
    """By layer; none for features that are no autoencoder's or not looked into."""
    kind = TOKEN_KIND[mode]
    if ctx.specs.exemplars is None or mode not in SAE_MODES or kind not in ctx.config.kinds:
        return {}
    store = ctx.open(ctx.specs.exemplars)
    return {layer: read_exemplars(store, kind, hook) for layer, hook in enumerate(ctx.facts.hooks)}


def _captions(ctx: Context) -> list[str]:
    images = ctx.dataset.images
    return [caption or name for caption, name in zip(images.captions, images.ids, strict=True)]


def _probe_captions(ctx: Context) -> list[str]:
    assert ctx.specs.exemplars is not None
    return (
        _captions(ctx)
        if ctx.config.exemplars.probe == STIMULI
        else ctx.open(ctx.specs.exemplars).json("probe.json")["ids"]
    )


def _purity(rows: np.ndarray, names: list[str], extents: np.ndarray) -> str:
    if not names or not len(rows):
        return ""
    groups = np.where(extents[rows].max(axis=1) > 0, extents[rows].argmax(axis=1), -1)
    counts = [int((groups == c).sum()) for c in range(len(names))]
    best = int(np.argmax(counts))
    return f"{counts[best]} of {len(rows)} exemplars: {names[best]}"
