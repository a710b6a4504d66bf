"""align: for each voxel its best units over all layers, for each unit its best voxels; selected and scored apart.

Selection runs on a subject's unique images (`in_sample`), scores on the shared ones (`held_out`). The unit x voxel matrix
is never built: voxel blocks x layers stream through `cosine_topk_both`, lists are merged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from sbm_jax.axes import SAE_MODES, TOKEN_KIND
from sbm_jax.errors import UserError
from sbm_jax.kernels import SparseCodes, cosine_topk, cosine_topk_both, merge_topk, prepare_responses
from sbm_jax.kernels.cosine_topk.paired import paired_rows, unit_rows
from sbm_jax.kernels.cosine_topk.prepared import Prepared
from sbm_jax.mesh import make_mesh
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import Codes, n_units, read_betas, read_codes, responsive, subject_images
from sbm_jax.statistics import familywise_p, fdr_adjusted, permutation_p
from sbm_jax.store.store import Store, StoreWriter

_CONSTANT = -2.0
# Units that fire on the same images tie exactly, also across permutations. In float32 such similarities differ by a few
# 2^-24, as sums of unit columns in another order do; what is this near counts against significance.
_TIE = 1e-6


def run(ctx: Context, name: str) -> Store:
    """Write the alignment of one subject. Per mode (v voxels, l layers, u units per layer, k kept, b shuffles):

    `voxel_values` [v, k] in-sample similarity, `voxel_units` [v, k] as layer x units + unit (-1: voxel left out),
    `held_out` [v, k]; per layer `layer_values`, `layer_units`, `layer_held_out` [l, v]; `unit_values`, `unit_voxels`
    [l, u, k]; the same search with images permuted, for responsive voxels: `shuffled_values`, `shuffled_units`,
    `shuffled_held_out` [b, v]; and what follows for the in-sample similarity of a responsive voxel's best unit, float64 [v]:
    `p` against the permuted maxima of the same voxel, `p_fdr` (Benjamini-Hochberg), `p_fwe` against the maxima over voxels;
    for autoencoders `decoder` [v, d], the decoder row of the best unit in input coordinates.
    """
    codes, saes = ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes)
    betas = ctx.open(ctx.specs.betas[name])
    images = subject_images(betas)
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
    block = max(256, (config.memory_mb << 20) // (16 * len(images.rows)))
    blocks = [usable[i : i + block] for i in range(0, len(usable), block)]
    mesh = make_mesh({"units": 1, "voxels": len(ctx.devices)}, ctx.devices) if len(ctx.devices) > 1 else None
    with progress(f"align {name}", len(modes) * len(blocks) * len(hooks), "layer blocks") as task:
        for mode in modes:
            units = n_units(codes, saes, mode, hooks[0])
            search = Search(
                n_voxels,
                len(hooks),
                units,
                min(config.k_voxel, units),
                config.k_unit,
                config.shuffles,
                mesh,
                config.seed,
                config.memory_mb << 20,
            )
            for voxels in blocks:
                y = read_betas(betas, voxels)
                search.start(voxels, alive[voxels], y[~images.shared], y[images.shared])
                for layer, hook in enumerate(hooks):
                    search.layer(
                        layer,
                        _checked(read_codes(codes, mode, hook, images.select_rows, units), mode, hook),
                        _checked(read_codes(codes, mode, hook, images.held_out_rows, units), mode, hook),
                    )
                    task.advance()
                search.finish()
            for key, value in search.results().items():
                writer.put(f"{mode}/{key}", value)
            if mode in SAE_MODES:
                writer.put(f"{mode}/decoder", _decoder_rows(saes, mode, hooks, search.units[:, 0], units))
    writer.put("voxels", usable.astype(np.int64))
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


@dataclass
class Search:
    """Running results of one mode over voxel blocks and layers."""

    n_voxels: int
    n_layers: int
    units_per_layer: int
    k_voxel: int
    k_unit: int
    shuffles: int
    mesh: Any
    seed: int
    memory_bytes: int
    values: np.ndarray = field(init=False)
    units: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        v, layers, u = self.n_voxels, self.n_layers, self.units_per_layer
        self.values, self.units = _empty(v, self.k_voxel)
        self.held_out = np.zeros((v, self.k_voxel), np.float32)
        self.layer_values, self.layer_units = _empty(layers, v)
        self.layer_held_out = np.zeros((layers, v), np.float32)
        self.unit_values, self.unit_voxels = _empty(layers, u, self.k_unit)
        self.shuffled_values, self.shuffled_units = _empty(self.shuffles, v)
        self.shuffled_held_out = np.zeros((self.shuffles, v), np.float32)

    def start(self, voxels: np.ndarray, shuffled: np.ndarray, y_select: np.ndarray, y_held_out: np.ndarray) -> None:
        """Begin a block of voxels: responses [n, block]; `shuffled` [block] says which also take part in the control."""
        self.block, self.control = voxels, voxels[shuffled]
        self.select = prepare_responses(y_select, mesh=self.mesh)
        self.y_held_out = unit_rows(y_held_out.T)
        self.held_codes: list[Codes] = []
        self.null = Null(
            y_select[:, shuffled], self.y_held_out[shuffled], self.shuffles, self.seed, self.mesh, self.memory_bytes
        )

    def layer(self, layer: int, select: Codes, held_out: Codes) -> None:
        """Search one layer's units for the current block of voxels; layers come in ascending order."""
        v, u, offset = self.block, self.units_per_layer, layer * self.units_per_layer
        values_vk, units_vk, values_uk, at_uk = cosine_topk_both(
            select, self.select, min(self.k_voxel, u), min(self.k_unit, len(v)), memory_bytes=self.memory_bytes
        )
        values_vk, values_uk = _as_keys(values_vk), _as_keys(values_uk)
        self.layer_values[layer, v], self.layer_units[layer, v] = values_vk[:, 0], units_vk[:, 0] + offset
        self.layer_held_out[layer, v] = paired_rows(held_out, self.y_held_out, units_vk[:, :1])[:, 0]
        merged = merge_topk(self.values[v], self.units[v], values_vk, units_vk + offset, self.k_voxel)
        self.values[v], self.units[v] = (np.asarray(x) for x in merged)
        merged = merge_topk(
            self.unit_values[layer], self.unit_voxels[layer], values_uk, v[at_uk].astype(np.int32), self.k_unit
        )
        self.unit_values[layer], self.unit_voxels[layer] = (np.asarray(x) for x in merged)
        self.held_codes.append(held_out)
        if len(self.control):
            self._shuffled(select, held_out, offset)

    def _shuffled(self, select: Codes, held_out: Codes, offset: int) -> None:
        for group in self.null.groups:
            responses, y_held_out = self.null.columns(group)
            values, units = cosine_topk(select, responses, 1, memory_bytes=self.memory_bytes)
            values, at = _as_keys(values), np.ix_(np.asarray(group), self.control)
            better = values > self.shuffled_values[at].reshape(-1, 1)
            scores = paired_rows(held_out, y_held_out, np.where(better, units, -1))
            for known, found in (
                (self.shuffled_values, values),
                (self.shuffled_units, units + offset),
                (self.shuffled_held_out, scores),
            ):
                known[at] = np.where(better, found, known[at].reshape(-1, 1)).reshape(len(group), -1)

    def finish(self) -> None:
        """Score the lists of the current block on the held-out images."""
        units = self.units[self.block]
        for layer, codes in enumerate(self.held_codes):
            mine = units // self.units_per_layer == layer
            scores = paired_rows(codes, self.y_held_out, np.where(mine, units % self.units_per_layer, -1))
            self.held_out[self.block] = np.where(mine, scores, self.held_out[self.block])

    def results(self) -> dict[str, np.ndarray]:
        """The arrays of the store; voxels that were left out have unit -1 and NaN."""
        taken = self.shuffled_units[0] >= 0
        best = np.where(taken, self.values[:, 0], np.nan)
        p = permutation_p(best, self.shuffled_values, tie=_TIE)
        out = {
            "p": p,
            "p_fdr": fdr_adjusted(p),
            "p_fwe": familywise_p(best, self.shuffled_values, tie=_TIE),
            "voxel_values": self.values,
            "voxel_units": self.units,
            "held_out": np.where(self.units >= 0, self.held_out, np.nan),
            "layer_values": self.layer_values,
            "layer_units": self.layer_units,
            "layer_held_out": np.where(self.layer_units >= 0, self.layer_held_out, np.nan),
            "unit_values": self.unit_values,
            "unit_voxels": self.unit_voxels,
            "shuffled_values": self.shuffled_values,
            "shuffled_units": self.shuffled_units,
            "shuffled_held_out": np.where(self.shuffled_units >= 0, self.shuffled_held_out, np.nan),
        }
        return {key: _from_keys(x) if x.dtype.kind == "f" else x for key, x in out.items()}


