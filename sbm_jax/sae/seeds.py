"""Stability of the dictionaries of a sweep: settings that were trained from several seeds, compared pair by pair."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from sbm_jax.sae.model import Params
from sbm_jax.sae.stability import stability
from sbm_jax.sae.stack import Point, Stack

_MEANS = ("mean_matched_cosine", "shared", "mean_max_cosine", "matched_bound")


def seed_stability(stack: Stack, params: Params, alive_au: np.ndarray) -> list[dict[str, Any]]:
    """One record per token kind, hook and setting with at least two seeds; means over all pairs of seeds.

    params: arrays with a leading axis a, in the order of the stack's members. alive_au: bool [a, u], units that fired on
    held-out tokens. Keys: kind, hook, the setting without its seed, seeds, pairs, exact (every assignment was the
    optimum), and the means named in `stability.Stability`; these are None where an autoencoder has no live unit.
    """
    settings: dict[tuple[str, str, Point], list[int]] = {}
    for a, member in enumerate(stack.members):
        settings.setdefault((member.kind, member.hook, replace(member.point, seed=0)), []).append(a)
    out = []
    for (kind, hook, point), members in settings.items():
        if len(members) < 2:
            continue
        pairs = list(itertools.combinations(members, 2))
        found = [_compare(params, alive_au, a, b) for a, b in pairs] if alive_au[members].any(axis=1).all() else []
        out.append(
            {
                "kind": kind,
                "hook": hook,
                **{key: value for key, value in asdict(point).items() if key != "seed"},
                "seeds": [stack.members[a].point.seed for a in members],
                "pairs": len(pairs),
                "exact": all(record["exact"] for record in found),
                **{key: float(np.mean([record[key] for record in found])) if found else None for key in _MEANS},
            }
        )
    return out


def _compare(params: Params, alive_au: np.ndarray, a: int, b: int) -> dict[str, Any]:
    w_dec, w_enc = np.asarray(params.w_dec), np.asarray(params.w_enc)
    return stability(
        w_dec[a], w_dec[b], w_enc_a=w_enc[a], w_enc_b=w_enc[b], alive_a=alive_au[a], alive_b=alive_au[b]
    ).as_json()
