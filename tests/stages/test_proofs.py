"""Simulated brains with known wiring: error rates at their nominal levels, power, unbiased held-out scores, noise ceilings.

Bounds are 3.3 standard errors over independent brains (probability 1e-3 for either side) unless said otherwise.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sbm_jax.bench.proofs import RESULTS, markdown
from sbm_jax.bench.proofs_brains import Estimate, binomial_interval, brain, estimate, search, unit_codes
from sbm_jax.bench.proofs_measures import (
    ceilings,
    mixed_brains,
    null_brains,
    power,
    profile_coverage,
    r_coverage,
)
from sbm_jax.statistics import benjamini_hochberg, familywise_p, permutation_p

WIDTH = 3.3


def near(found: Estimate, value: float, width: float = WIDTH) -> bool:
    return abs(found.mean - value) <= width * found.error


def test_simulated_codes_and_voxels_are_what_they_say():
    rng = np.random.default_rng(0)
    for sparse in (True, False):
        z = unit_codes(rng, (200_000,), sparse)
        # standard errors of mean and variance: 1 / sqrt(n), sqrt((kurtosis - 1) / n) with a kurtosis below 12
        assert abs(z.mean()) < 4 / 200_000**0.5 and abs(z.var() - 1) < 4 * (11 / 200_000) ** 0.5
    made = brain(rng, 40_000, np.array([0.0, 0.3, 0.8]), units=6)
    flat = np.concatenate(made.codes, axis=1)
    found = np.corrcoef(flat.T, made.y.T)[:12, 12:]
    expected = np.zeros((12, 3))
    expected[made.unit[1:], [1, 2]] = made.r[1:]
    np.testing.assert_allclose(found, expected, atol=5 / 40_000**0.5)
    assert made.unit[0] == -1 and made.r[0] == 0


def test_binomial_interval_is_scipys():
    for hits, n in ((0, 20), (3, 200), (57, 60), (60, 60)):
        expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
        np.testing.assert_allclose(binomial_interval(hits, n), (expected.low, expected.high), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("common", [0.0, 0.5])
def test_null_brains_are_called_significant_at_the_nominal_rate(common):
    """p reaches .05 exactly with 99 permutations: the rate is neither above nor far below. `any_fwe` is binomial; the FDR of
    an all-null family is its FWE.
    """
    found = null_brains(120, 30, shuffles=99, common=common, seed=10)
    assert near(found["false_positives"], 0.05) and found["false_positives"].mean >= 0.03
    for key in ("any_fwe", "any_fdr"):
        hits = round(found[key]["share"] * 120)
        assert stats.binomtest(hits, 120, 0.05, alternative="greater").pvalue > 1e-3, key
    # Against 1 % of brains with any: below that the correction would be absurdly strict.
    assert found["any_fwe"]["share"] > 0.0


@pytest.mark.slow
def test_false_discoveries_among_null_and_driven_voxels():
    """Benjamini and Hochberg bound the expected share by q times the share of null voxels."""
    found = mixed_brains(60, 40, shuffles=199, null=0.5, common=0.0, seed=11)
    false = found["false_discoveries"]
    assert false.mean <= 0.05 * 0.5 + WIDTH * false.error
    assert found["found"].mean > 0.5


@pytest.fixture(scope="module")
def powers() -> list[dict]:
    return power(40, 15, shuffles=99, sparse=False, seed=12)


@pytest.mark.slow
def test_power_and_recovery_rise_with_ncsnr(powers):
    assert near(powers[0]["power"], 0.05)
    for key in ("power", "recovered", "held_out"):
        means = [row[key].mean for row in powers]
        assert all(b > a or (a == b == 1) for a, b in itertools.pairwise(means)), (key, means)
        assert means[-1] > 0.75


@pytest.mark.slow
def test_held_out_scores_are_unbiased_and_in_sample_ones_are_not(powers):
    """Normal codes: E r = rho - rho (1 - rho^2) / 2n + O(1/n^2) over the n = 100 held-out images, whatever was selected."""
    for row in powers:
        small = row["recovered"].mean * row["r"] * (1 - row["r"] ** 2) / (2 * 100)
        assert near(row["held_out_bias"], -small), row
    for row in powers[:3]:
        assert row["in_sample_bias"].mean > 5 * row["in_sample_bias"].error


def test_scores_of_known_wiring_are_the_attenuated_truth():
    """Voxels that follow a unit with w and noise: held-out r averages w / sqrt(w^2 + noise^2), 10 brains of 100 voxels."""
    errors = []
    for seed in range(10):
        made = brain(np.random.default_rng([13, seed]), 600, np.full(100, 0.5), sparse=False)
        found = search(made, 200, 1, seed)
        assert np.mean(found["voxel_units"][:, 0] == made.unit) > 0.99
        small = made.r * (1 - made.r**2) / (2 * 400)
        errors.append(float((found["held_out"][:, 0] - made.r + small).mean()))
    assert near(estimate(errors), 0, width=3)


def test_search_agrees_with_every_pair_in_float64():
    """The p values of the search are those of all units and all permutations written out, so that what is proved is the program."""
    made = brain(np.random.default_rng(14), 60, np.repeat([0.0, 0.4], 6), units=9)
    found = search(made, 45, 19, 3)
    y, codes = made.y[:45].astype(np.float64), np.concatenate(made.codes, axis=1)[:45].astype(np.float64)
    y, codes = ((x - x.mean(axis=0)) / x.std(axis=0) for x in (y, codes))
    best = (codes.T @ y / 45).max(axis=0)
    np.testing.assert_allclose(found["voxel_values"][:, 0], best, atol=2e-6)
    orders = [np.random.default_rng([3, 45, 15, number]).permutation(45) for number in range(19)]
    null = [(codes[order].T @ y / 45).max(axis=0) for order in orders]
    np.testing.assert_array_equal(found["p"], permutation_p(best, np.stack(null)))
    np.testing.assert_array_equal(found["p_fwe"], familywise_p(best, np.stack(null)))


def test_rates_of_the_statistics_alone():
    """2,000 families of 20 tests with 39 permutations and a statistic of continuous noise, 8 of the tests driven."""
    rng = np.random.default_rng(15)
    single, family, false = [], [], []
    for _ in range(2000):
        common = 0.5 * rng.standard_normal((40, 1))
        x = common + rng.standard_normal((40, 20))
        p = permutation_p(x[0], x[1:])
        single.append(float(np.mean(p <= 0.05)))
        family.append(float((familywise_p(x[0], x[1:]) <= 0.05).any()))
        x[0, :8] += 4
        called = benjamini_hochberg(permutation_p(x[0], x[1:]), 0.1)
        false.append(float(called[8:].sum() / max(1, called.sum())))
    assert near(estimate(single), 0.05) and near(estimate(family), 0.05)
    assert estimate(false).mean <= 0.1 * 12 / 20 + WIDTH * estimate(false).error


@pytest.mark.parametrize("level", [0.4, 0.8])
def test_a_perfect_model_reaches_the_ceiling(level):
    assert near(ceilings(level, 200, seed=16)["r_of_ceiling"], 1)


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_intervals_cover_the_truth(rho):
    """400 independent voxels: .95 with 300 images, where the binomial standard error is .011; with 25 images a little less."""
    assert 0.915 <= r_coverage(300, rho, sparse=False, seed=17)["covered"]["share"] <= 0.985
    assert 0.86 <= r_coverage(25, rho, sparse=False, seed=17)["covered"]["share"] <= 0.985


def test_profile_intervals_cover_the_truth_of_many_images():
    found = profile_coverage(400, voxels=200, seed=18)
    assert 0.92 <= found["profile"]["share"] <= 0.98
    # Depth is biased to the middle of the network, and its interval with it: what the documentation says of it.
    assert found["depth_estimated"].mean > found["depth_truth"] + 5 * found["depth_estimated"].error
    assert found["depth"]["share"] < 0.95


def test_the_page_of_proofs_has_the_measured_numbers():
    page = (Path(__file__).parents[2] / "docs" / "validation.md").read_text(encoding="utf-8")
    for table in markdown(json.loads(RESULTS.read_text(encoding="utf-8"))).split("\n\n"):
        assert table in page, table.splitlines()[0]
