"""From a summary and finished stores to what the page shows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from sbm_jax.axes import MODE_TITLES
from sbm_jax.report.data import (
    Column,
    LayerCurve,
    ReportData,
    Table,
    number,
)
from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import short_roi
from sbm_jax.stages.report_assign import assign_tables
from sbm_jax.stages.report_edit import edit_curves, edit_plots, edit_tables
from sbm_jax.stages.report_emergence import emergence_curves, emergence_tables
from sbm_jax.stages.report_exemplars import roi_exemplars
from sbm_jax.stages.report_explain import explain_tables
from sbm_jax.stages.report_joint import joint_curves, joint_tables
from sbm_jax.stages.report_layers import depth_tables, profile_curve
from sbm_jax.stages.report_maps import SPACE, SubjectMaps, cortex
from sbm_jax.stages.report_match import match_exemplars, match_tables
from sbm_jax.stages.report_pooling import pooling_plots, pooling_tables
from sbm_jax.stages.report_recovery import recovery_tables
from sbm_jax.stages.report_saes import sae_plots, sae_tables
from sbm_jax.stages.report_selection import chosen_on, similarity_text, told_over, warnings
from sbm_jax.stages.report_sizes import size_plots, size_tables
from sbm_jax.stages.report_stability import stability_tables

METHODS = (
    (
        "Responses",
        "Single trials z-scored within session, averaged over repeats. ncsnr and noise ceiling as in NSD. Responsive voxels "
        "are those above a floor of ncsnr that is fixed before anything is aligned.",
    ),
    (
        "Controls",
        "Shuffled: the whole search with images permuted. Random directions: as many random projections of the same "
        "neurons as the autoencoders have units. Raw neurons are fewer, so their maximum is over fewer candidates; the tables "
        "and charts of equal numbers of candidates take that away. Untrained backbone, where listed: autoencoders trained alike on "
        "the patch tokens of the same architecture with random weights.",
    ),
    (
        "Significance",
        "A voxel's p is the share of image permutations (and the measured order) in which the best of all units is at least as "
        "similar as it is in sample, so it accounts for the search; it is at least 1 / (1 + permutations). FDR: Benjamini and "
        "Hochberg over responsive voxels. FWE: against the maximum over voxels of each permutation.",
    ),
    (
        "Voxel-structure score",
        "Spearman correlation between two voxel x voxel correlation matrices, of the responses and of the assigned units. It "
        "is not 0 under shuffling, since voxels that share a unit correlate by construction.",
    ),
    (
        "Cortical maps",
        f"Drawn on {SPACE}, the first 10,242 vertices of each hemisphere of fsaverage. Volumes are sampled with NSD's own "
        "transform files at three cortical depths: scores by trilinear interpolation and the mean over depths (a vertex is "
        "empty if less than half of its weight falls on voxels with a value), categories and regions by the nearest voxel "
        "and the majority of depths, the best layer from the interpolated score of every layer.",
    ),
)

_FEW = "a dash: align.shuffles is below 19, the fewest permutations that reach .05"


def build(ctx: Context, summary: dict[str, Any], maps: dict[str, SubjectMaps]) -> ReportData:
    """The page's content; `maps` per subject."""
    recovery = summary["recovery"]
    data, align = summary["dataset"], ctx.config.align
    drawn = {name: found for name, found in maps.items() if found.on_cortex}
    return ReportData(
        title=ctx.config.report.title,
        subtitle=(
            f"{data['name']}: {len(data['subjects'])} subjects, {data['images']} images ({data['shared']} shared); "
            f"{summary['backbone']['family']} backbone with {len(summary['backbone']['layers'])} layers"
        ),
        headline=_headline(ctx, summary),
        tables=[
            *_summary_tables(summary),
            *assign_tables(summary),
            *size_tables(summary),
            *joint_tables(summary),
            *depth_tables(summary, ctx.config.report.mode),
            *sae_tables(summary),
            *match_tables(summary["match"]),
            *stability_tables(summary["agreement"]),
            *_roi_tables(summary),
            *_rsa_tables(ctx, summary),
            *pooling_tables(summary),
            *explain_tables(summary, list(ctx.facts.layer_labels), ctx.config.report.mode),
            *emergence_tables(summary, ctx.config.report.mode),
            *edit_tables(summary),
        ],
        cortex=cortex() if drawn else None,
        cortex_notes=_cortex_notes(maps),
        subjects={name: found.on_cortex for name, found in drawn.items()},
        outlines={name: found.atlases for name, found in drawn.items()},
        curves=[
            *joint_curves(summary),
            *_curves(ctx, summary),
            *emergence_curves(summary, ctx.config.report.mode),
            *edit_curves(summary, list(ctx.facts.layer_labels), list(ctx.facts.hooks)),
        ],
        plots=[*size_plots(summary), *sae_plots(summary), *pooling_plots(summary), *edit_plots(summary)],
        exemplars=[*roi_exemplars(ctx), *match_exemplars(ctx)],
        recovery=recovery_tables(recovery, chosen_on(align), told_over(data["shared"])) if recovery else None,
        methods=(("Similarity", similarity_text(align)), *METHODS),
        provenance=_provenance(ctx),
        warnings=_warnings(ctx, summary),
    )


