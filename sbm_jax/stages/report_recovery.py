"""What the page says of a planted truth that was found again."""

from __future__ import annotations

from typing import Any

from sbm_jax.axes import MODE_TITLES
from sbm_jax.report.data import Column, Recovery, Table

_DEPTH = ("best_layer", "best_layer_shuffled", "centre_of_mass", "held_out")


def _ordered(by_mode: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(mode, by_mode[mode]) for mode in MODE_TITLES if mode in by_mode]


def recovery_tables(recovery: dict[str, Any], chosen_on: str, told_over: str) -> Recovery:
    """The section of a run on simulated brains, from `recovery.json`; on which images units were chosen, and their concept told."""
    rows = []
    for mode, record in _ordered(recovery["modes"]):
        for concept, part in [*record["all"]["concepts"].items(), ("all categories", record["all"]["category"])]:
            if part:
                found = [100 * part["found"], 100 * part["shuffled"]]
                rows.append([MODE_TITLES[mode], concept, part["vertices"], *found, part["held_out"]])
    columns = [
        "features",
        "concept",
        "vertices",
        Column("found", "%", 0),
        Column("shuffled", "%", 0),
        "held-out r",
    ]
    concepts = Table(
        "Concepts",
        f"Share of a concept's vertices (all subjects) whose best unit, chosen on {chosen_on}, follows that concept over "
        f"{told_over}; beside it the same for units that won on permuted images.",
        columns,
        rows,
        section="recovery",
    )
    rows = [
        [MODE_TITLES[mode], area, *(part[key] for key in ("vertices", *_DEPTH))]
        for mode, record in _ordered(recovery["modes"])
        for area, part in record["all"]["depth"].items()
    ]
    columns = [
        "features",
        "vertices of",
        "vertices",
        Column("best layer", digits=2),
        Column("best layer", "shuffled", 2),
        Column("centre of mass", digits=2),
        "held-out r",
    ]
    depth = Table(
        "Depth",
        "Mean layer (0 is the first block) of early and of category vertices.",
        columns,
        rows,
        section="recovery",
    )
    rows = [
        [MODE_TITLES[mode], part["vertices"], part["held_out"], 100 * part["above_0.1"]]
        for mode, record in _ordered(recovery["modes"])
        if (part := record["all"]["silent"])
    ]
    columns = ["features", "vertices", Column("held-out r", digits=4), Column("above 0.1", "%", digits=1)]
    silent = Table("Silent vertices", "Vertices that respond to nothing.", columns, rows, section="recovery")
    text = "The simulated brains were driven by what is in the scenes, never by the backbone. How much of it was found again:"
    return Recovery(text, (concepts, depth, silent))
