"""Curves over layers with intervals over units, and the layer at which a concept sets in."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sbm_jax.stages.explain_tables import LEVEL, Units
from sbm_jax.statistics import ALPHA, familywise_p, familywise_threshold, percentile_interval

_RANDOM, _SPLIT = 0, 1  # streams of random numbers; groups have those from 2 on


def resample(n: int, draws: int, key: Sequence[int]) -> np.ndarray:
    """float64 [draws, n]: how often each of n units is in a draw with replacement, over n."""
    return np.random.default_rng(list(key)).multinomial(n, np.full(n, 1 / n), size=draws) / n


@functools.lru_cache(maxsize=256)
def splits(own: int, random: int, draws: int, key: tuple[int, ...]) -> np.ndarray:
    """int32 [draws, random]: which of own + random units play the random ones, drawn without replacement."""
    order = np.random.default_rng(list(key)).random((draws, own + random), np.float32)
    return np.argpartition(order, max(random - 1, 0), axis=1)[:, :random].astype(np.int32)


@dataclass(frozen=True)
class Group:
    """What one judge said of a group of units at one layer, for some concepts. stable: bool [w]. aligned: bool [w, c]. effect:
    float64 [w, c], share of exemplars minus base rate; NaN where the judge has seen none.
    """

    stable: np.ndarray
    aligned: np.ndarray
    effect: np.ndarray

    def column(self, c: int) -> Group:
        return Group(self.stable, self.aligned[:, c : c + 1], self.effect[:, c : c + 1])


def group_of(units: Units, rows: np.ndarray, concepts: Sequence[int]) -> Group:
    said = units.judged
    judged = said.judged[rows, None]
    chosen = list(concepts)
    share = said.counts[rows][:, chosen] / np.maximum(judged, 1)
    aligned = said.stable[rows, None] & (said.concept[rows, None] == np.array(chosen, np.int64))
    return Group(said.stable[rows], aligned, np.where(judged > 0, share - units.base[chosen], np.nan))


def means(group: Group, weights_bw: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Per concept `aligned` (how many), `rate` (aligned / stable) and `effect` (mean) [c]; with weights (`resample`) of every draw
    [b, c]. NaN without a unit.
    """
    n, c = group.aligned.shape
    if n == 0:
        shape = (c,) if weights_bw is None else (len(weights_bw), c)
        return {"aligned": np.zeros(shape), "rate": np.full(shape, np.nan), "effect": np.full(shape, np.nan)}
    weights = np.full((1, n), 1 / n) if weights_bw is None else weights_bw
    known = np.isfinite(group.effect)
    with np.errstate(invalid="ignore", divide="ignore"):
        aligned = weights @ group.aligned.astype(np.float64)
        out = {
            "aligned": np.rint(aligned * n),
            "rate": aligned / (weights @ group.stable.astype(np.float64))[:, None],
            "effect": (weights @ np.where(known, group.effect, 0)) / (weights @ known.astype(np.float64)),
        }
    return {key: x[0] for key, x in out.items()} if weights_bw is None else out


def curve(own: Sequence[Group], random: Sequence[Group], draws: int, seed: int, stream: int) -> list[dict[str, Any]]:
    """Per concept, from a group and the random units of every layer: lists over layers `units`, `stable`, `aligned`, `rate`,
    `effect` and `gain`, the effect minus the random units', with `_low` and `_high` (95 % of draws of units, both groups drawn,
    layers independently); `onset` of the gain, and `onset_aligned`, of the share of aligned units minus the random units'.
    """
    concepts = own[0].aligned.shape[1]
    found, control = [means(g) for g in own], [means(g) for g in random]
    out: list[dict[str, Any]] = [
        {
            "units": [len(g.stable) for g in own],
            "stable": [int(g.stable.sum()) for g in own],
            **{key: [float(f[key][c]) for f in found] for key in ("aligned", "rate", "effect")},
            "gain": [float(f["effect"][c] - r["effect"][c]) for f, r in zip(found, control, strict=True)],
        }
        for c in range(concepts)
    ]
    if not draws:
        return out
    drawn = [_drawn(g, draws, [seed, layer, stream]) for layer, g in enumerate(own)]
    other = [_drawn(g, draws, [seed, layer, _RANDOM]) for layer, g in enumerate(random)]
    welch = {
        key: [
            permuted(getattr(g, key), getattr(r, key), draws, (seed, layer, stream, _SPLIT))
            for layer, (g, r) in enumerate(zip(own, random, strict=True))
        ]
        for key in ("effect", "aligned")
    }
    sizes = [(max(len(g.stable), 1), max(len(r.stable), 1)) for g, r in zip(own, random, strict=True)]
    for c, record in enumerate(out):
        gain = np.stack([d["effect"][:, c] - o["effect"][:, c] for d, o in zip(drawn, other, strict=True)], axis=1)
        bands = {key: np.stack([d[key][:, c] for d in drawn], axis=1) for key in ("aligned", "rate", "effect")}
        for key, values in (bands | {"gain": gain}).items():
            ends = percentile_interval(values, LEVEL)
            record[f"{key}_low"], record[f"{key}_high"] = (x.tolist() for x in ends)
        shares = [
            d["aligned"][:, c] / n - o["aligned"][:, c] / m for d, o, (n, m) in zip(drawn, other, sizes, strict=True)
        ]
        record["onset"] = onset([w.column(c) for w in welch["effect"]], gain)
        record["onset_aligned"] = onset([w.column(c) for w in welch["aligned"]], np.stack(shares, axis=1))
    return out