def _cortex_notes(maps: dict[str, SubjectMaps]) -> list[str]:
    """One sentence for all subjects that share a reason not to be drawn."""
    out = []
    for reason in dict.fromkeys(found.why_not for found in maps.values() if found.why_not):
        names = ", ".join(name for name, found in maps.items() if found.why_not == reason)
        out.append(
            f"Not drawn on {SPACE}: {names}, because {reason}. Maps in the space of the data are in the folder maps."
        )
    return out


def _headline(ctx: Context, summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    mode = ctx.config.report.mode
    rows = [s["modes"][mode] for s in summary["subjects"].values()]
    held_out = np.mean([number(row["held_out_mean"]) for row in rows])
    in_sample = float(np.mean([row["mean"] for row in rows]))
    ceilings = [row["held_out_of_ceiling"] for row in rows if row["held_out_of_ceiling"] is not None]
    out = [
        ("held-out similarity", f"{held_out:.3f}", f"mean over responsive voxels, {MODE_TITLES[mode]}")
        if np.isfinite(held_out)
        else ("held-out similarity", "none", "no images were kept to score on"),
        ("in-sample similarity", f"{in_sample:.3f}", "same voxels, scored where selected"),
    ]
    if ceilings:
        out.append(("of the noise ceiling", f"{100 * float(np.mean(ceilings)):.0f} %", "held-out r / ceiling on r"))
    if summary["recovery"] and summary["recovery"]["modes"][mode]["all"]["category"]:
        found = summary["recovery"]["modes"][mode]["all"]["category"]
        note = (
            f"category vertices whose best unit has the planted concept; {100 * found['shuffled']:.0f} % when shuffled"
        )
        out.append(("truth recovered", f"{100 * found['found']:.0f} %", note))
    return out


def _summary_tables(summary: dict[str, Any]) -> list[Table]:
    columns = [
        "features",
        Column("MAX", "in sample", help="highest similarity over responsive voxels"),
        Column("MEAN", "in sample"),
        Column("score", "in sample", help="voxel-structure score"),
        Column("FDR .05", "in sample", help=f"share of responsive voxels whose best unit is significant; {_FEW}"),
        Column("FWE .05", "in sample", help=f"the same, family-wise over the responsive voxels; {_FEW}"),
        Column("MAX", "held out"),
        Column("MEAN", "held out"),
        Column("MEDIAN", "held out"),
        Column("r / ceiling", "held out"),
        Column("score", "held out"),
        Column("MEAN", "shuffled, in sample"),
        Column("MEAN", "shuffled, held out"),
        Column("score", "shuffled, held out"),
    ]
    keys = (
        "max",
        "mean",
        "structure",
        "significant_fdr",
        "significant_fwe",
        "held_out_max",
        "held_out_mean",
        "held_out_median",
        "held_out_of_ceiling",
        "structure_held_out",
        "shuffled_mean",
        "shuffled_held_out_mean",
        "structure_held_out_shuffled",
    )
    if any("fold_agreement" in row for s in summary["subjects"].values() for row in s["modes"].values()):
        columns.append(Column("same unit", "of folds", help="share of folds whose best unit is that of all images"))
        keys += ("fold_agreement",)
    return [
        Table(
            f"Alignment, {name}",
            _voxels_note(s),
            columns,
            [[MODE_TITLES[mode], *(row[key] for key in keys)] for mode, row in s["modes"].items()],
        )
        for name, s in summary["subjects"].items()
    ]


def _voxels_note(s: dict[str, Any]) -> str:
    if s["median_ncsnr"] is None:
        return f"{s['responsive']:,} voxels of {s['voxels']:,}; ncsnr and noise ceiling are unknown, so none was left out for it."
    return (
        f"{s['responsive']:,} responsive voxels (ncsnr at least {s['min_ncsnr']}, median {s['median_ncsnr']:.2f}) of "
        f"{s['voxels']:,}; median ceiling on r {s['median_ceiling']:.2f}."
    )


def _roi_tables(summary: dict[str, Any]) -> list[Table]:
    alignment = summary["roi"]["alignment"]
    base = alignment["base_rate"]
    out = []
    for mode, subjects in alignment["modes"].items():
        rows = []
        for subject, rois in subjects.items():
            for roi, record in rois.items():
                for ranking in ("mean", "contrast"):
                    best = int(np.nanargmax([*map(number, record[ranking]["aligned"])]))
                    pick = {key: record[ranking][key][best] for key in ("stable", "aligned", "rate")}
                    rows.append(
                        [
                            f"{subject}, {short_roi(roi)}",
                            ranking,
                            record["concept"],
                            best,
                            *pick.values(),
                            base[record["concept"]],
                        ]
                    )
        note = (
            f"Of the {alignment['top_units']} units an ROI ranks first at its best layer: stable if one concept has most of "
            "the exemplars, aligned if it is the ROI's own; rate = aligned / stable; base rate of the concept among all images."
        )
        columns = ["subject, ROI", "ranking", "concept", "layer", "stable", "aligned", "rate", "base rate"]
        out.append(Table(f"Functional alignment, {MODE_TITLES[mode]}", note, columns, rows, section="rois"))
    return out


def _rdm_kind(ctx: Context) -> str:
    config = ctx.config.rsa
    return config.metric if config.brain_metric == "same" else f"{config.brain_metric} (brains) and {config.metric}"


def _rsa_tables(ctx: Context, summary: dict[str, Any]) -> list[Table]:
    rsa, mode = summary["rsa"], ctx.config.report.mode
    rows = []
    for roi, record in rsa["rois"].items():
        ceiling = record.get("ceiling", {})
        for subject, scores in record["subjects"].items():
            values = [number(v) for v in scores[mode]]
            best = int(np.nanargmax(values)) if np.isfinite(values).any() else 0
            rows.append(
                [f"{subject}, {short_roi(roi)}", best, values[best], None, ceiling.get("lower"), ceiling.get("upper")]
            )
        if drawn := record.get("bootstrap"):
            best = int(np.argmax([row[0] for row in drawn["modes"][mode]]))
            value, low, high = drawn["modes"][mode][best]
            bounds = [number(row[0]) for row in drawn["ceiling"]]
            rows.append([f"mean, {short_roi(roi)}", best, value, f"{low:.3f} to {high:.3f}", *bounds])
    note = (
        f"{ctx.config.rsa.method} of {_rdm_kind(ctx)} RDMs over {rsa['n_images']} shared images, {MODE_TITLES[mode]}; "
        "noise ceiling over subjects (the upper bound contains the subject itself). Interval: 95 % of bootstrap draws of images "
        "and subjects."
    )
    columns = ["subject, ROI", "best layer", "similarity", "95 % interval", "ceiling, lower", "ceiling, upper"]
    return [Table("Image RDMs", note, columns, rows, section="rsa")] if rows else []


def _curves(ctx: Context, summary: dict[str, Any]) -> list[LayerCurve]:
    mode, labels = ctx.config.report.mode, list(ctx.facts.layer_labels)
    out = []
    scored = ctx.config.align.select != "none"
    for subject, profiles in summary["layers"][mode].items() if scored else ():
        out.append(profile_curve(subject, profiles, labels, mode))
    for subject, record in summary["subjects"].items() if scored else ():
        series = {MODE_TITLES[m]: (_numbers(row["layer_held_out"]), None, None) for m, row in record["modes"].items()}
        out.append(LayerCurve(f"Held-out similarity by kind of feature, {subject}", labels, series, "held-out r"))
    for subject, rois in summary["roi"]["alignment"]["modes"].get(mode, {}).items():
        series = {short_roi(roi): (_numbers(record["contrast"]["aligned"]), None, None) for roi, record in rois.items()}
        title = f"Aligned units of each ROI, {subject}"
        out.append(LayerCurve(title, labels, series, "aligned units (contrast ranking)", section="rois"))
    for roi, record in list(summary["rsa"]["rois"].items())[:4]:
        series: dict[str, Any] = {s: (_numbers(scores[mode]), None, None) for s, scores in record["subjects"].items()}
        if drawn := record.get("bootstrap"):
            mean, low, high = (list(values) for values in zip(*drawn["modes"][mode], strict=True))
            series["mean, 95 % interval"] = (mean, low, high)
        ceiling = record.get("ceiling")
        levels = {"ceiling, lower": ceiling["lower"], "ceiling, upper": ceiling["upper"]} if ceiling else {}
        out.append(
            LayerCurve(
                f"RDM similarity, {short_roi(roi)}", labels, series, ctx.config.rsa.method, section="rsa", levels=levels
            )
        )
    return out


def _numbers(values: list[Any]) -> list[float]:
    return [number(value) for value in values]


def _provenance(ctx: Context) -> dict[str, Any]:
    stores = {"saes": ctx.specs.saes, "codes": ctx.specs.codes, "activations": ctx.specs.activations, **ctx.specs.align}
    return {
        **json.loads(ctx.documents["provenance.json"]),
        "stores": {name: spec.name for name, spec in stores.items()},
        "config": ctx.config.model_dump(mode="json"),
    }


def _warnings(ctx: Context, summary: dict[str, Any]) -> list[str]:
    out = warnings(ctx.config.align, summary)
    for name, record in summary["subjects"].items():
        dropped = record["voxels"] - record["usable"]
        if dropped:
            out.append(
                f"{name}: {dropped} of {record['voxels']} voxels lack data, do not vary, or are below the "
                "reliability floor, and were left out."
            )
    for part in summary["rsa"]["too_small"]:
        out.append(
            f"{part['subject']}: {short_roi(part['roi'])} has only {part['voxels']} responsive voxels and was left out."
        )
    return out
