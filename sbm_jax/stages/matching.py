"""Matching units with voxels on the listed pairs alone: one-to-one, soft, and what no longer list could exceed.

One-to-one and many-to-one matching of features: Li et al. 2015 (arXiv 1511.07543). Soft matching: Khosla & Williams 2024
(PMLR 243).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SETTLED = 1e-12  # similarities are float32 numbers in float64 sums: what is left beyond this is no rounding
_TRIES = 21  # quantiles at which `upper_bounds` looks for the lowest bound; any of them is a bound


@dataclass(frozen=True)
class Candidates:
    """Pairs with positive similarity, each once, ordered by unit and voxel; u units and v voxels counted from 0.

    units, voxels: int64 [e]. values: float64 [e]. signs: int8 [e], of the correlation whose size `values` is. unit_rest [u],
    voxel_rest [v]: a pair that is not listed has at most the smaller of its two; not negative. unit_ids [u]: layer x units per
    layer + unit.
    """

    units: np.ndarray
    voxels: np.ndarray
    values: np.ndarray
    signs: np.ndarray
    unit_rest: np.ndarray
    voxel_rest: np.ndarray
    unit_ids: np.ndarray

    @property
    def n_units(self) -> int:
        return len(self.unit_rest)

    @property
    def n_voxels(self) -> int:
        return len(self.voxel_rest)

    def find(self, units: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Index into the pairs, int [p], of pairs that are listed."""
        return np.searchsorted(self.units * self.n_voxels + self.voxels, units * self.n_voxels + voxels)


def candidates(
    voxel_values: np.ndarray,
    voxel_units: np.ndarray,
    unit_values: np.ndarray,
    unit_voxels: np.ndarray,
    taken: np.ndarray,
    signs: Sequence[np.ndarray] = (),
) -> Candidates:
    """The union of the lists of voxels [v, k] and of units [l, u, k], as alignment stores them, for the voxels `taken` (bool [v]).

    Units: those that vary over the images, which have a similarity other than exactly 0. Pairs whose similarity is not positive
    are left out: unmatched counts as 0. signs: of both lists, as stored where absolute similarities were sought; else all 1.
    """
    per_unit, at_voxel = (x.reshape(-1, x.shape[-1]) for x in (np.nan_to_num(unit_values), unit_voxels))
    unit_ids, rows = np.flatnonzero((per_unit != 0).any(axis=1)), np.flatnonzero(taken)
    unit_place, voxel_place = np.full(len(per_unit), -1), np.full(len(taken), -1)
    unit_place[unit_ids], voxel_place[rows] = np.arange(len(unit_ids)), np.arange(len(rows))
    per_voxel, at_unit = np.nan_to_num(voxel_values[rows]), voxel_units[rows]
    units = [
        unit_place[at_unit],
        np.broadcast_to(np.arange(len(unit_ids))[:, None], (len(unit_ids), at_voxel.shape[1])),
    ]
    voxels = [np.broadcast_to(np.arange(len(rows))[:, None], at_unit.shape), voxel_place[at_voxel[unit_ids]]]
    values = [per_voxel, per_unit[unit_ids]]
    both = signs or [np.ones(x.shape, np.int8) for x in (voxel_values, unit_values)]
    signed = [both[0][rows], both[1].reshape(per_unit.shape)[unit_ids]]
    pairs = [np.concatenate([x.ravel() for x in both]) for both in (units, voxels, values, signed)]
    real = (pairs[0] >= 0) & (pairs[1] >= 0) & (pairs[2] > 0)
    unit_e, voxel_e, value_e, sign_e = (x[real] for x in pairs)
    _, first = np.unique(unit_e * len(rows) + voxel_e, return_index=True)
    unit_rest, voxel_rest = (np.maximum(x[:, -1], 0).astype(np.float64) for x in (values[1], values[0]))
    return Candidates(
        unit_e[first],
        voxel_e[first],
        value_e[first].astype(np.float64),
        sign_e[first],
        unit_rest,
        voxel_rest,
        unit_ids,
    )


