"""From low-level features to categories: what the codes of every layer follow in the stimuli, held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.emergence_curves import resample
from sbm_jax.stages.explain_tables import LEVEL
from sbm_jax.stages.image_sets import deal
from sbm_jax.stages.image_statistics import GROUPS, columns, measure_images
from sbm_jax.stages.inputs import dense_codes, read_codes
from sbm_jax.stages.judge_labels import dataset_labels
from sbm_jax.stages.pictures import seen_geometry
from sbm_jax.stages.probe import STIMULI
from sbm_jax.stages.tuning import FoldSums, Tuning, standardised, tuning_of
from sbm_jax.statistics import percentile_interval
from sbm_jax.store.store import Store, StoreWriter

FOLDS = 5
LEAST_ACTIVE = 10  # images on which a unit must fire for its tuning to count in means over units
CATEGORY, LOW_LEVEL = "category", "low-level"
_BLOCK_CODES = 1 << 23  # dense codes in memory at once: 32 MiB of float32
_STREAM = 3


def write_flow(
    ctx: Context,
    explain: Store,
    probe: str,
    ranked: Mapping[str, Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]],
    writer: StoreWriter,
) -> dict[str, Any]:
    """Write `image_statistics` float32 [n, p] and, per KIND/HOOK, `tuning` and `unique` float32 [u, g], `preferred` int8 and
    `active` int32 [u] (`tuning.Tuning`). Codes are those of the images, `cls`, and `patch_mean` or `patch_max`.

    Returns per kind means over units with intervals by layer, and over the units that each ROI ranks first.
    """
    statistics = measure_images(ctx.dataset.images.sources, seen_geometry(ctx))
    parts = [name for group, names in GROUPS.items() for name in (f"{group}: {part}" for part in names)]
    writer.put("image_statistics", statistics, dimensions=("n", "p"))
    categories, names, seen, told = _categories(ctx, explain, probe)
    rows = np.flatnonzero(seen)
    x = standardised(np.column_stack([statistics, categories])[rows])
    groups = {name: list(range(1 + part.start, 1 + part.stop)) for name, part in columns().items()}
    unions = {LOW_LEVEL: list(groups)}
    if names:
        groups[CATEGORY] = list(range(1 + statistics.shape[1], x.shape[1]))
    fold_n = deal(len(rows), min(FOLDS, len(rows)), ctx.config.emergence.seed)
    order = [*groups, *unions]
    out: dict[str, Any] = {
        "statistics": parts,
        "groups": order,
        "preferred": list(groups),
        "categories": names,
        "told_by": told,
        "images": len(rows),
        "kinds": {},
    }
    modes = {kind: mode for kind in ctx.config.kinds if (mode := _mode(ctx, kind)) is not None}
    with progress("emergence: tuning", len(modes) * len(ctx.facts.hooks), "dictionaries") as task:
        for kind, mode in modes.items():
            layers = []
            for hook in ctx.facts.hooks:
                tuning = tuning_of(_sums(ctx, mode, hook, rows, x, fold_n), groups, unions)
                _write(writer, f"{kind}/{hook}", tuning)
                layers.append(tuning)
                task.advance()
            out["kinds"][kind] = {
                "mode": mode,
                **_by_layer(layers, order, ctx.config.emergence.bootstrap, ctx.config.emergence.seed),
                "rois": {
                    own: {subject: _rois(layers, order, rois) for subject, rois in subjects.items()}
                    for own, subjects in ranked.items()
                    if TOKEN_KIND[own] == kind
                },
            }
    return out


def _categories(ctx: Context, explain: Store, probe: str) -> tuple[np.ndarray, list[str], np.ndarray, str]:
    """float [n, c] which image shows which concept, names, bool [n] images that are known, and who says so: the judge `labels`,
    else `clip`, else the dataset; without any no column.
    """
    n = ctx.facts.n_images
    judges = explain.json("explain.json")["judges"]
    for judge in ("labels", "clip") if probe == STIMULI else ():
        if judge in judges:
            shows, seen = explain.read(f"{judge}/shows"), explain.read(f"{judge}/seen")
            return shows.astype(np.float64), judges[judge]["concepts"], seen.astype(bool), judge
    if ctx.dataset.images.labels:
        own = dataset_labels(ctx.dataset.images.labels)
        return own.shows.astype(np.float64), list(own.concepts), own.seen, own.name
    return np.zeros((n, 0)), [], np.ones(n, bool), ""


def _mode(ctx: Context, kind: str) -> str | None:
    """The code of an image that its tokens' codes are pooled to."""
    return next(
        (m for m in ("cls", "patch_mean", "patch_max") if m in ctx.config.sae_modes and TOKEN_KIND[m] == kind), None
    )


