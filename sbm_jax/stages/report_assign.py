"""The page's table of one-to-one and soft matching."""

from __future__ import annotations

from typing import Any

from sbm_jax.axes import MODE_TITLES
from sbm_jax.report.data import Column, Table
from sbm_jax.stages.inputs import ALL_RESPONSIVE

_NOTE = (
    "Over {voxels:,} responsive voxels; what is not matched counts as 0. Best unit: voxels may share it. One-to-one: every unit "
    "and voxel at most once. Soft: all units have equal shares of a mass, and so have all voxels; it is moved from units to "
    "voxels. Both have the largest total over the pairs that align lists. Over all pairs the largest is between that and 'at "
    "most'; higher align.k_voxel and align.k_unit bring the two together."
)


def assign_tables(summary: dict[str, Any]) -> list[Table]:
    """One table per subject, a row per mode."""
    soft = any("soft" in row["bounds"] for modes in summary["assign"].values() for row in modes.values())
    columns: list[str | Column] = [
        "features",
        Column("units", help="that vary over the images", digits=0),
        Column("best unit", "in sample"),
        Column("best unit", "held out"),
        Column("different", "best units / voxel", help="1: no two voxels share their best unit"),
        Column("one-to-one", "in sample"),
        Column("one-to-one", "at most", help="no one-to-one matching of all pairs is better"),
        Column("one-to-one", "held out"),
        Column("alone", "voxels", help="without a unit: where units are fewer than voxels, at least the difference"),
    ]
    if soft:
        columns += [
            Column("soft", "in sample"),
            Column("soft", "at most", help="no soft matching of all pairs is better"),
            Column("soft", "held out"),
        ]
    return [
        Table(
            f"One-to-one and soft matching, {name}", _note(modes), columns, [_row(m, modes[m]) for m in _ordered(modes)]
        )
        for name, modes in summary["assign"].items()
    ]


def _ordered(modes: dict[str, Any]) -> list[str]:
    return [mode for mode in MODE_TITLES if mode in modes]


def _note(modes: dict[str, Any]) -> str:
    return _NOTE.format(voxels=next(iter(modes.values()))["rois"][ALL_RESPONSIVE]["voxels"])


def _row(mode: str, record: dict[str, Any]) -> list[Any]:
    means, bounds = record["rois"][ALL_RESPONSIVE], record["bounds"]
    row = [MODE_TITLES[mode], record["units"], means["argmax"], means["argmax_held_out"], means["distinct"]]
    row += [means["one_to_one"], bounds["one_to_one"]["upper"], means["one_to_one_held_out"], means["unmatched"]]
    return row + ([means["soft"], bounds["soft"]["upper"], means["soft_held_out"]] if "soft" in bounds else [])
