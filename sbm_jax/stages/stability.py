"""stability: what stays, of dictionaries, voxels' units and headline numbers, over image halves, subjects, seeds and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.dictionary_agreement import between_dictionaries, between_seeds
from sbm_jax.stages.halves import agreement, pick, splits
from sbm_jax.stages.headline import headline, spread
from sbm_jax.stages.image_sets import fixed_sets
from sbm_jax.stages.inputs import Codes, n_units, read_betas, read_codes, responsive, subject_images
from sbm_jax.stages.ranking import Engine
from sbm_jax.stages.rows import Row, row
from sbm_jax.stages.subject_agreement import roi_agreement
from sbm_jax.stages.variant_agreement import between_assignments
from sbm_jax.stages.variants import Variant, open_variants
from sbm_jax.store.store import Store


def run(ctx: Context) -> Store:
    """Write `stability.json`: `rows`, one record per number (see `rows.Row`), and `variants`, what they are called.

    Raises StoreError, with the command, where a store of a variant is not there.
    """
    assert ctx.specs.stability is not None
    others = open_variants(ctx)
    writer = ctx.writer(ctx.specs.stability)
    modes = modes_of(ctx)
    parts: list[Callable[[], Iterator[Row]]] = [
        partial(_halves, ctx, s.name, mode) for s in ctx.subjects for mode in modes
    ]
    parts += [partial(_subjects, ctx, modes), partial(between_seeds, ctx)]
    parts += [partial(_variant, ctx, modes, variant, other) for variant, other in others]
    parts += [partial(_headline_over_variants, ctx, modes, others)]
    rows: list[Row] = []
    with progress("stability", len(parts), "comparisons") as task:
        for part in parts:
            rows += part()
            task.advance()
    writer.put_json("stability.json", {"rows": rows, "variants": [str(variant) for variant, _ in others]})
    return writer.commit()


def modes_of(ctx: Context) -> list[str]:
    """The modes looked at."""
    return [mode for mode in ctx.config.stability.modes if mode in ctx.config.encode.modes]


def _halves(ctx: Context, name: str, mode: str) -> Iterator[Row]:
    """Of one subject's voxels, sampled: what two halves of the selection images agree on."""
    config, betas = ctx.config.stability, ctx.open(ctx.specs.betas[name])
    codes, saes = ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes)
    images = subject_images(betas)
    sets = fixed_sets(ctx.config.align, images.shared)
    voxels = sampled_voxels(responsive(betas, ctx.config.align.min_ncsnr), config.voxels, config.seed)
    y, units = read_betas(betas, voxels), n_units(codes, saes, mode, ctx.facts.hooks[0])
    layers: list[Callable[[], Codes]] = [
        partial(read_codes, codes, mode, hook, images.rows, units) for hook in ctx.facts.hooks
    ]
    engine = Engine(None, ctx.config.align.memory_mb << 20, ctx.config.align.sign == "absolute")
    picks = pick(layers, units, y, splits(sets.select, config.draws, config.seed), engine)
    for measure, (values, chance) in agreement(layers, picks, y, sets.held_out).items():
        yield row("image halves", "voxel's unit", f"{name}, {mode}", measure, values, chance, len(voxels))


def sampled_voxels(alive: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Some of the voxels `alive` (bool [v]), ascending."""
    voxels = np.flatnonzero(alive)
    return (
        voxels if len(voxels) <= most else np.sort(np.random.default_rng([seed, 7]).choice(voxels, most, replace=False))
    )


def _subjects(ctx: Context, modes: list[str]) -> Iterator[Row]:
    if len(ctx.subjects) < 2:
        return
    for found in roi_agreement(ctx, modes):
        where, over = f"{found.roi}, {found.mode}", "subjects"
        if found.jaccard is not None:
            yield row(over, "ROI's units", where, "Jaccard", found.jaccard, [found.jaccard_chance], len(found.jaccard))
        yield row(over, "ROI's units", where, "r of contrasts", found.r, [0.0], len(found.r))
    for mode in modes:
        yield from spread("subjects", mode, {s.name: headline(ctx, s.name, mode) for s in ctx.subjects})


def _variant(ctx: Context, modes: list[str], variant: Variant, other: Context) -> Iterator[Row]:
    yield from between_dictionaries(ctx, other, str(variant))
    most, seed = ctx.config.stability.voxels, ctx.config.stability.seed
    for subject in ctx.subjects:
        alive = responsive(ctx.open(ctx.specs.betas[subject.name]), ctx.config.align.min_ncsnr)
        voxels = sampled_voxels(alive, most, seed)
        for mode in modes:
            yield from between_assignments(ctx, other, str(variant), subject.name, mode, voxels)


def _headline_over_variants(ctx: Context, modes: list[str], others: list[tuple[Variant, Context]]) -> Iterator[Row]:
    if not others:
        return
    runs: dict[str, Any] = {"this run": ctx} | {str(variant): other for variant, other in others}
    for subject in ctx.subjects:
        for mode in modes:
            found = {
                label: headline(run, subject.name, mode)
                for label, run in runs.items()
                if mode in run.config.encode.modes
            }
            yield from spread("variants", f"{subject.name}, {mode}", found)
