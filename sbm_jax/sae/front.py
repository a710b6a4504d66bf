"""The front of error against sparsity that a sweep gives: which autoencoders no other one of the same tokens beats."""

from __future__ import annotations

from typing import Any

import numpy as np

SETTINGS = ("expansion", "objective", "k", "sparsity", "lr", "seed")


def pareto(cost_n: np.ndarray, error_n: np.ndarray) -> np.ndarray:
    """bool [n]: points that no other point dominates, that is, matches in both numbers and undercuts in at least one.

    Equal points are on the front together. Raises ValueError for a number that is not finite.
    """
    cost, error = np.asarray(cost_n, np.float64), np.asarray(error_n, np.float64)
    if not (np.isfinite(cost).all() and np.isfinite(error).all()):
        raise ValueError("a front needs finite numbers")
    no_worse = (cost[:, None] <= cost[None]) & (error[:, None] <= error[None])
    better = (cost[:, None] < cost[None]) | (error[:, None] < error[None])
    return np.asarray(~np.any(no_worse & better, axis=0))


def fronts(members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per token kind and hook: every member's L0 and normalised MSE, and whether it is on the front of all (`pareto`) and
    of its own objective (`pareto_of_objective`). members: records of `metrics.json`. Empty where nothing was swept.
    """
    out = []
    for kind, hook in dict.fromkeys((m["kind"], m["hook"]) for m in members):
        mine = [m for m in members if (m["kind"], m["hook"]) == (kind, hook)]
        if len(mine) < 2:
            continue
        l0, error = (np.array([m[key] for m in mine]) for key in ("l0", "normalised_mse"))
        names = np.array([m["objective"] for m in mine])
        own = np.zeros(len(mine), bool)
        for name in dict.fromkeys(names.tolist()):
            own[names == name] = pareto(l0[names == name], error[names == name])
        keys = (*SETTINGS, "l0", "normalised_mse", "explained_variance")
        points = [
            {key: m[key] for key in keys} | {"pareto": bool(a), "pareto_of_objective": bool(b)}
            for m, a, b in zip(mine, pareto(l0, error), own, strict=True)
        ]
        out.append({"kind": kind, "hook": hook, "points": points})
    return out
