"""Whitened comparisons: the structured solve against the matrix V written out, linear CKA, and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import squareform

from sbm_jax.kernels import rdm_compare
from sbm_jax.kernels.rdm_compare.api import upper_triangle
from sbm_jax.kernels.rdm_compare.whitened import WHITENED, correction, row_sums

methods = pytest.mark.parametrize("method", WHITENED)


def pair(n: int, seed: int = 0) -> np.ndarray:
    """Squared distances of two related sets of patterns, [2, pairs]."""
    rng = np.random.default_rng([seed, n])
    x = rng.normal(size=(n, 6))
    y = 0.7 * x + rng.normal(size=(n, 6))
    return np.stack([upper_triangle(np.square(z[:, None] - z[None]).mean(axis=-1)) for z in (x, y)])


def covariance(n: int) -> np.ndarray:
    """V by its meaning: Cov(d_p, d_q) ~ (c_p . c_q)^2, with c_p the contrast of pair p, entry by entry."""
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    v = np.zeros((len(pairs), len(pairs)))
    for p, (i, j) in enumerate(pairs):
        for q, (k, m) in enumerate(pairs):
            v[p, q] = ((i == k) + (j == m) - (i == m) - (j == k)) ** 2
    return v


def dense(a: np.ndarray, b: np.ndarray, method: str, keep: np.ndarray) -> float:
    n = round((1 + np.sqrt(1 + 8 * len(a))) / 2)
    inverse = np.linalg.inv(covariance(n)[np.ix_(keep, keep)])
    a, b = a[keep], b[keep]
    if method == "corr_cov":
        a, b = a - a.mean(), b - b.mean()
    return float(a @ inverse @ b / np.sqrt((a @ inverse @ a) * (b @ inverse @ b)))


@methods
@pytest.mark.parametrize("implementation", [None, "structured", "reference"])
@pytest.mark.parametrize("n", [3, 4, 9, 16])
def test_equals_the_covariance_written_out(n, implementation, method):
    a, b = pair(n)
    want = dense(a, b, method, np.ones(len(a), bool))
    assert rdm_compare(a, b, method, implementation=implementation) == pytest.approx(want, abs=1e-10)
    assert rdm_compare(squareform(a), squareform(b), method, implementation=implementation) == pytest.approx(
        want, abs=1e-10
    )


@methods
@pytest.mark.parametrize("implementation", ["structured", "reference"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_missing_pairs_leave_out_their_rows_of_the_covariance(share, implementation, method):
    a, b = pair(10, seed=1)
    keep = np.random.default_rng(2).random(len(a)) > share
    a[~keep], b[~keep] = np.nan, np.nan
    want = dense(a, b, method, keep)
    assert rdm_compare(a, b, method, implementation=implementation) == pytest.approx(want, abs=1e-10)


@methods
def test_an_image_without_pairs_is_as_if_it_were_not_there(method):
    a, b = (squareform(x) for x in pair(11))
    keep = np.delete(np.arange(11), 3)
    want = rdm_compare(a[np.ix_(keep, keep)], b[np.ix_(keep, keep)], method)
    for x in (a, b):
        x[3], x[:, 3] = np.nan, np.nan
    assert rdm_compare(a, b, method) == pytest.approx(want, abs=1e-13)


def test_cosine_cov_of_squared_distances_is_linear_cka():
    """Both sets of patterns centred: |Y^T X|^2 / (|X^T X| |Y^T Y|), at a size where V would hold 10^11 numbers."""
    rng = np.random.default_rng(0)
    n = 800
    x = rng.normal(size=(n, 20))
    y = x @ rng.normal(size=(20, 15)) + rng.normal(size=(n, 15))
    distances = [np.square(z).sum(1)[:, None] + np.square(z).sum(1)[None] - 2 * z @ z.T for z in (x, y)]
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    cka = np.sum((y.T @ x) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert rdm_compare(*distances, "cosine_cov") == pytest.approx(cka, abs=1e-11)


def test_copies_of_an_image_are_images_whose_own_pairs_are_missing():
    """Weighted row sums and the correction for weights against the images written out with their copies."""
    n, w = 6, np.array([1.0, 3, 1, 2, 1, 1])
    x = pair(n, seed=4)
    copies = np.repeat(np.arange(n), w.astype(int))
    rows, columns = np.triu_indices(len(copies), 1)
    keep = copies[rows] != copies[columns]
    spread = np.stack([squareform(v)[copies[rows], copies[columns]] for v in x])
    inverse = np.linalg.inv(covariance(len(copies))[np.ix_(keep, keep)])
    want = spread[:, keep] @ inverse @ spread[:, keep].T
    pair_weight = upper_triangle(np.outer(w, w))
    # the copies of one image have no pair with each other, which the plain row sums know nothing of
    got = (x * pair_weight) @ x.T / 2 - correction(w * row_sums(x, w), w)
    np.testing.assert_allclose(got / got[0, 0], want / want[0, 0], rtol=1e-11)


@methods
def test_a_constant_and_a_zero_vector(method):
    a, _ = pair(8)
    if method == "corr_cov":
        assert rdm_compare(a, np.full_like(a, 0.1), method) == 0
    assert rdm_compare(a, 0 * a, method) == 0
    assert rdm_compare(a, 0 * a, method, implementation="reference") == 0


@methods
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), power=st.integers(-60, 60), order=st.permutations(range(9)))
def test_symmetric_bounded_and_blind_to_scale_and_order(method, seed, power, order):
    a, b = pair(9, seed)
    one = rdm_compare(a, b, method)
    assert abs(one) <= 1 + 1e-12 and rdm_compare(a, a, method) == pytest.approx(1, abs=1e-12)
    assert rdm_compare(b, a, method) == pytest.approx(one, abs=1e-12)
    assert rdm_compare(a * 2.0**power, b, method) == pytest.approx(one, abs=1e-11)
    at = np.ix_(order, order)
    assert rdm_compare(squareform(a)[at], squareform(b)[at], method) == pytest.approx(one, abs=1e-11)


@methods
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), shift=st.floats(-5, 5))
def test_corr_cov_alone_ignores_an_offset(method, seed, shift):
    a, b = pair(7, seed)
    moved = rdm_compare(a + shift, b, method)
    if method == "corr_cov":
        assert moved == pytest.approx(rdm_compare(a, b, method), abs=1e-11)
    elif abs(shift) > 0.5:
        assert abs(moved - rdm_compare(a, b, method)) > 1e-9


def test_unknown_implementation():
    a, b = pair(5)
    with pytest.raises(ValueError, match="no implementation 'xla'"):
        rdm_compare(a, b, "cosine_cov", implementation="xla")