def one_to_one(c: Candidates) -> np.ndarray:
    """The matching of largest total similarity in which every unit and voxel is in one pair at most: unit of every voxel,
    int64 [v], -1 where it stays alone at similarity 0. Exact (Jonker & Volgenant 1987, sparse).
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    alone = np.arange(c.n_voxels)  # every voxel has a partner of its own beside the units, at 0
    voxels, partners = np.concatenate([c.voxels, alone]), np.concatenate([c.units, c.n_units + alone])
    # the solver takes an explicit 0 for no pair; 1 more for every voxel changes no choice
    weights = 1 + np.concatenate([c.values, np.zeros(c.n_voxels)])
    graph = csr_array((weights, (voxels, partners)), shape=(c.n_voxels, c.n_units + c.n_voxels))
    partner = min_weight_full_bipartite_matching(graph, maximize=True)[1]
    return np.where(partner < c.n_units, partner, -1).astype(np.int64)


def matching_prices(c: Candidates, unit_v: np.ndarray) -> np.ndarray:
    """What each voxel gains in a one-to-one matching, float64 [v]: dual prices, for `upper_bounds`.

    Unit prices rise from 0 until no voxel would gain by another unit. They settle if and only if the matching is optimal, and the
    bound on the listed pairs is then its total: the certificate.
    """
    matched = unit_v >= 0
    worth = np.zeros(c.n_voxels)
    worth[matched] = c.values[c.find(unit_v[matched], np.flatnonzero(matched))]
    price = np.zeros(c.n_units)
    for _ in range(c.n_voxels + 1):  # no chain of displaced voxels is longer
        gain = worth - _paid(price, unit_v)
        asked = np.maximum(price, _best(c.units, c.values - gain[c.voxels], c.n_units))
        if (asked - price).max(initial=0) <= _SETTLED:
            break
        price = asked
    return np.maximum(worth - _paid(price, unit_v), 0)


def _paid(price_u: np.ndarray, unit_v: np.ndarray) -> np.ndarray:
    """The price of every voxel's unit, 0 for voxels that are alone."""
    return np.concatenate([price_u, [0.0]])[unit_v]


def transport(c: Candidates) -> tuple[np.ndarray, np.ndarray]:
    """Soft matching: the flow P of largest sum_e P_e s_e with at most 1/u out of every unit and at most 1/v into every voxel.

    Returns the flow, float64 [e], and dual prices of the voxels, float64 [v]. A linear program, solved to the optimum by
    HiGHS (interior points, then a vertex); what is not moved counts as similarity 0. Raises RuntimeError where it fails.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    prices, e = np.zeros(c.n_voxels), len(c.values)
    if not e:
        return np.zeros(0), prices
    (units, row), (voxels, column) = (np.unique(x, return_inverse=True) for x in (c.units, c.voxels))
    rows = np.concatenate([row, len(units) + column])
    limits = csr_array((np.ones(2 * e), (rows, np.tile(np.arange(e), 2))), shape=(len(units) + len(voxels), e))
    most = max(c.n_units, c.n_voxels)  # in units of 1 / most the smaller of the two masses is 1
    masses = np.repeat([most / c.n_units, most / c.n_voxels], [len(units), len(voxels)])
    solved = linprog(-c.values, A_ub=limits, b_ub=masses, method="highs-ipm")
    if solved.status:
        raise RuntimeError(f"soft matching over {e} pairs: HiGHS did not reach the optimum: {solved.message}")
    prices[voxels] = np.maximum(-solved.ineqlin.marginals[len(units) :], 0)
    return np.maximum(solved.x, 0) / most, prices


def upper_bounds(c: Candidates, prices_v: np.ndarray, unit_mass: float, voxel_mass: float) -> tuple[float, float]:
    """No flow with at most `unit_mass` per unit and `voxel_mass` per voxel is worth more: over the listed pairs, over all pairs.

    By weak duality: unit_mass sum_u a_u + voxel_mass sum_v b_v for any a, b >= 0 with a_u + b_v >= s_uv. b is `prices_v` [v], and
    a the least that fits. Pairs that are not listed are held to min(unit_rest, voxel_rest): for these b is raised to
    voxel_rest - t, the t with the lowest bound is taken, and b is lowered again to the least that fits a.
    """

    def worth(a: np.ndarray, b: np.ndarray) -> float:
        return float(unit_mass * a.sum() + voxel_mass * b.sum())

    best_v = _best(c.voxels, c.values, c.n_voxels)
    listed = worth(_best(c.units, c.values - prices_v[c.voxels], c.n_units), prices_v)
    levels = [0.0, *np.quantile(c.voxel_rest, np.linspace(0, 1, _TRIES)), np.inf]
    tries = [np.maximum(prices_v, c.voxel_rest - level) for level in levels] + [best_v, np.zeros(c.n_voxels)]
    bounds = []
    for b in tries:
        a = np.maximum(_best(c.units, c.values - b[c.voxels], c.n_units), _best_unlisted(c.unit_rest, c.voxel_rest, b))
        least = np.maximum(
            _best(c.voxels, c.values - a[c.units], c.n_voxels), _best_unlisted(c.voxel_rest, c.unit_rest, a)
        )
        bounds.append(worth(a, least))
    return listed, min(bounds)


def _best(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Largest value per index, at least 0; float64 [size]."""
    out = np.zeros(size)
    np.maximum.at(out, index, values)
    return out


def _best_unlisted(rest_i: np.ndarray, rest_j: np.ndarray, prices_j: np.ndarray) -> np.ndarray:
    """max(0, max_j min(rest_i, rest_j) - prices_j) for every i, in O((i + j) log j)."""
    order = np.argsort(rest_j, kind="stable")
    rest, price = rest_j[order], prices_j[order]
    below = np.concatenate([[-np.inf], np.maximum.accumulate(rest - price)])  # of the first so many j
    cheapest = np.concatenate([np.minimum.accumulate(price[::-1])[::-1], [np.inf]])  # of those after them
    split = np.searchsorted(rest, rest_i)
    return np.maximum(np.maximum(below[split], rest_i - cheapest[split]), 0)
