"""The few numbers that a run is quoted by, of one subject and mode, and how far they spread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from sbm_jax.stages.report_summary import subject_summary
from sbm_jax.stages.rows import Row, row

if TYPE_CHECKING:
    from sbm_jax.stages.context import Context

_KEYS = {"in-sample r": "mean", "held-out r": "held_out_mean", "r / ceiling": "held_out_of_ceiling"}


def headline(ctx: Context, name: str, mode: str) -> dict[str, float | None]:
    """Mean in-sample and held-out r and r / ceiling over responsive voxels, voxel-structure score, and where the truth is known the
    share of category vertices whose best unit has the planted concept. None where it is not measured.
    """
    structure = ctx.open(ctx.specs.rsa).json("rsa.json")["structure"][name]
    found = subject_summary(ctx, name, structure)["modes"][mode]
    scored = ctx.config.align.select != "none"
    out = {title: found[key] for title, key in _KEYS.items()}
    out["voxel-structure score"] = found["structure_held_out" if scored else "structure"]
    if ctx.specs.recovery is not None:
        record = ctx.open(ctx.specs.recovery).json("recovery.json")["modes"][mode]["subjects"][name]["concepts"]
        count = sum(part["vertices"] for part in record.values())
        out["truth recovered"] = (
            sum(part["vertices"] * part["found"] for part in record.values()) / count if count else None
        )
    return out


def spread(over: str, where: str, found: Mapping[str, Mapping[str, float | None]]) -> Iterator[Row]:
    """A row per number: mean, range and standard deviation over what `found` names, and the values themselves."""
    for measure in next(iter(found.values())):
        values = {label: one[measure] for label, one in found.items()}
        numbers = np.array([np.nan if x is None else x for x in values.values()])
        yield row(over, "headline number", where, measure, numbers, [], len(values)) | {"values": values}
