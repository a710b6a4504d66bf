"""How alike dictionaries of one layer are: of two seeds of a sweep, or of two settings of a run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sbm_jax.sae.stability import stability
from sbm_jax.stages.context import Context
from sbm_jax.stages.match_dictionaries import Dictionary, Loader, image_rows, seed_members, sweep_seeds
from sbm_jax.stages.match_search import (
    Decoders,
    Lists,
    best_by_chance,
    best_by_codes,
    match_one_to_one,
    without_rare,
)
from sbm_jax.stages.rows import Row, row

_OF = "dictionary"


def between_seeds(ctx: Context) -> Iterator[Row]:
    """Of the sweep's seeds at the primary setting, one row per measure and token kind, over layers and pairs of seeds; by chance:
    decoder rows of another seed, rotated at random.
    """
    if not sweep_seeds(ctx.config):
        return
    saes, seed, budget = ctx.open(ctx.specs.saes), ctx.config.stability.seed, ctx.config.match.memory_mb << 20
    members, w_dec, alive = seed_members(saes), saes.read("w_dec"), saes.read("rate") > 0
    seeds = [ctx.config.train.seed, *sweep_seeds(ctx.config)]
    for kind in ctx.config.kinds:
        found = {"best decoder cosine": [], "one-to-one decoder cosine": []}
        chance = []
        for hook in ctx.facts.hooks:
            for i, one in enumerate(seeds):
                for two in seeds[i + 1 :]:
                    a, b = members[kind, hook, one], members[kind, hook, two]
                    best, paired, turned = decoder_agreement(w_dec[a], w_dec[b], alive[a], alive[b], seed, budget)
                    found["best decoder cosine"].append(best)
                    found["one-to-one decoder cosine"].append(paired)
                    chance.append(turned)
        for measure, values in found.items():
            null = chance if measure.startswith("best") else []
            yield row("seeds", _OF, kind, measure, np.array(values), null, len(values))


def decoder_agreement(
    w_a: np.ndarray, w_b: np.ndarray, alive_a: np.ndarray, alive_b: np.ndarray, seed: int, memory_bytes: int
) -> tuple[float, float, float]:
    """Mean largest cosine and mean one-to-one cosine (`sae.stability.Stability`) of live units [u, d], and the former with the rows
    of b rotated at random; NaN where a dictionary has no live unit.
    """
    if not (alive_a.any() and alive_b.any()):
        return np.nan, np.nan, np.nan
    found = stability(w_a, w_b, alive_a=alive_a, alive_b=alive_b)
    parts = [np.where(alive, 0, -1)[:, None].astype(np.int32) for alive in (alive_a, alive_b)]
    nothing = Lists(np.zeros((0, 0)), parts[0], np.zeros((0, 0)), parts[1])
    turned = Decoders.of(w_a, w_b, nothing).turned(seed).best(memory_bytes)
    sides = [x[np.isfinite(x)].mean(dtype=np.float64) for x in (turned.a_values, turned.b_values)]
    return found.mean_max_cosine, found.mean_matched_cosine, float(np.mean(sides))


def between_dictionaries(own: Context, other: Context, label: str) -> Iterator[Row]:
    """Of this run and a variant, where they have dictionaries of their own. One row per measure and token kind, over layers:
    decoder cosines as `between_seeds`; and r of codes on the same images, of best partners (mean of both directions; by chance:
    images permuted) and one to one.
    """
    if own.specs.saes == other.specs.saes:
        return
    config, seed, budget = own.config.match, own.config.stability.seed, own.config.match.memory_mb << 20
    rows = image_rows(own.facts.n_images, config.images, config.seed)
    load = Loader(own, [other], rows)
    stores = [run.open(run.specs.saes) for run in (own, other)]
    members, alive = [seed_members(s) for s in stores], [s.read("rate") > 0 for s in stores]
    for kind in [k for k in own.config.kinds if k in other.config.kinds]:
        cosine, codes = [], []
        for hook in own.facts.hooks:
            names = [Dictionary(kind, hook, run.config.train.seed, other=i - 1) for i, run in enumerate((own, other))]
            (codes_a, w_a), (codes_b, w_b) = load(names[0]), load(names[1])
            live = [alive[i][members[i][kind, hook, names[i].seed]] for i in range(2)]
            cosine.append(decoder_agreement(w_a, w_b, live[0], live[1], seed, budget))
            a, b = (without_rare(x, config.least_images) for x in (codes_a, codes_b))
            found = best_by_codes(a, b, config.top, budget)
            null = best_by_chance(a, b, 1, config.seed, budget)
            codes.append(
                (
                    _both(found.a_values[:, 0], found.b_values[:, 0]),
                    match_one_to_one(found).mean,
                    _both(null[0][:, 0], null[1][:, 0]),
                )
            )
        for values, name in ((np.array(cosine), "decoder cosine"), (np.array(codes), "r of codes")):
            yield row(label, _OF, kind, f"best {name}", values[:, 0], values[:, 2], len(values))
            yield row(label, _OF, kind, f"one-to-one {name}", values[:, 1], [], len(values))


def _both(a: np.ndarray, b: np.ndarray) -> float:
    """Half of the mean over a and the mean over b of what is known."""
    sides = [x[np.isfinite(x)] for x in (a, b)]
    return float(np.mean([x.mean(dtype=np.float64) for x in sides])) if all(x.size for x in sides) else float("nan")
