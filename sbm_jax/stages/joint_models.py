"""Models of a voxel from several units: matching pursuit over its best units, ridge over one set of predictors for all.

Everything that is chosen (candidates, atoms and their number, predictors, penalty, layer) is chosen on the fitting images alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sbm_jax.config import JointConfig
from sbm_jax.errors import UserError
from sbm_jax.kernels import SparseCodes, ridge
from sbm_jax.kernels.codes import rows_of
from sbm_jax.kernels.cosine_topk.paired import chosen_columns
from sbm_jax.kernels.pursuit.xla import pursue
from sbm_jax.stages.image_sets import LEAST, ImageSets
from sbm_jax.stages.inputs import Codes
from sbm_jax.stages.ranking import Engine, Ranking, from_keys

Responses = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Split:
    """Over a subject's images, bool [n]: `fit` and its two parts, `inner` (fits first) and `validation` (chooses what is left to
    choose); `score`, never looked at before (None: nothing is kept to score on).
    """

    fit: np.ndarray
    score: np.ndarray | None
    inner: np.ndarray
    validation: np.ndarray


def splits(sets: ImageSets, config: JointConfig, name: str) -> list[Split]:
    """First the split whose `fit` are the images of the dictionary, then one per fold where `align.select` is kfold.

    Raises UserError where too few images are left to fit and to validate on.
    """
    out = [_split(sets.select, sets.held_out, config, name)]
    if sets.folds is not None:
        out += [_split(sets.folds != f, sets.folds == f, config, name) for f in range(sets.folds.max() + 1)]
    return out


def _split(fit: np.ndarray, score: np.ndarray | None, config: JointConfig, name: str) -> Split:
    rows = np.flatnonzero(fit)
    if len(rows) < 2 * LEAST:
        raise UserError(
            f"{name}: {len(rows)} images are left to fit joint models on; at least {2 * LEAST} are needed to fit on some and "
            "choose on the others. Set joint.modes to [] to leave these models out."
        )
    count = min(max(LEAST, round(config.validation * len(rows))), len(rows) - LEAST)
    validation = np.zeros_like(fit)
    validation[np.random.default_rng([config.seed, len(rows)]).permutation(rows)[:count]] = True
    return Split(fit, score, fit & ~validation, validation)


@dataclass(frozen=True)
class Pool:
    """The candidates of one mode: codes of the subject's images by layer, each [n, u]. Units count through the layers."""

    layers: Sequence[Codes]
    units_per_layer: int

    @property
    def n_units(self) -> int:
        return len(self.layers) * self.units_per_layer

    def columns(self, units_w: np.ndarray) -> np.ndarray:
        """Codes of some units on all images, float32 [w, n]."""
        layer_w, unit_w = np.divmod(units_w, self.units_per_layer)
        n = self.layers[0].n_images if isinstance(self.layers[0], SparseCodes) else len(self.layers[0])
        out = np.empty((len(units_w), n), np.float32)
        for layer in np.unique(layer_w):
            mine = layer_w == layer
            out[mine] = chosen_columns(self.layers[layer], unit_w[mine])
        return out

    def best(self, y_nv: np.ndarray, rows_n: np.ndarray, k: int, engine: Engine) -> tuple[np.ndarray, np.ndarray]:
        """The k units most similar to every voxel over some of the images, as `align` ranks them: similarities float32 [v, k],
        0 for constant units, and units int32 [v, k].
        """
        rows = np.flatnonzero(rows_n)
        responses = engine.prepare(y_nv[rows])
        everyone, ranking = np.arange(y_nv.shape[1]), Ranking(y_nv.shape[1], k)
        for layer, codes in enumerate(self.layers):
            part = rows_of(codes, rows)
            found = engine.best(part, responses, min(k, self.units_per_layer))
            units = found.units_vk + layer * self.units_per_layer
            ranking.bring(everyone, found.keys_vk, units, found.signs_vk, None)
        return from_keys(ranking.keys), ranking.units


@dataclass(frozen=True)
class Pursued:
    """Nested models of 1..K atoms of v voxels. units [v, K] (-1: no further atom); in_sample, held_out [v, K] r on the images of
    the fit and those that score; number [v]: how many atoms are best on the validation images, ties to fewer.
    """

    units: np.ndarray
    in_sample: np.ndarray
    held_out: np.ndarray
    number: np.ndarray


