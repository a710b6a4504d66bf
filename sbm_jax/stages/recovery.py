"""recovery: how well the planted truth of a simulated dataset is found, with shuffled and random-direction controls."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.brain.dataset import Subject
from sbm_jax.brain.tables import floats, read_table
from sbm_jax.errors import UserError
from sbm_jax.stages.context import Context
from sbm_jax.stages.image_sets import telling
from sbm_jax.stages.inputs import (
    dense_codes,
    n_units,
    read_codes,
    relative_extents,
    responsive,
    subject_images,
    unit_concepts,
)
from sbm_jax.store.store import Store

EARLY = "early"


def run(ctx: Context) -> Store:
    """Write `recovery.json`. Per mode and subject, over vertices that truly respond and are called responsive:

    concepts: for each concept the number of its vertices, the share whose best unit belongs to that concept (`found`),
        and the same for the units that won on permuted images (`shuffled`). A unit's concept is the one whose relative
        extent in the picture correlates best with the unit's code over the shared images (all where none is shared).
    depth: mean best layer (and of the shuffled search) and mean centre-of-mass depth of early and of category vertices.
    silent: vertices that respond to nothing: mean held-out score, and share above 0.1; not there without held-out scores.
    """
    if ctx.specs.recovery is None:
        raise UserError(f"{ctx.facts.root} has no folder `truth`: recovery is for simulated datasets")
    writer = ctx.writer(ctx.specs.recovery)
    layers = ctx.open(ctx.specs.layers)
    names, extents = relative_extents(ctx.dataset.images.labels)
    truth = {s.name: read_truth(ctx, s) for s in ctx.subjects}
    out: dict[str, Any] = {"concepts": names, "modes": {}}
    for mode in ctx.config.encode.modes:
        record: dict[str, Any] = {}
        for subject in ctx.subjects:
            align, betas = ctx.open(ctx.specs.align[subject.name]), ctx.open(ctx.specs.betas[subject.name])
            images = subject_images(betas)
            rows = images.rows[telling(images.shared)]
            concept_u = np.concatenate([_unit_concepts(ctx, mode, hook, rows, extents) for hook in ctx.facts.hooks])
            best, shuffled = align.read(f"{mode}/voxel_units")[:, 0], align.read(f"{mode}/shuffled_units")
            units_per_layer = align.json("index.json")["units_per_layer"][mode]
            record[subject.name] = _score(
                truth[subject.name],
                responsive(betas, ctx.config.align.min_ncsnr),
                np.where(best >= 0, concept_u[best], -1),
                [np.where(row >= 0, concept_u[row], -1) for row in shuffled],
                align.read(f"{mode}/held_out")[:, 0],
                layers.read(f"{mode}/{subject.name}/best_layer"),
                [row // units_per_layer for row in shuffled],
                layers.read(f"{mode}/{subject.name}/depth"),
                names,
            )
        out["modes"][mode] = {"subjects": record, "all": _pooled(list(record.values()), names)}
    writer.put_json("recovery.json", out)
    return writer.commit()


def read_truth(ctx: Context, subject: Subject) -> dict[str, np.ndarray]:
    """Per voxel: `concept` (str, `early` or empty), `weight`, `ncsnr`. Raises UserError when the tables do not fit."""
    path = ctx.facts.root / "truth" / f"{subject.name}.csv"
    table = read_table(path, ("hemi", "vertex", "latent", "weight", "ncsnr", "concept"))
    found = list(zip(table["hemi"], map(int, table["vertex"]), strict=True))
    if found != list(zip(subject.hemi.tolist(), subject.vertex.tolist(), strict=True)):
        raise UserError(
            f"{path}: its {len(found)} rows are not the {subject.n_voxels} voxels of voxels.csv, in their order"
        )
    return {
        "concept": np.array(table["concept"]),
        "weight": floats(path, "weight", table["weight"]),
        "ncsnr": floats(path, "ncsnr", table["ncsnr"]),
    }


def _unit_concepts(ctx: Context, mode: str, hook: str, rows: np.ndarray, extents_nc: np.ndarray) -> np.ndarray:
    codes, saes = ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes)
    dense = dense_codes(read_codes(codes, mode, hook, rows, n_units(codes, saes, mode, hook)))
    return unit_concepts(dense, extents_nc[rows])


def _score(
    truth: dict[str, np.ndarray],
    alive: np.ndarray,
    concept_v: np.ndarray,
    shuffled_bv: list[np.ndarray],
    held_out: np.ndarray,
    best_layer: np.ndarray,
    shuffled_layers: list[np.ndarray],
    depth: np.ndarray,
    names: list[str],
) -> dict[str, Any]:
    driven = alive & (truth["weight"] != 0)
    concepts: dict[str, Any] = {}
    for c, name in enumerate(names):
        mine = driven & (truth["concept"] == name)
        if mine.any():
            concepts[name] = {
                "vertices": int(mine.sum()),
                "found": float(np.mean(concept_v[mine] == c)),
                "shuffled": float(np.mean([np.mean(row[mine] == c) for row in shuffled_bv])),
                "held_out": float(np.mean(held_out[mine])),
            }
    out: dict[str, Any] = {"concepts": concepts, "depth": {}}
    category = driven & np.isin(truth["concept"], names)
    for key, mine in ((EARLY, driven & (truth["concept"] == EARLY)), ("category", category)):
        if mine.any():
            out["depth"][key] = {
                "vertices": int(mine.sum()),
                "best_layer": float(best_layer[mine].mean()),
                "best_layer_shuffled": float(np.mean([row[mine].mean() for row in shuffled_layers])),
                "centre_of_mass": float(np.nanmean(depth[mine])) if np.isfinite(depth[mine]).any() else float("nan"),
                "held_out": float(np.mean(held_out[mine])),
            }
    silent = (truth["weight"] == 0) & np.isfinite(held_out)
    if silent.any():
        scores = held_out[silent]
        out["silent"] = {
            "vertices": int(silent.sum()),
            "held_out": float(scores.mean()),
            "above_0.1": float(np.mean(scores > 0.1)),
        }
    return out


def _pooled(records: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Over subjects: vertices added up, shares and means weighted by vertices; `category` pools all concepts."""

    def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
        weight = np.array([part["vertices"] for part in parts], float)
        keys = [key for key in parts[0] if key != "vertices"]
        means = {key: float(np.average([part[key] for part in parts], weights=weight)) for key in keys}
        return {"vertices": int(weight.sum()), **means}

    by_concept = {name: [r["concepts"][name] for r in records if name in r["concepts"]] for name in names}
    concepts = {name: merge(parts) for name, parts in by_concept.items() if parts}
    depth = {
        key: merge(parts)
        for key in (EARLY, "category")
        if (parts := [r["depth"][key] for r in records if key in r["depth"]])
    }
    silent = [r["silent"] for r in records if "silent" in r]
    return {
        "concepts": concepts,
        "category": merge(list(concepts.values())) if concepts else {},
        "depth": depth,
        "silent": merge(silent) if silent else {},
    }
