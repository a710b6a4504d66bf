"""align: for each voxel its best units over all layers, for each unit its best voxels; selected and scored apart.

`align.select` says on which images: unique ones select (`in_sample`) and shared ones score (`held_out`), or all images
select and score in turn (cross-fit), or all select and none scores.
"""

from __future__ import annotations

import numpy as np

from sbm_jax.axes import SAE_MODES, TOKEN_KIND
from sbm_jax.errors import UserError
from sbm_jax.kernels import SparseCodes
from sbm_jax.mesh import make_mesh
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.crossfit import CrossFit
from sbm_jax.stages.image_sets import image_sets
from sbm_jax.stages.inputs import Codes, n_units, read_betas, read_codes, responsive, subject_images
from sbm_jax.stages.search import Search
from sbm_jax.store.store import Store, StoreWriter

__all__ = ["Search", "run"]


def run(ctx: Context, name: str) -> Store:
    """Write the alignment of one subject. Per mode (v voxels, l layers, u units per layer, k kept, b shuffles):

    `voxel_values` [v, k] in-sample similarity, `voxel_units` [v, k] as layer x units + unit (-1: voxel left out),
    `held_out` [v, k]; per layer `layer_values`, `layer_units`, `layer_held_out` [l, v]; `unit_values`, `unit_voxels`
    [l, u, k]; the same search with images permuted, for responsive voxels: `shuffled_values`, `shuffled_units`,
    `shuffled_held_out` [b, v]; and what follows for the in-sample similarity of a responsive voxel's best unit, float64 [v]:
    `p` against the permuted maxima of the same voxel, `p_fdr` (Benjamini-Hochberg), `p_fwe` against the maxima over voxels;
    for autoencoders `decoder` [v, d], the decoder row of the best unit in input coordinates.

    Without held-out images (align.select: none) held-out arrays are NaN. Cross-fitted (kfold), they are means over f folds of
    what the folds' own best units score, `shuffled_held_out` [1, v] is of the first permutation, and further: `folds` [n], the
    fold of each image; `fold_units`, `fold_held_out` [f, v], each fold's best unit and its score; `shuffled_fold_units` [f, v].
    Raises UserError where no voxel is responsive, a set of images is too small, or codes are not finite.
    """
    codes, saes = ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes)
    betas = ctx.open(ctx.specs.betas[name])
    images = subject_images(betas)
    sets = image_sets(ctx.config.align, name, images.shared)
    usable = np.flatnonzero(betas.read("usable"))
    alive = responsive(betas, ctx.config.align.min_ncsnr)
    if not alive.any():
        best = np.nanmax(betas.read("ncsnr")[usable], initial=0)
        raise UserError(
            f"{name}: none of {len(usable)} usable voxels reaches align.min_ncsnr = {ctx.config.align.min_ncsnr:g} (highest "
            f"ncsnr: {best:.2f}). Lower it; without repeated images ncsnr is unknown and 0 takes every voxel."
        )
    writer = ctx.writer(ctx.specs.align[name])
    modes, hooks, config = ctx.config.encode.modes, ctx.facts.hooks, ctx.config.align
    n_voxels = betas.array("betas").shape[0]
    n_folds = 0 if sets.folds is None else config.folds
    # a cross-fit holds the responses once more for every fold, and those of the control
    block = max(256, (config.memory_mb << 20) // ((16 + 6 * n_folds) * len(images.rows)))
    blocks = [usable[i : i + block] for i in range(0, len(usable), block)]
    mesh = make_mesh({"units": 1, "voxels": len(ctx.devices)}, ctx.devices) if len(ctx.devices) > 1 else None
    with progress(f"align {name}", len(modes) * len(blocks) * len(hooks), "layer blocks") as task:
        for mode in modes:
            units = n_units(codes, saes, mode, hooks[0])
            k_voxel, memory = min(config.k_voxel, units), config.memory_mb << 20
            search = Search(
                n_voxels, len(hooks), units, k_voxel, config.k_unit, config.shuffles, mesh, config.seed, memory
            )
            fit = None
            if sets.folds is not None:
                fit = CrossFit(sets.folds, n_voxels, len(hooks), units, k_voxel, mesh, memory)
            for voxels in blocks:
                y = read_betas(betas, voxels)
                search.start(voxels, alive[voxels], y[sets.select], None if sets.held_out is None else y[sets.held_out])
                if fit:
                    fit.start(voxels, alive[voxels], y, search.null.orders[0][0])
                for layer, hook in enumerate(hooks):
                    select = _checked(read_codes(codes, mode, hook, images.rows[sets.select], units), mode, hook)
                    held_out = None
                    if sets.held_out is not None:
                        held_out = _checked(
                            read_codes(codes, mode, hook, images.rows[sets.held_out], units), mode, hook
                        )
                    search.layer(layer, select, held_out)
                    if fit:
                        fit.layer(layer, select)
                    task.advance()
                search.finish()
                if fit:
                    fit.finish()
            for key, value in (search.results() | (fit.results() if fit else {})).items():
                writer.put(f"{mode}/{key}", value)
            if mode in SAE_MODES:
                writer.put(f"{mode}/decoder", _decoder_rows(saes, mode, hooks, search.units[:, 0], units))
    writer.put("voxels", usable.astype(np.int64))
    if sets.folds is not None:
        writer.put("folds", sets.folds, dimensions=("n",))
    _write_index(writer, ctx, codes, saes)
    return writer.commit()


def _write_index(writer: StoreWriter, ctx: Context, codes: Store, saes: Store) -> None:
    hooks = list(ctx.facts.hooks)
    units = {mode: n_units(codes, saes, mode, hooks[0]) for mode in ctx.config.encode.modes}
    writer.put_json("index.json", {"modes": list(ctx.config.encode.modes), "hooks": hooks, "units_per_layer": units})


def _checked(codes: Codes, mode: str, hook: str) -> Codes:
    values = codes.values_nk if isinstance(codes, SparseCodes) else codes
    if not np.isfinite(values).all():
        raise UserError(
            f"align: the {mode} codes at {hook} hold NaN or infinity. Check the activations and the training."
        )
    return codes


def _decoder_rows(saes: Store, mode: str, hooks: tuple[str, ...], best_v: np.ndarray, units: int) -> np.ndarray:
    """w_dec / scale of each voxel's best unit: what one unit of its code adds to the activation."""
    members = [(m["kind"], m["hook"]) for m in saes.json("metrics.json")["members"]]
    out = np.zeros((len(best_v), saes.array("w_dec").shape[2]), np.float32)
    scale = saes.read("scale")
    for layer, hook in enumerate(hooks):
        a = members.index((TOKEN_KIND[mode], hook))
        mine = np.flatnonzero((best_v >= 0) & (best_v // units == layer))
        rows = saes.read("w_dec", slice(a, a + 1))[0]
        out[mine] = rows[best_v[mine] % units] / scale[a]
    return out
