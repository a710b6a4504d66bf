"""Stability between seeds and effective dictionary size: laws, known expectations, brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from sbm_jax.errors import UserError
from sbm_jax.sae import stability as module
from sbm_jax.sae.effective import effective_size
from sbm_jax.sae.stability import exact_assignment, greedy_assignment, stability, unit_vectors

EPS = float(np.finfo(np.float32).eps)
D = 24


def rows(n: int, seed: int, d: int = D) -> np.ndarray:
    return np.random.default_rng([seed, n, d]).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("exact_units", [100, 0])
def test_permuted_and_rescaled_copies_agree_fully(rng, exact_units):
    dec, enc = rows(50, 0), rows(50, 1)
    order, scale = rng.permutation(50), rng.uniform(0.1, 9, (50, 1)).astype(np.float32)
    got = stability(dec, scale * dec[order], w_enc_a=enc.T, w_enc_b=(scale * enc[order]).T, exact_units=exact_units)
    assert got.exact == (exact_units == 100)
    # dot products of unit vectors of length 24
    for value in (got.mean_max_cosine, got.mean_matched_cosine, got.matched_bound):
        assert value == pytest.approx(1, abs=D * EPS)
    assert got.shared == 1 and (got.n_a, got.n_b) == (50, 50)


def test_against_brute_force():
    a, b = rows(7, 0, 3), rows(5, 1, 3)
    got = stability(a, b)
    cosine = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    best = max(np.mean([cosine[i, j] for j, i in enumerate(chosen)]) for chosen in itertools.permutations(range(7), 5))
    assert got.mean_matched_cosine == pytest.approx(best, abs=8 * EPS)
    assert got.mean_max_cosine == pytest.approx((cosine.max(1).mean() + cosine.max(0).mean()) / 2, abs=8 * EPS)
    assert stability(b, a).mean_matched_cosine == pytest.approx(best, abs=8 * EPS)


def test_unrelated_directions_have_the_expected_largest_cosine():
    """In d = 3 a cosine is uniform on [-1, 1], so the largest of n has mean 1 - 2 / (n + 1)."""
    n = 400
    got = stability(rows(n, 0, 3), rows(n, 1, 3))
    spread = 2 / (n + 1)  # of one maximum; n of them, nearly independent, and some slack
    assert got.mean_max_cosine == pytest.approx(1 - 2 / (n + 1), abs=6 * spread / np.sqrt(n))
    assert got.mean_matched_cosine < got.mean_max_cosine


def test_shared_needs_both_decoder_and_encoder():
    dec = np.eye(4, 8, dtype=np.float32)
    enc = dec.copy()
    enc[2] = np.eye(8)[7]  # same decoder, another encoder
    other = dec.copy()
    other[3] = np.eye(8)[6]  # another decoder
    got = stability(dec, other, w_enc_a=dec.T, w_enc_b=enc.T)
    assert got.shared == 0.5
    assert stability(dec, other).shared is None
    with pytest.raises(ValueError, match="both encoders"):
        stability(dec, other, w_enc_a=dec.T)


def test_a_cosine_just_below_the_threshold_is_not_shared():
    a = np.eye(2, 4, dtype=np.float32)
    b = np.stack([[0.71, 0, np.sqrt(1 - 0.71**2), 0], [0, 0.69, 0, np.sqrt(1 - 0.69**2)]]).astype(np.float32)
    assert stability(a, b, w_enc_a=a.T, w_enc_b=b.T).shared == 0.5


def test_dead_units_are_left_out_even_with_broken_weights():
    dec = rows(20, 0)
    alive = np.arange(20) % 3 > 0
    broken = dec.copy()
    broken[~alive] = 0
    broken[0] = np.nan
    got = stability(broken, dec[::-1].copy(), alive_a=alive, alive_b=alive[::-1], w_enc_a=broken.T, w_enc_b=dec[::-1].T)
    assert got.n_a == got.n_b == alive.sum() and got.shared == 1
    assert got.mean_max_cosine == pytest.approx(1, abs=D * EPS)
    with pytest.raises(UserError, match="7 alive units have a weight vector that is zero or not finite"):
        stability(broken, dec)
    with pytest.raises(UserError, match="decoder A: no unit is alive"):
        stability(dec, dec, alive_a=np.zeros(20, bool))
    with pytest.raises(UserError, match="24 and 5 dimensions"):
        stability(dec, rows(3, 0, 5))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000), st.sampled_from([1, 2, 8]))
def test_greedy_is_what_it_says_and_within_its_bounds(n_a, n_b, seed, d):
    a, b = (unit_vectors(np.abs(rows(n, seed + i, d)), None, "") for i, n in enumerate((n_a, n_b)))
    pairs = greedy_assignment(a, b, block_bytes=1024)
    assert len(pairs) == min(n_a, n_b)
    assert all(len(np.unique(side)) == len(side) for side in pairs.T)
    cosine = a.astype(np.float64) @ b.T.astype(np.float64)
    got = np.sort(cosine[pairs[:, 0], pairs[:, 1]])[::-1]
    left, wanted = cosine.copy(), []
    for _ in range(len(pairs)):
        i, j = np.unravel_index(np.argmax(left), left.shape)
        wanted.append(left[i, j])
        left[i], left[:, j] = -np.inf, -np.inf
    # Near ties may be settled otherwise in float32, and what is left then differs; d = 1 has ties only.
    best = cosine[linear_sum_assignment(cosine, maximize=True)].sum()
    assert best / 2 - 1e-6 <= got.sum() <= best + 1e-6
    if d > 1 and np.min(np.diff(np.unique(cosine)), initial=1) > 1e-5:
        np.testing.assert_allclose(got, np.sort(wanted)[::-1], atol=d * EPS)
    bound = stability(a, b, exact_units=0, block_bytes=1024).matched_bound
    assert bound >= best / len(pairs) - d * EPS


def test_ties_are_settled_in_few_rounds(monkeypatch):
    """All rows equal: every pair has cosine 1, and no unit may be used twice."""
    calls = []
    monkeypatch.setattr(module, "_best", lambda *args, real=module._best: calls.append(1) or real(*args))
    a = np.ones((300, 4), np.float32)
    pairs = greedy_assignment(unit_vectors(a, None, ""), unit_vectors(a[:200], None, ""), 4096)
    assert sorted(pairs[:, 1]) == list(range(200)) and len(np.unique(pairs[:, 0])) == 200
    assert len(calls) <= 3
    calls.clear()
    groups = unit_vectors(rows(4, 0)[np.random.default_rng(0).integers(0, 4, 256)], None, "")
    pairs = greedy_assignment(groups, groups[np.random.default_rng(1).permutation(256)])
    assert len(pairs) == 256 and len(calls) <= 20


@pytest.mark.parametrize("block_bytes", [1, 4096, 2**20])
def test_blocks_do_not_change_the_result(block_bytes):
    a, b = rows(70, 0), rows(45, 1)
    whole, parts = stability(a, b, exact_units=0), stability(a, b, exact_units=0, block_bytes=block_bytes)
    assert parts.mean_max_cosine == pytest.approx(whole.mean_max_cosine, abs=D * EPS)
    assert parts.mean_matched_cosine == pytest.approx(whole.mean_matched_cosine, abs=D * EPS)


def test_no_block_is_larger_than_the_budget(monkeypatch):
    seen = []
    real = module._block_best
    monkeypatch.setattr(
        module, "_block_best", lambda a, b, *rest: seen.append(4 * len(a) * len(b)) or real(a, b, *rest)
    )
    stability(rows(500, 0), rows(300, 1), exact_units=0, block_bytes=64 * 1024)
    assert max(seen) <= 64 * 1024 and len(seen) > 4


def test_the_exact_assignment_is_scipys_and_greedy_is_close_on_half_shared_dictionaries(rng):
    a = rows(200, 0)
    b = np.where(rng.random((200, 1)) < 0.5, a + 0.2 * rows(200, 1), rows(200, 2))[rng.permutation(200)]
    a, b = unit_vectors(a, None, ""), unit_vectors(b, None, "")
    cosine = a.astype(np.float64) @ b.T.astype(np.float64)
    exact, greedy = (cosine[tuple(f(a, b).T)].mean() for f in (exact_assignment, greedy_assignment))
    assert exact == cosine[linear_sum_assignment(cosine, maximize=True)].mean()
    assert 0.9 * exact < greedy <= exact


def test_json_has_plain_numbers():
    record = stability(rows(5, 0), rows(4, 1)).as_json()
    assert set(map(type, record.values())) <= {float, int, bool, type(None)}
    assert record["exact"] is True and record["n_b"] == 4


# Effective dictionary size -------------------------------------------------------------------------------------------


def test_effective_size_of_even_and_of_single_use():
    even = effective_size(np.array([0, 3, 3, 3, 3, 0]))
    assert even["entropy"] == pytest.approx(4) and even["participation"] == pytest.approx(4)
    assert effective_size(np.array([0, 7.0])) == {"entropy": 1.0, "participation": 1.0}


def test_effective_size_by_hand():
    got = effective_size(np.array([2, 1, 1]))
    assert got["entropy"] == pytest.approx(2**1.5)  # entropy of (1/2, 1/4, 1/4) is 1.5 bits
    assert got["participation"] == pytest.approx(1 / (0.25 + 2 * 0.0625))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda m: sum(m) > 1e-3), st.integers(1, 5))
def test_effective_size_laws(mass, copies):
    one, many = effective_size(np.array(mass)), effective_size(np.tile(mass, copies))
    used = np.count_nonzero(mass)
    assert 1 - 1e-9 <= one["participation"] <= one["entropy"] * (1 + 1e-9) <= used * (1 + 2e-9)
    for name in one:  # replication principle
        assert many[name] == pytest.approx(copies * one[name])
        assert effective_size(1e-3 * np.array(mass))[name] == pytest.approx(one[name])


@pytest.mark.parametrize(
    ("mass", "words"),
    [([0.0, 0.0], "none of 2 units fired"), ([1.0, -1.0], ">= 0"), ([np.nan], "finite"), ([[1.0]], "shape")],
)
def test_effective_size_refuses(mass, words):
    with pytest.raises(UserError, match=words):
        effective_size(np.array(mass))
