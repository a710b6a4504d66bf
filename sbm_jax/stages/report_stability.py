"""What the page says of what stays when something is done again."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.report.data import Cell, Column, Table
from sbm_jax.stages.context import Context


def stability_tables(found: dict[str, Any] | None) -> list[Table]:
    """One table: rows of `stability.json`, those that differ only in subject, region or layer brought together."""
    if found is None or not found["rows"]:
        return []
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in found["rows"]:
        groups.setdefault((one["over"], one["of"], _mode(one["where"]), one["measure"]), []).append(one)
    rows = [_cells(key, records) for key, records in groups.items()]
    columns = [
        "over",
        "of",
        "features",
        "measure",
        Column("mean"),
        Column("smallest"),
        Column("largest"),
        Column("spread", "SD", help="mean of the standard deviations of the rows that are brought together"),
        Column("by chance"),
        Column("rows", digits=0, help="of stability.json, brought together"),
    ]
    note = (
        "Image halves: units selected on two random halves of the images that select. Subjects: units that a region of two people "
        "prefers, who saw other images. By chance: responses permuted (halves), random sets (Jaccard), decoder rows rotated or "
        "images permuted (dictionaries), another voxel's unit (voxel's unit). Every subject and region is in stability.json."
    )
    return [Table("Stability", note, columns, rows)]


def _mode(where: str) -> str:
    """The last part of `subj01, patch_mean`."""
    return where.rsplit(", ", 1)[-1]


def _cells(key: tuple[str, ...], records: list[dict[str, Any]]) -> list[Cell]:
    numbers = {
        name: [r[name] for r in records if r[name] is not None] for name in ("value", "low", "high", "sd", "chance")
    }
    mean = {name: float(np.mean(values)) if values else None for name, values in numbers.items()}
    low, high = min(numbers["low"], default=None), max(numbers["high"], default=None)
    return [*key, mean["value"], low, high, mean["sd"], mean["chance"], len(records)]


def stability_summary(ctx: Context) -> dict[str, Any] | None:
    """`agreement` of summary.json; None where the configuration has no use for the stage."""
    return None if ctx.specs.stability is None else ctx.open(ctx.specs.stability).json("stability.json")
