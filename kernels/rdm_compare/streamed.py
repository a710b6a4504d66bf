"""Spearman of RDMs of any size: exact ranks where they fit a memory budget, else ranks to fine bins in two passes over tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sbm_jax.kernels.rdm.tiles import Tiles
from sbm_jax.kernels.rdm_compare.ranks import average_ranks

# Values, packed keys, order, running sums and ranks of the RDM that is being sorted.
_SORT_BYTES = 36
_MIN_BINS, _MAX_BINS = 1 << 12, 1 << 24  # a float32 tells no more than 2^24 equal steps apart


@dataclass(frozen=True)
class Spearman:
    """rho_mk: [m, k] rank correlations; bound_mk: what they are off by at most (0 where ranks are exact); bins: 0 if exact."""

    rho_mk: np.ndarray
    bound_mk: np.ndarray
    bins: int


def spearman_tiles(a: Sequence[Tiles], b: Sequence[Tiles], *, memory_mb: float = 1024) -> Spearman:
    """Spearman correlation of every RDM in `a` with every one in `b`, each ranked once.

    Exact (average ranks of the float32 dissimilarities) if 8 bytes per pair and RDM and 36 more per pair are within
    `memory_mb`. Otherwise two passes (three where the range is not known): count the values of each RDM in bins of equal width,
    then sum products of the bins' mean ranks. With r the true ranks, s their means in bins, e = r - s: s and e are orthogonal
    and |e|^2 <= sum over bins (c^3 - c) / 12 for c values in a bin, so r is at most atan(|e| / |s|) away from s, and the angle
    between two rank vectors off by at most the sum of both: `bound_mk`. About 2 / bins for values spread evenly over
    the range. Bins are as many as half the budget holds (16 bytes per bin and RDM), up to 2^24; tiles come beside it.

    Raises ValueError for tiles that do not match, fewer than 3 images, NaN or infinity, or a budget too small for 4,096 bins.
    """
    rdms = [*a, *b]
    if not a or not b or any((x.n, x.size) != (rdms[0].n, rdms[0].size) for x in rdms) or rdms[0].n < 3:
        raise ValueError(
            f"spearman_tiles: RDMs must have one number of images (3 or more) and tile size, found {_shapes(rdms)}"
        )
    pairs, budget = rdms[0].pairs, memory_mb * 2**20
    if pairs * (8 * len(rdms) + _SORT_BYTES) <= budget:
        ranks = np.empty((len(rdms), pairs))
        for row, x in zip(ranks, rdms, strict=True):
            row[:] = _exact(x)
        ranks -= (pairs + 1) / 2
        norms = np.linalg.norm(ranks, axis=1)
        rho = _cosines(ranks[: len(a)] @ ranks[len(a) :].T, norms[: len(a)], norms[len(a) :])
        return Spearman(rho, np.zeros_like(rho), 0)
    bins = 1 << max(0, int(np.log2(max(1.0, budget / 2 / (16 * len(rdms))))))
    if bins < _MIN_BINS:
        need = _MIN_BINS * 32 * len(rdms) / 2**20
        raise ValueError(
            f"spearman_tiles: {memory_mb} MB hold {bins} bins for {len(rdms)} RDMs; at least {need:.2f} MB needed"
        )
    return _binned(rdms, len(a), min(bins, _MAX_BINS))


def _binned(rdms: list[Tiles], m: int, bins: int) -> Spearman:
    scales = [_scale(x) for x in rdms]
    tables = np.empty((len(rdms), bins))
    norms, angles = np.zeros(len(rdms)), np.full(len(rdms), np.pi / 2)
    for k, x in enumerate(rdms):
        count = np.zeros(bins, np.int64)
        for values in x.values():
            _check(values)
            count += np.bincount(_places(values, *scales[k], bins), minlength=bins)
        tables[k] = np.cumsum(count) - (count - 1) / 2 - (x.pairs + 1) / 2  # mean rank, centred
        real = count[count > 0].astype(np.float64)
        norms[k] = np.sqrt(np.sum(real * np.square(tables[k][count > 0])))
        if norms[k] > 0:
            angles[k] = np.arctan(np.sqrt(np.sum(real**3 - real) / 12) / norms[k])
    products = np.zeros((m, len(rdms) - m))
    for values in zip(*(x.values() for x in rdms), strict=True):
        ranks = np.stack([t[_places(v, *scale, bins)] for t, v, scale in zip(tables, values, scales, strict=True)])
        products += ranks[:m] @ ranks[m:].T
    rho = np.clip(_cosines(products, norms[:m], norms[m:]), -1, 1)
    angle, slack = np.arccos(rho), angles[:m, None] + angles[m:]
    ends = [np.cos(np.clip(angle + sign * slack, 0, np.pi)) for sign in (-1, 1)]
    return Spearman(rho, np.maximum(ends[0] - rho, rho - ends[1]), bins)


def _scale(tiles: Tiles) -> tuple[np.float32, np.float32]:
    """Lowest value, and highest minus lowest (1 if they are the same)."""
    if tiles.limits is not None:
        low, high = tiles.limits
    else:
        low, high = np.inf, -np.inf
        for values in tiles.values():
            if len(values):
                _check(values)
                low, high = min(low, float(values.min())), max(high, float(values.max()))
    return np.float32(low), np.float32(high - low if high > low else 1)


def _places(values: np.ndarray, low: np.float32, width: np.float32, bins: int) -> np.ndarray:
    """The bin of each value. Rounding keeps the order, and only the order counts."""
    return np.clip((values - low) / width * np.float32(bins), 0, bins - 1).astype(np.int32)


def _exact(tiles: Tiles) -> np.ndarray:
    values = np.empty(tiles.pairs, np.float32)
    start = 0
    for part in tiles.values():
        _check(part)
        values[start : start + len(part)] = part
        start += len(part)
    return average_ranks(values)


def _check(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError("spearman_tiles: RDMs hold NaN or infinity; leave out those images in all RDMs first")


def _cosines(products_mk: np.ndarray, norms_m: np.ndarray, norms_k: np.ndarray) -> np.ndarray:
    """0 for a constant RDM."""
    scale = np.outer(norms_m, norms_k)
    return np.divide(products_mk, scale, out=np.zeros_like(products_mk), where=scale > 0)


def _shapes(rdms: Sequence[Tiles]) -> str:
    return ", ".join(sorted({f"{x.n} images in tiles of {x.size}" for x in rdms})) or "none"
