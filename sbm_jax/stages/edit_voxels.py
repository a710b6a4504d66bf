"""Responses that the alignment predicts for an edited backbone: every voxel follows its best unit."""

from __future__ import annotations

import numpy as np

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.stages.context import Context
from sbm_jax.stages.editing import Editor
from sbm_jax.stages.image_sets import fixed_sets
from sbm_jax.stages.inputs import dense_codes, n_units, read_codes, region_masks, responsive, subject_images


def voxel_mode(ctx: Context) -> str | None:
    """The mode of the page if an autoencoder of the run's own tokens makes it, else the first that one does; None: no such mode."""
    kinds = ctx.config.kinds
    able = [
        mode
        for mode in ctx.config.encode.modes
        if mode in ("cls", "patch_mean", "patch_max") and TOKEN_KIND[mode] in kinds
    ]
    return ctx.config.report.mode if ctx.config.report.mode in able else next(iter(able), None)


class Voxels:
    """Change of ROI means of one subject's predicted responses, in standard deviations of each voxel's response.

    A voxel's response is predicted as y = a + r sd(y) / sd(z) z from its best unit's code z of an image, the in-sample regression
    line over the images that select units; so its z-scored response changes by r (z' - z) / sd(z).
    """

    def __init__(self, ctx: Context, subject: str, mode: str):
        align, betas = ctx.open(ctx.specs.align[subject]), ctx.open(ctx.specs.betas[subject])
        codes, saes = ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes)
        self.mode, self.kind = mode, TOKEN_KIND[mode]
        best, r_v = align.read(f"{mode}/voxel_units")[:, 0], align.read(f"{mode}/voxel_values")[:, 0]
        inside = responsive(betas, ctx.config.align.min_ncsnr) & (best >= 0)
        subjects = ctx.subjects
        (own,) = (s for s in subjects if s.name == subject)
        masks = region_masks(ctx.config.roi, subjects, own, inside)
        self.rois = list(masks)
        images = subject_images(betas)
        rows = images.rows[fixed_sets(ctx.config.align, images.shared).select]
        self.units: dict[str, np.ndarray] = {}
        self._weights: dict[str, np.ndarray] = {}
        for layer, hook in enumerate(ctx.facts.hooks):
            u = n_units(codes, saes, mode, hook)
            here = np.flatnonzero(inside & (best // u == layer))
            if not len(here):
                continue
            wanted, column_v = np.unique(best[here] % u, return_inverse=True)
            spread = dense_codes(read_codes(codes, mode, hook, rows, u))[:, wanted].std(axis=0, dtype=np.float64)
            slope_v = np.where(spread[column_v] > 0, r_v[here] / np.where(spread[column_v] > 0, spread[column_v], 1), 0)
            weights = np.zeros((len(wanted), len(masks)))
            for p, mask in enumerate(masks.values()):
                np.add.at(weights[:, p], column_v, slope_v * mask[here] / max(mask.sum(), 1))
            self.units[hook], self._weights[hook] = wanted.astype(np.int32), weights

    def change(self, editor: Editor, streams: dict[str, np.ndarray]) -> np.ndarray:
        """[e, b, rois] against case 0, from edited residual streams {hook: [e, b, t, d]}; hooks that are not given have not
        changed.
        """
        e, b = next(iter(streams.values())).shape[:2]
        out = np.zeros((e, b, len(self.rois)))
        for hook in set(streams) & set(self.units):
            flat = streams[hook].reshape(-1, *streams[hook].shape[2:])
            z_ntc = editor.codes(flat, self.kind, hook, self.units[hook].tolist())
            z = z_ntc.max(axis=1) if self.mode == "patch_max" else z_ntc.mean(axis=1)
            z = z.reshape(e, b, -1).astype(np.float64)
            out += (z - z[:1]) @ self._weights[hook]
        return out
