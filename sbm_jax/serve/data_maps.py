"""Every per-voxel result as a map: what there is, its values by voxel, and the same on the cortex."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from sbm_jax.axes import MODE_TITLES
from sbm_jax.brain.transforms import Resampler, argmax_after, to_template, why_not
from sbm_jax.errors import UserError
from sbm_jax.report.colormaps import category_colours
from sbm_jax.report.data import MapLayer
from sbm_jax.serve.answers import Refused
from sbm_jax.serve.library import Library
from sbm_jax.stages.inputs import relative_extents
from sbm_jax.stages.recovery import read_truth
from sbm_jax.stages.report_maps import SPACE
from sbm_jax.stages.report_selection import map_note, told_over
from sbm_jax.statistics import ALPHA

Values = Callable[[], MapLayer]


def layers_of(lib: Library, subject: str) -> dict[str, tuple[str, str, Values]]:
    """name -> (label, group, the map by voxel when called) for everything this run holds of a subject. A name begins with its
    kind of features and a dot, or is that of a map of the subject alone. group: heading in the list of maps.
    """
    out: dict[str, tuple[str, str, Values]] = {}
    for mode in lib.modes:
        for key, (label, make) in _of_mode(lib, subject, mode).items():
            out[f"{mode}.{key}"] = (label, MODE_TITLES[mode], make)
    return out | {key: (label, subject, make) for key, (label, make) in _of_subject(lib, subject).items()}


def _of_mode(lib: Library, subject: str, mode: str) -> dict[str, tuple[str, Values]]:
    align, config = lib.align(subject), lib.ctx.config
    read = partial(lib.array, align)
    alive = partial(lib.responsive, subject)
    scored = config.align.select != "none"
    out: dict[str, tuple[str, Values]] = {}

    def score(key: str, label: str, values: Callable[[], np.ndarray], note: str, threshold: float | None = 0.2) -> None:
        def make() -> MapLayer:
            top = max(0.1, float(np.nanpercentile(read(f"{mode}/voxel_values")[:, 0], 99.8)))
            return MapLayer(key, label, "r", "sequential", values(), 0, top, threshold=threshold, note=note)

        out[key] = (label, make)

    if scored:
        score("held_out", "Held-out r", lambda: read(f"{mode}/held_out")[:, 0], map_note(config.align))
        out["of_ceiling"] = ("Held-out r / ceiling", lambda: _of_ceiling(lib, subject, mode))
        out["beyond"] = ("Held-out r beyond shuffled", lambda: _beyond(lib, subject, mode))
    biased = "selected and scored on the same images: biased upwards"
    score("in_sample", "In-sample r", lambda: read(f"{mode}/voxel_values")[:, 0], biased)
    for key, label in (("p", "p of the best unit"), ("p_fdr", "p, FDR"), ("p_fwe", "p, FWE")):
        out[key] = (label, partial(_probability, lib, subject, mode, key, label))
    if layers := lib.optional("layers"):
        depth = max(1, len(lib.hooks) - 1)
        style = {"unit": "layer", "kind": "sequential", "vmin": 0, "vmax": depth, "palette": "lagoon"}
        own = f"{mode}/{subject}"

        def layer_map(key: str, label: str, part: str, note: str) -> None:
            def make() -> MapLayer:
                values = lib.array(layers, f"{own}/{part}").astype(float)
                return MapLayer(key, label, values=np.where(alive(), values, np.nan), note=note, **style)  # type: ignore[arg-type]

            out[key] = (label, make)

        layer_map("best_layer", "Layer of the best unit", "best_layer", "responsive voxels")
        if scored:
            note = "centre of mass of the held-out profile over layers; responsive voxels"
            layer_map("depth", "Depth", "depth", note)
    if mode in config.roi.modes and lib.images.labels and lib.optional("roi"):
        out["category"] = ("Category of the best unit", partial(_category, lib, subject, mode))
        if lib.optional("recovery"):
            out["truth"] = ("Planted truth found", partial(_truth_found, lib, subject, mode))
    assign = lib.ctx.specs.assign.get(subject)
    if scored and assign is not None and lib.ctx.has(assign):
        store = lib.store(assign)
        note = "every unit for one voxel at most"
        score("one_to_one", "Held-out r, one-to-one", lambda: lib.array(store, f"{mode}/one_to_one_held_out"), note)
    joint = lib.ctx.specs.joint.get(subject)
    if scored and joint is not None and mode in config.joint_modes and lib.ctx.has(joint):
        models = lib.store(joint)
        note = "several units per voxel, chosen without the images that score"
        score("ridge", "Held-out r, ridge", lambda: lib.array(models, f"{mode}/ridge_held_out"), note)
        score(
            "pursuit", "Held-out r, matching pursuit", lambda: _pursuit(lib.array(models, f"{mode}/omp_held_out")), note
        )
    pooling = lib.ctx.specs.pooling.get(subject)
    if scored and pooling is not None and mode == config.pooling.mode and lib.ctx.has(pooling):
        fields = lib.store(pooling)
        note = "codes weighted by the voxel's own field over the patches"
        score("field", "Held-out r through a field", lambda: lib.array(fields, "held_out"), note)
        out["field_gain"] = (
            "Gain of the field",
            lambda: _gain(lib.array(fields, "held_out"), lib.array(fields, "uniform_held_out")),
        )
    return out


def _pursuit(held_out_av: np.ndarray) -> np.ndarray:
    """The last number of units that a voxel's pursuit reached."""
    finite = np.isfinite(held_out_av)
    last = np.where(finite.any(axis=0), finite.shape[0] - 1 - finite[::-1].argmax(axis=0), 0)
    return np.take_along_axis(held_out_av, last[None], axis=0)[0]


