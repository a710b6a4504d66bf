"""The statistics against SciPy, their laws, and simulated nulls whose error rates must be the nominal ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from sbm_jax import statistics

# Few different numbers, so that ties are common.
LEVELS = st.sampled_from([-1.0, -0.25, 0.0, 0.5, 0.75, 2.0])
PROBABILITIES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.02, 0.05, 0.5, 1.0]))


@st.composite
def observed_and_null(draw) -> tuple[np.ndarray, np.ndarray]:
    v, b = draw(st.integers(1, 6)), draw(st.integers(1, 30))
    return draw(arrays(np.float64, v, elements=LEVELS)), draw(arrays(np.float64, (b, v), elements=LEVELS))


@given(observed_and_null())
def test_permutation_p_counts_ties_and_keeps_its_bounds(case):
    observed, null = case
    p = statistics.permutation_p(observed, null)
    expected = [(1 + sum(x >= o for x in column)) / (1 + len(null)) for o, column in zip(observed, null.T, strict=True)]
    np.testing.assert_array_equal(p, expected)
    assert ((p >= 1 / (1 + len(null))) & (p <= 1)).all()
    # A larger observation never has a larger p; rounding that is allowed for never makes one smaller.
    assert (statistics.permutation_p(observed + 0.3, null) <= p).all()
    assert (statistics.permutation_p(observed, null, tie=0.3) >= p).all()


@given(observed_and_null(), st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5, 0.9]))
def test_family_wise_p_and_its_threshold(case, alpha):
    observed, null = case
    p = statistics.familywise_p(observed, null)
    assert (p >= statistics.permutation_p(observed, null)).all()
    np.testing.assert_array_equal(p <= alpha, observed > statistics.familywise_threshold(null, alpha))
    order = np.argsort(observed)
    assert (np.diff(p[order]) <= 0).all()


def test_a_voxel_without_a_value_is_no_test_and_no_member_of_the_family():
    observed, null = np.array([1.0, np.nan, 3.0]), np.array([[0.0, 9.0, 0.0], [2.0, np.nan, 0.0], [0.0, 9.0, 0.0]])
    np.testing.assert_array_equal(statistics.permutation_p(observed, null), [0.5, np.nan, 0.25])
    np.testing.assert_array_equal(statistics.familywise_p(observed, null), [0.5, np.nan, 0.25])
    np.testing.assert_array_equal(statistics.familywise_p(observed[1:2], null[:, 1:2]), [np.nan])


@pytest.mark.parametrize(
    "null, text",
    [
        (np.zeros((0, 2)), "no permutation"),
        (np.zeros((4, 3)), r"\[b, 2\] or \[b, 1\], found \(4, 3\)"),
        (np.array([[0.0, np.nan]]), "holds NaN"),
    ],
)
def test_a_null_that_cannot_be_one(null, text):
    with pytest.raises(ValueError, match=text):
        statistics.permutation_p(np.zeros(2), null)


@given(arrays(np.float64, st.integers(1, 40), elements=PROBABILITIES))
def test_adjusted_p_are_scipys(p):
    adjusted = statistics.fdr_adjusted(p)
    np.testing.assert_allclose(adjusted, stats.false_discovery_control(p), rtol=0, atol=1e-12)
    assert (adjusted >= p - 1e-15).all() and (adjusted <= 1).all()
    # Ranks stay, equal p stay equal.
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    assert all(len(set(adjusted[p == x])) == 1 for x in p)


@given(arrays(np.float64, st.integers(1, 40), elements=PROBABILITIES), st.sampled_from([0.01, 0.05, 0.2]))
def test_rejections_are_the_step_up_rule(p, q):
    """Reject the k smallest, k the largest rank with p_(k) <= k q / V (up to rounding of that comparison)."""
    ranked, steps = np.sort(p), q * np.arange(1, len(p) + 1) / len(p)
    least, most = (int(max(np.flatnonzero(ranked <= steps + e) + 1, default=0)) for e in (-1e-12, 1e-12))
    assert least <= statistics.benjamini_hochberg(p, q).sum() <= most


def test_adjusted_p_leave_out_what_is_not_known():
    p = np.array([0.01, np.nan, 0.04])
    np.testing.assert_allclose(statistics.fdr_adjusted(p), [0.02, np.nan, 0.04])
    np.testing.assert_array_equal(statistics.benjamini_hochberg(p, 0.03), [True, False, False])
    assert np.isnan(statistics.fdr_adjusted(np.full(3, np.nan))).all()
    with pytest.raises(ValueError, match=r"allowed 0\.\.1"):
        statistics.fdr_adjusted(np.array([0.5, 1.5]))


def within(count: int, n: int, rate: float) -> bool:
    """Whether a count is one of a binomial at that rate, at a level that a fixed seed passes or the code is wrong."""
    return bool(min(stats.binom.cdf(count, n, rate), stats.binom.sf(count - 1, n, rate)) > 1e-4)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_false_positives_under_the_null_at_the_nominal_rate(rng, alpha):
    """4,000 experiments of the same exchangeable numbers: rates of p <= alpha, and of any of 8 dependent voxels."""
    experiments, b, v = 4000, 19, 8
    shared = rng.standard_normal((experiments, b + 1, 1))
    draws = shared + rng.standard_normal((experiments, b + 1, v))
    single = [statistics.permutation_p(x[0], x[1:])[0] <= alpha for x in draws]
    family = [(statistics.familywise_p(x[0], x[1:]) <= alpha).any() for x in draws]
    assert within(sum(single), experiments, alpha) and within(sum(family), experiments, alpha)


def test_false_discoveries_in_a_mixture_stay_below_the_rate(rng):
    """BH holds the expected share of false discoveries at q (share of nulls); power is there."""
    experiments, v, real, q = 400, 200, 60, 0.1
    shift = np.where(np.arange(v) < real, 3.0, 0.0)
    shares, power = [], []
    for z in shift + rng.standard_normal((experiments, v)):
        found = statistics.benjamini_hochberg(stats.norm.sf(z), q)
        shares.append(found[real:].sum() / max(1, found.sum()))
        power.append(found[:real].mean())
    nominal = q * (v - real) / v
    error = np.std(shares) / np.sqrt(experiments)
    assert abs(np.mean(shares) - nominal) < 4 * error
    assert np.mean(power) > 0.7


@settings(max_examples=20)
@given(arrays(np.float64, st.integers(2, 20), elements=st.floats(-5, 5)), st.integers(0, 5))
def test_bootstrap_of_a_mean_is_ordered_seeded_and_inside_the_data(x, seed):
    def mean(index: np.ndarray) -> float:
        return x[index].mean()

    wide = statistics.bootstrap_interval(mean, len(x), samples=50, confidence=0.95, seed=seed)
    narrow = statistics.bootstrap_interval(mean, len(x), samples=50, confidence=0.5, seed=seed)
    slack = 1e-12
    assert x.min() - slack <= wide[0] <= narrow[0] + slack and narrow[0] <= narrow[1] + slack
    assert narrow[1] - slack <= wide[1] <= x.max() + slack
    assert wide == statistics.bootstrap_interval(mean, len(x), samples=50, confidence=0.95, seed=seed)


def test_coverage_of_the_bootstrap_interval(rng):
    """Percentile intervals of a mean of 40: nominal 90 %, a little less in a finite sample."""
    covered = 0
    for i in range(400):
        x = rng.standard_normal((40, 2))
        low, high = statistics.bootstrap_interval(
            lambda index, x=x: x[index].mean(axis=0), 40, samples=200, confidence=0.9, seed=i
        )
        covered += int(low[0] <= 0 <= high[0])
    assert 0.84 < covered / 400 < 0.94


@pytest.mark.parametrize("settings", [{"n": 0}, {"samples": 0}, {"confidence": 1.0}])
def test_bootstrap_settings_that_are_not_possible(settings):
    with pytest.raises(ValueError, match="not possible"):
        statistics.bootstrap_interval(np.mean, **{"n": 3, **settings})
