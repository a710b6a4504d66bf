"""What the page and the summary say of causal edits: units that ROIs selected, removed and driven, beside matched controls."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.report.data import Column, LayerCurve, Plot, Table, Trace, number
from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import short_roi

Case = dict[str, Any]


def edit_summary(ctx: Context) -> dict[str, Any] | None:
    """`edit.json` without the numbers of units; None where no autoencoder's units can be edited."""
    if ctx.specs.edit is None:
        return None
    document = ctx.open(ctx.specs.edit).json("edit.json")
    sets = [
        {key: value for key, value in record.items() if key not in ("units", "controls")} for record in document["sets"]
    ]
    return document | {"sets": sets}


def edit_tables(summary: dict[str, Any]) -> list[Table]:
    """Per edit (removed, driven): ROI by ROI the change on and off target, and how far it goes beyond matched units."""
    found = summary["edit"]
    if not found or not found["sets"]:
        return []
    out = [
        _table(found, "remove", "Units of an ROI, removed", "codes set to 0"),
        _table(found, "drive", "Units of an ROI, driven", "codes set to a multiple of each unit's largest, everywhere"),
    ]
    return [table for table in out if table.rows] + _segmentation(found)


def edit_curves(summary: dict[str, Any], layers: list[str], hooks: list[str]) -> list[LayerCurve]:
    """Per subject the change of the concept's margin where each ROI's units are removed at one hook alone."""
    found = summary["edit"]
    out = []
    edited = [] if not found else [hook for hook in hooks if hook in found["hooks"]]
    for subject in dict.fromkeys(record["subject"] for record in found["sets"]) if found else ():
        series = {}
        for record in found["sets"]:
            cases = {case["hook"]: case for case in record["cases"] if case["what"] == "remove"}
            if record["subject"] != subject or not all("on" in case for case in cases.values()):
                continue
            rows = [cases[hook]["on"]["margin"] for hook in edited]
            series[short_roi(record["roi"])] = tuple([number(row[i]) for row in rows] for i in range(3))
        if series:
            labels = [layers[hooks.index(hook)] for hook in edited]
            title = f"Margin of an ROI's concept without its units, {subject}"
            note = "Units of one block removed at a time; held-out images of the concept; 95 % bootstrap intervals over images."
            out.append(LayerCurve(title, labels, series, "change of logit margin", note=note, section="rois"))
    return out


def edit_plots(summary: dict[str, Any]) -> list[Plot]:
    """Dose and response: codes scaled by 0 (removed), 1 (un-edited) and more, at each ROI's best hook."""
    found = summary["edit"]
    out = []
    for subject in dict.fromkeys(record["subject"] for record in found["sets"]) if found else ():
        traces = {}
        for record in found["sets"]:
            scaled = [c for c in record["cases"] if c["hook"] == record["hook"] and c["how"] in ("zero", "scale")]
            if record["subject"] != subject or not all("on" in case for case in scaled):
                continue
            doses = sorted([(1.0, 0.0), *((case["value"], number(case["on"]["margin"][0])) for case in scaled)])
            doses = [(dose, change) for dose, change in doses if np.isfinite(change)]
            if len(doses) < 2:  # no held-out image shows the concept
                continue
            x, y = [dose for dose, _ in doses], [change for _, change in doses]
            dots = [f"codes x {dose:g}: {change:+.2f}" for dose, change in doses]
            traces[short_roi(record["roi"])] = Trace(x, y, range(len(x)), dots)
        if traces:
            note = "Codes of an ROI's units times the dose (0: removed, 1: un-edited), at its best block."
            out.append(
                Plot(f"Dose and response, {subject}", traces, "dose", "change of logit margin", note, section="rois")
            )
    return out


def _table(found: dict[str, Any], what: str, title: str, how: str) -> Table:
    columns = [
        "subject, ROI",
        "concept",
        "hook",
        Column("accuracy", "on target", 2, "change over held-out images of the concept"),
        Column("95 %", "accuracy"),
        Column("margin", "on target", 2, "logit of the image's own category less the highest other one"),
        Column("95 %", "margin"),
        Column("margin", "off target", 2, "over images of other concepts"),
        Column("claimed", "off target", 2, "change of the share of other images that are answered with the concept"),
        Column("margin", "beyond matched units", 2, "on target, less the mean of the control sets"),
        Column("95 %", "beyond"),
        Column("p", help="share of control sets (and the ROI's) whose change is at least as large"),
        Column("distance", help="1 - cosine of edited and un-edited embedding, all images"),
    ]
    rows = []
    for record in found["sets"]:
        cases = [c for c in record["cases"] if c["what"] == what and c["hook"] == record["hook"]]
        if not cases:
            continue
        case = max(cases, key=lambda c: c["value"])
        on, off = case.get("on"), case.get("off")
        beyond = record["beyond_controls"].get(what, {}).get("on margin")
        rows.append(
            [
                f"{record['subject']}, {short_roi(record['roi'])}",
                record["concept"],
                record["hook"],
                *(
                    (on["accuracy"][0], _span(on["accuracy"]), on["margin"][0], _span(on["margin"]))
                    if on
                    else [None] * 4
                ),
                *((off["margin"][0], off["claimed"][0]) if off else [None] * 2),
                *((beyond["difference"][0], _span(beyond["difference"]), beyond["p"]) if beyond else [None] * 3),
                case["distance"][0],
            ]
        )
    note = (
        f"The first units of each ROI's contrast ranking, of every kind of token, at the hook of highest contrast: {how}; then the "
        f"rest of the network. {found['images']} held-out images; matched units fire as often, with as much energy."
    )
    return Table(title, note, columns, rows, section="rois")


def _segmentation(found: dict[str, Any]) -> list[Table]:
    head = found["segmentation"]
    if not head:
        return []
    rows = []
    best = {(record["subject"], record["roi"]): record["hook"] for record in found["sets"]}
    for record in head["sets"]:
        for hook, tested in record["hooks"].items():
            if hook != best[record["subject"], record["roi"]]:
                continue
            controls = [value for name, value in tested.items() if name != "roi"]
            for what in ("remove", "drive"):
                own, others = tested["roi"][what], [control[what] for control in controls]
                rows.append(
                    [
                        f"{record['subject']}, {short_roi(record['roi'])}",
                        hook,
                        what,
                        own["patches"],
                        *(
                            None if x is None else 100 * x
                            for part in ("on_target", "off_target")
                            for x in (own[part], _mean([control[part] for control in others]))
                        ),
                    ]
                )
    columns = [
        "subject, ROI",
        "hook",
        "edit",
        Column("patches", digits=0),
        Column(
            "on target", "%", 1, "of the chosen patches: no longer (removed) or now (driven) answered with the concept"
        ),
        Column("on target", "%, matched", 1),
        Column("off target", "%", 2, "of all other patches: answer changed"),
        Column("off target", "%, matched", 2),
    ]
    note = f"A linear head on patches; un-edited it answers {100 * head['head']['accuracy']:.0f} % of them rightly."
    return [Table("Segmentation, units edited on chosen patches", note, columns, rows, section="rois")] if rows else []


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _span(interval: list[float | None]) -> str | None:
    return None if interval[1] is None else f"{interval[1]:.2f} to {interval[2]:.2f}"
