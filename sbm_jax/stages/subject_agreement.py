"""Whether two people's regions prefer the same units, though they saw other images."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import dense_codes, n_units, read_codes, unit_columns
from sbm_jax.stages.roi import roi_means
from sbm_jax.stages.roi_rankings import ranking_name
from sbm_jax.store.store import Store


class RoiAgreement(NamedTuple):
    """Of one ROI and mode, over pairs of subjects and layers, float64 [pairs x layers]. jaccard: of the sets of units with the
    largest contrast (None: the mode has no ranking in the ROI store); jaccard_chance: of random sets of that size; r: of the
    contrast of all units that vary in both.
    """

    mode: str
    roi: str
    jaccard: np.ndarray | None
    jaccard_chance: float
    r: np.ndarray


def roi_agreement(ctx: Context, modes: Sequence[str]) -> Iterator[RoiAgreement]:
    """For every ROI that two subjects have."""
    codes, saes, roi = ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes), ctx.open(ctx.specs.roi)
    brains = {s.name: roi_means(ctx, s) for s in ctx.subjects}
    named = {name: brain["rois"] for name, brain in brains.items()}
    common = [r for r in dict.fromkeys(itertools.chain(*named.values())) if sum(r in x for x in named.values()) > 1]
    for mode in modes:
        units = n_units(codes, saes, mode, ctx.facts.hooks[0])
        scores = {name: _contrasts(ctx, codes, mode, units, brain) for name, brain in brains.items()}
        for name in common:
            who = [s for s in brains if name in named[s]]
            pairs = list(itertools.combinations(who, 2))
            r = [
                _pearson(scores[a][layer][:, named[a].index(name)], scores[b][layer][:, named[b].index(name)])
                for a, b in pairs
                for layer in range(len(ctx.facts.hooks))
            ]
            jaccard, size = None, 0
            if mode in ctx.config.roi.modes:
                tops = {s: roi.read(f"{ranking_name(mode, s, name, 'contrast')}_units") for s in who}
                size = tops[who[0]].shape[1]
                jaccard = np.array(
                    [jaccard_index(x, y) for a, b in pairs for x, y in zip(tops[a], tops[b], strict=True)]
                )
            yield RoiAgreement(mode, name, jaccard, random_jaccard(size, units), np.array(r))


def _contrasts(ctx: Context, codes: Store, mode: str, units: int, brain: dict[str, Any]) -> list[np.ndarray]:
    """Per layer the contrast of every unit with every ROI on the images that select, [u, rois]; NaN for units that do not vary."""
    rows, y = brain["parts"]["select"]
    out = []
    for hook in ctx.facts.hooks:
        columns = unit_columns(dense_codes(read_codes(codes, mode, hook, rows, units)))
        found = columns.T @ y[:, len(brain["rois"]) :]
        found[~columns.any(axis=0)] = np.nan
        out.append(found)
    return out


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 3 or not np.ptp(x[both]) or not np.ptp(y[both]):
        return float("nan")
    return float(np.corrcoef(x[both].astype(np.float64), y[both].astype(np.float64))[0, 1])


def jaccard_index(x: np.ndarray, y: np.ndarray) -> float:
    """|x and y| / |x or y| of two sets of units."""
    shared = len(np.intersect1d(x, y))
    return shared / (len(x) + len(y) - shared)


def random_jaccard(size: int, units: int) -> float:
    """Its expectation for two random sets of `size` of `units`: over the hypergeometric number of common ones."""
    if not size:
        return float("nan")
    from scipy.stats import hypergeom

    shared = np.arange(size + 1)
    return float(np.sum(hypergeom.pmf(shared, units, size, size) * shared / (2 * size - shared)))
