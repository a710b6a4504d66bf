"""Curves over layers with intervals over units, and the layer at which a concept sets in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sbm_jax.stages.explain_tables import LEVEL, Units
from sbm_jax.statistics import percentile_interval

ONSET_ALPHA = 0.05  # chance that a concept which is nowhere above the random units gets an onset at all


def resample(n: int, draws: int, key: Sequence[int]) -> np.ndarray:
    """float64 [draws, n]: how often each of n units is in a draw with replacement, over n."""
    return np.random.default_rng(list(key)).multinomial(n, np.full(n, 1 / n), size=draws) / n


def layer_draws(
    units: Units, rows: np.ndarray, concepts: Sequence[int], weights_bn: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Of one group of units at one layer, per concept: `units`, `stable` [] and `aligned`, `rate`, `effect` [c] as measured,
    and, with weights, those three in every draw, `drawn_aligned`, ... [b, c]. Effects are NaN without a judged unit.
    """
    said = units.judged
    known = said.judged[rows] > 0
    shares = said.counts[rows] / np.maximum(said.judged[rows], 1)[:, None]
    effects = np.where(known[:, None], shares - units.base, 0)[:, list(concepts)]
    aligned = (
        np.stack([units.aligned(rows, c) for c in concepts], axis=1) if len(rows) else np.zeros((0, len(concepts)))
    )
    stable = said.stable[rows]
    columns = np.column_stack([aligned, effects, stable, known]).astype(np.float64)
    c = len(concepts)

    def read(means: np.ndarray) -> dict[str, np.ndarray]:
        hits, stably = means[..., :c], means[..., 2 * c, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "aligned": np.rint(hits * len(rows)),
                "rate": hits / stably,
                "effect": means[..., c : 2 * c] / means[..., 2 * c + 1, None],
            }

    if not len(rows):
        nan = np.full(c, np.nan)
        return {"units": np.array(0), "stable": np.array(0), "aligned": np.zeros(c), "rate": nan, "effect": nan}
    out = {"units": np.array(len(rows)), "stable": np.array(int(stable.sum())), **read(columns.mean(axis=0))}
    if weights_bn is not None:
        out |= {f"drawn_{key}": x for key, x in read(weights_bn @ columns).items()}
    return out


def curve(
    layers: Sequence[dict[str, np.ndarray]], control: Sequence[dict[str, np.ndarray]], column: int
) -> dict[str, Any]:
    """One concept's curve from `layer_draws` of a group and of the random units: lists over layers `units`, `stable`, `aligned`,
    `rate`, `effect` and `gain`, the effect minus the random units', with `_low` and `_high`; `onset` of the gain, and
    `onset_aligned`, of the share of units that are aligned minus the random units' share.
    """
    out: dict[str, Any] = {key: [int(d[key]) for d in layers] for key in ("units", "stable")}
    for key in ("aligned", "rate", "effect"):
        out[key] = [float(d[key][column]) for d in layers]
    gain = np.array([d["effect"][column] - r["effect"][column] for d, r in zip(layers, control, strict=True)])
    out["gain"] = gain.tolist()
    if not any("drawn_effect" in d for d in layers):
        return out
    draws = next(d["drawn_effect"].shape[0] for d in layers if "drawn_effect" in d)

    def drawn(d: dict[str, np.ndarray], key: str) -> np.ndarray:
        return d[f"drawn_{key}"][:, column] if f"drawn_{key}" in d else np.full(draws, np.nan)

    for key in ("aligned", "rate", "effect"):
        ends = percentile_interval(np.stack([drawn(d, key) for d in layers], axis=1), LEVEL)
        out[f"{key}_low"], out[f"{key}_high"] = (x.tolist() for x in ends)
    drawn_gain = np.stack(
        [drawn(d, "effect") - drawn(r, "effect") for d, r in zip(layers, control, strict=True)], axis=1
    )
    ends = percentile_interval(drawn_gain, LEVEL)
    out["gain_low"], out["gain_high"] = (x.tolist() for x in ends)
    pairs = list(zip(layers, control, strict=True))
    share = np.array([_share(d, d["aligned"][column]) - _share(r, r["aligned"][column]) for d, r in pairs])
    drawn_share = np.stack([_share(d, drawn(d, "aligned")) - _share(r, drawn(r, "aligned")) for d, r in pairs], axis=1)
    return out | {"onset": onset(gain, drawn_gain), "onset_aligned": onset(share, drawn_share)}


def _share(d: dict[str, np.ndarray], aligned: np.ndarray) -> np.ndarray:
    return aligned / d["units"] if d["units"] else np.full(np.shape(aligned), np.nan)


def onset(gain_l: np.ndarray, drawn_bl: np.ndarray) -> dict[str, Any]:
    """The first layer whose gain over the random units is above 0 with a bound that holds for all layers at once.

    lower_l = gain_l - c sd_l, sd_l over the draws and c the 95 % quantile over draws of max_l (drawn_bl - gain_l) / sd_l: with no
    gain at any layer the chance of an onset is 5 %. layer: None where no bound is above 0. low, high: 95 % interval of the
    layer when the same rule, with the same bound, is applied to every draw; None at an end where the draws have no onset.
    found: share of draws that have one. `layer` is where the gain can be told, not where it begins: fewer units, later onset.
    """
    known = np.isfinite(gain_l) & np.isfinite(drawn_bl).all(axis=0)
    none = {"layer": None, "low": None, "high": None, "found": 0.0, "lower": [float("nan")] * len(gain_l)}
    if not known.any():
        return none
    sd = np.where(known, drawn_bl.std(axis=0, ddof=1), np.inf)
    moves = np.where(known & (sd > 0), (drawn_bl - gain_l) / np.where(sd > 0, sd, 1), -np.inf)
    highest = moves.max(axis=1)
    critical = float(np.quantile(highest, 1 - ONSET_ALPHA)) if np.isfinite(highest).all() else 0.0
    margin = np.where(known, critical * np.where(known, sd, 0), np.inf)
    lower = np.where(known, gain_l - margin, np.nan)
    above = drawn_bl - margin > 0
    first = np.where(above.any(axis=1), above.argmax(axis=1), len(gain_l))
    low, high = (int(x) for x in np.quantile(first, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf"))
    passed = np.flatnonzero(np.nan_to_num(lower, nan=-1) > 0)
    return {
        "layer": int(passed[0]) if len(passed) else None,
        "low": low if low < len(gain_l) else None,
        "high": high if high < len(gain_l) else None,
        "found": float((first < len(gain_l)).mean()),
        "lower": lower.tolist(),
    }


def gallery(units: Units, rows: np.ndarray, concept: int, most: int) -> list[dict[str, int]]:
    """The units of a group with most exemplars of the concept: unit, its row in the exemplar lists, and how many show it."""
    count = units.judged.counts[rows, concept]
    best = rows[np.lexsort((rows, -units.judged.effect[rows], -count))][:most]
    return [
        {"unit": int(units.units[row]), "row": int(row), "count": int(units.judged.counts[row, concept])}
        for row in best
        if units.judged.counts[row, concept] > 0
    ]
