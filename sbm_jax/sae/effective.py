"""Effective dictionary size: how many equally used units would be used as evenly as these are."""

from __future__ import annotations

import numpy as np

from sbm_jax.errors import UserError


def effective_size(mass_u: np.ndarray) -> dict[str, float]:
    """Two Hill numbers of how the use of a dictionary is spread over its units (Hill 1973, Ecology 54).

    With p = mass / sum(mass):  entropy: exp(-sum p ln p), 0 ln 0 = 0 (order 1);  participation: 1 / sum p^2 (order 2).
    Both are 1 when one unit does everything and u when all u are used alike; participation <= entropy <= units in use.

    Args: mass_u: [u], >= 0: on how many held-out tokens each unit fires, or the sum of its values there. Say which.
    Raises UserError when the mass is negative, not finite, or zero for all units.
    """
    mass = np.asarray(mass_u, np.float64)
    if mass.ndim != 1 or not np.isfinite(mass).all() or (mass < 0).any():
        raise UserError(f"effective size: expected one finite mass >= 0 per unit, got an array of shape {mass.shape}.")
    total = mass.sum()
    if not total > 0:
        raise UserError(f"effective size: none of {len(mass)} units fired; there is no dictionary in use.")
    p = mass / total
    p = p[p > 0]
    return {"entropy": float(np.exp(-np.sum(p * np.log(p)))), "participation": float(1 / np.sum(p * p))}
