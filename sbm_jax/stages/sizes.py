"""sizes: score against dictionary size, by allowing only some units of every layer: all features at equal numbers of candidates."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.errors import UserError
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.image_sets import fixed_sets
from sbm_jax.stages.inputs import n_units, read_betas, read_codes, responsive, subject_images
from sbm_jax.stages.nested import Nested, subset_sizes
from sbm_jax.store.store import Store


def run(ctx: Context) -> Store:
    """Write `sizes.json`: per subject `voxels`, `select_images`, `held_out_images` (0: nothing scores), and per mode one record
    for every size, ascending: `units` per layer, `candidates` over all layers, `in_sample` and `held_out`, means over voxels
    and draws (null where nothing scores), and `in_sample_sd`, `held_out_sd`, the standard deviation over draws (0 for one).

    Voxels are `sizes.voxels` of the responsive ones, drawn by `sizes.seed`. Images are those of `image_sets.fixed_sets`:
    unique ones select and shared ones score, under `kfold` too. Raises UserError where no voxel is responsive.
    """
    writer, config = ctx.writer(ctx.specs.sizes), ctx.config.sizes
    codes, saes = ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes)
    modes, hooks = ctx.config.encode.modes, ctx.facts.hooks
    out: dict[str, Any] = {}
    with progress("sizes", len(ctx.subjects) * len(modes) * len(hooks), "layers") as task:
        for subject in ctx.subjects:
            betas = ctx.open(ctx.specs.betas[subject.name])
            images = subject_images(betas)
            sets = fixed_sets(ctx.config.align, images.shared)
            alive = np.flatnonzero(responsive(betas, ctx.config.align.min_ncsnr))
            if not len(alive):
                raise UserError(f"{subject.name}: no voxel reaches align.min_ncsnr = {ctx.config.align.min_ncsnr:g}")
            rng = np.random.default_rng([config.seed, len(alive)])
            y = read_betas(betas, np.sort(rng.permutation(alive)[: config.voxels]))
            record: dict[str, Any] = {
                "voxels": y.shape[1],
                "select_images": int(sets.select.sum()),
                "held_out_images": 0 if sets.held_out is None else int(sets.held_out.sum()),
                "modes": {},
            }
            for mode in modes:
                units = n_units(codes, saes, mode, hooks[0])
                sizes = subset_sizes(units)
                memory = ctx.config.align.memory_mb << 20
                absolute = ctx.config.align.sign == "absolute"
                search = Nested(y[sets.select], sizes, config.draws, config.seed, memory, absolute)
                for layer, hook in enumerate(hooks):
                    search.layer(layer, read_codes(codes, mode, hook, images.rows[sets.select], units))
                    task.advance()
                scores = {"in_sample": search.in_sample}
                if sets.held_out is not None:
                    rows = images.rows[sets.held_out]
                    held_codes = (read_codes(codes, mode, hook, rows, units) for hook in hooks)
                    scores["held_out"] = search.held_out(held_codes, y[sets.held_out])
                record["modes"][mode] = _records(sizes, len(hooks), scores)
            out[subject.name] = record
    writer.put_json("sizes.json", out)
    return writer.commit()


def _records(sizes: list[int], layers: int, scores_dmv: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    records = []
    for j, units in enumerate(sizes):
        record: dict[str, Any] = {"units": units, "candidates": units * layers, "held_out": None, "held_out_sd": None}
        for name, x in scores_dmv.items():
            means = x[:, j].mean(axis=1, dtype=np.float64)
            record |= {name: float(means.mean()), f"{name}_sd": float(means.std(ddof=1)) if len(means) > 1 else 0.0}
        records.append(record)
    return records
