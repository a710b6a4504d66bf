"""What the store of matches says of one unit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sbm_jax.store.store import Store


class Match(NamedTuple):
    """A unit of another dictionary. dictionary: kind, hook, seed, run ("" for this run) and other (its place in `match.others`, -1:
    this run). unit: its number there; r: of the two codes over images; cosine: of the decoder rows, None where they share no
    space; chance: the largest r with permuted images; one_to_one: it is the partner of the one-to-one matching.
    """

    dictionary: dict[str, Any]
    unit: int
    r: float
    cosine: float | None
    chance: float | None
    one_to_one: bool


def describe(dictionary: dict[str, Any], own_seed: int = 0) -> str:
    """In words: `patch block03.resid`, with `, seed 1` where it is of another seed of this run, with `, NAME` of another run."""
    words = f"{dictionary['kind']} {dictionary['hook']}"
    if dictionary["run"]:
        return f"{words}, {dictionary['run']}"
    return words + (f", seed {dictionary['seed']}" if dictionary["seed"] != own_seed else "")


def matches_of(store: Store, kind: str, hook: str, unit: int, seed: int | None = None, top: int = 1) -> list[Match]:
    """The best partners of one unit of this run (seed None: of the run's own autoencoders) in every dictionary that its own was
    compared with, in the order of the pairs; `top` per dictionary at most.
    """
    out: list[Match] = []
    document = store.json("match.json")
    own = document["seed"] if seed is None else seed
    for pair in document["pairs"]:
        for side, other in (("a", "b"), ("b", "a")):
            mine = pair[side]
            if (mine["kind"], mine["hook"], mine["seed"], mine["other"]) == (kind, hook, own, -1):
                out += _best(store, pair, side, other, unit, top)
    return out


def _best(store: Store, pair: dict[str, Any], side: str, other: str, unit: int, top: int) -> list[Match]:
    base = f"{pair['name']}/{side}"
    row = slice(unit, unit + 1)
    units, values, chance = (store.read(f"{base}/{key}", row)[0] for key in ("best_units", "best_values", "chance"))
    cosine = store.read(f"{base}/cosine", row)[0] if pair["decoder"] else None
    one = store.read(f"{pair['name']}/one_to_one")
    return [
        Match(
            pair[other],
            int(units[i]),
            float(values[i]),
            None if cosine is None else float(cosine[i]),
            float(np.max(chance)) if chance.size else None,
            bool(one[unit] == units[i] if side == "a" else one[units[i]] == unit),
        )
        for i in range(min(top, len(units)))
        if units[i] >= 0
    ]
