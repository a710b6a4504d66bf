"""What the page says of score against the number of candidates: a chart in sample and held out, and a table at equal numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.axes import MODE_TITLES
from sbm_jax.report.data import Column, Plot, Table, Trace

_NAMES = {"held_out": "held out", "in_sample": "in sample"}


def size_plots(summary: dict[str, Any]) -> list[Plot]:
    """Mean over subjects against the number of candidates, a trace per kind of feature."""
    out = []
    for key, name in _NAMES.items():
        traces = {}
        for mode, records in _by_mode(summary).items():
            values = [_mean(record, key) for record in records]
            if None in values:
                continue
            x = [record[0]["candidates"] for record in records]
            dots = [_hover(record, key) for record in records]
            traces[MODE_TITLES[mode]] = Trace(x, [v for v in values if v is not None], range(len(x)), dots)
        if traces:
            title = f"By number of candidates, {name}"
            out.append(Plot(title, traces, "units over all layers", f"r {name}", section="summary", log_x=True))
    return out


def size_tables(summary: dict[str, Any]) -> list[Table]:
    """Every kind of feature at the largest number of units that all of them have (or the next below), and with all its units."""
    by_mode = _by_mode(summary)
    common = min(records[-1][0]["candidates"] for records in by_mode.values())
    rows = []
    for mode, records in by_mode.items():
        nearest = max((r for r in records if r[0]["candidates"] <= common), key=lambda r: r[0]["candidates"])
        row: list[Any] = [MODE_TITLES[mode]]
        for record in (nearest, records[-1]):
            row += [record[0]["candidates"], *(_mean(record, key) for key in ("in_sample", "held_out"))]
        rows.append(row)
    columns: list[Any] = ["features"]
    for group in ("equal numbers", "all units"):
        columns += [Column("candidates", group), Column("in sample", group), Column("held out", group)]
    return [Table("Alignment at equal numbers of candidates", _note(summary), columns, rows)]


def _by_mode(summary: dict[str, Any]) -> dict[str, list[list[dict[str, Any]]]]:
    """Per mode and size the records of all subjects."""
    subjects = list(summary["sizes"].values())
    modes = [mode for mode in MODE_TITLES if mode in subjects[0]["modes"]]
    return {mode: list(map(list, zip(*(s["modes"][mode] for s in subjects), strict=True))) for mode in modes}


def _mean(records: list[dict[str, Any]], key: str) -> float | None:
    """Over the subjects that have the score."""
    known = [record[key] for record in records if record[key] is not None]
    return float(np.mean(known)) if known else None


def _hover(records: list[dict[str, Any]], key: str) -> str:
    spread = _mean(records, f"{key}_sd")
    return f"{records[0]['units']:,} units per layer: {_mean(records, key):.3f}, sd over draws {spread:.3f}"


def _note(summary: dict[str, Any]) -> str:
    voxels = sum(s["voxels"] for s in summary["sizes"].values())
    return (
        f"The best of random subsets of each layer's units, nested, over {voxels:,} responsive voxels; mean over draws and "
        "subjects. In sample the best of more candidates is higher even by chance."
    )
