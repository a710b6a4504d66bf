"""Intervals and exact tails of counts against SciPy, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sbm_jax.statistics import binomial_tail, hypergeometric_tail, wilson_interval


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_wilson_is_scipys(case):
    n, x = case
    expected = stats.binomtest(x, n).proportion_ci(method="wilson")
    low, high = wilson_interval(np.array([x]), np.array([n]))
    np.testing.assert_allclose([low[0], high[0]], [expected.low, expected.high], atol=1e-12)
    assert 0 <= low[0] <= x / n <= high[0] <= 1


def test_wilson_without_a_trial_is_not_a_number():
    low, high = wilson_interval(np.array([0, 3]), np.array([0, 6]))
    assert np.isnan([low[0], high[0]]).all() and not np.isnan([low[1], high[1]]).any()


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5, 0.8])
def test_wilson_covers(rate):
    """Of 20 exemplars; the coverage of an interval over counts is never exactly 95 %."""
    x = np.random.default_rng(3).binomial(20, rate, 20_000)
    low, high = wilson_interval(x, np.full(len(x), 20))
    assert 0.915 < ((low <= rate) & (rate <= high)).mean() < 0.99


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, min(n, 40)))))
def test_hypergeometric_tail_is_scipys(case):
    total, marked, drawn = case
    tail = hypergeometric_tail(drawn, marked, total)
    expected = stats.hypergeom.sf(np.arange(drawn + 1) - 1, total, marked, drawn)
    np.testing.assert_allclose(tail, expected, atol=1e-10)
    assert tail[0] == pytest.approx(1) and (np.diff(tail) <= 1e-12).all()


@given(st.integers(0, 40), st.floats(0, 1))
def test_binomial_tail_is_scipys(drawn, rate):
    expected = stats.binom.sf(np.arange(drawn + 1) - 1, drawn, rate)
    np.testing.assert_allclose(binomial_tail(drawn, rate), expected, atol=1e-10)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="5 drawn and 2 marked of 4"):
        hypergeometric_tail(5, 2, 4)
    with pytest.raises(ValueError, match="rate"):
        binomial_tail(3, 1.5)
