"""layers: how deep in the network each voxel sits, by the layer of its best unit and by its layer profile."""

from __future__ import annotations

import numpy as np

from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import chosen_rois, responsive
from sbm_jax.store.store import Store


def run(ctx: Context) -> Store:
    """Write per mode and subject: `best_layer` [v] (-1: left out), `depth` [v] (NaN: no positive held-out score), and
    `profiles.json`, the mean held-out score per layer over the responsive voxels of each ROI.

    depth = sum_l l w_l / sum_l w_l with w_l = max(0, held-out score of the layer's best unit), the centre of mass of the
    profile in units of layers (0: the first).
    """
    writer = ctx.writer(ctx.specs.layers)
    hooks = ctx.facts.hooks
    profiles: dict = {}
    for subject in ctx.subjects:
        align, betas = ctx.open(ctx.specs.align[subject.name]), ctx.open(ctx.specs.betas[subject.name])
        alive = responsive(betas, ctx.config.align.min_ncsnr)
        index = align.json("index.json")
        for mode in index["modes"]:
            units = align.read(f"{mode}/voxel_units")[:, 0]
            best = np.where(units >= 0, units // index["units_per_layer"][mode], -1).astype(np.int32)
            scores = align.read(f"{mode}/layer_held_out")
            depth = centre_of_mass(scores)
            writer.put(f"{mode}/{subject.name}/best_layer", best, dimensions=("v",))
            writer.put(f"{mode}/{subject.name}/depth", depth, dimensions=("v",))
            rois = {
                name: subject.rois[name]
                for name in chosen_rois(ctx.config.roi.names, ctx.subjects)
                if name in subject.rois
            }
            for roi, mask in {"all responsive": np.ones(subject.n_voxels, bool), **rois}.items():
                inside = mask & alive
                if inside.sum() < ctx.config.roi.min_voxels:
                    continue
                record = profiles.setdefault(mode, {}).setdefault(subject.name, {})
                record[roi] = {
                    "voxels": int(inside.sum()),
                    "held_out": scores[:, inside].mean(axis=1),
                    "best_layer_share": np.bincount(best[inside], minlength=len(hooks)) / inside.sum(),
                    "mean_depth": float(np.nanmean(depth[inside]))
                    if np.isfinite(depth[inside]).any()
                    else float("nan"),
                }
    writer.put_json("profiles.json", profiles)
    return writer.commit()


def centre_of_mass(scores_lv: np.ndarray) -> np.ndarray:
    """Depth of every voxel [v] in layers, float32; NaN where no layer scores above 0."""
    weight = np.maximum(np.nan_to_num(scores_lv), 0)
    total = weight.sum(axis=0)
    layers = np.arange(len(weight))[:, None]
    depth = np.divide((layers * weight).sum(axis=0), total, out=np.full(len(total), np.nan), where=total > 0)
    return depth.astype(np.float32)
