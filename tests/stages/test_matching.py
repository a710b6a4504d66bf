"""One-to-one and soft matching on listed pairs against dense solvers, and what is claimed of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

from sbm_jax.kernels import cosine_topk_both
from sbm_jax.stages.matching import Candidates, candidates, matching_prices, one_to_one, transport, upper_bounds

TOLERANCE = 1e-9  # float64 sums of at most a few hundred similarities; HiGHS stops at 1e-7 before it goes to a vertex


def _lists(s_uv: np.ndarray, k_voxel: int, k_unit: int) -> Candidates:
    """What alignment would store of one layer of similarities [u, v], float32."""
    by_voxel = np.argsort(-s_uv, axis=0, kind="stable")[:k_voxel].T
    by_unit = np.argsort(-s_uv, axis=1, kind="stable")[:, :k_unit]
    values = np.take_along_axis(s_uv.T, by_voxel, axis=1), np.take_along_axis(s_uv, by_unit, axis=1)
    return candidates(values[0], by_voxel, values[1][None], by_unit[None], np.ones(s_uv.shape[1], bool))


def _dense(c: Candidates) -> np.ndarray:
    """Similarities [u, v] of the listed pairs, 0 elsewhere, where unmatched is 0 as well."""
    out = np.zeros((c.n_units, c.n_voxels))
    out[c.units, c.voxels] = c.values
    return out


def _hungarian(s_uv: np.ndarray) -> float:
    """Largest total of a one-to-one matching with unmatched at 0."""
    positive = np.maximum(s_uv.astype(np.float64), 0)
    return float(positive[linear_sum_assignment(positive, maximize=True)].sum())


def _transport(s_uv: np.ndarray) -> float:
    """Largest sum P s with rows 1/u, columns 1/v, of similarities not below 0; a dense program with equalities, simplex."""
    u, v = s_uv.shape
    rows, columns = np.kron(np.eye(u), np.ones(v)), np.kron(np.ones(u), np.eye(v))
    masses = np.concatenate([np.full(u, 1 / u), np.full(v, 1 / v)])
    solved = linprog(
        -np.maximum(s_uv.astype(np.float64), 0).ravel(),
        A_eq=np.concatenate([rows, columns]),
        b_eq=masses,
        method="highs-ds",
    )
    assert solved.status == 0
    return -solved.fun


def _total(c: Candidates, unit_v: np.ndarray) -> float:
    taken = unit_v[unit_v >= 0]
    assert len(set(taken)) == len(taken)
    return float(_dense(c)[taken, np.flatnonzero(unit_v >= 0)].sum())


@st.composite
def _similarities(draw: st.DrawFn) -> np.ndarray:
    """[u, v] of any proportion, float32; often with many ties, often with many negatives, no exact 0 (a constant unit)."""
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    s = rng.uniform(-1, 1, shape) + draw(st.sampled_from([-0.9, -0.3, 0, 0.6]))
    if draw(st.booleans()):
        s = np.round(s * 3) / 3
    return np.where(s == 0, 0.25, s).astype(np.float32)


some = given(s_uv=_similarities(), k_voxel=st.integers(1, 9), k_unit=st.integers(1, 9))


@some
@settings(max_examples=150, deadline=None)
def test_one_to_one_is_the_hungarian_solution(s_uv, k_voxel, k_unit):
    """On the listed pairs exactly, with its certificate; never above what is claimed of all pairs; at most the best units' sum."""
    c = _lists(s_uv, k_voxel, k_unit)
    unit_v = one_to_one(c)
    total = _total(c, unit_v)
    assert total == pytest.approx(_hungarian(_dense(c)), abs=TOLERANCE)
    listed, upper = upper_bounds(c, matching_prices(c, unit_v), 1, 1)
    assert listed == pytest.approx(total, abs=TOLERANCE)
    assert total - TOLERANCE <= _hungarian(s_uv) <= upper + TOLERANCE
    best = np.maximum(s_uv.astype(np.float64).max(axis=0), 0).sum()
    assert total <= best + TOLERANCE and upper <= best + TOLERANCE
    if k_voxel >= s_uv.shape[0] or k_unit >= s_uv.shape[1]:  # every pair is listed
        assert total == pytest.approx(_hungarian(s_uv), abs=TOLERANCE)