def pursue_split(
    pool: Pool, y_nv: np.ndarray, split: Split, k: int, atoms: int, mass_2u: np.ndarray, engine: Engine
) -> Pursued:
    """Candidates and pursuit of a block of voxels [n, v]: on `inner` images for the number of atoms, on all of `fit` for the model.

    mass_2u float64 [2, u] is added to: each unit's r^2 summed over the voxels that have it among their candidates, of the inner
    and of the whole fit.
    held_out is NaN where nothing scores.
    """
    lists = []
    for mass_u, fit in zip(mass_2u, (split.inner, split.fit), strict=True):
        r, units = pool.best(y_nv, fit, k, engine)
        mass_u += np.bincount(units.ravel(), np.maximum(r, 0).ravel().astype(np.float64) ** 2, pool.n_units)
        lists.append(units)
    _, _, validated = _pursued(pool, y_nv, lists[0], split.inner, split.validation, atoms, engine.memory_bytes)
    score = split.fit if split.score is None else split.score  # r there is thrown away
    units, in_sample, held_out = _pursued(pool, y_nv, lists[1], split.fit, score, atoms, engine.memory_bytes)
    if split.score is None:
        held_out = np.full_like(held_out, np.nan)
    return Pursued(units, in_sample, held_out, 1 + validated.argmax(axis=1).astype(np.int32))


def _pursued(
    pool: Pool,
    y_nv: np.ndarray,
    units_vk: np.ndarray,
    fit: np.ndarray,
    score: np.ndarray,
    atoms: int,
    memory_bytes: int,
) -> tuple[np.ndarray, ...]:
    parts = []
    for block in _blocks(units_vk, max(units_vk.shape[1], memory_bytes // (24 * len(y_nv)))):
        wanted, place = np.unique(units_vk[block], return_inverse=True)
        place = place.reshape(units_vk[block].shape)
        y_vn = np.ascontiguousarray(y_nv[:, block].T)
        at, *scores = pursue(pool.columns(wanted), y_vn, place, fit, score, atoms, memory_bytes // 4)
        units = np.where(at >= 0, np.take_along_axis(units_vk[block], np.maximum(at, 0), axis=1), -1)
        parts.append((units, *scores))
    return tuple(np.concatenate(x) for x in zip(*parts, strict=True))


def _blocks(units_vk: np.ndarray, most: int) -> Iterator[slice]:
    """Blocks of voxels whose lists name at most `most` units together."""
    start, known = 0, set()
    for v, row in enumerate(units_vk.tolist()):
        known.update(row)
        if len(known) > most and v > start:
            yield slice(start, v)
            start, known = v, set(row)
    yield slice(start, len(units_vk))


def strongest(mass_u: np.ndarray, p: int) -> np.ndarray:
    """The p units with most r^2 over voxels, ties to the lowest; fewer where no voxel lists any other. Ascending, int [<= p]."""
    best = np.argsort(-mass_u, kind="stable")[:p]
    return np.sort(best[mass_u[best] > 0])


@dataclass
class Ridged:
    """Per voxel [v]: r on the images that score (NaN: none do), penalty, and which of the sets of predictors."""

    held_out: np.ndarray
    penalty: np.ndarray
    chosen: np.ndarray


def ridge_split(
    sets: Sequence[tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]],
    responses: Responses,
    n_voxels: int,
    split: Split,
    penalties: Sequence[float],
    memory_bytes: int,
    advance: Callable[[], None] = lambda: None,
) -> Ridged:
    """One of several sets of predictors and a penalty per voxel, by r on the validation images; then the fit on all of `fit`.

    sets: for each two functions that give float32 [n, p] over all images, for the inner and for the whole fit.
    responses: voxel numbers to responses [n, v]. Ties go to the first set and the largest penalty.
    """
    falling = np.sort(np.asarray(penalties, np.float32))[::-1].copy()
    best = np.full(n_voxels, -np.inf, np.float32)
    out = Ridged(np.full(n_voxels, np.nan, np.float32), np.zeros(n_voxels, np.float32), np.zeros(n_voxels, np.int32))
    everyone = np.arange(n_voxels)
    for i, (features, _) in enumerate(sets):
        x = features()
        spectrum = ridge.spectrum(x[split.inner], x[split.validation])
        for voxels in _even(everyone, len(x) + x.shape[1], memory_bytes):
            y = responses(voxels)
            r = np.asarray(ridge.path(spectrum, y[split.inner], y[split.validation], falling))
            top = r.argmax(axis=0)
            highest = r.max(axis=0)
            better = highest > best[voxels]
            best[voxels] = np.where(better, highest, best[voxels])
            out.penalty[voxels] = np.where(better, falling[top], out.penalty[voxels])
            out.chosen[voxels] = np.where(better, i, out.chosen[voxels])
        advance()
    for i, (_, features) in enumerate(sets if split.score is not None else ()):
        mine = np.flatnonzero(out.chosen == i)
        if not len(mine):
            continue
        x = features()
        spectrum = ridge.spectrum(x[split.fit], x[split.score])
        for voxels in _even(mine, len(x) + x.shape[1], memory_bytes):
            y = responses(voxels)
            out.held_out[voxels] = ridge.score(spectrum, y[split.fit], y[split.score], out.penalty[voxels])
    return out


def _even(voxels: np.ndarray, rows: int, memory_bytes: int) -> Iterator[np.ndarray]:
    size = max(1, memory_bytes // (16 * rows))
    return (voxels[start : start + size] for start in range(0, len(voxels), size))
