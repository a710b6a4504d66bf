"""Which edits the edit stage tries for the units that an ROI selected, and for their controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sbm_jax.config_meaning import EditConfig
from sbm_jax.stages.edit_inputs import Selected
from sbm_jax.stages.editing_plan import How, UnitEdit
from sbm_jax.stages.matched_units import matched_units

REMOVE, DOSE, DRIVE = "remove", "dose", "drive"


@dataclass(frozen=True)
class Trial:
    """One case of a set of units at one hook. draw: None for the ROI's own units, else the number of the matched control set."""

    what: str
    hook: str
    how: How
    value: float
    units: Mapping[str, tuple[int, ...]]
    draw: int | None = None

    @property
    def edits(self) -> tuple[UnitEdit, ...]:
        return tuple(UnitEdit(kind, self.hook, units, self.how, self.value) for kind, units in self.units.items())

    def describe(self) -> dict[str, Any]:
        return {"what": self.what, "hook": self.hook, "how": self.how, "value": self.value, "draw": self.draw}


def trials_of(
    chosen: Selected, number: int, config: EditConfig, profiles: Mapping[tuple[str, str], np.ndarray]
) -> list[Trial]:
    """Removal at every hook; at the best one also scaled and driven codes, and for removal and the strongest drive the controls.

    number: of the set, which seeds its controls. profiles: `matched_units.firing_profile` by (kind, hook).
    """
    best, own = chosen.best, chosen.units[chosen.best]
    out = [Trial(REMOVE, hook, "zero", 0.0, units) for hook, units in chosen.units.items()]
    out += [Trial(DOSE, best, "scale", dose, own) for dose in config.doses]
    out += [Trial(DRIVE, best, "clamp", value, own) for value in config.drive]
    for draw in range(config.draws):
        units = {
            kind: tuple(
                int(u) for u in matched_units(np.array(wanted), profiles[kind, best], [config.seed, number, draw, i])
            )
            for i, (kind, wanted) in enumerate(own.items())
        }
        out.append(Trial(REMOVE, best, "zero", 0.0, units, draw))
        if config.drive:
            out.append(Trial(DRIVE, best, "clamp", max(config.drive), units, draw))
    return out
