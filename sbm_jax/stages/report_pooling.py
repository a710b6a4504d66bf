"""What the page says of local pooling: held-out similarity with and without a receptive field, and where fields lie."""

from __future__ import annotations

from typing import Any

from sbm_jax.axes import MODE_TITLES
from sbm_jax.report.data import Column, Plot, Table, Trace
from sbm_jax.stages.inputs import short_roi

_AXES = {"x": "horizontal", "y": "vertical"}


def pooling_tables(summary: dict[str, Any]) -> list[Table]:
    """Per subject: ROIs, uniform and local, and the gain; fitted against known centres where those are known."""
    found = summary["pooling"]
    return [*(_gains(name, record) for name, record in found.items()), *_centres(found)]


def pooling_plots(summary: dict[str, Any]) -> list[Plot]:
    """Fitted against known centres: means within eighths of the known coordinate."""
    out = []
    for name, record in summary["pooling"].items():
        for source, part in record["centres"].items():
            traces = {}
            for axis, title in _AXES.items():
                x, y = (list(values) for values in zip(*part["bins"][axis], strict=True))
                dots = [f"{title}: known {a:.2f}, fitted {b:.2f}" for a, b in zip(x, y, strict=True)]
                traces[title] = Trace(x, y, range(len(x)), dots)
            note = "Means within eighths of the voxels; 0 is the left or upper edge of the picture, 1 the other."
            out.append(
                Plot(f"Fitted field centres, {name}", traces, f"{source} centre", "fitted", note, section="rois")
            )
    return out


def _gains(name: str, record: dict[str, Any]) -> Table:
    both = any("prf_held_out" in part for part in record["rois"].values())
    columns = [
        "ROI",
        Column("voxels", digits=0),
        Column("uniform", "held-out r", help="best unit, code averaged over all patches"),
        Column("own pRF" if record["field"] == "prf" else "local", "held-out r", help="best unit and field"),
        "gain",
        Column("95 % interval", "of the gain", help="bootstrap over the images that score; units and fields stay"),
        Column("shuffled", "local, held-out r", help="the same search with images permuted"),
        Column("local fields", "%", 0, help="share of voxels whose field is not the uniform one"),
        Column("local fields", "%, shuffled", 0),
        *([Column("own pRF", "held-out r", help="over the voxels that have one")] if both else []),
    ]
    rows = []
    for roi, part in record["rois"].items():
        low, high = part["gain_interval"]
        rows.append(
            [
                short_roi(roi),
                *(part[key] for key in ("voxels", "uniform_held_out", "held_out", "gain")),
                None if low is None else f"{low:.3f} to {high:.3f}",
                part["shuffled_held_out"],
                100 * part["local_share"],
                100 * part["local_share_shuffled"],
                *([part["prf_held_out"]] if both else []),
            ]
        )
    note = (
        f"Every voxel chose one of its best units ({MODE_TITLES[record['mode']]}) and one of {record['fields']} receptive fields "
        "over the patches where units are selected; scored on the other images. Means over responsive voxels."
    )
    return Table(f"Local pooling, {name}", note, columns, rows, section="rois")


def _centres(found: dict[str, Any]) -> list[Table]:
    rows = [
        [
            f"{name}, {source}",
            *(part[key] for key in ("voxels", "median_distance", "permuted", "shuffled")),
            *(part["r"][key] for key in ("x", "y", "size")),
        ]
        for name, record in found.items()
        for source, part in record["centres"].items()
    ]
    if not rows:
        return []
    columns = [
        "subject, known from",
        Column("voxels", digits=0),
        Column("distance", "median", help="between fitted and known centre, of the picture's side"),
        Column("distance", "other voxel's", help="to the known centre of another voxel, mean over 100 orders"),
        Column("distance", "shuffled", help="of centres that were fitted to permuted images"),
        Column("r", "horizontal"),
        Column("r", "vertical"),
        Column("r", "size"),
    ]
    note = "Voxels that chose a local field and whose known centre lies within the picture."
    return [Table("Fitted receptive fields", note, columns, rows, section="rois")]
