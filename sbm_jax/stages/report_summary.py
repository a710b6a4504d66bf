"""Every number of the page, gathered from finished stores under stable keys (`summary.json`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.brain.reliability import noise_ceiling
from sbm_jax.sae.front import fronts
from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import responsive
from sbm_jax.stages.report_edit import edit_summary
from sbm_jax.stages.report_emergence import emergence_summary
from sbm_jax.stages.report_explain import explain_summary
from sbm_jax.stages.report_joint import joint_summary
from sbm_jax.stages.report_match import match_summary
from sbm_jax.stages.report_stability import stability_summary
from sbm_jax.statistics import ALPHA
from sbm_jax.store.store import Store


def summarise(ctx: Context) -> dict[str, Any]:
    """Keys: dataset, backbone, those of `_saes`, subjects (per subject and mode), assign, sizes, joint, pooling, rsa, structure,
    roi, layers, recovery, explain, emergence, match, edit, agreement.

    Similarities are means over the responsive voxels, those with ncsnr at or above the floor fixed beforehand.
    """
    rsa = ctx.open(ctx.specs.rsa).json("rsa.json")
    roi = ctx.open(ctx.specs.roi)
    facts = ctx.facts
    return {
        "dataset": {
            "name": ctx.dataset.name,
            "space": ctx.dataset.space,
            "images": facts.n_images,
            "shared": facts.n_shared,
            "subjects": [s.name for s in facts.subjects],
        },
        "backbone": {
            "family": facts.backbone.family,
            "layers": list(facts.layer_labels),
            "width": facts.backbone.d_model,
            "patches": facts.backbone.n_patches,
            "image_size": facts.backbone.image_size,
        },
        **_saes(ctx.open(ctx.specs.saes).json("metrics.json")),
        "subjects": {s.name: subject_summary(ctx, s.name, rsa["structure"][s.name]) for s in ctx.subjects},
        "assign": {s.name: ctx.open(ctx.specs.assign[s.name]).json("assign.json") for s in ctx.subjects},
        "sizes": ctx.open(ctx.specs.sizes).json("sizes.json"),
        "joint": {
            s.name: joint_summary(ctx, s, _noise_ceiling(ctx, s.name, ctx.open(ctx.specs.betas[s.name])))
            for s in ctx.subjects
        },
        "rsa": rsa["images"],
        "roi": {"alignment": roi.json("alignment.json"), "voxels": roi.json("rois.json")},
        "layers": ctx.open(ctx.specs.layers).json("profiles.json"),
        "pooling": {name: ctx.open(spec).json("pooling.json") for name, spec in ctx.specs.pooling.items()},
        "recovery": ctx.open(ctx.specs.recovery).json("recovery.json") if ctx.specs.recovery else None,
        "match": match_summary(ctx),
        "agreement": stability_summary(ctx),
        "explain": explain_summary(ctx),
        "emergence": emergence_summary(ctx),
        "edit": edit_summary(ctx),
    }


def _saes(metrics: dict[str, Any]) -> dict[str, Any]:
    """saes: one record per autoencoder. front, stability: of a sweep, else empty. sae_fidelity: facts of that measurement.
    dead_tokens, rate_bins, magnitude_bins: what the records refer to.
    """
    return {
        "saes": metrics["members"],
        "front": fronts(metrics["members"]),
        "stability": metrics["stability"],
        "sae_fidelity": metrics["fidelity"],
        **{key: metrics[key] for key in ("dead_tokens", "rate_bins", "magnitude_bins")},
    }


def subject_summary(ctx: Context, name: str, structure: dict[str, Any]) -> dict[str, Any]:
    """Voxel counts, and per mode the row of the main table."""
    align, betas = ctx.open(ctx.specs.align[name]), ctx.open(ctx.specs.betas[name])
    alive = responsive(betas, ctx.config.align.min_ncsnr)
    usable = betas.read("usable").astype(bool)
    ceiling = np.sqrt(_noise_ceiling(ctx, name, betas)[alive])
    index = align.json("index.json")
    return {
        "voxels": len(alive),
        "usable": int(usable.sum()),
        "responsive": int(alive.sum()),
        "min_ncsnr": ctx.config.align.min_ncsnr,
        "median_ncsnr": _median(betas.read("ncsnr")[alive]),
        "median_ceiling": _median(ceiling),
        "modes": {
            mode: _mode_summary(align, index["permutations"], mode, alive, ceiling, structure[mode])
            | (_agreement(align, mode, alive) if ctx.config.align.select == "kfold" else {})
            for mode in index["modes"]
        },
    }


def _agreement(align: Store, mode: str, alive: np.ndarray) -> dict[str, float | None]:
    """`fold_agreement`: mean over voxels of the share of folds whose best unit is that of all images."""
    same = align.read(f"{mode}/fold_units") == align.read(f"{mode}/voxel_units")[:, 0]
    return {"fold_agreement": _mean(same[:, alive].astype(float))}


def _noise_ceiling(ctx: Context, name: str, betas: Store) -> np.ndarray:
    """[v] of the images that score: the shared ones, or all. Trials that a voxel misses are not looked at for the latter."""
    subject, ceiling = ctx.dataset.subject(name), betas.read("noise_ceiling")
    brought = subject.ncsnr is None and subject.noise_ceiling is not None and ctx.config.betas.ncsnr != "estimated"
    if ctx.config.align.select == "shared" or brought:
        return ceiling
    return noise_ceiling(betas.read("ncsnr"), np.unique(subject.trial_image, return_counts=True)[1])


def _mode_summary(
    align: Store,
    permutations: dict[str, int],
    mode: str,
    alive: np.ndarray,
    ceiling: np.ndarray,
    structure: dict[str, Any],
) -> dict[str, Any]:
    in_sample = align.read(f"{mode}/voxel_values")[alive, 0]
    held_out = align.read(f"{mode}/held_out")[alive, 0]
    shuffled, shuffled_held_out = (
        align.read(f"{mode}/{key}")[:, alive] for key in ("shuffled_values", "shuffled_held_out")
    )
    layers = align.read(f"{mode}/layer_held_out")[:, alive]
    return {
        "max": _max(in_sample),
        "mean": _mean(in_sample),
        "structure": structure["in_sample"],
        "structure_shuffled": structure["shuffled_in_sample"],
        "held_out_max": _max(held_out),
        "held_out_mean": _mean(held_out),
        "held_out_median": _median(held_out),
        "held_out_of_ceiling": _mean(held_out / np.where(ceiling > 0, ceiling, np.nan)),
        "structure_held_out": structure["held_out"],
        "structure_held_out_shuffled": structure["shuffled_held_out"],
        "significant_fdr": significant_share(align.read(f"{mode}/p_fdr")[alive], permutations["most"]),
        "significant_fwe": significant_share(align.read(f"{mode}/p_fwe")[alive], permutations["all"]),
        "shuffled_mean": _mean(shuffled),
        "shuffled_held_out_mean": _mean(shuffled_held_out),
        "layer_held_out": [_mean(row) for row in layers],
    }


def significant_share(p: np.ndarray, permutations: int) -> float | None:
    """Share of voxels whose p is at most ALPHA; None where so few permutations cannot reach it."""
    return _mean(p <= ALPHA) if 1 / (1 + permutations) <= ALPHA else None


def _mean(x: np.ndarray) -> float | None:
    x = x[np.isfinite(x)]
    return float(np.mean(x, dtype=np.float64)) if x.size else None


def _median(x: np.ndarray) -> float | None:
    x = x[np.isfinite(x)]
    return float(np.median(x)) if x.size else None


def _max(x: np.ndarray) -> float | None:
    x = x[np.isfinite(x)]
    return float(x.max()) if x.size else None