def _sums(ctx: Context, mode: str, hook: str, rows: np.ndarray, x: np.ndarray, fold_n: np.ndarray) -> FoldSums:
    """One pass over the codes of a dictionary."""
    codes = ctx.open(ctx.specs.codes)
    units = int(ctx.open(ctx.specs.saes).array("b_enc").shape[1])
    sums = FoldSums.empty(int(fold_n.max()) + 1, x.shape[1], units)
    step = max(1, _BLOCK_CODES // units)
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        sums.add(x[part], dense_codes(read_codes(codes, mode, hook, rows[part], units)), fold_n[part])
    return sums


def _write(writer: StoreWriter, base: str, tuning: Tuning) -> None:
    writer.put(f"{base}/tuning", tuning.alone, dimensions=("u", "g"))
    writer.put(f"{base}/unique", tuning.unique, dimensions=("u", "g"))
    writer.put(f"{base}/preferred", tuning.preferred, dimensions=("u", "g"))
    writer.put(f"{base}/active", tuning.active.astype(np.int32), dimensions=("u",))


def counted(tuning: Tuning) -> np.ndarray:
    """Units whose tuning counts: they fire on enough images, and their code varies."""
    return np.flatnonzero((tuning.active >= LEAST_ACTIVE) & np.isfinite(tuning.alone).all(axis=1))


def _by_layer(layers: Sequence[Tuning], order: list[str], draws: int, seed: int) -> dict[str, Any]:
    """`units` [l], and per group `alone`, `unique`: means over units with `_low` and `_high`; `categorical`: share of units whose
    category tuning is above their low-level tuning, likewise.
    """
    found: list[dict[str, np.ndarray]] = []
    for layer, tuning in enumerate(layers):
        rows = counted(tuning)
        values = {"alone": tuning.alone[rows], "unique": tuning.unique[rows]}
        if CATEGORY in order:
            more = tuning.alone[rows][:, order.index(CATEGORY)] > tuning.alone[rows][:, order.index(LOW_LEVEL)]
            values["categorical"] = more[:, None].astype(np.float32)
        weights = resample(len(rows), draws, [seed, layer, len(rows), _STREAM]) if draws and len(rows) else None
        found.append({key: _mean_and_ends(x, weights) for key, x in values.items()} | {"units": np.array(len(rows))})
    out: dict[str, Any] = {"units": [int(f["units"]) for f in found]}
    for i, suffix in enumerate(("", "_low", "_high")):
        for key in ("alone", "unique"):
            out[f"{key}{suffix}"] = {name: [float(f[key][i, g]) for f in found] for g, name in enumerate(order)}
        if CATEGORY in order:
            out[f"categorical{suffix}"] = [float(f["categorical"][i, 0]) for f in found]
    return out


def _mean_and_ends(values_ug: np.ndarray, weights_bu: np.ndarray | None) -> np.ndarray:
    """float64 [3, g]: mean over units, and the ends of its interval; NaN without units or draws."""
    nan = np.full(values_ug.shape[1], np.nan)
    x = values_ug.astype(np.float64)
    if not len(x):
        return np.stack([nan, nan, nan])
    if weights_bu is None:
        return np.stack([x.mean(axis=0), nan, nan])
    return np.stack([x.mean(axis=0), *percentile_interval(weights_bu @ x, LEVEL)])


def _rois(layers: Sequence[Tuning], order: list[str], rois: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """ROI -> group -> mean over the units it ranks first by contrast, per layer, of what the group explains alone."""
    out: dict[str, Any] = {}
    for roi, rankings in rois.items():
        means = []
        for tuning, units in zip(layers, rankings["contrast"], strict=True):
            chosen = np.intersect1d(units, counted(tuning))
            means.append(
                tuning.alone[chosen].astype(np.float64).mean(axis=0) if len(chosen) else [float("nan")] * len(order)
            )
        out[roi] = {name: [float(mean[g]) for mean in means] for g, name in enumerate(order)}
    return out
