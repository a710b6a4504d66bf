"""The search over units, and which images drive a unit most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sbm_jax.serve.answers import Refused
from sbm_jax.serve.data_names import judgement, judges, names_of
from sbm_jax.serve.library import Library
from sbm_jax.stages.exemplar_lists import Exemplars, Firing, read_exemplars, read_firing
from sbm_jax.stages.inputs import short_roi
from sbm_jax.stages.probe import STIMULI
from sbm_jax.stages.roi_rankings import RANKINGS, ranking_name

PAGE = 48
ORDERS = ("voxels", "score", "rate", "count", "unit")
WHY = {1: "voxel", 2: "ROI", 4: "user", 8: "control"}


@dataclass(frozen=True)
class Best:
    """Per unit of a kind of features, [l * u]: responsive voxels of all subjects whose best unit it is, the mean held-out score
    of those (NaN: none), and its best in-sample similarity with any voxel.
    """

    voxels: np.ndarray
    held_out: np.ndarray
    best: np.ndarray


@dataclass(frozen=True)
class Query:
    """What is searched for; empty texts and None mean anything."""

    kind: str
    mode: str
    judge: str = ""
    concept: str = ""
    layer: int | None = None
    subject: str = ""
    roi: str = ""
    ranking: str = "contrast"
    why: int = 0
    order: str = "voxels"
    start: int = 0


def best_of(lib: Library, mode: str) -> Best:
    def make() -> Best:
        count = len(lib.hooks) * lib.units_per_layer[mode]
        voxels, total = np.zeros(count, np.int64), np.zeros(count)
        best = np.full(count, -np.inf, np.float32)
        for name in lib.subjects:
            align, alive = lib.align(name), lib.responsive(name)
            units = lib.array(align, f"{mode}/voxel_units")[:, 0]
            mine = alive & (units >= 0)
            voxels += np.bincount(units[mine], minlength=count)
            score = np.nan_to_num(lib.array(align, f"{mode}/held_out")[mine, 0])
            total += np.bincount(units[mine], weights=score, minlength=count)
            best = np.maximum(best, lib.array(align, f"{mode}/unit_values")[..., 0].reshape(-1))
        with np.errstate(invalid="ignore"):
            return Best(voxels, total / np.where(voxels, voxels, np.nan), best)

    return lib.kept.get(("best", mode), make, lambda b: 20 * len(b.voxels))


def exemplars_of(lib: Library, kind: str, hook: str) -> Exemplars | None:
    store = lib.optional("exemplars")
    if store is None or not (store.path / kind / hook / "units").is_dir():
        return None

    def size(x: Exemplars) -> int:
        return x.images.nbytes + x.scores.nbytes + (0 if x.heat is None else x.heat.nbytes)

    return lib.kept.get((store.name, kind, hook), lambda: read_exemplars(store, kind, hook), size)


def firing_of(lib: Library, kind: str, hook: str) -> Firing | None:
    store = lib.optional("exemplars")
    if store is None or not (store.path / kind / hook / "image_rate").is_dir():
        return None
    key = (store.name, kind, hook, "firing")
    return lib.kept.get(key, lambda: read_firing(store, kind, hook), lambda f: 5 * f.image_rate.nbytes)


def search(lib: Library, query: Query) -> dict[str, Any]:
    """A page of units that fit, best first, with how many there are. Raises Refused for what does not exist."""
    if query.kind not in lib.kinds or query.mode not in lib.modes_of(query.kind):
        raise Refused(404, f"there is no dictionary of kind {query.kind!r} with features {query.mode!r}")
    if query.order not in ORDERS:
        raise Refused(400, f"order is one of {', '.join(ORDERS)}")
    width = lib.units_per_layer[query.mode]
    found = best_of(lib, query.mode)
    keep = np.ones(len(found.voxels), bool)
    roi_score = None
    if query.layer is not None:
        keep &= np.arange(len(keep)) // width == query.layer
    judged = None
    if query.judge:
        judged = judgement(lib, query.judge, query.kind)
        if judged is None or (query.concept and query.concept not in judged.concepts):
            raise Refused(
                404, f"no judge {query.judge!r} knows {query.concept!r}; there are {', '.join(judges(lib)) or 'none'}"
            )
        if query.concept:
            keep &= judged.concept == judged.concepts.index(query.concept)
    if query.roi:
        roi_score = _roi_scores(lib, query, width)
        keep &= np.isfinite(roi_score)
    if query.why:
        keep &= (_why(lib, query.kind, width) & query.why) > 0
    if not (query.concept or query.roi or query.why):
        keep &= (found.voxels > 0) | (query.layer is not None)
    order = {
        "voxels": -found.voxels,
        "score": -(roi_score if roi_score is not None else np.nan_to_num(found.best, neginf=-2)),
        "rate": -_rates(lib, query.kind, width),
        "count": -(judged.count if judged is not None else found.voxels),
        "unit": np.arange(len(keep)),
    }[query.order]
    at = np.flatnonzero(keep)
    tie = -np.nan_to_num(found.best[at], neginf=-2)
    at = at[np.lexsort((at, tie, np.nan_to_num(order[at], nan=np.inf)))]
    page = at[query.start : query.start + PAGE]
    rows = cards(lib, query.kind, query.mode, page)
    if roi_score is not None:
        for row, score in zip(rows, roi_score[page], strict=True):
            row["roi_score"] = score
    return {"total": len(at), "start": query.start, "page": PAGE, "units": rows}


def cards(lib: Library, kind: str, mode: str, flat: np.ndarray) -> list[dict[str, Any]]:
    """What a card of a unit shows; `flat`: layer * units + unit."""
    width, found = lib.units_per_layer[mode], best_of(lib, mode)
    rows = []
    for at, names in zip(flat.tolist(), names_of(lib, kind, flat), strict=True):
        layer, unit = divmod(at, width)
        hook = lib.hooks[layer]
        firing = firing_of(lib, kind, hook)
        rows.append(
            {
                "kind": kind,
                "hook": hook,
                "layer": layer,
                "unit": unit,
                "names": names,
                "voxels": found.voxels[at],
                "held_out": found.held_out[at],
                "best": found.best[at],
                "image_rate": None if firing is None else firing.image_rate[unit],
                "exemplars": exemplar_list(lib, kind, hook, unit, 6),
            }
        )
    return rows


def _roi_scores(lib: Library, query: Query, width: int) -> np.ndarray:
    """[l * u] in-sample score of the units that a region ranks first, NaN elsewhere; the best over subjects unless one is named."""
    roi = lib.store(lib.ctx.specs.roi)
    if query.ranking not in RANKINGS or query.mode not in lib.ctx.config.roi.modes:
        raise Refused(404, f"regions rank no units of {query.mode!r} by {query.ranking!r}")
    known = regions(lib)
    if query.roi not in known or (query.subject and query.subject not in known[query.roi]):
        raise Refused(404, f"there is no region {query.roi!r}; there are {', '.join(known)}")
    out = np.full(len(lib.hooks) * width, np.nan)
    for name in [query.subject] if query.subject else known[query.roi]:
        base = ranking_name(query.mode, name, query.roi, query.ranking)
        units, scores = lib.array(roi, f"{base}_units"), lib.array(roi, f"{base}_scores")[..., 0]
        at = (np.arange(len(units))[:, None] * width + units)[units >= 0]
        out[at] = np.fmax(out[at], scores[units >= 0])
    return out


def regions(lib: Library) -> dict[str, list[str]]:
    """Region -> the subjects whose units it ranks."""
    roi = lib.optional("roi")
    out: dict[str, list[str]] = {}
    for subject, record in (roi.json("rois.json") if roi else {}).items():
        for name in record["rois"]:
            out.setdefault(name, []).append(subject)
    return out


def _why(lib: Library, kind: str, width: int) -> np.ndarray:
    out = np.zeros(len(lib.hooks) * width, np.uint8)
    for layer, hook in enumerate(lib.hooks):
        if found := exemplars_of(lib, kind, hook):
            out[layer * width + found.units] = found.why
    return out


def _rates(lib: Library, kind: str, width: int) -> np.ndarray:
    parts = [firing_of(lib, kind, hook) for hook in lib.hooks]
    return np.concatenate([np.full(width, np.nan) if part is None else part.image_rate for part in parts])


def exemplar_list(lib: Library, kind: str, hook: str, unit: int, most: int) -> dict[str, Any]:
    """The images that drive a unit most: `source` (probe: the exemplar store with its own probe set; stimuli: the roi store's
    lists; none), `folder` (the probe set is a folder, whose rows are no stimuli), rows of images, scores and, of patches, heat
    maps [e][g * g] in 255ths of the largest code of the image.
    """
    found = exemplars_of(lib, kind, hook)
    place = None if found is None else found.place(unit)
    if found is not None and place is not None:
        rows = found.images[place][:most]
        keep = rows >= 0
        out = {
            "source": "probe",
            "folder": lib.ctx.config.exemplars.probe != STIMULI,
            "images": rows[keep],
            "scores": found.scores[place][:most][keep],
            "why": _reasons(found.why[place]),
        }
        if found.heat is not None:
            heat = found.heat[place][:most][keep].astype(np.float32)
            out["heat"] = relative(heat.reshape(len(heat), heat.shape[1] * heat.shape[2]))
        return out
    modes = [mode for mode in lib.modes_of(kind) if mode in lib.ctx.config.roi.modes]
    if modes and lib.optional("roi"):
        lists = lib.array(lib.store(lib.ctx.specs.roi), f"{modes[-1]}/exemplars")
        return {"source": "stimuli", "images": lists[lib.hooks.index(hook), unit][:most], "mode": modes[-1]}
    return {"source": "none", "images": []}


def relative(heat_et: np.ndarray) -> np.ndarray:
    """Heat maps in 255ths of the largest code of each image."""
    most = np.maximum(heat_et.max(axis=1, keepdims=True, initial=0), 1e-12)
    return np.round(255 * np.maximum(heat_et, 0) / most).astype(np.int64)


def _reasons(why: int) -> list[str]:
    return [text for bit, text in WHY.items() if int(why) & bit]


def region_titles(lib: Library) -> list[dict[str, Any]]:
    return [{"name": name, "title": short_roi(name), "subjects": subjects} for name, subjects in regions(lib).items()]
