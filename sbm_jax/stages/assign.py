"""assign: one unit per voxel and one voxel per unit, and soft matching, beside the best unit that many voxels may share."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.kernels.cosine_topk.paired import paired_rows, unit_rows
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.image_sets import image_sets
from sbm_jax.stages.inputs import n_units, read_betas, read_codes, region_masks, responsive, subject_images
from sbm_jax.stages.matching import Candidates, candidates, matching_prices, one_to_one, transport, upper_bounds
from sbm_jax.store.store import Store


def run(ctx: Context, name: str) -> Store:
    """Write the assignments of one subject. Per mode, for responsive voxels (-1 and NaN elsewhere), each [v]:

    `one_to_one_unit` int32, layer x units + unit (-1 too where a voxel is alone); `one_to_one_value`, `one_to_one_held_out`
    float32, 0 where alone; with `assign.soft` also `soft_value`, `soft_held_out` float32, sum_u P_uv s_uv over the voxel's mass.
    Held-out scores are over the images that `align.select: shared` keeps apart, NaN under the other settings. `assign.json`: per
    mode the numbers of units and pairs, `bounds` (`_bounds`), and under `rois` the means that `roi_record` names. Raises
    RuntimeError where the linear program is not solved.
    """
    align, betas = ctx.open(ctx.specs.align[name]), ctx.open(ctx.specs.betas[name])
    alive = responsive(betas, ctx.config.align.min_ncsnr)
    rois = region_masks(ctx.config.roi, ctx.subjects, ctx.dataset.subject(name), alive)
    writer = ctx.writer(ctx.specs.assign[name])
    modes = align.json("index.json")["modes"]
    record: dict[str, Any] = {}
    with progress(f"assign {name}", len(modes), "modes") as task:
        for mode in modes:
            c = _read_candidates(align, mode, alive)
            unit_v = one_to_one(c)
            flows = {"one_to_one": _as_flow(c, unit_v)}
            bounds = {"one_to_one": _bounds(c, flows["one_to_one"], matching_prices(c, unit_v), 1 / c.n_voxels)}
            if ctx.config.assign.soft:
                flows["soft"], prices = transport(c)
                bounds["soft"] = _bounds(c, flows["soft"], prices, 1 / max(1, c.n_units))
            wanted = np.any([flow > 0 for flow in flows.values()], axis=0)
            held_out = pair_scores(ctx, name, mode, c, np.flatnonzero(alive), wanted)
            arrays: dict[str, np.ndarray] = {"one_to_one_unit": np.full(len(alive), -1, np.int32)}
            arrays["one_to_one_unit"][alive] = np.append(c.unit_ids, -1)[unit_v]
            for kind, flow in flows.items():
                arrays[f"{kind}_value"] = _per_voxel(c, flow, c.values, alive)
                arrays[f"{kind}_held_out"] = _per_voxel(c, flow, held_out, alive)
            for key, value in arrays.items():
                writer.put(f"{mode}/{key}", value, dimensions=("v",))
            best = {
                key: align.read(f"{mode}/{source}")[:, 0]
                for key, source in (("unit", "voxel_units"), ("value", "voxel_values"), ("held_out", "held_out"))
            }
            record[mode] = {"units": c.n_units, "pairs": len(c.values), "too_few_units": max(0, c.n_voxels - c.n_units)}
            record[mode] |= {"bounds": bounds, "rois": {roi: roi_record(best, arrays, x) for roi, x in rois.items()}}
            task.advance()
    writer.put_json("assign.json", record)
    return writer.commit()


def roi_record(best: dict[str, np.ndarray], arrays: dict[str, np.ndarray], inside: np.ndarray) -> dict[str, Any]:
    """Means over the voxels `inside` (bool [v]) of the best units (`argmax`), of one-to-one and of soft matching.

    distinct: different best units / voxels. shared: share of voxels whose best unit is that of another one as well. unmatched:
    voxels that are alone.
    """
    _, which, voxels_of_unit = np.unique(best["unit"][inside], return_inverse=True, return_counts=True)
    return {
        "voxels": int(inside.sum()),
        "argmax": _mean(best["value"][inside]),
        "argmax_held_out": _mean(best["held_out"][inside]),
        "distinct": len(voxels_of_unit) / inside.sum(),
        "shared": np.mean(voxels_of_unit[which] > 1),
        "unmatched": int((arrays["one_to_one_unit"][inside] < 0).sum()),
        **{key.removesuffix("_value"): _mean(x[inside]) for key, x in arrays.items() if x.dtype.kind == "f"},
    }


def pair_scores(
    ctx: Context, name: str, mode: str, c: Candidates, voxels: np.ndarray, wanted: np.ndarray
) -> np.ndarray | None:
    """Similarity of the `wanted` pairs (bool [e]) on held-out images, with the sign of the images that selected: float64 [e],
    NaN for other pairs; None where no images are held out. voxels: int [v], the columns of the responses.
    """
    betas, codes, saes = ctx.open(ctx.specs.betas[name]), ctx.open(ctx.specs.codes), ctx.open(ctx.specs.saes)
    images, hooks = subject_images(betas), ctx.facts.hooks
    mask = image_sets(ctx.config.align, name, images.shared).held_out
    if mask is None:
        return None
    out = np.full(len(wanted), np.nan)
    units = n_units(codes, saes, mode, hooks[0])
    layer_e, unit_e = np.divmod(c.unit_ids[c.units], units)
    size = max(256, (ctx.config.align.memory_mb << 20) // (16 * len(images.rows)))
    for start in range(0, len(voxels), size):
        block = voxels[start : start + size]
        y_vn = unit_rows(read_betas(betas, block)[mask].T)
        in_block = wanted & (c.voxels >= start) & (c.voxels < start + size)
        for layer, hook in enumerate(hooks):
            mine = np.flatnonzero(in_block & (layer_e == layer))
            if len(mine):
                held_out = read_codes(codes, mode, hook, images.rows[mask], units)
                units_vk, at = _packed(unit_e[mine], c.voxels[mine] - start, len(block))
                out[mine] = c.signs[mine] * paired_rows(held_out, y_vn, units_vk)[at]
    return out


def _packed(units: np.ndarray, rows: np.ndarray, n_rows: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Pairs as lists [n_rows, k] of units (-1: empty), and where in them each pair is."""
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=n_rows)
    slots = np.empty(len(rows), np.int64)
    slots[order] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    out = np.full((n_rows, counts.max()), -1, np.int64)
    out[rows, slots] = units
    return out, (rows, slots)


