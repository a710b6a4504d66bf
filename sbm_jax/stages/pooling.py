"""pooling: a receptive field over the patches for every voxel, so that it is compared with local codes.

Codes averaged over the whole image say nothing of where something was; many voxels see a part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.brain.dataset import Subject
from sbm_jax.brain.tables import floats, read_table
from sbm_jax.config import Config
from sbm_jax.errors import UserError
from sbm_jax.mesh import make_mesh
from sbm_jax.progress import progress
from sbm_jax.sae.stream import array_name
from sbm_jax.stages.best_units import best_units
from sbm_jax.stages.context import Context
from sbm_jax.stages.fields import UNIFORM, Fields, field_grid, gaussian_weights, in_image
from sbm_jax.stages.image_sets import ImageSets, image_sets
from sbm_jax.stages.inputs import ALL_RESPONSIVE, chosen_rois, read_betas, responsive, subject_images
from sbm_jax.stages.members import Code, read_member
from sbm_jax.stages.pooled_search import PooledSearch, Scored, Split
from sbm_jax.stages.pooled_sums import Patches
from sbm_jax.stages.pooling_summary import centre_record, gain_draws, roi_record
from sbm_jax.store.store import Store

# unit, field, centre_x, ... are of the kind that `pooling.field` names first.
_EMPTY = {"unit": (-1, np.int32), "field": (-1, np.int32), "shuffled_field": (-1, np.int32), "prf_unit": (-1, np.int32)}


def run(ctx: Context, name: str) -> Store:
    """Write the local pooling of one subject, for the responsive voxels (of `pooling.rois`), all arrays [v]:

    `unit` as layer x units + unit and `field` (-1: voxel left out), `centre_x`, `centre_y`, `size` of the field as fractions
    of the image's side from the left and the upper edge (NaN: uniform, or left out), `in_sample`, `held_out`: r of the
    pooled code. `uniform_held_out`: of the best candidate under the uniform field. `shuffled_held_out`, `shuffled_field`,
    `shuffled_centre_x`, `shuffled_centre_y`: the same search with images permuted. `prf_unit`, `prf_in_sample`,
    `prf_held_out` for `pooling.field: both`. `fields.json`: centres and sizes by index. `pooling.json`: `rois`, `centres`.

    With align.sign: absolute `in_sample` is |r|, and held-out r carries the sign of the choice.
    Raises UserError where pRFs are asked for that the dataset does not bring, an ROI is unknown, or no voxel is left.
    """
    config, mode, hooks = ctx.config, ctx.config.pooling.mode, ctx.facts.hooks
    betas, align, saes = ctx.open(ctx.specs.betas[name]), ctx.open(ctx.specs.align[name]), ctx.open(ctx.specs.saes)
    codes, subject = ctx.open(ctx.specs.codes), ctx.dataset.subject(name)
    images, searched = subject_images(betas), _searched(ctx, subject, responsive(betas, config.align.min_ncsnr))
    sets = image_sets(config.align, name, images.shared)
    kind = TOKEN_KIND[mode]
    members = [(m["kind"], m["hook"]) for m in saes.json("metrics.json")["members"]]
    own = _own_fields(config, subject)
    t, learned = ctx.facts.backbone.n_patches, config.pooling.field != "prf"
    fields = field_grid(config.pooling.positions, config.pooling.sizes if learned else (), t)
    kinds = {"local": range(len(fields)) if learned else [len(fields)], "uniform": [UNIFORM]}
    kinds |= {"prf": [len(fields)]} if config.pooling.field == "both" else {}
    order = _permutation(sets, config.align.seed)
    groups, trained_on, tests = _parts(sets)
    voxels, absolute = np.flatnonzero(searched), config.align.sign == "absolute"
    k, memory = align.array(f"{mode}/voxel_units").shape[1], config.align.memory_mb << 20
    tested_images = max((len(test) for test in tests if test is not None), default=0)
    # responses; sums of all candidates and fields; codes and responses of the images that score
    pairs = 2 * k * (len(tests) + 1 if len(tests) > 1 else 1)
    per_voxel = 4 * len(order) + 8 * len(fields) * pairs * len(groups) + 48 * tested_images * len(kinds)
    block = max(256, memory // per_voxel)
    blocks = [voxels[i : i + block] for i in range(0, len(voxels), block)]
    mesh = make_mesh({"data": len(ctx.devices)}, ctx.devices)
    batch = _batch(config, saes.array("b_enc").shape[1], t, len(fields), mesh.size)
    passes = [*groups, *(test for test in tests if test is not None)]
    total = sum(-(-len(part) // batch) for part in passes) * len(hooks) * len(blocks)
    arrays = {key: np.full(subject.n_voxels, fill, dtype) for key, (fill, dtype) in _EMPTY.items()}
    rois, draws = _rois(ctx, subject), []
    with progress(f"pooling {name}", total, "layer batches") as task:
        patches = Patches(
            ctx.activations,
            tuple(array_name(hook, kind) for hook in hooks),
            images.rows,
            tuple(read_member(saes, members.index((kind, hook))) for hook in hooks),
            Code(config.train.objective, config.train.k),
            mesh,
            batch,
            task.advance,
        )
        for chosen in blocks:
            y_nv = read_betas(betas, chosen)

            def best(rows: np.ndarray, y: np.ndarray) -> np.ndarray:
                return best_units(codes, saes, mode, hooks, images.rows[rows], y[rows], k, memory, absolute)

            known = align.read(f"{mode}/voxel_units")[chosen]
            splits = _splits(groups, trained_on, tests, y_nv, order, known, best)
            own_tv = None
            if own is not None:
                own_tv = gaussian_weights(*(a[chosen] for a in own), t).T
            search = PooledSearch(patches, y_nv, order, groups, splits, fields, own_tv, kinds, absolute)
            scored, tested = search.score()
            _fill(arrays, chosen, scored)
            if config.pooling.bootstrap and tested_images:
                gain_bv = gain_draws(list(tested), config.pooling.bootstrap, config.align.seed)
                inside = np.stack([mask[chosen] & (arrays["unit"][chosen] >= 0) for mask in rois.values()])
                draws.append(gain_bv @ inside.T)
    ctx.forget_activations()
    if config.pooling.field != "both":
        arrays = {key: x for key, x in arrays.items() if not key.startswith("prf_")}
    arrays |= _centres(arrays, fields, own)
    writer = ctx.writer(ctx.specs.pooling[name])
    for key, value in arrays.items():
        writer.put(key, value, dimensions=("v",))
    writer.put_json("fields.json", {"x": fields.x, "y": fields.y, "size": fields.size})
    writer.put_json(
        "pooling.json", _document(ctx, subject, arrays, rois, np.sum(draws, axis=0) if draws else None, len(fields))
    )
    return writer.commit()


def _searched(ctx: Context, subject: Subject, alive: np.ndarray) -> np.ndarray:
    names = ctx.config.pooling.rois
    if names:
        chosen_rois(names, ctx.subjects, "pooling.rois")
        alive = alive & np.logical_or.reduce([subject.rois[x] for x in names if x in subject.rois] or [alive & False])
    if not alive.any():
        raise UserError(
            f"{subject.name}: no responsive voxel lies in pooling.rois = {names}. Name others, or leave the subject out "
            "(data.subjects)."
        )
    return alive


def _own_fields(config: Config, subject: Subject) -> tuple[np.ndarray, ...] | None:
    """x, y, size [v] of the voxels' own fields as fractions of the image, where they are asked for."""
    if config.pooling.field == "learned":
        return None
    if subject.prf is None:
        raise UserError(
            f"{subject.name}: pooling.field is {config.pooling.field}, but the dataset brings no pRFs (NSD: prf_angle, "
            "prf_eccentricity and prf_size beside the ROIs; voxels.csv: prf_x, prf_y, prf_sigma). Set pooling.field to learned."
        )
    return in_image(subject.prf, config.pooling.image_degrees)