class Null:
    """Permuted responses of a block of voxels, as further columns of one search: the codes stay as they are.

    Permuting the images of the responses by the inverse is permuting those of the codes. One permutation of the images for all
    voxels and layers, so that their dependence stays.
    """

    def __init__(
        self, y_nv: np.ndarray, y_held_out_vn: np.ndarray, shuffles: int, seed: int, mesh: Any, memory_bytes: int
    ):
        self.y_held_out_vn, self.mesh = y_held_out_vn, mesh
        n, v = y_nv.shape
        prepared = prepare_responses(y_nv)
        self.y_nv, self.real_v = np.asarray(prepared.y_nv), np.asarray(prepared.real_v)
        rng = np.random.default_rng([seed, n, y_held_out_vn.shape[1]])
        self.orders = [
            tuple(np.argsort(rng.permutation(m)) for m in (n, y_held_out_vn.shape[1])) for _ in range(shuffles)
        ]
        size = max(1, memory_bytes // (32 * n * max(1, v)))
        self.groups = [range(b, min(b + size, shuffles)) for b in range(0, shuffles, size)]
        self._columns: tuple[Prepared, np.ndarray] | None = None

    def columns(self, group: range) -> tuple[Prepared, np.ndarray]:
        """Selection responses [n, group x v] and held-out unit rows [group x v, n]; kept where one group is all."""
        if self._columns is not None:
            return self._columns
        orders = [self.orders[b] for b in group]
        select = self.y_nv[np.stack([order for order, _ in orders], axis=1)].reshape(len(self.y_nv), -1)
        held_out = np.concatenate([np.take(self.y_held_out_vn, order, axis=1) for _, order in orders])
        if self.mesh is None:
            # Unit columns stay unit columns in another order: making them again would cost more than the search.
            real = jnp.tile(self.real_v, len(group))
            responses = Prepared(jnp.asarray(select), real, select.shape[1], center=True, mesh=None)
        else:
            responses = prepare_responses(select, mesh=self.mesh)
        if len(self.groups) == 1:
            self._columns = responses, held_out
        return responses, held_out


def _empty(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32)


def _as_keys(values: np.ndarray) -> np.ndarray:
    """Similarities to merge keys: the exact 0 of a constant candidate goes below every real one, in all layers alike."""
    return np.where(values == 0, np.float32(_CONSTANT), values)


def _from_keys(keys: np.ndarray) -> np.ndarray:
    """Merge keys to similarities: 0 for constant candidates, NaN where there is no candidate."""
    return np.where(np.isneginf(keys), np.float32(np.nan), np.where(keys == _CONSTANT, np.float32(0), keys))
