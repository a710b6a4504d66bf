"""layers: how deep in the network each voxel sits, by the layer of its best unit and by its layer profile, with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.brain.dataset import Subject
from sbm_jax.kernels.cosine_topk.paired import chosen_columns
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.image_sets import image_sets
from sbm_jax.stages.inputs import n_units, read_betas, read_codes, region_masks, responsive, subject_images
from sbm_jax.stages.profile_draws import FEWEST, LEVEL, ProfileDraws, block_voxels, draw_weights, profile_draws
from sbm_jax.statistics import ALPHA
from sbm_jax.store.store import Store, StoreWriter


def run(ctx: Context) -> Store:
    """Write per mode and subject (v voxels, l layers):

    `best_layer` [v] (-1: left out), `depth` [v] (NaN: no positive held-out score), `significant` bool [v], p_fdr of the best
    unit at most .05 (False where so few permutations cannot reach it); for responsive voxels, NaN for others, the ends of 95 %
    intervals over draws of the scoring images `profile_low`, `profile_high` [l, v] and `depth_low`, `depth_high` [v], and
    `best_layer_share` [l, v], the share of draws in which the layer scores highest and above 0.

    `profiles.json`: means over the responsive voxels of each ROI, with intervals (null where there are none).
    `intervals.json`: per subject the draws and images, or why there are no intervals, which are then not stored.

    depth = sum_l l w_l / sum_l w_l with w_l = max(0, held-out score of the layer's best unit), the centre of mass of the
    profile in units of layers (0: the first).
    """
    writer = ctx.writer(ctx.specs.layers)
    profiles: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    with progress("layers", len(ctx.subjects) * len(ctx.config.encode.modes), "profiles") as task:
        for subject in ctx.subjects:
            align, betas = ctx.open(ctx.specs.align[subject.name]), ctx.open(ctx.specs.betas[subject.name])
            alive = responsive(betas, ctx.config.align.min_ncsnr)
            masks = _masks(ctx, subject, alive)
            scoring = image_sets(ctx.config.align, subject.name, subject_images(betas).shared).held_out
            reason = _no_intervals(ctx, scoring)
            n = 0 if scoring is None else int(scoring.sum())
            intervals[subject.name] = {
                "images": n,
                "draws": ctx.config.layers.bootstrap,
                "level": LEVEL,
                "none": reason,
            }
            for mode in align.json("index.json")["modes"]:
                best, depth, scores = _of_voxels(writer, align, mode, subject.name)
                drawn = None
                if scoring is not None and not reason:
                    drawn = _draw(ctx, betas, align, mode, scoring, alive, masks)
                    _put_draws(writer, f"{mode}/{subject.name}", drawn)
                significant = align.read(f"{mode}/p_fdr") <= ALPHA
                writer.put(f"{mode}/{subject.name}/significant", significant, dimensions=("v",))
                record = profiles.setdefault(mode, {}).setdefault(subject.name, {})
                for roi, inside in masks.items():
                    ends = drawn.rois[roi] if drawn else None
                    low, high = ends.profile.T if ends else (None, None)
                    depth_low, depth_high = ends.depth if ends else (None, None)
                    known = np.isfinite(depth[inside])
                    record[roi] = {
                        "voxels": int(inside.sum()),
                        "held_out": scores[:, inside].mean(axis=1),
                        "held_out_low": low,
                        "held_out_high": high,
                        "best_layer_share": np.bincount(best[inside], minlength=len(scores)) / inside.sum(),
                        "mean_depth": float(depth[inside][known].mean()) if known.any() else float("nan"),
                        "mean_depth_low": depth_low,
                        "mean_depth_high": depth_high,
                    }
                task.advance()
    writer.put_json("profiles.json", profiles)
    writer.put_json("intervals.json", intervals)
    return writer.commit()


def _masks(ctx: Context, subject: Subject, alive: np.ndarray) -> dict[str, np.ndarray]:
    """Responsive voxels of every region that has enough, and of all; bool [v]."""
    config = ctx.config.roi
    return region_masks(config, ctx.subjects, subject, alive) if alive.sum() >= config.min_voxels else {}


def _no_intervals(ctx: Context, scoring: np.ndarray | None) -> str | None:
    """Why no interval can be told; None where it can."""
    if ctx.config.align.select == "kfold":
        return "align.select is kfold: each fold scores its own best unit of a layer, so a profile has no fixed units to redraw"
    if scoring is None:
        return "align.select is none: no images were kept to score on"
    if not ctx.config.layers.bootstrap:
        return "layers.bootstrap is 0"
    if scoring.sum() < FEWEST:
        return f"only {scoring.sum()} images score; intervals need {FEWEST}"
    return None


def _of_voxels(writer: StoreWriter, align: Store, mode: str, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write and return the layer of the best unit and the depth [v]; and the profile [l, v]."""
    units = align.read(f"{mode}/voxel_units")[:, 0]
    best = np.where(units >= 0, units // align.json("index.json")["units_per_layer"][mode], -1).astype(np.int32)
    scores = align.read(f"{mode}/layer_held_out")
    depth = centre_of_mass(scores)
    writer.put(f"{mode}/{name}/best_layer", best, dimensions=("v",))
    writer.put(f"{mode}/{name}/depth", depth, dimensions=("v",))
    return best, depth, scores


def _draw(
    ctx: Context,
    betas: Store,
    align: Store,
    mode: str,
    scoring: np.ndarray,
    alive: np.ndarray,
    masks: dict[str, np.ndarray],
) -> ProfileDraws:
    """The draws of one mode, over the images `scoring` bool [n]."""
    codes, saes = ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes)
    config, hooks = ctx.config.layers, ctx.facts.hooks
    units = n_units(codes, saes, mode, hooks[0])
    unit_lv = align.read(f"{mode}/layer_units") % units
    absolute = align.json("index.json")["sign"] == "absolute"  # scores then carry the sign of the selection
    sign_lv = align.read(f"{mode}/layer_signs") if absolute else np.ones_like(unit_lv)
    rows = subject_images(betas).rows[scoring]

    def columns(layer: int, voxels: np.ndarray) -> np.ndarray:
        wanted, place = np.unique(unit_lv[layer, voxels], return_inverse=True)
        a_wn = chosen_columns(read_codes(codes, mode, hooks[layer], rows, units), wanted)
        return a_wn[place].T * sign_lv[layer, voxels].astype(np.float32)

    weights = draw_weights(len(rows), config.bootstrap, config.seed)
    block = block_voxels(ctx.config.align.memory_mb << 20, len(scoring), *weights.shape[::-1])
    return profile_draws(
        columns,
        lambda voxels: read_betas(betas, voxels)[scoring],
        weights,
        np.flatnonzero(alive),
        len(hooks),
        len(alive),
        masks,
        block,
    )


def _put_draws(writer: StoreWriter, place: str, drawn: ProfileDraws) -> None:
    for name, value in (
        ("profile_low", drawn.low),
        ("profile_high", drawn.high),
        ("best_layer_share", drawn.best_share),
    ):
        writer.put(f"{place}/{name}", value, dimensions=("l", "v"))
    for name, value in (("depth_low", drawn.depth_low), ("depth_high", drawn.depth_high)):
        writer.put(f"{place}/{name}", value, dimensions=("v",))


def centre_of_mass(scores_lv: np.ndarray) -> np.ndarray:
    """Depth of every voxel [v] in layers, float32; NaN where no layer scores above 0."""
    weight = np.maximum(np.nan_to_num(scores_lv), 0)
    total = weight.sum(axis=0)
    layers = np.arange(len(weight))[:, None]
    depth = np.divide((layers * weight).sum(axis=0), total, out=np.full(len(total), np.nan), where=total > 0)
    return depth.astype(np.float32)