def _gain(field: np.ndarray, uniform: np.ndarray) -> MapLayer:
    gain = field - uniform
    most = max(0.05, float(np.nanpercentile(np.abs(gain), 99))) if np.isfinite(gain).any() else 0.05
    return MapLayer(
        "field_gain", "Gain of the field", "Δr", "diverging", gain, -most, most, note="held-out r, field minus mean"
    )


def _of_ceiling(lib: Library, subject: str, mode: str) -> MapLayer:
    held_out = lib.array(lib.align(subject), f"{mode}/held_out")[:, 0]
    values = np.where(lib.responsive(subject), held_out / lib.ceiling(subject), np.nan)
    return MapLayer(
        "of_ceiling", "Held-out r / ceiling", "", "sequential", values, 0, 1, note="responsive voxels", threshold=0.2
    )


def _beyond(lib: Library, subject: str, mode: str) -> MapLayer:
    align = lib.align(subject)
    null = lib.array(align, f"{mode}/shuffled_held_out")
    with np.errstate(invalid="ignore"):
        values = lib.array(align, f"{mode}/held_out")[:, 0] - null.mean(axis=0)
    finite = np.abs(values[np.isfinite(values)])
    most = max(0.1, float(np.percentile(finite, 99.8))) if finite.size else 0.1
    note = "minus the mean over image permutations of the same search"
    return MapLayer(
        "beyond", "Held-out r beyond shuffled", "Δr", "diverging", values, -most, most, note=note, threshold=0.1
    )


def _probability(lib: Library, subject: str, mode: str, key: str, label: str) -> MapLayer:
    p = lib.array(lib.align(subject), f"{mode}/{key}")
    count = lib.permutations["all" if key == "p_fwe" else "most"]
    values = np.where(lib.responsive(subject) & (p > 0), -np.log10(np.where(p > 0, p, 1)), np.nan)
    top = max(1.5, float(np.log10(1 + count)))
    cut = -np.log10(ALPHA) if 1 / (1 + count) <= ALPHA else None
    note = f"{count} permutations: p is at least {1 / (1 + count):.2g}. 1.3 is p = .05"
    return MapLayer(key, label, "-log10 p", "sequential", values, 0, top, note=note, threshold=cut, palette="slate")


def _category_of_best(lib: Library, subject: str, mode: str) -> np.ndarray:
    roi, align = lib.store(lib.ctx.specs.roi), lib.align(subject)
    of_unit = lib.array(roi, f"{mode}/concepts").reshape(-1)
    units = lib.array(align, f"{mode}/voxel_units")[:, 0]
    return np.where(lib.responsive(subject) & (units >= 0), of_unit[units], -1)


def _category(lib: Library, subject: str, mode: str) -> MapLayer:
    names = relative_extents(lib.images.labels)[0]
    category = _category_of_best(lib, subject, mode)
    colours = list(zip(names, category_colours(len(names)), strict=True))
    note = f"concept that the best unit follows most over {told_over(lib.ctx.facts.n_shared)}; responsive voxels"
    values = np.where(category >= 0, category, np.nan)
    return MapLayer(
        "category", "Category of the best unit", "", "categorical", values, 0, len(names) - 1, colours, note=note
    )


def _truth_found(lib: Library, subject: str, mode: str) -> MapLayer:
    names = relative_extents(lib.images.labels)[0]
    truth = _truth(lib, subject)
    planted = np.array([names.index(c) if c in names else -1 for c in truth["concept"].tolist()])
    wanted = (planted >= 0) & (truth["weight"] != 0) & lib.responsive(subject)
    found = _category_of_best(lib, subject, mode) == planted
    values = np.where(wanted, found.astype(float), np.nan)
    colours = [("another concept", "#d55e00"), ("the planted concept", "#0072b2")]
    note = "responsive vertices with a planted category: does the best unit follow it?"
    return MapLayer("truth", "Planted truth found", "", "categorical", values, 0, 1, colours, note=note)


def _truth(lib: Library, subject: str) -> dict[str, np.ndarray]:
    key = (subject, "truth")
    return lib.kept.get(
        key, lambda: read_truth(lib.ctx, lib.subject(subject)), lambda t: sum(x.nbytes for x in t.values())
    )