def _read_candidates(align: Store, mode: str, alive: np.ndarray) -> Candidates:
    names = ("voxel_values", "voxel_units", "unit_values", "unit_voxels")
    signs = ("voxel_signs", "unit_signs") if align.json("index.json").get("sign") == "absolute" else ()
    lists = [align.read(f"{mode}/{key}") for key in names + signs]
    return candidates(*lists[:4], taken=alive, signs=lists[4:])


def _as_flow(c: Candidates, unit_v: np.ndarray) -> np.ndarray:
    """A one-to-one matching as flow, float64 [e]: 1 / v in every matched pair."""
    flow, voxels = np.zeros(len(c.values)), np.flatnonzero(unit_v >= 0)
    flow[c.find(unit_v[voxels], voxels)] = 1 / c.n_voxels
    return flow


def _bounds(c: Candidates, flow: np.ndarray, prices_v: np.ndarray, unit_mass: float) -> dict[str, float]:
    """`lower`: the flow's own worth. `upper`: no flow over all pairs is worth more. `gap`: how much more one over the listed
    pairs could be worth, 0 up to rounding. `moved`: the share of the voxels' mass that is matched.
    """
    lower = float(flow @ c.values)
    listed, upper = upper_bounds(c, prices_v, unit_mass, 1 / c.n_voxels)
    return {"lower": lower, "upper": upper, "gap": listed - lower, "moved": float(flow.sum())}


def _per_voxel(c: Candidates, flow: np.ndarray, scores: np.ndarray | None, alive: np.ndarray) -> np.ndarray:
    """sum_u P_uv scores_uv over the voxel's mass, float32 [all voxels]; mass that is not moved counts as 0."""
    out, used = np.full(len(alive), np.nan, np.float32), flow > 0
    if scores is not None:
        out[alive] = np.bincount(c.voxels[used], flow[used] * scores[used], c.n_voxels) * c.n_voxels
    return out


def _mean(x: np.ndarray) -> float:
    return float(np.mean(x, dtype=np.float64))
