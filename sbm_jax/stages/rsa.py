"""rsa: image x image RDM comparison per layer and ROI with its noise ceiling, and the voxel-structure score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sbm_jax.brain.dataset import Subject
from sbm_jax.config import RsaConfig
from sbm_jax.kernels import rdm
from sbm_jax.kernels.rdm_compare.api import upper_triangle
from sbm_jax.kernels.rdm_compare.ceiling import noise_ceiling
from sbm_jax.kernels.rdm_compare.prepared import PreparedRdm, compare_prepared, prepare_rdm
from sbm_jax.progress import log, progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.image_sets import ImageSets, image_sets
from sbm_jax.stages.inputs import (
    chosen_rois,
    dense_codes,
    n_units,
    read_betas,
    read_codes,
    responsive,
    subject_images,
)
from sbm_jax.stages.repeats import RepeatedRdm, crossnobis_rdms, repeated_trials, single_trials
from sbm_jax.stages.resampled import resampled
from sbm_jax.store.store import Store

_ROIS_AT_ONCE = 12  # 8 bytes per pair, ROI and subject: 0.4 GB of the 1,000 images that eight subjects of NSD share


def run(ctx: Context) -> Store:
    """Write `rsa.json`: `images` (RDM comparisons and ceilings) and `structure` (voxel-structure scores)."""
    writer = ctx.writer(ctx.specs.rsa)
    writer.put_json("rsa.json", {"images": _image_rsa(ctx), "structure": _structure(ctx)})
    return writer.commit()


def _image_rsa(ctx: Context) -> dict[str, Any]:
    """Per ROI and subject the RDM of responsive voxels over the shared images that all subjects saw, against every mode and
    layer; `bootstrap` holds the mean over subjects and the ends of its interval per mode and layer, and of the ceiling's bounds.
    `crossnobis` has the images, repeats and voxels of every subject's RDM where `rsa.brain_metric` asks for it.
    """
    config, hooks, modes = ctx.config.rsa, ctx.facts.hooks, ctx.config.encode.modes
    codes, saes = ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes)
    betas = {s.name: ctx.open(ctx.specs.betas[s.name]) for s in ctx.subjects}
    common = None
    for store in betas.values():
        images = subject_images(store)
        rows = images.rows[images.shared]
        common = rows if common is None else np.intersect1d(common, rows)
    if common is None or len(common) < 3:
        return {"n_images": 0 if common is None else len(common), "rois": {}, "too_small": []}
    rois, too_small, used = _roi_rdms(ctx, betas, common)
    model: dict[tuple[str, str], PreparedRdm] = {}
    with progress("rsa model RDMs", len(modes) * len(hooks), "RDMs") as task:
        for mode in modes:
            units = n_units(codes, saes, mode, hooks[0])
            for hook in hooks:
                features = dense_codes(read_codes(codes, mode, hook, common, units))
                model[mode, hook] = prepare_rdm(rdm(features, config.metric), config.method)
                task.advance()
    out: dict[str, Any] = {}
    models = np.stack([prepared.values for prepared in model.values()])
    with progress("rsa", len(rois), "ROIs") as task:
        for roi, by_subject in rois.items():
            out[roi] = _compared(by_subject, model, config)
            task.advance()
    with progress("rsa bootstrap", len(rois), "ROIs") as task:
        for names in _alike(rois):
            brains = np.stack([np.stack(list(rois[roi].values())) for roi in names])
            for roi, drawn in zip(names, resampled(models, brains, config), strict=False):
                by_mode = dict(zip(modes, drawn.scores.reshape(len(modes), len(hooks), 3).tolist(), strict=True))
                out[roi]["bootstrap"] = {
                    "n_images": drawn.n_images,
                    "modes": by_mode,
                    "ceiling": drawn.ceiling.tolist(),
                }
            task.advance(len(names))
    for roi, by_subject in used.items():
        out[roi]["crossnobis"] = by_subject
    return {"n_images": len(common), "rois": out, "too_small": too_small}


def _alike(rois: dict[str, dict[str, np.ndarray]]) -> Iterator[list[str]]:
    """ROIs of the same subjects, at most `_ROIS_AT_ONCE` together: their draws share what is made of the models."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for roi, by_subject in rois.items():
        groups.setdefault(tuple(by_subject), []).append(roi)
    for names in groups.values():
        for start in range(0, len(names), _ROIS_AT_ONCE):
            yield names[start : start + _ROIS_AT_ONCE]