def _of_subject(lib: Library, subject: str) -> dict[str, tuple[str, Values]]:
    out: dict[str, tuple[str, Values]] = {}
    betas = lib.betas(subject)

    def simple(
        key: str, label: str, unit: str, values: Callable[[], np.ndarray], threshold: float | None, note: str
    ) -> None:
        out[key] = (
            label,
            lambda: MapLayer(
                key, label, unit, "sequential", values(), 0, 1, note=note, threshold=threshold, palette="slate"
            ),
        )

    simple("ncsnr", "ncsnr", "", lambda: lib.array(betas, "ncsnr"), 0.1, "signal to noise of single trials")
    simple("ceiling", "Noise ceiling on r", "r", lambda: lib.ceiling(subject), None, "of the images that score")
    if lib.optional("recovery"):
        out["planted"] = ("Planted concept", lambda: _planted(lib, subject))
    return out


def _planted(lib: Library, subject: str) -> MapLayer:
    truth = _truth(lib, subject)
    names = sorted({c for c in truth["concept"].tolist() if c})
    values = np.array([names.index(c) if c else np.nan for c in truth["concept"].tolist()], float)
    colours = list(zip(names, category_colours(len(names)), strict=True))
    note = "what drives each vertex of the simulated brain"
    values = np.where(truth["weight"] != 0, values, np.nan)
    return MapLayer(
        "planted", "Planted concept", "", "categorical", values, 0, max(0, len(names) - 1), colours, note=note
    )


# On the cortex -----------------------------------------------------------------------------------------------------------


def why_unplaced(lib: Library, subject: str) -> str:
    """Why a subject's voxels cannot be put on fsaverage5; empty where they can."""
    person = lib.subject(subject)
    return why_not(person.space, person.transforms, SPACE)


def resampler(lib: Library, subject: str) -> Resampler:
    """Raises Refused where there is no way to the cortex."""
    person = lib.subject(subject)

    def make() -> Resampler:
        try:
            return to_template(person.space, person.transforms, SPACE)
        except UserError as error:
            raise Refused(409, str(error)) from error

    return lib.kept.get((subject, "resampler"), make, lambda r: r.nearest.nbytes + 12 * r.weights.nnz)


def map_by_voxel(lib: Library, subject: str, name: str) -> MapLayer:
    """The map of that name. Raises Refused where there is none."""
    found = layers_of(lib, subject).get(name)
    if found is None:
        raise Refused(404, f"there is no map {name!r} of {subject}")
    return found[2]()


def on_cortex(lib: Library, subject: str, layer: MapLayer, name: str = "") -> MapLayer:
    """The map with values at the vertices of fsaverage5: interpolated, categories and layers by the nearest or the argmax."""
    way = resampler(lib, subject)
    if layer.kind == "categorical":
        labels = way.labels(np.where(np.isfinite(layer.values), layer.values, -1).astype(np.int64))
        return replace(layer, values=np.where(labels >= 0, labels, np.nan))
    if layer.name == "best_layer":
        profile = lib.array(lib.align(subject), f"{name.split('.')[0]}/layer_values")
        best = argmax_after(way, np.where(np.isfinite(layer.values) & (profile != 0), profile, np.nan))
        return replace(layer, values=np.where(best >= 0, best, np.nan))
    return replace(layer, values=way.scores(layer.values))


def voxel_at(lib: Library, subject: str, hemi: str, vertex: int) -> int:
    """The column nearest to a vertex of fsaverage5, sampled at the middle depth; -1 where there is none. Raises Refused for a
    vertex that does not exist.
    """
    way = resampler(lib, subject)
    half = way.n_vertices // 2
    if hemi not in ("left", "right") or not 0 <= vertex < half:
        raise Refused(404, f"hemi is left or right, vertex 0 to {half - 1}")
    at = vertex + (half if hemi == "right" else 0)
    depths = sorted(range(len(way.nearest)), key=lambda depth: abs(depth - len(way.nearest) // 2))
    return next((int(way.nearest[depth, at]) for depth in depths if way.nearest[depth, at] >= 0), -1)


def places(lib: Library, subject: str, voxels: Sequence[int]) -> list[dict[str, Any]]:
    """Where voxels are found on fsaverage5: `side` left or right and `at`, the first vertex whose column they are; "" and -1
    where there is none.
    """
    nowhere = {"side": "", "at": -1}
    if why_unplaced(lib, subject):
        return [nowhere for _ in voxels]
    way = resampler(lib, subject)
    half, column_r = way.n_vertices // 2, way.nearest[len(way.nearest) // 2]
    out = []
    for v in voxels:
        found = np.flatnonzero(column_r == v)[:1].tolist()
        out.append({"side": ("left", "right")[found[0] // half], "at": found[0] % half} if found else nowhere)
    return out


def listing(lib: Library, subject: str) -> list[dict[str, Any]]:
    """What there is, without values."""
    return [
        {"name": name, "label": label, "group": group} for name, (label, group, _) in layers_of(lib, subject).items()
    ]
