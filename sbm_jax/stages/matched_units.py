"""Control units that fire about as often, and carry about as much energy, as some others."""

from __future__ import annotations

import numpy as np

from sbm_jax.stages.exemplar_lists import Firing

NEAREST = 5  # candidates among which one is drawn, so that draws differ


def firing_profile(firing: Firing) -> np.ndarray:
    """Log token rate and log energy of every unit, float64 [u, 2], each over its spread; units that never fire lie at the
    lowest value found.
    """
    columns = []
    for values in (firing.token_rate, firing.energy):
        x = np.asarray(values, np.float64)
        logs = np.log(np.maximum(x, x[x > 0].min() if (x > 0).any() else 1.0))
        spread = logs[x > 0].std() if (x > 0).any() else 0.0
        columns.append(logs / (spread or 1.0))
    return np.stack(columns, axis=1)


def matched_units(targets: np.ndarray, profile_uf: np.ndarray, seed: list[int], nearest: int = NEAREST) -> np.ndarray:
    """One control per target, none twice and none a target, int [len(targets)]; fewer where units run out.

    Targets come in random order; each takes one of the `nearest` units left, by Euclidean distance of profiles, at random.
    """
    rng = np.random.default_rng(seed)
    left = np.ones(len(profile_uf), bool)
    left[targets] = False
    out = []
    for target in rng.permutation(targets):
        candidates = np.flatnonzero(left)
        if not len(candidates):
            break
        distance = np.linalg.norm(profile_uf[candidates] - profile_uf[target], axis=1)
        close = candidates[np.argsort(distance, kind="stable")[:nearest]]
        chosen = int(rng.choice(close))
        left[chosen] = False
        out.append(chosen)
    return np.array(out, np.int64)
