"""align: for each voxel its best units over all layers, for each unit its best voxels; selected and scored apart.

`align.select` says on which images: unique ones select (`in_sample`) and shared ones score (`held_out`), or all images
select and score in turn (cross-fit), or all select and none scores. All subjects are searched together: every code is read
once for all that saw its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sbm_jax.axes import SAE_MODES, TOKEN_KIND
from sbm_jax.errors import UserError
from sbm_jax.kernels.codes import rows_of
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.crossfit import CrossFit
from sbm_jax.stages.image_sets import ImageSets, image_sets
from sbm_jax.stages.inputs import Codes, Images, n_units, read_betas, responsive, subject_images
from sbm_jax.stages.null import Null
from sbm_jax.stages.pieces import Piece, Pieces
from sbm_jax.stages.ranking import Engine, make_engine
from sbm_jax.stages.search import Search
from sbm_jax.store.store import Store, StoreWriter


def run(ctx: Context, names: Sequence[str]) -> list[Store]:
    """Write the alignment of some subjects. Per mode (v voxels, l layers, u units per layer, k kept):

    `voxel_values` [v, k] in-sample similarity, `voxel_units` [v, k] as layer x units + unit (-1: voxel left out),
    `held_out` [v, k]; per layer `layer_values`, `layer_units`, `layer_held_out` [l, v]; `unit_values`, `unit_voxels`
    [l, u, k]; for responsive voxels the same search with images permuted: `shuffled_values`, `shuffled_units`,
    `shuffled_held_out` [b, v] of the first b permutations, `permutations` [v], how many there were, `null_max`
    [align.shuffles], the highest similarity of each over all voxels; and what follows for the in-sample similarity of the best
    unit, float64 [v]: `p` against the permuted maxima of the same voxel, `p_fdr` (Benjamini-Hochberg), `p_fwe` against
    `null_max`; for autoencoders `decoder` [v, d], the decoder row of the best unit in input coordinates. With
    align.sign: absolute all similarities are |s|, held-out ones carry the sign of the selection, and `voxel_signs`,
    `layer_signs`, `unit_signs` tell it.

    Without held-out images (align.select: none) held-out arrays are NaN. Cross-fitted (kfold), they are means over f folds of
    what the folds' own best units score, `shuffled_held_out` [1, v] is of the first permutation, and further: `folds` [n], the
    fold of each image; `fold_units`, `fold_held_out` [f, v], each fold's best unit and its score; `shuffled_fold_units` [f, v].
    Raises UserError where no voxel is responsive, a set of images is too small, or codes are not finite.
    """
    brains = [_Brain(ctx, name) for name in names]
    codes, saes = ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes)
    rows = np.unique(np.concatenate([brain.images.rows for brain in brains]))
    writers = {brain.name: ctx.writer(ctx.specs.align[brain.name]) for brain in brains}
    for done, mode in enumerate(ctx.config.encode.modes):
        todo = [brain for brain in brains if writers[brain.name].cursor <= done]
        if todo:
            pieces = Pieces(codes, saes, mode, ctx.facts.hooks, rows, ctx.config.align.memory_mb << 19)
            _search(ctx, mode, pieces, todo)
            for brain in todo:
                writer = writers[brain.name]
                for key, value in brain.results().items():
                    writer.put(f"{mode}/{key}", value)
                if mode in SAE_MODES:
                    best = brain.search.list.units[:, 0]
                    writer.put(f"{mode}/decoder", _decoder_rows(saes, mode, ctx.facts.hooks, best, pieces.units))
                writer.advance(done + 1)
    for brain in brains:
        writer = writers[brain.name]
        writer.put("voxels", brain.usable.astype(np.int64))
        if brain.sets.folds is not None:
            writer.put("folds", brain.sets.folds, dimensions=("n",))
        _write_index(writer, ctx, codes, saes)
    return [writers[name].commit() for name in names]


def _search(ctx: Context, mode: str, pieces: Pieces, brains: Sequence[_Brain]) -> None:
    """Passes over the codes of one mode until every subject has its units and its permutations."""
    config = ctx.config.align
    engine = make_engine(config, ctx.devices)
    for brain in brains:
        brain.prepare(mode, pieces, engine)
    room = (config.memory_mb << 20) // (8 * len(ctx.facts.subjects))  # the same for one that goes on alone after a kill
    label = f"align {mode}"
    while working := [brain for brain in brains if brain.search.begin(room)]:
        blocks = {brain.name: brain.blocks() for brain in working}
        total = sum(map(len, blocks.values())) * len(pieces)
        with progress(label, total, "searches") as task:
            for shelf in pieces.read():
                for brain in working:
                    mine = [(piece, brain.cut(held, pieces.rows)) for piece, held in shelf]
                    for voxels in blocks[brain.name]:
                        brain.block(voxels, mine)
                        task.advance(len(mine))
        for brain in working:
            brain.search.end()
        label = f"align {mode}, more permutations"


class _Brain:
    """One subject: images, voxels, store, and the running search of a mode. Raises UserError as `run`."""

    def __init__(self, ctx: Context, name: str):
        self.name, self.config = name, ctx.config.align
        self.betas = ctx.open(ctx.specs.betas[name])
        self.images: Images = subject_images(self.betas)
        self.sets: ImageSets = image_sets(self.config, name, self.images.shared)
        self.usable = np.flatnonzero(self.betas.read("usable"))
        self.alive = responsive(self.betas, self.config.min_ncsnr)
        if not self.alive.any():
            best = np.nanmax(self.betas.read("ncsnr")[self.usable], initial=0)
            raise UserError(
                f"{name}: none of {len(self.usable)} usable voxels reaches align.min_ncsnr = {self.config.min_ncsnr:g} (highest "
                f"ncsnr: {best:.2f}). Lower it; without repeated images ncsnr is unknown and 0 takes every voxel."
            )
        self.n_voxels = len(self.alive)

    def prepare(self, mode: str, pieces: Pieces, engine: Engine) -> None:
        config, sets = self.config, self.sets
        layers = 1 + max(piece.layer for shelf in pieces.shelves for piece in shelf)
        n_held_out = 0 if sets.held_out is None else int(sets.held_out.sum())
        null = Null(
            self.alive,
            int(sets.select.sum()),
            n_held_out,
            shuffles=config.shuffles,
            max_shuffles=config.max_shuffles,
            stop_after=config.stop_after,
            seed=config.seed,
        )
        k = min(config.k_voxel, pieces.units)
        self.search = Search(self.n_voxels, layers, pieces.units, k, config.k_unit, engine, null)
        self.fit = None
        if sets.folds is not None:
            self.fit = CrossFit(sets.folds, layers, pieces.units, k, engine, self.alive, null.order(0)[0])

    def blocks(self) -> list[np.ndarray]:
        """The voxels of a pass, in blocks whose responses take an eighth of the budget (more often with a cross-fit)."""
        voxels = self.usable if self.search.first else self.search.null.voxels
        # a cross-fit holds the responses once more for every fold, and those of the control
        n_folds = 0 if self.fit is None else self.config.folds
        size = max(256, (self.config.memory_mb << 20) // ((32 + 6 * n_folds) * len(self.images.rows)))
        return [voxels[i : i + size] for i in range(0, len(voxels), size)]

    def cut(self, codes: Codes, rows: np.ndarray) -> tuple[Codes, Codes | None, Codes | None]:
        """This subject's codes among those of the images `rows`: of images that select, of those that score, of all."""
        at = np.searchsorted(rows, self.images.rows)

        def taken(mask: np.ndarray) -> Codes:
            return rows_of(codes, at[mask])

        held_out = None if self.sets.held_out is None else taken(self.sets.held_out)
        return taken(self.sets.select), held_out, None if self.fit is None else taken(np.ones(len(at), bool))

    def block(self, voxels: np.ndarray, shelf: list[tuple[Piece, tuple[Codes, Codes | None, Codes | None]]]) -> None:
        """Search the pieces of a shelf for some voxels."""
        y, sets, first = read_betas(self.betas, voxels), self.sets, self.search.first
        self.search.start(voxels, y[sets.select], None if sets.held_out is None else y[sets.held_out])
        if self.fit and first:
            self.fit.start(voxels, y)
        self.search.shelf([(p.layer, p.first, select, held_out) for p, (select, held_out, _) in shelf])
        for piece, (_, _, every) in shelf:
            if self.fit and first and every is not None:
                self.fit.piece(piece.layer, piece.first, every)

    def results(self) -> dict[str, Any]:
        return self.search.results() | (self.fit.results() if self.fit else {})


def _write_index(writer: StoreWriter, ctx: Context, codes: Store, saes: Store) -> None:
    hooks, config = list(ctx.facts.hooks), ctx.config.align
    units = {mode: n_units(codes, saes, mode, hooks[0]) for mode in ctx.config.encode.modes}
    index = {"modes": list(ctx.config.encode.modes), "hooks": hooks, "units_per_layer": units, "sign": config.sign}
    index["permutations"] = {"all": config.shuffles, "most": max(config.shuffles, config.max_shuffles)}
    writer.put_json("index.json", index)


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
