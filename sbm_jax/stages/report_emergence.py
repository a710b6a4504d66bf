"""What the page and the summary say of emergence: concepts and low-level tuning over layers."""

from __future__ import annotations

from typing import Any

from sbm_jax.axes import MODE_TITLES
from sbm_jax.report.data import Column, LayerCurve, Table, number
from sbm_jax.stages.context import Context

_MOST = 6  # lines in a chart
_KINDS = {"cls": "CLS tokens", "patch": "patch tokens"}


def emergence_summary(ctx: Context) -> dict[str, Any] | None:
    """emergence.json without its galleries; None where no unit has a name."""
    if ctx.specs.emergence is None:
        return None
    document = ctx.open(ctx.specs.emergence).json("emergence.json")
    return {key: value for key, value in document.items() if key != "galleries"}


def emergence_curves(summary: dict[str, Any], mode: str) -> list[LayerCurve]:
    """Per judge the aligned units of ROIs (or of all units that were asked for) by concept; per kind what codes follow."""
    found = summary["emergence"]
    if found is None:
        return []
    out = []
    for judge, modes in found["curves"].items():
        if not modes:
            continue
        chosen = mode if mode in modes else next(iter(modes))
        group = "roi" if any("roi" in groups for groups in modes[chosen].values()) else "asked"
        records = {concept: groups[group] for concept, groups in modes[chosen].items() if group in groups}
        most = sorted(records, key=lambda concept: -max(records[concept]["aligned"]))[:_MOST]
        series = {concept: _band(records[concept], "aligned") for concept in records if concept in most}
        whose = "units that ROIs of all subjects rank first (contrast)" if group == "roi" else "all units asked for"
        note = f"{MODE_TITLES[chosen]}; {whose}; bands: 95 % of draws of units"
        title = f"Concepts over layers, judge {judge}"
        out.append(LayerCurve(title, found["layers"], series, "aligned units", note=note, section="rois"))
    for kind, record in found["flow"]["kinds"].items():
        series = {name: _band(record, "alone", name) for name in found["flow"]["groups"]}
        note = f"codes {record['mode']} of {found['flow']['images']:,} stimuli, mean over units; bands: 95 % of draws of units"
        title = f"What codes follow, {_KINDS[kind]}"
        out.append(LayerCurve(title, found["layers"], series, "held-out variance explained", note=note))
    return out


def emergence_tables(summary: dict[str, Any], mode: str) -> list[Table]:
    """Onset layers, one row per judge and concept, for `mode` (the judge's first where it lacks that)."""
    found = summary["emergence"]
    rows = []
    for judge, modes in found["curves"].items() if found else ():
        shown = mode if mode in modes else next(iter(modes), "")
        for concept, groups in modes.get(shown, {}).items():
            if "onset" in (record := groups.get("roi", groups["asked"])):
                cells = [_onset(record[key], found["layers"]) for key in ("onset", "onset_aligned")]
                whose = "ROI" if "roi" in groups else "all"
                rows.append([f"{concept}, {judge}", MODE_TITLES[shown], whose, *(c for pair in cells for c in pair)])
    note = (
        "The first layer at which units show the concept in more of their exemplars than random units do (effect), or more of them "
        "are aligned; tested by dealing out anew which units are the random ones, family-wise .05 over layers. Units: of the ROIs "
        "known for the concept, or all that were asked for. Intervals: 95 % of draws of units. From this layer on it can be told; "
        "it may begin before."
    )
    columns = [
        "concept, judge",
        "features",
        "units",
        Column("onset", "effect"),
        Column("95 %", "effect"),
        Column("onset", "aligned"),
        Column("95 %", "aligned"),
    ]
    return [Table("Onset of concepts", note, columns, rows, section="layers")] if rows else []


def _onset(record: dict[str, Any], layers: list[str]) -> tuple[str, str]:
    name = lambda layer: "none" if layer is None else layers[layer]  # noqa: E731
    low, high = name(record["low"]), name(record["high"])
    return name(record["layer"]), low if low == high else f"{low} to {high}"


def _band(record: dict[str, Any], key: str, name: str | None = None) -> tuple[list[float], Any, Any]:
    parts = [record.get(f"{key}{suffix}") for suffix in ("", "_low", "_high")]
    values, low, high = ([number(x) for x in (p if name is None else p[name])] if p else None for p in parts)
    return values or [], low, high