def _permutation(sets: ImageSets, seed: int) -> np.ndarray:
    """int [n]: in the control image i has the response of image order[i]; images that select and that score are kept apart."""
    order = np.arange(len(sets.select))
    rng = np.random.default_rng([seed, len(order)])
    for part in (sets.select,) if sets.held_out is None else (sets.select, sets.held_out):
        order[part] = rng.permutation(order[part])
    return order


def _parts(sets: ImageSets) -> tuple[list[np.ndarray], list[tuple[int, ...]], list[np.ndarray | None]]:
    """Groups of images, and of every choice the groups that make it and the images that score it; see `align.select`."""
    if sets.folds is None:
        return (
            [np.flatnonzero(sets.select)],
            [(0,)],
            [None if sets.held_out is None else np.flatnonzero(sets.held_out)],
        )
    folds = range(sets.folds.max() + 1)
    groups = [np.flatnonzero(sets.folds == f) for f in folds]
    return groups, [tuple(folds), *(tuple(g for g in folds if g != f) for f in folds)], [None, *groups]


def _splits(
    groups: list[np.ndarray],
    trained_on: list[tuple[int, ...]],
    tests: list[np.ndarray | None],
    y_nv: np.ndarray,
    order: np.ndarray,
    known_vk: np.ndarray,
    best: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> list[Split]:
    """Candidates of voxels and of their control: those of `align` for the dictionary, else found on the images that choose."""
    out = []
    for number, (train, test) in enumerate(zip(trained_on, tests, strict=True)):
        rows = np.concatenate([groups[g] for g in train])
        if number == 0:
            units = np.concatenate([known_vk, best(rows, y_nv[order])])
        else:
            units = best(rows, np.concatenate([y_nv, y_nv[order]], axis=1))
        out.append(Split(train, test, units))
    return out


def _batch(config: Config, units: int, patches: int, fields: int, devices: int) -> int:
    """Images per step: pre-activations of all units, codes of candidates and their pooled values within the budget."""
    per_image = 4 * units * (2 * patches + 3 * fields)
    fits = max(1, (config.align.memory_mb << 20) // per_image)
    return -(-min(config.encode.batch, fits) // devices) * devices


def _fill(arrays: dict[str, np.ndarray], chosen: np.ndarray, scored: dict[str, Scored]) -> None:
    """Put a block's results where its voxels lie; the control is the second half of the targets."""
    v = len(chosen)
    local = scored["local"]
    found = {
        "unit": local.choice.unit[:v],
        "field": local.choice.field[:v],
        "in_sample": local.choice.value[:v],
        "held_out": local.held_out[:v],
        "uniform_held_out": scored["uniform"].held_out[:v],
        "shuffled_field": local.choice.field[v:],
        "shuffled_held_out": local.held_out[v:],
    }
    if "prf" in scored:
        prf = scored["prf"]
        found |= {
            "prf_unit": prf.choice.unit[:v],
            "prf_in_sample": prf.choice.value[:v],
            "prf_held_out": prf.held_out[:v],
        }
    for key, value in found.items():
        arrays.setdefault(key, np.full(len(arrays["unit"]), np.nan, np.float32))[chosen] = value


def _centres(
    arrays: dict[str, np.ndarray], fields: Fields, own: tuple[np.ndarray, ...] | None
) -> dict[str, np.ndarray]:
    """Centre and size of the chosen fields; of a voxel's own field where that was chosen."""
    out = {}
    for prefix in ("", "shuffled_"):
        field = arrays[f"{prefix}field"]
        for i, (name, table) in enumerate((("centre_x", fields.x), ("centre_y", fields.y), ("size", fields.size))):
            value = np.where(field >= 0, table[np.where(field < len(fields), field, UNIFORM)], np.nan)
            if own is not None:
                value = np.where(field == len(fields), own[i], value)
            out[prefix + name] = value.astype(np.float32)
    return out


def _rois(ctx: Context, subject: Subject) -> dict[str, np.ndarray]:
    names = ctx.config.pooling.rois or chosen_rois(ctx.config.roi.names, ctx.subjects)
    rois = {name: subject.rois[name] for name in names if name in subject.rois}
    return {ALL_RESPONSIVE: np.ones(subject.n_voxels, bool), **rois}


def _document(
    ctx: Context,
    subject: Subject,
    arrays: dict[str, np.ndarray],
    rois: dict[str, np.ndarray],
    draws_br: np.ndarray | None,
    n_fields: int,
) -> dict[str, Any]:
    config = ctx.config.pooling
    records: dict[str, Any] = {}
    for i, (name, mask) in enumerate(rois.items()):
        count = int((mask & (arrays["unit"] >= 0)).sum())
        if count >= max(1, ctx.config.roi.min_voxels):
            records[name] = roi_record(arrays, mask, None if draws_br is None else draws_br[:, i] / count)
    fitted, shuffled = (
        tuple(arrays[prefix + key].astype(np.float64) for key in ("centre_x", "centre_y", "size"))
        for prefix in ("", "shuffled_")
    )
    centres: dict[str, Any] = {}
    for source, known in _known(ctx, subject) if config.field != "prf" else ():
        if record := centre_record(fitted, shuffled, known, ctx.config.align.seed):
            centres[source] = record
    return {
        "mode": config.mode,
        "field": config.field,
        "fields": n_fields,
        "bootstrap": config.bootstrap,
        "rois": records,
        "centres": centres,
    }


def _known(ctx: Context, subject: Subject) -> Iterable[tuple[str, tuple[np.ndarray, ...]]]:
    """Known centres and sizes: planted ones of a simulated dataset, and the pRFs that a dataset brings."""
    if ctx.facts.has_truth:
        path = ctx.facts.root / "truth" / f"{subject.name}.csv"
        table = read_table(path, ())
        names = ("rf_x", "rf_y", "rf_size")
        if all(name in table for name in names) and len(table["rf_x"]) == subject.n_voxels:
            yield "planted", tuple(floats(path, name, table[name]) for name in names)
    if subject.prf is not None:
        yield "pRF", in_image(subject.prf, ctx.config.pooling.image_degrees)