def _drawn(group: Group, draws: int, key: list[int]) -> dict[str, np.ndarray]:
    n = len(group.stable)
    return means(group, resample(n, draws, [*key, n]) if n else np.zeros((draws, 0)))


@dataclass(frozen=True)
class Welch:
    """gain: float64 [c], difference of two means. error: [c], its standard error by Welch. null: [b, c], gain / error with the
    units of both groups dealt out again. NaN, or -inf in the null, where a group has fewer than two units.
    """

    gain: np.ndarray
    error: np.ndarray
    null: np.ndarray

    def column(self, c: int) -> Welch:
        return Welch(self.gain[c : c + 1], self.error[c : c + 1], self.null[:, c : c + 1])

    @property
    def t(self) -> np.ndarray:
        return _ratio(self.gain, self.error)


def permuted(own_wc: np.ndarray, random_mc: np.ndarray, draws: int, key: tuple[int, ...]) -> Welch:
    """Difference of means, studentised, and its distribution when it is chance which units are the random ones. With equal
    distributions tests against it are exact; with others they hold for many units (Janssen 1997). Units with NaN are left out.
    """
    known = (np.isfinite(x).all(axis=1) for x in (own_wc, random_mc))
    own, random = (x[rows].astype(np.float64) for x, rows in zip((own_wc, random_mc), known, strict=True))
    n, m, c = len(own), len(random), own.shape[1]
    if min(n, m) < 2:
        return Welch(np.full(c, np.nan), np.full(c, np.nan), np.full((draws, c), -np.inf))
    pooled = np.concatenate([own, random])
    pooled = pooled - pooled.mean(axis=0)
    whole, square = pooled.sum(axis=0), (pooled**2).sum(axis=0)

    def parts(sums: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rest, rest_square = whole - sums, square - squares
        variance = np.maximum(squares - sums**2 / m, 0) / (m - 1) / m
        variance += np.maximum(rest_square - rest**2 / n, 0) / (n - 1) / n
        return rest / n - sums / m, np.sqrt(np.where(variance > 1e-18, variance, 0))

    gain, error = parts(pooled[n:].sum(axis=0), (pooled[n:] ** 2).sum(axis=0))
    sums, squares = np.zeros((draws, c)), np.zeros((draws, c))
    for place in splits(n, m, draws, key).T:  # never [b, m, c]
        sums += pooled[place]
        squares += pooled[place] ** 2
    return Welch(gain, error, _ratio(*parts(sums, squares)))


def _ratio(gain: np.ndarray, error: np.ndarray) -> np.ndarray:
    """gain / error; 0 where both are 0, without limit where only the error is."""
    sure = np.where(np.isnan(gain) | (gain == 0), gain, np.copysign(np.inf, gain))
    return np.where(error > 0, gain / np.where(error > 0, error, 1), sure)


def onset(layers: Sequence[Welch], drawn_bl: np.ndarray) -> dict[str, Any]:
    """The first layer at which a gain over the random units is significant, family-wise over the layers.

    p_l: `familywise_p` of t_l = gain / error against the maximum over layers of the permuted ones. layer: the first with p at
    most .05, None where none is; without a gain at any layer an onset has probability .05 at most. low, high: 95 % interval of the
    layer over the draws of units, which pass where their gain / error exceeds what .05 asks for; None at an end where the
    draws have no onset. found: share of draws with one. It is the layer from which the gain can be told, not where it begins.
    """
    t, error = (np.array([float(getattr(w, key)[0]) for w in layers]) for key in ("t", "error"))
    null = np.stack([w.null[:, 0] for w in layers], axis=1)
    p = familywise_p(t, null)
    threshold = familywise_threshold(null, ALPHA)
    with np.errstate(invalid="ignore"):
        above = np.isfinite(t) & (_ratio(drawn_bl, np.nan_to_num(error)) > threshold)
    first = np.where(above.any(axis=1), above.argmax(axis=1), len(t))
    low, high = (int(x) for x in np.quantile(first, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf"))
    passed = np.flatnonzero(np.nan_to_num(p, nan=1) <= ALPHA)
    return {
        "layer": int(passed[0]) if len(passed) else None,
        "low": low if low < len(t) else None,
        "high": high if high < len(t) else None,
        "found": float((first < len(t)).mean()),
        "p": p.tolist(),
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