@some
@settings(max_examples=150, deadline=None)
def test_soft_matching_is_the_dense_programs(s_uv, k_voxel, k_unit):
    c = _lists(s_uv, k_voxel, k_unit)
    flow, prices = transport(c)
    u, v = s_uv.shape
    assert (flow >= 0).all()
    assert (np.bincount(c.units, flow, u) <= 1 / u + 1e-7).all() and (
        np.bincount(c.voxels, flow, v) <= 1 / v + 1e-7
    ).all()
    value = float(flow @ c.values)
    listed, upper = upper_bounds(c, prices, 1 / u, 1 / v)
    assert value == pytest.approx(_transport(_dense(c)), abs=1e-7)
    assert listed == pytest.approx(value, abs=1e-7)
    assert value - 1e-7 <= _transport(s_uv) <= upper + 1e-7
    if u == v:  # Birkhoff: the best of all permutations
        assert value == pytest.approx(_hungarian(_dense(c)) / v, abs=1e-7)


@some
@settings(max_examples=60, deadline=None)
def test_the_order_of_voxels_and_units_does_not_matter(s_uv, k_voxel, k_unit):
    """Where no list ends within ties: another order would list other pairs."""
    s_uv = s_uv + np.arange(s_uv.size, dtype=np.float32).reshape(s_uv.shape) * np.float32(1e-4)
    rng = np.random.default_rng(len(s_uv))
    units, voxels = rng.permutation(s_uv.shape[0]), rng.permutation(s_uv.shape[1])
    one, other = _lists(s_uv, k_voxel, k_unit), _lists(s_uv[units][:, voxels], k_voxel, k_unit)
    unit_v, unit_w = one_to_one(one), one_to_one(other)
    assert _total(one, unit_v) == pytest.approx(_total(other, unit_w), abs=TOLERANCE)
    values = [float(transport(c)[0] @ c.values) for c in (one, other)]
    assert values[0] == pytest.approx(values[1], abs=1e-7)


def test_a_matching_that_is_not_the_best_has_no_certificate():
    c = _lists(np.array([[0.9, 0.8], [0.7, 0.1]], np.float32), 2, 2)
    best, worse = np.array([1, 0]), np.array([0, 1])
    assert upper_bounds(c, matching_prices(c, best), 1, 1)[0] == pytest.approx(1.5)
    np.testing.assert_array_equal(one_to_one(c), best)
    assert upper_bounds(c, matching_prices(c, worse), 1, 1)[0] > _total(c, worse) + 0.4


def test_bounds_of_short_lists():
    """Two voxels share their only listed unit: one is alone, and an unlisted pair may be worth as much as the lists' ends."""
    s_uv = np.array([[0.9, 0.8], [0.6, 0.5], [0.2, 0.1]], np.float32)
    c = _lists(s_uv, 1, 1)
    unit_v = one_to_one(c)
    np.testing.assert_array_equal(unit_v, [1, 0])  # unit 1 lists voxel 0
    total, bound = _total(c, unit_v), upper_bounds(c, matching_prices(c, unit_v), 1, 1)[1]
    assert total == pytest.approx(1.4) and _hungarian(s_uv) == pytest.approx(1.4)
    assert 1.4 - 1e-6 <= bound <= 1.5 + 1e-6  # voxel 1 with unit 1 is at most .6


