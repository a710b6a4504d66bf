"""The units that regions rank first: where the roi store keeps them, and those of the modes whose units have exemplars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.store.store import Store

if TYPE_CHECKING:
    from sbm_jax.stages.context import Context

RANKINGS = ("mean", "contrast")


def ranking_name(mode: str, subject: str, roi: str, ranking: str) -> str:
    """Before `_units` [l, k] and `_scores` [l, k, 2], the names of a ranking's arrays in the roi store."""
    return f"{mode}/{subject}/{roi.replace('/', '.')}/{ranking}"


def roi_units(roi: Store, ctx: Context) -> dict[str, dict[str, dict[str, dict[str, np.ndarray]]]]:
    """mode -> subject -> ROI -> ranking -> units [l, k], in rank order."""
    modes = [m for m in ctx.config.roi.modes if m in ctx.config.sae_modes and TOKEN_KIND[m] in ctx.config.kinds]
    return {
        mode: {
            subject: {
                name: {ranking: roi.read(f"{ranking_name(mode, subject, name, ranking)}_units") for ranking in RANKINGS}
                for name in record["rois"]
            }
            for subject, record in roi.json("rois.json").items()
        }
        for mode in modes
    }
