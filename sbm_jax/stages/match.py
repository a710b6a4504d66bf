"""match: the same concept in two dictionaries, of two layers, two seeds, or two runs over the same images."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.config import MatchConfig
from sbm_jax.kernels import SparseCodes
from sbm_jax.kernels.cosine_topk.paired import chosen_columns
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.match_dictionaries import (
    Dictionary,
    Loader,
    Own,
    check_same_images,
    find_codes,
    image_rows,
    open_other,
    pairs,
    shared_space,
    sweep_seeds,
)
from sbm_jax.stages.match_search import (
    Decoders,
    Lists,
    Matching,
    best_by_chance,
    best_by_codes,
    firing,
    match_one_to_one,
    without_rare,
)
from sbm_jax.store.store import Store, StoreWriter

THRESHOLDS = (0.5, 0.7, 0.9)


def run(ctx: Context) -> Store:
    """Write `match.json` (`pairs`: a record per pair of dictionaries a and b, see `_summary`) and, under the name of a pair,
    for side a and for side b, whose partners are units of the other one (k = match.top; -1 and NaN: none):

    `SIDE/best_units` int32 and `SIDE/best_values` float32 [u, k], by Pearson r of the codes of the same images; `SIDE/chance`
    float32 [u, match.shuffles], the largest r when the images of one side are permuted; where decoders share a space
    `SIDE/cosine` [u, k] of those partners, `SIDE/decoder_unit` and `SIDE/decoder_value` [u], the partner of largest cosine. And
    `one_to_one` int32 [u of a], the partner in b, `one_to_one_value` its r, `one_to_one_cosine` where there is one; `shown_units`
    int32 [s, 2], some of those partners, and `shown_images` int32 [s, 2, e], the images with their largest codes (-1: none left).

    Raises UserError where another run is not there, has changed, or is not over the same images.
    """
    assert ctx.specs.match is not None
    config = ctx.config.match
    others = [open_other(find_codes(entry)) for entry in config.others]
    for other in others:
        check_same_images(ctx, other)
    rows = image_rows(ctx.facts.n_images, config.images, config.seed)
    load = Loader(ctx, others, rows)
    writer = ctx.writer(ctx.specs.match)
    todo = pairs(own_of(ctx), _others(ctx, others), config.pairs)
    records = []
    with progress("match", len(todo), "pairs") as task:
        for number, (a, b) in enumerate(todo):
            name = f"pair{number:03d}"
            space = shared_space(ctx, others, a, b)
            records.append({"name": name} | _compare(writer, name, config, rows, load, (a, b), space))
            task.advance()
    writer.put_json(
        "match.json",
        {
            "pairs": records,
            "seed": ctx.config.train.seed,
            "shuffles": config.shuffles,
            "least_images": config.least_images,
        },
    )
    ctx.forget_activations()
    return writer.commit()


def own_of(ctx: Context, run: str = "", other: int = -1) -> Own:
    """What may be paired of a run; of another one its primary autoencoders alone."""
    seeds = sweep_seeds(ctx.config) if other < 0 else []
    return Own(ctx.config.kinds, ctx.facts.hooks, ctx.config.train.seed, seeds, run, other)


def _others(ctx: Context, others: list[Context]) -> list[Own]:
    return [own_of(other, other.out.name, i) for i, other in enumerate(others)]


def _compare(
    writer: StoreWriter,
    name: str,
    config: MatchConfig,
    rows: np.ndarray,
    load: Loader,
    which: tuple[Dictionary, Dictionary],
    space: str,
) -> dict[str, Any]:
    """Write one pair; its record."""
    (codes_a, rows_a), (codes_b, rows_b) = load(which[0]), load(which[1])
    a, b = (without_rare(codes, config.least_images) for codes in (codes_a, codes_b))
    budget = config.memory_mb << 20
    found = best_by_codes(a, b, config.top, budget)
    chance = dict(zip("ab", best_by_chance(a, b, config.shuffles, config.seed, budget), strict=True))
    one = match_one_to_one(found)
    for side in "ab":
        writer.put(f"{name}/{side}/best_units", getattr(found, f"{side}_units"), dimensions=("u", "k"))
        writer.put(f"{name}/{side}/best_values", getattr(found, f"{side}_values"), dimensions=("u", "k"))
        writer.put(f"{name}/{side}/chance", chance[side], dimensions=("u", "b"))
    writer.put(f"{name}/one_to_one", one.units, dimensions=("u",))
    writer.put(f"{name}/one_to_one_value", one.values, dimensions=("u",))
    decoder = None
    if space:
        decoder = {"space": space} | _decoders(writer, name, config, Decoders.of(rows_a, rows_b, found), found, one)
    shown = _shown(one, config.shown)
    writer.put(f"{name}/shown_units", shown)
    images = [_strongest(codes, shown[:, i], config.exemplars, rows) for i, codes in enumerate((codes_a, codes_b))]
    writer.put(f"{name}/shown_images", np.stack(images, axis=1))
    return {
        "a": which[0].as_json(),
        "b": which[1].as_json(),
        "images": len(rows),
        "firing": {"a": int((firing(codes_a) > 0).sum()), "b": int((firing(codes_b) > 0).sum())},
        "from_a": _summary(found.a_values, chance["a"]),
        "from_b": _summary(found.b_values, chance["b"]),
        "one_to_one": {"pairs": one.pairs, "mean": one.mean, "bound": one.bound},
        "decoder": decoder,
    }


def _summary(values_uk: np.ndarray, chance_ub: np.ndarray) -> dict[str, Any]:
    """Over the units that take part: how many, mean and median of the best r, shares above thresholds; means and 95th percentile of
    the best r with permuted images; the share whose r is above that of all permutations, and what chance would give.
    """
    part = np.isfinite(values_uk[:, 0])
    best, chance = values_uk[part, 0].astype(np.float64), chance_ub[part].astype(np.float64)
    if not len(best):
        return {"units": 0}
    return {
        "units": len(best),
        "mean": best.mean(),
        "median": np.median(best),
        "above": {f"{t:g}": float(np.mean(best > t)) for t in THRESHOLDS},
        "chance": chance.mean() if chance.size else None,
        "chance_95": np.quantile(chance, 0.95) if chance.size else None,
        "above_chance": np.mean(best > chance.max(axis=1)) if chance.size else None,
        "above_chance_expected": 1 / (1 + chance.shape[1]),
    }


def _decoders(
    writer: StoreWriter, name: str, config: MatchConfig, decoders: Decoders, found: Lists, one: Matching
) -> dict[str, Any]:
    """Write decoder cosines of a pair; mean of the largest from a and from b, the same with b's rows turned at random
    (`chance`), mean cosine of the one-to-one partners, and the share of a's units whose best partner by r is that by cosine too.
    """
    budget = config.memory_mb << 20
    best, turned = decoders.best(budget), decoders.turned(config.seed).best(budget)
    for side, these, units in (("a", decoders, found.a_units), ("b", decoders.swapped(), found.b_units)):
        writer.put(f"{name}/{side}/cosine", these.at(units), dimensions=("u", "k"))
        writer.put(f"{name}/{side}/decoder_unit", getattr(best, f"{side}_units")[:, 0], dimensions=("u",))
        writer.put(f"{name}/{side}/decoder_value", getattr(best, f"{side}_values")[:, 0], dimensions=("u",))
    partner = decoders.at(one.units[:, None])[:, 0]
    writer.put(f"{name}/one_to_one_cosine", partner, dimensions=("u",))
    part = found.a_units[:, 0] >= 0
    return {
        "from_a": _mean(best.a_values),
        "from_b": _mean(best.b_values),
        "chance": _mean(np.concatenate([turned.a_values, turned.b_values])),
        "one_to_one": _mean(partner),
        "same": float(np.mean(best.a_units[part, 0] == found.a_units[part, 0])) if part.any() else None,
    }


def _shown(one: Matching, count: int) -> np.ndarray:
    """Some one-to-one pairs, int32 [s, 2]: the best, and further ones at equal steps of rank down to the median."""
    order = np.argsort(-one.values, kind="stable")[: one.pairs]  # NaN come last
    at = np.unique(np.round(np.linspace(0, (len(order) - 1) / 2, min(count, len(order)))).astype(int))
    return np.stack([order[at], one.units[order[at]]], axis=1).astype(np.int32)


def _strongest(codes: SparseCodes, units: np.ndarray, count: int, rows: np.ndarray) -> np.ndarray:
    """Rows of the image table with the largest codes of each unit, int32 [s, e]; -1 beyond the images on which it is active."""
    wanted, place = np.unique(units, return_inverse=True)
    columns = chosen_columns(codes, wanted)[place]
    order = np.argsort(-columns, axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(columns, order, axis=1) > 0, rows[order], -1).astype(np.int32)


def _mean(x: np.ndarray) -> float | None:
    x = x[np.isfinite(x)]
    return float(x.mean(dtype=np.float64)) if x.size else None