def test_units_that_do_not_vary_and_voxels_left_out():
    """A silent unit (similarity exactly 0) is no candidate and has no mass; a voxel that is not taken has neither."""
    values = np.array([[0.5, 0.0], [np.nan, np.nan], [0.4, -0.1]], np.float32)
    units = np.array([[2, 0], [-1, -1], [2, 3]])
    unit_values = np.array([[[0, 0, 0], [0, 0, 0]], [[0.7, 0.5, 0.4], [0.3, -0.1, np.nan]]], np.float32)
    unit_voxels = np.array([[[0, 1, 2], [0, 1, 2]], [[1, 0, 2], [1, 2, -1]]])
    c = candidates(values, units, unit_values, unit_voxels, np.array([True, False, True]))
    np.testing.assert_array_equal(c.unit_ids, [2, 3])
    assert [*zip(c.units, c.voxels, strict=True)] == [(0, 0), (0, 1)]
    np.testing.assert_allclose(c.values, [0.5, 0.4])
    np.testing.assert_allclose(c.unit_rest, [0.4, 0])  # the whole list of the second unit is known
    np.testing.assert_allclose(c.voxel_rest, [0, 0])
    np.testing.assert_array_equal(one_to_one(c), [0, -1])
    flow, _ = transport(c)  # half of the mass is at either unit and at either voxel; unit 3 has no positive pair
    assert flow.sum() == pytest.approx(0.5) and flow @ c.values == pytest.approx(0.25)


def test_nothing_is_similar():
    c = _lists(np.full((3, 4), -0.5, np.float32), 2, 2)
    flow, prices = transport(c)
    assert len(c.values) == len(flow) == 0 and (one_to_one(c) == -1).all()
    assert upper_bounds(c, prices, 1 / 3, 1 / 4) == (0, 0)
    silent = candidates(*(np.zeros(x, t) for x, t in (((2, 1), float), ((2, 1), int), ((1, 3, 1), float), ((1, 3, 1), int))),
                        taken=np.ones(2, bool))  # fmt: skip
    assert (
        silent.n_units == 0
        and (one_to_one(silent) == -1).all()
        and (matching_prices(silent, one_to_one(silent)) == 0).all()
    )


def test_signs_of_absolute_similarities():
    """Of a pair in both lists, and of pairs in one of them."""
    values, units = np.array([[0.8], [0.6]], np.float32), np.array([[0], [0]])
    unit_values, unit_voxels = np.array([[[0.8], [0.5]]], np.float32), np.array([[[0], [1]]])
    signs = [np.array([[-1], [1]], np.int8), np.array([[[-1], [-1]]], np.int8)]
    c = candidates(values, units, unit_values, unit_voxels, np.ones(2, bool), signs)
    assert [*zip(c.units, c.voxels, c.signs, strict=True)] == [(0, 0, -1), (0, 1, 1), (1, 1, -1)]
    np.testing.assert_array_equal(one_to_one(c), [0, 1])


def test_a_planted_permutation_is_found_where_best_units_are_not():
    """Units are voxels in another order plus noise. Voxels share a signal, and some units are noisy: their voxels are more
    similar to the clean units of others, which one-to-one leaves to their own voxels.
    """
    rng = np.random.default_rng(3)
    n, v = 600, 80
    y = rng.standard_normal((n, 1)) + rng.standard_normal((n, v))
    order = rng.permutation(v)
    noise = np.where(np.arange(v) % 4 == 0, 4.0, 0.3)
    units = y[:, order] + noise * rng.standard_normal((n, v)) * np.sqrt(2)
    values_vk, units_vk, values_uk, voxels_uk = (
        np.asarray(x) for x in cosine_topk_both(units.astype(np.float32), y.astype(np.float32), v, 10)
    )
    c = candidates(values_vk, units_vk, values_uk[None], voxels_uk[None], np.ones(v, bool))
    np.testing.assert_array_equal(one_to_one(c), np.argsort(order))
    assert (units_vk[:, 0] == np.argsort(order)).mean() < 0.8
    flow, _ = transport(c)  # as many units as voxels: the same permutation
    np.testing.assert_allclose(flow[c.find(np.argsort(order), np.arange(v))], 1 / v, atol=1e-9)