def _compared(
    by_subject: dict[str, np.ndarray], model: dict[tuple[str, str], PreparedRdm], config: RsaConfig
) -> dict[str, Any]:
    """One ROI against every mode and layer: `subjects`, and `ceiling` for several."""
    rdms = np.stack(list(by_subject.values()))
    record: dict[str, Any] = {"subjects": {}}
    if len(rdms) > 1:
        # A constant pattern in one subject has no correlation distances; the ceiling is over pairs that all have.
        lower, upper = noise_ceiling(rdms, config.method, np.all(np.isfinite(rdms), axis=0))
        record["ceiling"] = {"lower": lower, "upper": upper}
    for name, vector in by_subject.items():
        brain = prepare_rdm(vector, config.method)
        scores: dict[str, list[float]] = {mode: [] for mode, _ in model}
        for (mode, _), prepared in model.items():
            scores[mode].append(compare_prepared(prepared, brain))
        record["subjects"][name] = scores
    return record


def _roi_rdms(
    ctx: Context, betas: dict[str, Store], common: np.ndarray
) -> tuple[dict[str, dict[str, np.ndarray]], list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """ROI -> subject -> condensed RDM; the (subject, ROI) pairs with too few responsive voxels; and for crossnobis
    ROI -> subject -> what was used.
    """
    names, least = chosen_rois(ctx.config.roi.names, ctx.subjects), ctx.config.roi.min_voxels
    rois: dict[str, dict[str, np.ndarray]] = {}
    used: dict[str, dict[str, Any]] = {}
    too_small = []
    repeated = _crossnobis(ctx, betas, common, names) if ctx.config.rsa.brain_metric == "crossnobis" else None
    for name in names:
        for subject in ctx.subjects:
            voxels = np.flatnonzero(_in_roi(ctx, subject, betas[subject.name], name))
            found = repeated[subject.name][name] if repeated else None
            n_voxels = found.voxels if found else len(voxels)
            if n_voxels < least:
                too_small.append({"subject": subject.name, "roi": name, "voxels": n_voxels})
                continue
            if found:
                rois.setdefault(name, {})[subject.name] = found.rdm
                record = {"images": found.images, "repeats": found.repeats, "voxels": found.voxels}
                used.setdefault(name, {})[subject.name] = record
                continue
            place = np.searchsorted(subject_images(betas[subject.name]).rows, common)
            patterns = read_betas(betas[subject.name], voxels)[place]
            rois.setdefault(name, {})[subject.name] = upper_triangle(rdm(patterns, ctx.config.rsa.metric))
    return rois, too_small, used


def _crossnobis(
    ctx: Context, betas: dict[str, Store], common: np.ndarray, names: list[str]
) -> dict[str, dict[str, RepeatedRdm]]:
    """Subject -> ROI -> RDM. Raises UserError where a subject has no single trials or no repeats (see `single_trials`)."""
    out = {}
    trials = [single_trials(ctx, subject, common) for subject in ctx.subjects]
    for subject in trials:
        rois = {name: _in_roi(ctx, subject, betas[subject.name], name) for name in names}
        out[subject.name] = crossnobis_rdms(
            subject, common, rois, ctx.config.betas.zscore, ctx.config.betas.memory_mb << 20
        )
        n = int(repeated_trials(subject.trial_image, common)[0].sum())
        if n < len(common):
            log(
                f"rsa {subject.name}: {len(common) - n} of {len(common)} shared images were shown once and are left out"
            )
    return out


def _in_roi(ctx: Context, subject: Subject, betas: Store, roi: str) -> np.ndarray:
    mask = subject.rois.get(roi, np.zeros(subject.n_voxels, bool))
    return mask & responsive(betas, ctx.config.align.min_ncsnr)


def _structure(ctx: Context) -> dict[str, Any]:
    """Spearman between two voxel x voxel correlation matrices: of the responses, and of the units assigned to the voxels.

    On the images the units were selected on (`in_sample`) and on the others (`held_out`: the shared ones, or the mean over
    folds of the score of the fold's own units on its images, or NaN); `shuffled_*` is the same for the units that won on
    permuted images. The name keeps RSA for image RDMs; the source calls it RSA score.
    """
    config = ctx.config.rsa
    out: dict[str, Any] = {}
    for subject in ctx.subjects:
        betas, align = ctx.open(ctx.specs.betas[subject.name]), ctx.open(ctx.specs.align[subject.name])
        index, images = align.json("index.json"), subject_images(betas)
        voxels = np.flatnonzero(responsive(betas, ctx.config.align.min_ncsnr))
        rng = np.random.default_rng([config.seed, len(voxels)])
        voxels = np.sort(rng.permutation(voxels)[: config.structure_voxels])
        y = read_betas(betas, voxels)
        parts = _parts(image_sets(ctx.config.align, subject.name, images.shared))
        brain = {
            part: [prepare_rdm(rdm(y[mask].T, "correlation"), "spearman") for mask in masks]
            for part, masks in parts.items()
        }
        record: dict[str, Any] = {"n_voxels": len(voxels)}
        for mode in index["modes"]:
            best = align.read(f"{mode}/voxel_units")[voxels, 0], align.read(f"{mode}/shuffled_units")[0, voxels]
            record[mode] = {}
            for prefix, units_v in zip(("", "shuffled_"), best, strict=True):
                for part, masks in parts.items():
                    chosen = [units_v] * len(masks)
                    if len(masks) > 1:  # each fold its own
                        chosen = list(align.read(f"{mode}/{prefix}fold_units")[:, voxels])
                    scores = [
                        _structure_score(ctx, index, mode, units, images.rows[mask], target)
                        for units, mask, target in zip(chosen, masks, brain[part], strict=True)
                    ]
                    known = [score for score in scores if np.isfinite(score)]
                    record[mode][f"{prefix}{part}"] = float(np.mean(known)) if known else float("nan")
        out[subject.name] = record
    return out


def _parts(sets: ImageSets) -> dict[str, list[np.ndarray]]:
    """bool [n] masks over a subject's images: of the one set that selected; of the set, the folds, or nothing that scores."""
    if sets.folds is not None:
        return {"in_sample": [sets.select], "held_out": [sets.folds == f for f in range(sets.folds.max() + 1)]}
    return {"in_sample": [sets.select], "held_out": [] if sets.held_out is None else [sets.held_out]}


def _structure_score(
    ctx: Context, index: dict[str, Any], mode: str, units_v: np.ndarray, rows: np.ndarray, brain: PreparedRdm
) -> float:
    codes = ctx.open(ctx.specs.codes)
    per_layer = index["units_per_layer"][mode]
    assigned = np.zeros((len(units_v), len(rows)), np.float32)
    for layer, hook in enumerate(index["hooks"]):
        mine = np.flatnonzero(units_v // per_layer == layer)
        if len(mine):
            dense = dense_codes(read_codes(codes, mode, hook, rows, per_layer))
            assigned[mine] = dense[:, units_v[mine] % per_layer].T
    # A unit that is silent on these images has no correlations; its voxels' pairs are NaN and left out.
    return compare_prepared(prepare_rdm(rdm(assigned, "correlation"), "spearman"), brain)
