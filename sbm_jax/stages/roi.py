"""roi: which units an ROI prefers, layer by layer, and whether their exemplars show what the ROI is known for."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.image_sets import fixed_sets, telling
from sbm_jax.stages.inputs import (
    ROI_CONCEPTS,
    chosen_rois,
    dense_codes,
    n_units,
    read_betas,
    read_codes,
    relative_extents,
    responsive,
    subject_images,
    unit_columns,
    unit_concepts,
)
from sbm_jax.stages.roi_rankings import RANKINGS, ranking_name
from sbm_jax.store.store import Store


def run(ctx: Context) -> Store:
    """Write, per mode, subject and ROI: `<mode>/<subject>/<roi>/<ranking>_units` [l, k] and `_scores` [l, k, 2] (in
    sample, held out: NaN where no image is kept for it); per mode `exemplars` [l, u, e], the images that drive each unit
    most, and `concepts` [l, u], the concept each unit follows most over the shared images (all where none is shared); and
    `alignment.json`, the stable / aligned / rate counts per layer where the ROI is known for a concept that the images are
    labelled with.

    Rankings: `mean`, the mean over the ROI's responsive voxels of s(l, u, v); `contrast`, that minus the mean over all
    other responsive voxels, which does not favour units that drive everything.
    """
    writer = ctx.writer(ctx.specs.roi)
    config, hooks = ctx.config.roi, ctx.facts.hooks
    codes, saes = ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes)
    concepts, extents = relative_extents(ctx.dataset.images.labels)
    told = np.flatnonzero(telling(ctx.dataset.images.shared))
    groups = image_groups(extents, ctx.facts.n_images)
    brains = {s.name: roi_means(ctx, s) for s in ctx.subjects}
    alignment: dict[str, Any] = {}
    with progress("roi", len(config.modes) * len(hooks), "layers") as task:
        for mode in config.modes:
            units = n_units(codes, saes, mode, hooks[0])
            keep = min(config.top_units, units)
            every = np.arange(ctx.facts.n_images)
            exemplars = np.zeros((len(hooks), units, min(config.exemplars, len(every))), np.int32)
            of_unit = np.full((len(hooks), units), -1, np.int32)
            tops: dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]] = {}
            for layer, hook in enumerate(hooks):
                dense = dense_codes(read_codes(codes, mode, hook, every, units))
                exemplars[layer] = _top_images(dense, exemplars.shape[2])
                if concepts:
                    of_unit[layer] = unit_concepts(dense[told], extents[told])
                for name, brain in brains.items():
                    scores = {part: unit_columns(dense[rows]).T @ y for part, (rows, y) in brain["parts"].items()}
                    for ranking in RANKINGS:
                        for p, roi in enumerate(brain["rois"]):
                            column = p if ranking == "mean" else len(brain["rois"]) + p
                            best = np.argsort(-scores["select"][:, column], kind="stable")[:keep]
                            chosen, values = tops.setdefault(
                                (name, roi, ranking),
                                (np.zeros((len(hooks), keep), np.int32), np.zeros((len(hooks), keep, 2), np.float32)),
                            )
                            chosen[layer] = best
                            for part, name_ in enumerate(("select", "held_out")):
                                values[layer, :, part] = scores[name_][best, column] if name_ in scores else np.nan
                task.advance()
            writer.put(f"{mode}/concepts", of_unit, dimensions=("l", "u"))
            writer.put(f"{mode}/exemplars", exemplars, dimensions=("l", "u", "e"))
            for (name, roi, ranking), (chosen, values) in tops.items():
                base = ranking_name(mode, name, roi, ranking)
                writer.put(f"{base}_units", chosen)
                writer.put(f"{base}_scores", values)
                wanted = ROI_CONCEPTS.get(roi.split("/")[0])
                if wanted in concepts:
                    counts = [
                        _alignment(groups[exemplars[layer, chosen[layer]]], concepts.index(wanted), config.stable)
                        for layer in range(len(hooks))
                    ]
                    record = alignment.setdefault(mode, {}).setdefault(name, {}).setdefault(roi, {"concept": wanted})
                    record[ranking] = {key: [count[key] for count in counts] for key in counts[0]}
    base_rate = {concept: float(np.mean(groups == c)) for c, concept in enumerate(concepts)}
    writer.put_json("alignment.json", {"modes": alignment, "base_rate": base_rate, "top_units": config.top_units})
    writer.put_json(
        "rois.json",
        {name: {"rois": b["rois"], "voxels": b["sizes"], "too_small": b["too_small"]} for name, b in brains.items()},
    )
    return writer.commit()


def image_groups(extents_nc: np.ndarray, n: int) -> np.ndarray:
    """The concept of every image, the one of greatest relative extent; -1: none."""
    if not extents_nc.size:
        return np.full(n, -1)
    return np.where(extents_nc.max(axis=1) > 0, extents_nc.argmax(axis=1), -1)


def roi_means(ctx: Context, subject) -> dict[str, Any]:
    """Mean unit-norm response of each ROI's responsive voxels, [n, rois | contrasts], per image set (rankings are not
    cross-fitted: unique images select and shared ones score).

    The mean over voxels of cosines is the product with the mean of the normalised voxels, so U x V is never needed.
    """
    betas = ctx.open(ctx.specs.betas[subject.name])
    images = subject_images(betas)
    alive = responsive(betas, ctx.config.align.min_ncsnr)
    voxels = np.flatnonzero(alive)
    names = chosen_rois(ctx.config.roi.names, ctx.subjects)
    sizes = {name: int((subject.rois[name] & alive).sum()) if name in subject.rois else 0 for name in names}
    rois = [name for name in names if sizes[name] >= ctx.config.roi.min_voxels]
    inside = (
        np.stack([subject.rois[name][voxels] for name in rois], axis=1) if rois else np.zeros((len(voxels), 0), bool)
    )
    mean = inside / np.maximum(inside.sum(axis=0), 1)
    outside = ~inside / np.maximum((~inside).sum(axis=0), 1)
    weights = np.hstack([mean, mean - outside]).astype(np.float32)
    y = read_betas(betas, voxels)
    sets = fixed_sets(ctx.config.align, images.shared)
    parts = {"select": sets.select} | ({} if sets.held_out is None else {"held_out": sets.held_out})
    return {
        "rois": rois,
        "sizes": sizes,
        "too_small": [name for name in names if name not in rois],
        "parts": {part: (images.rows[mask], unit_columns(y[mask]) @ weights) for part, mask in parts.items()},
    }


def _top_images(dense_nu: np.ndarray, count: int) -> np.ndarray:
    """Images that drive each unit most, [u, count], strongest first, ties to the earlier image."""
    order = np.argsort(-dense_nu, axis=0, kind="stable")[:count]
    return order.T.astype(np.int32)


def _alignment(groups_ke: np.ndarray, concept: int, stable: int) -> dict[str, float]:
    """Counts over units: stable (one concept has more than `stable` exemplars), aligned (it is the ROI's own), rate."""
    counts = np.stack([(groups_ke == c).sum(axis=1) for c in range(max(concept, groups_ke.max(initial=0)) + 1)], axis=1)
    is_stable = counts.max(axis=1) > stable
    aligned = int((is_stable & (counts.argmax(axis=1) == concept)).sum())
    total = int(is_stable.sum())
    return {"stable": total, "aligned": aligned, "rate": aligned / total if total else float("nan")}
