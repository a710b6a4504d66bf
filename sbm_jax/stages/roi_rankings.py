"""The units that regions rank first, of the modes whose units have exemplars."""

from __future__ import annotations

import numpy as np

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.stages.context import Context
from sbm_jax.store.store import Store

RANKINGS = ("mean", "contrast")


def roi_units(roi: Store, ctx: Context) -> dict[str, dict[str, dict[str, dict[str, np.ndarray]]]]:
    """mode -> subject -> ROI -> ranking -> units [l, k], in rank order."""
    modes = [m for m in ctx.config.roi.modes if m in ctx.config.sae_modes and TOKEN_KIND[m] in ctx.config.kinds]
    return {
        mode: {
            subject: {
                name: {
                    ranking: roi.read(f"{mode}/{subject}/{name.replace('/', '.')}/{ranking}_units")
                    for ranking in RANKINGS
                }
                for name in record["rois"]
            }
            for subject, record in roi.json("rois.json").items()
        }
        for mode in modes
    }
