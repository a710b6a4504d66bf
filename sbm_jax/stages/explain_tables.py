"""Counts over units of a region beside the units of other regions and random ones: stable, aligned, rate and effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sbm_jax.stages.explain_names import Judged, roi_concept
from sbm_jax.stages.judging import Draw
from sbm_jax.statistics import percentile_interval, wilson_interval

LEVEL = 0.95


@dataclass(frozen=True)
class Units:
    """The wanted units of one dictionary with what a judge said. base: float64 [c], base rates. control: int [k], rows of the
    random units.
    """

    units: np.ndarray
    judged: Judged
    base: np.ndarray
    control: np.ndarray

    def rows(self, units: np.ndarray) -> np.ndarray:
        """Of those units that were looked at, in their order."""
        at = np.minimum(np.searchsorted(self.units, units), max(len(self.units) - 1, 0))
        return at[self.units[at] == units] if len(self.units) else np.zeros(0, np.int64)

    def effects(self, rows: np.ndarray, concept: int) -> np.ndarray:
        """Share of each unit's exemplars that show the concept minus its base rate; units without judged exemplars are left out."""
        judged = self.judged.judged[rows]
        share = self.judged.counts[rows, concept] / np.maximum(judged, 1)
        return share[judged > 0] - self.base[concept]

    def aligned(self, rows: np.ndarray, concept: int) -> np.ndarray:
        """bool: stable, with that concept."""
        return self.judged.stable[rows] & (self.judged.concept[rows] == concept)


def group_record(units: Units, rows: np.ndarray, concept: int) -> dict[str, Any]:
    """Of a group of units at one layer: units, stable, aligned, rate = aligned / stable with Wilson's interval, and effect."""
    stable, aligned = int(units.judged.stable[rows].sum()), int(units.aligned(rows, concept).sum())
    low, high = wilson_interval(np.array(aligned), np.array(stable), LEVEL)
    effects = units.effects(rows, concept)
    return {
        "units": len(rows),
        "stable": stable,
        "aligned": aligned,
        "rate": aligned / stable if stable else float("nan"),
        "rate_low": float(low),
        "rate_high": float(high),
        "effect": float(effects.mean()) if len(effects) else float("nan"),
    }


def effect_interval(effects: np.ndarray, control: np.ndarray, draw: Draw | None) -> dict[str, float]:
    """95 % intervals over draws of units: of the mean effect, and `gain`, of its difference from the control's mean, whose units
    are drawn too. NaN without units or draws.
    """
    nan = float("nan")
    out: dict[str, float] = dict.fromkeys(("effect_low", "effect_high", "gain_low", "gain_high"), nan)
    out["gain"] = float(effects.mean() - control.mean()) if len(effects) and len(control) else nan
    if draw is None or not len(effects):
        return out
    drawn = draw(len(effects), 0) @ effects
    out["effect_low"], out["effect_high"] = (float(x) for x in percentile_interval(drawn, LEVEL))
    if len(control):
        ends = percentile_interval(drawn - draw(len(control), 1) @ control, LEVEL)
        out["gain_low"], out["gain_high"] = (float(x) for x in ends)
    return out


def roi_tables(
    layers: Sequence[Units], concepts: Sequence[str], ranked: Mapping[str, Mapping[str, np.ndarray]], draw: Draw | None
) -> dict[str, Any]:
    """Per ROI known for a concept of the judge: `concept`, and per ranking lists over layers of `group_record` and
    `effect_interval`, beside `others` and `random`, group records of the same concept: units that the other such ROIs rank first
    and this one does not, and the random units.

    layers: one `Units` per layer. ranked: ROI -> ranking -> units [l, k].
    """
    known = {roi: concept for roi in ranked if (concept := roi_concept(roi, concepts)) is not None}
    out: dict[str, Any] = {}
    for roi, concept in known.items():
        record: dict[str, Any] = {"concept": concepts[concept]}
        for ranking, units_lk in ranked[roi].items():
            found = []
            for layer, units in enumerate(layers):
                own = units.rows(units_lk[layer])
                foreign = [ranked[other][ranking][layer] for other, its in known.items() if its != concept]
                rest = np.setdiff1d(np.concatenate(foreign), units_lk[layer]) if foreign else np.zeros(0, np.int64)
                effects, control = (units.effects(rows, concept) for rows in (own, units.control))
                found.append(
                    group_record(units, own, concept)
                    | effect_interval(effects, control, draw)
                    | {
                        "others": group_record(units, units.rows(rest), concept),
                        "random": group_record(units, units.control, concept),
                    }
                )
            record[ranking] = _by_key(found)
        out[roi] = record
    return out


def control_table(layers: Sequence[Units], concepts: Sequence[str]) -> dict[str, Any]:
    """Of the random units, per layer: how many, how many are stable, and per concept aligned counts and mean effects."""
    groups = {c: [group_record(u, u.control, c) for u in layers] for c in range(len(concepts))}
    return {
        "units": [len(u.control) for u in layers],
        "stable": [int(u.judged.stable[u.control].sum()) for u in layers],
        "concepts": {
            concept: {key: [record[key] for record in groups[c]] for key in ("aligned", "effect")}
            for c, concept in enumerate(concepts)
        },
    }


def _by_key(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A list of nested records as nested records of lists."""
    first = records[0]
    return {
        key: _by_key([r[key] for r in records]) if isinstance(value, dict) else [r[key] for r in records]
        for key, value in first.items()
    }
