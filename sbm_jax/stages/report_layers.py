"""The page's curve of layer profiles with their intervals, and its table of depths."""

from __future__ import annotations

from typing import Any

from sbm_jax.axes import MODE_TITLES
from sbm_jax.report.data import LayerCurve, Table
from sbm_jax.stages.inputs import short_roi

_MOST_LINES = 8


def profile_curve(subject: str, profiles: dict[str, Any], labels: list[str], mode: str) -> LayerCurve:
    """Mean held-out r of each layer's best unit, one line per ROI; bands where there are intervals."""
    series = {
        short_roi(roi): (
            _numbers(record["held_out"]) or [],
            _numbers(record["held_out_low"]),
            _numbers(record["held_out_high"]),
        )
        for roi, record in list(profiles.items())[:_MOST_LINES]
    }
    drawn = any(low for _, low, _ in series.values())
    note = f"{MODE_TITLES[mode]}; bands: 95 % of bootstrap draws of images" if drawn else MODE_TITLES[mode]
    return LayerCurve(
        f"Held-out similarity of each layer's best unit, {subject}", labels, series, "held-out r", note=note
    )


def depth_tables(summary: dict[str, Any], mode: str) -> list[Table]:
    """Mean depth of every ROI's responsive voxels with its interval; none where nothing was scored."""
    rows = []
    for subject, profiles in summary["layers"][mode].items():
        for roi, record in profiles.items():
            low, high = record["mean_depth_low"], record["mean_depth_high"]
            interval = None if low is None or high is None else f"{low:.2f} to {high:.2f}"
            rows.append([f"{subject}, {short_roi(roi)}", record["voxels"], record["mean_depth"], interval])
    if all(row[2] is None for row in rows):
        return []
    note = (
        f"{MODE_TITLES[mode]}. Depth of a voxel: centre of mass of its layer profile, in layers from 0; mean over responsive "
        "voxels that any layer scores above 0 for. Interval: 95 % of bootstrap draws of images; noise pulls depths to the "
        "middle of the network, in draws more than in the estimate, so that an interval may lie beside it."
    )
    return [Table("Depth", note, ["subject, ROI", "voxels", "mean depth", "95 % interval"], rows, section="layers")]


def _numbers(values: list[float | None] | None) -> list[float] | None:
    return None if values is None else [float("nan") if value is None else value for value in values]
