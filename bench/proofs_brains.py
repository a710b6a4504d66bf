"""Simulated brains whose wiring is known, and the search of the program over them; shared by `proofs.py` and the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sbm_jax.stages.null import Null
from sbm_jax.stages.ranking import Engine
from sbm_jax.stages.search import Search

REPEATS = 3
_FIRING, _LEAST = 0.3, 0.5  # a sparse unit fires on this share of images, with at least this
_MEAN = _FIRING * (_LEAST + 1)
_SD = (_FIRING * (_LEAST**2 + 2 * _LEAST + 2) - _MEAN**2) ** 0.5


@dataclass(frozen=True)
class Brain:
    """codes: float32 [n, u] per layer, units independent of each other, population mean 0 and variance 1. y: float32 [n, v].
    unit [v]: the unit that drives a voxel, counted over layers (-1: none). r [v]: population r between the two.
    """

    codes: list[np.ndarray]
    y: np.ndarray
    unit: np.ndarray
    r: np.ndarray


def unit_codes(rng: np.random.Generator, shape: tuple[int, ...], sparse: bool = True) -> np.ndarray:
    """Independent codes of population mean 0 and variance 1: .5 plus an exponential on 30 % of images and 0 on the others,
    standardised; or normal.
    """
    if not sparse:
        return rng.standard_normal(shape)
    return (np.where(rng.random(shape) < _FIRING, _LEAST + rng.exponential(size=shape), 0) - _MEAN) / _SD


def brain(
    rng: np.random.Generator,
    n: int,
    ncsnr_v: np.ndarray,
    *,
    layers: int = 2,
    units: int = 60,
    common: float = 0.0,
    sparse: bool = True,
) -> Brain:
    """Voxels that follow one random unit each: ncsnr z + noise, noise of variance 1 per trial averaged over REPEATS trials, of
    which a share `common` is the same for all voxels. r = sqrt(NC), NC = ncsnr² / (ncsnr² + 1 / REPEATS).
    """
    flat = unit_codes(rng, (n, layers * units), sparse).astype(np.float32)
    unit_v = rng.integers(0, layers * units, len(ncsnr_v))
    noise = (1 - common) ** 0.5 * rng.standard_normal((n, len(ncsnr_v))) + common**0.5 * rng.standard_normal((n, 1))
    y = ncsnr_v * flat[:, unit_v] + noise / REPEATS**0.5
    r = np.sqrt(ncsnr_v**2 / (ncsnr_v**2 + 1 / REPEATS))
    codes = [flat[:, layer * units : (layer + 1) * units] for layer in range(layers)]
    return Brain(codes, y.astype(np.float32), np.where(ncsnr_v > 0, unit_v, -1), r)


def search(one: Brain, n_select: int, shuffles: int, seed: int, max_shuffles: int = 0) -> dict[str, np.ndarray]:
    """The arrays of the align store: units selected on the first `n_select` images and scored on the others."""
    n, v = one.y.shape
    taken = np.ones(v, bool)
    null = Null(taken, n_select, n - n_select, shuffles=shuffles, max_shuffles=max_shuffles, seed=seed)
    run = Search(v, len(one.codes), one.codes[0].shape[1], 1, 1, Engine(None, 1 << 27), null)
    while run.begin():
        run.start(np.arange(v), one.y[:n_select], one.y[n_select:])
        for layer, codes in enumerate(one.codes):
            run.piece(layer, 0, codes[:n_select], codes[n_select:])
        run.end()
    return run.results()


@dataclass(frozen=True)
class Estimate:
    """A mean over independent experiments and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.error:.4f}"


def estimate(values: Iterable[float]) -> Estimate:
    """Mean over experiments; standard error from their spread, so that voxels within one need not be independent."""
    x = np.array(list(values), np.float64)
    return Estimate(float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5))


def binomial_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z, p = 1.959964, hits / n
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return float((middle - half) / (1 + z**2 / n)), float((middle + half) / (1 + z**2 / n))


def correlations(a_nv: np.ndarray, y_nv: np.ndarray) -> np.ndarray:
    """r [v] of columns."""
    a, y = a_nv - a_nv.mean(axis=0), y_nv - y_nv.mean(axis=0)
    return (a * y).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (y**2).sum(axis=0))


def experiments(count: int, seed: int, one: Callable[[np.random.Generator, int], dict[str, Any]]) -> dict[str, list]:
    """`one(rng, i)` for i in 0..count-1 with independent generators; what it returns, key by key."""
    found = [one(np.random.default_rng([seed, i]), i) for i in range(count)]
    return {key: [record[key] for record in found] for key in found[0]}
