"""joint: what several units say of a voxel together, beside its best one: matching pursuit, and ridge at an equal budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from sbm_jax.axes import WIDTH_MODES
from sbm_jax.config import JointConfig
from sbm_jax.errors import UserError
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.image_sets import image_sets
from sbm_jax.stages.inputs import dense_codes, n_units, read_betas, read_codes, responsive, subject_images
from sbm_jax.stages.joint_models import (
    Pool,
    Pursued,
    Responses,
    Ridged,
    Split,
    pursue_split,
    ridge_split,
    splits,
    strongest,
)
from sbm_jax.stages.ranking import Engine, make_engine
from sbm_jax.store.store import Store


def run(ctx: Context, name: str) -> Store:
    """Write the joint models of one subject's responsive voxels. Per mode (v voxels, K = joint.atoms, p predictors):

    `omp_units` [v, K] the atoms in the order they were taken, as layer x units + unit (-1: no further one, or voxel left
    out); `omp_in_sample`, `omp_held_out` float32 [K, v], r of the model of 1..K atoms; `omp_atoms` [v] how many are best on
    validation images (0: left out) and `omp_chosen` [v], held-out r of the number chosen so; `ridge_units` [p] the predictors,
    `ridge_lambda`, `ridge_held_out` [v]. Where a layer has as many features as the backbone is wide (axes.WIDTH_MODES)
    `ridge_layer`, `ridge_layer_lambda`, `ridge_layer_held_out` [v] are of all features of one layer, chosen per voxel (-1: left
    out).

    Without held-out images (align.select: none) held-out arrays are NaN. Cross-fitted (kfold) they are means over folds, in
    each of which everything was chosen and fitted outside of it; units, numbers and penalties are those of all images.
    `joint.json`: how many images, candidates and predictors there were, and how many voxels took a penalty at either end.
    Raises UserError where no voxel is responsive or too few images are left.
    """
    config = ctx.config.joint
    codes, saes = ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes)
    betas = ctx.open(ctx.specs.betas[name])
    images, hooks, align = subject_images(betas), ctx.facts.hooks, ctx.config.align
    parts = splits(image_sets(align, name, images.shared), config, name)
    voxels = np.flatnonzero(responsive(betas, align.min_ncsnr))
    if not len(voxels):
        raise UserError(
            f"{name}: no voxel reaches align.min_ncsnr = {align.min_ncsnr:g}, so there is none to model. Lower it."
        )
    n_voxels = betas.array("betas").shape[0]
    engine = make_engine(align, ctx.devices)
    writer = ctx.writer(ctx.specs.joint[name])
    facts: dict[str, Any] = {
        "images": {key: int(getattr(parts[0], key).sum()) for key in ("fit", "inner", "validation")},
        "voxels": len(voxels),
        "modes": {},
    }
    for mode in ctx.config.joint_modes:
        units = n_units(codes, saes, mode, hooks[0])
        pool = Pool([read_codes(codes, mode, hook, images.rows, units) for hook in hooks], units)
        p, by_layer = config.predictors or ctx.facts.width, mode in WIDTH_MODES
        found = fit_mode(
            pool,
            lambda at: read_betas(betas, voxels[at]),
            len(voxels),
            parts,
            config,
            p,
            by_layer,
            engine,
            f"{name} {mode}",
        )
        for key, value in found.items():
            writer.put(f"{mode}/{key}", value if key == "ridge_units" else _spread(key, value, voxels, n_voxels))
        ends = [np.mean(found["ridge_lambda"] == end) for end in (min(config.lambdas), max(config.lambdas))]
        facts["modes"][mode] = {
            "candidates": min(config.candidates, units),
            "predictors": len(found["ridge_units"]),
            "lambda_lowest": float(ends[0]),
            "lambda_highest": float(ends[1]),
        }
    writer.put_json("joint.json", facts)
    return writer.commit()


def fit_mode(
    pool: Pool,
    responses: Responses,
    n_voxels: int,
    parts: list[Split],
    config: JointConfig,
    p: int,
    by_layer: bool,
    engine: Engine,
    label: str = "",
) -> dict[str, np.ndarray]:
    """All models of one mode, under the names of `run` but over the voxels that are fitted alone.

    responses: voxel numbers to responses [n, v]. by_layer: also ridge on all features of one layer.
    """
    k = min(config.candidates, pool.units_per_layer)
    n = len(parts[0].fit)
    size = max(256, engine.memory_bytes // (16 * n))
    blocks = [np.arange(start, min(start + size, n_voxels)) for start in range(0, n_voxels, size)]
    masses = np.zeros((len(parts), 2, pool.n_units))
    sets = 1 + by_layer * len(pool.layers)
    with progress(f"joint {label}", len(parts) * (len(blocks) + sets), "fits") as task:
        pursued: list[list[Pursued]] = [[] for _ in parts]
        for voxels in blocks:
            y = responses(voxels)
            for split, mass_2u, found in zip(parts, masses, pursued, strict=True):
                found.append(pursue_split(pool, y, split, k, config.atoms, mass_2u, engine))
                task.advance()
        out = _pursuits([_joined(found) for found in pursued])

        def ridged(split: Split, features: list[Any]) -> Ridged:
            return ridge_split(features, responses, n_voxels, split, config.lambdas, engine.memory_bytes, task.advance)

        def listed(mass_u: np.ndarray) -> Callable[[], np.ndarray]:
            return lambda: pool.columns(strongest(mass_u, p)).T

        equal = [ridged(split, [tuple(map(listed, mass))]) for split, mass in zip(parts, masses, strict=True)]
        out |= {"ridge_units": strongest(masses[0, 1], p), **_ridges("ridge", equal)}
        if by_layer:
            layers = [(partial(dense_codes, codes),) * 2 for codes in pool.layers]
            one = [ridged(split, layers) for split in parts]
            out |= {"ridge_layer": one[0].chosen, **_ridges("ridge_layer", one)}
    return out


def _joined(blocks: list[Pursued]) -> Pursued:
    return Pursued(*(np.concatenate([getattr(b, f.name) for b in blocks]) for f in fields(Pursued)))


def _pursuits(found: list[Pursued]) -> dict[str, np.ndarray]:
    """Units and numbers of the first split; scores are means over the splits that score."""
    scored = found[1:] or found
    chosen = [np.take_along_axis(x.held_out, x.number[:, None] - 1, axis=1)[:, 0] for x in scored]
    return {
        "omp_units": found[0].units.astype(np.int32),
        "omp_in_sample": found[0].in_sample.T,
        "omp_held_out": _mean([x.held_out.T for x in scored]),
        "omp_atoms": found[0].number,
        "omp_chosen": _mean(chosen),
    }


def _ridges(name: str, found: list[Ridged]) -> dict[str, np.ndarray]:
    held_out = _mean([x.held_out for x in found[1:] or found])
    return {f"{name}_held_out": held_out, f"{name}_lambda": found[0].penalty}


def _mean(parts: list[np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean(parts, axis=0, dtype=np.float64), np.float32)


def _spread(key: str, value: np.ndarray, voxels: np.ndarray, n_voxels: int) -> np.ndarray:
    """Values of the voxels that were fitted among all: NaN elsewhere, -1 for units and layers, 0 for numbers."""
    empty = {"omp_units": -1, "ridge_layer": -1, "omp_atoms": 0}.get(key, np.nan)
    if key == "omp_units":
        out = np.full((n_voxels, value.shape[1]), empty, value.dtype)
        out[voxels] = value
        return out
    out = np.full((*value.shape[:-1], n_voxels), empty, value.dtype)
    out[..., voxels] = value
    return out
