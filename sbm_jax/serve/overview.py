"""What the explorer's frame must know of a run before any view is drawn."""

from __future__ import annotations

from typing import Any

from sbm_jax.axes import MODE_TITLES
from sbm_jax.serve.data_names import FOLLOWS, judges
from sbm_jax.serve.data_units import region_titles
from sbm_jax.serve.library import Library


def overview(lib: Library, live: bool) -> dict[str, Any]:
    config, facts = lib.ctx.config, lib.ctx.facts
    grid = round(facts.backbone.n_patches**0.5)
    return {
        "title": config.report.title,
        "dataset": lib.ctx.dataset.name,
        "subjects": list(lib.subjects),
        "modes": [{"mode": mode, "title": MODE_TITLES[mode]} for mode in lib.modes],
        "mode": config.report.mode if config.report.mode in lib.modes else lib.modes[0],
        "hooks": list(lib.hooks),
        "labels": list(facts.layer_labels),
        "kinds": [{"kind": kind, "modes": lib.modes_of(kind)} for kind in lib.kinds],
        "units": lib.units_per_layer,
        "grid": grid if grid * grid == facts.backbone.n_patches else 0,
        "images": facts.n_images,
        "judges": [
            {"judge": name, "concepts": concepts, "about": _about(lib, name)} for name, concepts in judges(lib).items()
        ],
        "regions": region_titles(lib),
        "scored": config.align.select != "none",
        "missing": lib.missing(),
        "live": live,
        "key": lib.key(),
    }


def _about(lib: Library, judge: str) -> str:
    if judge == FOLLOWS:
        return "the image label that a unit's code correlates with most; every unit has one"
    explain = lib.optional("explain")
    return str(explain.json("explain.json")["judges"][judge].get("about", "")) if explain else ""
