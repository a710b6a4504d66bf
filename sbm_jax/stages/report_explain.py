"""What the page and the summary say of names: the units that regions rank first, as every judge sees them."""

from __future__ import annotations

from typing import Any

from sbm_jax.axes import MODE_TITLES
from sbm_jax.report.data import Column, Table
from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import short_roi

_RANKING = "contrast"
_KEYS = ("units", "stable", "aligned", "rate", "rate_low", "rate_high", "effect", "effect_low", "effect_high")


def explain_summary(ctx: Context) -> dict[str, Any] | None:
    """`judges`, `left_out`, and per judge, mode, subject and ROI the record of the layer with most aligned units (contrast), with
    the other regions' and random units at that layer. None where no unit has a name.
    """
    if ctx.specs.explain is None:
        return None
    document = ctx.open(ctx.specs.explain).json("explain.json")
    best: dict[str, Any] = {}
    for judge, modes in document["rois"].items():
        for mode, subjects in modes.items():
            for subject, rois in subjects.items():
                for roi, record in rois.items():
                    row = _best(record[_RANKING]) | {"concept": record["concept"]}
                    best.setdefault(judge, {}).setdefault(mode, {}).setdefault(subject, {})[roi] = row
    return {"judges": document["judges"], "left_out": document["left_out"], "rois": best}


def _best(record: dict[str, Any]) -> dict[str, Any]:
    layer = max(range(len(record["aligned"])), key=lambda i: record["aligned"][i])
    pick = lambda part, keys: {key: part[key][layer] for key in keys}  # noqa: E731
    control = {name: pick(record[name], ("units", "stable", "aligned", "effect")) for name in ("others", "random")}
    return {"layer": layer, **pick(record, (*_KEYS, "gain", "gain_low", "gain_high")), **control}


def explain_tables(summary: dict[str, Any], layers: list[str], mode: str) -> list[Table]:
    """One table per judge: the ROIs at the layer with most aligned units, for `mode` (the judge's first where it lacks that)."""
    found = summary["explain"]
    out = []
    for judge, modes in (found or {"rois": {}})["rois"].items():
        if not modes:
            continue
        shown, about = mode if mode in modes else next(iter(modes)), found["judges"][judge]
        rows = [
            [
                f"{subject}, {short_roi(roi)}",
                record["concept"],
                layers[record["layer"]],
                record["stable"],
                record["aligned"],
                record["rate"],
                _span(record["rate_low"], record["rate_high"]),
                about["base_rate"][record["concept"]],
                record["effect"],
                _span(record["gain_low"], record["gain_high"]),
                _share(record["others"]),
                _share(record["random"]),
            ]
            for subject, rois in modes[shown].items()
            for roi, record in rois.items()
        ]
        if rows:
            note = f"{MODE_TITLES[shown]}; {about['about']}. {_NOTE}"
            out.append(Table(f"Names by judge: {judge}", note, _COLUMNS, rows, "rois"))
    return out


_COLUMNS = [
    "subject, ROI",
    "concept",
    Column("layer", help="the one with most aligned units"),
    Column("stable", "units"),
    Column("aligned", "units"),
    "rate",
    Column("95 %", "rate", help="Wilson's interval of aligned / stable"),
    Column("base rate", help="how often the concept shows by chance, in the probe set"),
    Column("effect", help="mean over units of the share of exemplars that show the concept, minus the base rate"),
    Column("over random, 95 %", "effect", digits=2, help="the effect minus that of random units; draws of units"),
    Column("other ROIs", "% aligned", digits=1, help="of the units that other category ROIs rank first"),
    Column("random units", "% aligned", digits=1),
]


_NOTE = (
    "Of the units an ROI ranks first (contrast): stable if one concept has most of the exemplars, aligned if it is the ROI's own; "
    "rate = aligned / stable. Beside it the same concept among other ROIs' and random units of that layer."
)


def _span(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _share(record: dict[str, Any]) -> float | None:
    return 100 * record["aligned"] / record["units"] if record["units"] else None
