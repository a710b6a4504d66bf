"""`rdm_compare` and the noise ceiling: both implementations against SciPy and formulas written out, ties included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import squareform

from sbm_jax.kernels import rdm_compare
from sbm_jax.kernels.rdm_compare import xla
from sbm_jax.kernels.rdm_compare.api import IMPLEMENTATIONS, METHODS, upper_triangle
from sbm_jax.kernels.rdm_compare.ceiling import noise_ceiling, pool

RANKS = ("spearman", "tau-a", "rho-a")
# (method, implementation): tau-a has no XLA form.
PAIRS = [(m, i) for m in METHODS for i in IMPLEMENTATIONS if (m, i) != ("tau-a", "xla")]
every = pytest.mark.parametrize(("method", "implementation"), PAIRS)
methods = pytest.mark.parametrize("method", METHODS)


def tolerance(a: np.ndarray, b: np.ndarray, method: str, implementation: str) -> float:
    """float32 sums in blocks of 4,096: rounding grows like the root of the block length plus the number of blocks.

    corr: removing the mean costs the ratio of root mean square to standard deviation.
    """
    if implementation == "reference":
        return 1e-11
    n = len(a)
    eps = np.finfo(np.float32).eps * (4 * np.sqrt(min(n, 4096) + n / 4096) + 8)
    if method == "corr":
        return eps * max(np.sqrt(np.mean(np.square(x, dtype=float))) / np.std(x, dtype=float) for x in (a, b))
    return eps


def direct(a: np.ndarray, b: np.ndarray, method: str) -> float:
    """Each similarity from its definition: SciPy's correlations, and for tau-a and rho-a loops over pairs and sums."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    n = len(a)
    if method == "corr":
        return float(stats.pearsonr(a, b).statistic)
    if method == "spearman":
        return float(stats.spearmanr(a, b).statistic)
    if method == "cosine":
        return float(sum(x * y for x, y in zip(a, b, strict=True)) / np.sqrt(np.sum(a**2) * np.sum(b**2)))
    if method == "rho-a":
        # Spearman with ties broken at random: the covariance of average ranks over the variance of ranks 1..n.
        ra, rb = stats.rankdata(a), stats.rankdata(b)
        return float(np.mean((ra - ra.mean()) * (rb - rb.mean())) / np.var(np.arange(1, n + 1)))
    sign = np.sign(a[:, None] - a[None]) * np.sign(b[:, None] - b[None])
    return float(sign[np.triu_indices(n, 1)].sum() / (n * (n - 1) / 2))


def vectors(n_images: int, levels: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two related condensed RDMs in float32 precision, so that both implementations see the same ties."""
    rng = np.random.default_rng([seed, n_images, levels or 0])
    n = n_images * (n_images - 1) // 2
    a = rng.gamma(2.0, size=n)
    b = 0.5 * a + rng.gamma(2.0, size=n)
    if levels is not None:
        a, b = np.floor(a * levels / 6), np.floor(b * levels / 6)
    return a.astype(np.float32), b.astype(np.float32)


CASES = [(3, None), (10, None), (10, 3), (25, 2), (60, 8)]


@every
@pytest.mark.parametrize(("n_images", "levels"), CASES)
def test_equals_the_definition(n_images, levels, method, implementation):
    a, b = vectors(n_images, levels)
    got = rdm_compare(a, b, method, implementation=implementation)
    assert got == pytest.approx(direct(a, b, method), abs=tolerance(a, b, method, implementation))
    assert isinstance(got, float)


@every
def test_square_and_condensed_are_the_same(method, implementation):
    a, b = vectors(12)
    want = rdm_compare(a, b, method, implementation=implementation)
    square = [squareform(x) for x in (a, b)]
    assert rdm_compare(*square, method, implementation=implementation) == want
    assert rdm_compare(a, square[1], method, implementation=implementation) == want
    # The diagonal takes no part.
    np.fill_diagonal(square[0], 99)
    assert rdm_compare(*square, method, implementation=implementation) == want


def test_upper_triangle_is_row_major_like_scipy():
    square = squareform(np.arange(10.0))
    np.testing.assert_array_equal(upper_triangle(square), np.arange(10))


@methods
def test_the_default_implementation_is_one_of_them(method):
    a, b = vectors(9)
    assert rdm_compare(a, b, method) == pytest.approx(direct(a, b, method), abs=tolerance(a, b, method, "xla"))


def test_known_values():
    a, b = np.array([1.0, 2, 3]), np.array([1.0, 3, 2])
    assert rdm_compare(a, b, "tau-a") == pytest.approx(1 / 3)
    assert rdm_compare(a, b, "spearman") == pytest.approx(0.5, abs=1e-6)
    assert rdm_compare(a, b, "corr") == pytest.approx(0.5, abs=1e-6)
    assert rdm_compare(a, b, "cosine") == pytest.approx(13 / 14, abs=1e-6)
    for implementation in IMPLEMENTATIONS:
        assert rdm_compare(a, b, "rho-a", implementation=implementation) == pytest.approx(0.5, abs=1e-6)


def test_ties_lower_tau_a_and_rho_a_but_not_spearman():
    """One tie in both: 14 of 15 pairs count; the variance of average ranks falls short of that of 1..6."""
    a = np.array([1.0, 1, 2, 3, 4, 5])
    assert rdm_compare(a, a, "tau-a") == pytest.approx(14 / 15)
    assert rdm_compare(a, a, "spearman") == pytest.approx(1, abs=1e-6)
    for implementation in IMPLEMENTATIONS:
        assert rdm_compare(a, a, "rho-a", implementation=implementation) == pytest.approx(17 / 17.5, abs=1e-6)


@pytest.mark.parametrize("levels", [2, 7, 50, 1000, None])
def test_tau_a_equals_brute_force(levels):
    a, b = vectors(40, levels, seed=3)
    assert rdm_compare(a, b, "tau-a") == pytest.approx(direct(a, b, "tau-a"), abs=1e-14)
    assert rdm_compare(a, -b, "tau-a") == pytest.approx(direct(a, -b, "tau-a"), abs=1e-14)


def test_tau_a_is_never_computed_by_xla():
    a, b = vectors(5)
    with pytest.raises(NotImplementedError, match="host"):
        rdm_compare(a, b, "tau-a", implementation="xla")


@pytest.mark.parametrize("levels", [40, None])
def test_ranks_of_many_pairs_are_exact(levels):
    """299,925 pairs: doubled average ranks are whole numbers and must be those of SciPy to the last digit."""
    a, b = vectors(775, levels)
    n = len(a)
    for x in (a, b):
        want = 2 * stats.rankdata(x) - (n + 1)
        np.testing.assert_array_equal(np.asarray(xla._centred_ranks(x), np.float64), want)
    for method in ("spearman", "rho-a", "corr", "cosine"):
        got = rdm_compare(a, b, method, implementation="xla")
        want = rdm_compare(a, b, method, implementation="reference")
        assert got == pytest.approx(want, abs=tolerance(a, b, method, "xla"))
    spearman = stats.spearmanr(a, b).statistic
    assert rdm_compare(a, b, "spearman", implementation="xla") == pytest.approx(
        spearman, abs=tolerance(a, b, "spearman", "xla")
    )
    tau = rdm_compare(a, b, "tau-a")
    ties = [np.unique(x, return_counts=True)[1] for x in (a, b)]
    pairs = n * (n - 1) / 2
    free = [1 - float(np.sum(c * (c - 1) / 2)) / pairs for c in ties]
    assert tau == pytest.approx(stats.kendalltau(a, b).statistic * np.sqrt(free[0] * free[1]), abs=1e-9)


@pytest.mark.parametrize("n", [4095, 4096, 4097, 8192])
def test_block_edges_of_the_sum(n, rng):
    x = rng.normal(size=n).astype(np.float32)
    eps = np.finfo(np.float32).eps * (4 * np.sqrt(4096) + 8)
    assert float(xla._sum(x)) == pytest.approx(x.sum(dtype=np.float64), abs=eps * np.abs(x).sum())


@pytest.mark.parametrize(("method", "implementation"), [p for p in PAIRS if p[0] != "cosine"])
@pytest.mark.parametrize("n_images", [5, 10, 20, 40])
def test_a_constant_vector_has_similarity_0(n_images, method, implementation):
    """Also to another constant, where a mean that is off by one ulp would leave two parallel vectors of rounding."""
    a, b = vectors(n_images)
    for constant in (0.0, 1.0, 0.1, 1 / 3, 0.7, 1e-3, 12345.678):
        flat = np.full(len(a), constant)
        got = [
            rdm_compare(one, two, method, implementation=implementation)
            for one, two in ((flat, b), (a, flat), (flat, flat * 1.7), (flat, -flat))
        ]
        assert got == [0, 0, 0, 0], constant


@pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
def test_a_zero_vector_has_cosine_0(implementation):
    a, b = vectors(6)
    assert rdm_compare(0 * a, b, "cosine", implementation=implementation) == 0
    assert rdm_compare(0 * a, 0 * b, "cosine", implementation=implementation) == 0


@every
def test_a_whole_rdm_that_is_nan_in_the_same_places_is_compared_on_the_rest(method, implementation):
    """An image without a pattern: its row and column are NaN in both."""
    a, b = (squareform(x) for x in vectors(10))
    keep = np.delete(np.arange(10), 4)
    want = rdm_compare(a[np.ix_(keep, keep)], b[np.ix_(keep, keep)], method, implementation=implementation)
    for x in (a, b):
        x[4], x[:, 4] = np.nan, np.nan
    assert rdm_compare(a, b, method, implementation=implementation) == pytest.approx(want, abs=1e-6)


@every
def test_nan_in_one_rdm_only_is_an_error(method, implementation):
    a, b = vectors(6)
    a[3] = np.nan
    with pytest.raises(ValueError, match="a has 1 NaN pairs, b has 0"):
        rdm_compare(a, b, method, implementation=implementation)
    b[4] = np.nan
    with pytest.raises(ValueError, match="not at the same places"):
        rdm_compare(a, b, method, implementation=implementation)


@methods
def test_infinity_is_an_error(method):
    a, b = vectors(6)
    for bad in (np.inf, -np.inf):
        a[3] = bad
        with pytest.raises(ValueError, match=r"inf|finite"):
            rdm_compare(a, b, method)
        with pytest.raises(ValueError, match=r"inf|finite"):
            rdm_compare(b, a, method)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros(4), np.zeros(4), "a has 4 entries, which is no n"),
        (np.zeros(3), np.zeros(5), "b has 5 entries"),
        (np.zeros(3), np.zeros(6), "a has 3 pairs, b has 6"),
        (np.zeros((3, 4)), np.zeros(3), "square or condensed, found shape"),
        (np.zeros((2, 2, 2)), np.zeros(3), "square or condensed, found shape"),
        (np.arange(9.0).reshape(3, 3), np.zeros(3), "a is not symmetric"),
        (np.zeros(1), np.zeros(1), "1 usable pairs"),
        (np.array([1, np.nan, np.nan]), np.array([1, np.nan, np.nan]), "1 usable pairs"),
        (np.zeros(0), np.zeros(0), "0 usable pairs"),
    ],
)
def test_bad_arguments(a, b, message):
    with pytest.raises(ValueError, match=message):
        rdm_compare(a, b)


def test_unknown_method_and_implementation():
    a, b = vectors(4)
    with pytest.raises(ValueError, match="unknown method 'kendall'"):
        rdm_compare(a, b, "kendall")
    with pytest.raises(ValueError, match="no implementation 'gpu'"):
        rdm_compare(a, b, implementation="gpu")


# Laws, at one size so that each method is compiled once.
SIZE = 12


def drawn(seed: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    return vectors(SIZE, levels or None, seed)


seeds = st.integers(0, 2**32)
ties = st.sampled_from([0, 2, 5, 30])


@every
@settings(max_examples=12, deadline=None)
@given(seed=seeds, levels=ties)
def test_symmetric_bounded_and_odd(method, implementation, seed, levels):
    a, b = drawn(seed, levels)
    eps = tolerance(a, b, "spearman", implementation)
    one = rdm_compare(a, b, method, implementation=implementation)
    assert one == pytest.approx(rdm_compare(b, a, method, implementation=implementation), abs=eps)
    assert one == pytest.approx(-rdm_compare(a, -b, method, implementation=implementation), abs=eps)
    assert -1 - eps <= one <= 1 + eps


@every
@settings(max_examples=12, deadline=None)
@given(seed=seeds)
def test_an_rdm_without_ties_is_perfectly_similar_to_itself(method, implementation, seed):
    a = drawn(seed, 0)[0]
    assume(len(np.unique(a)) == len(a))  # two of 66 float32 numbers may be equal
    got = rdm_compare(a, a, method, implementation=implementation)
    assert got == pytest.approx(1, abs=tolerance(a, a, method, implementation))


@pytest.mark.parametrize(("method", "implementation"), [p for p in PAIRS if p[0] in RANKS])
@settings(max_examples=12, deadline=None)
@given(seed=seeds, levels=ties)
def test_rank_methods_ignore_a_rising_transform(method, implementation, seed, levels):
    a, b = drawn(seed, levels)
    want = rdm_compare(a, b, method, implementation=implementation)
    # Ranks spread over whole numbers: exactly order- and tie-preserving, and far from linear.
    bent = stats.rankdata(a, method="dense").astype(np.float64) ** 3
    assert rdm_compare(bent, b, method, implementation=implementation) == want


@every
@settings(max_examples=12, deadline=None)
@given(seed=seeds, levels=ties, power=st.integers(-60, 60))
def test_scale_invariant(method, implementation, seed, levels, power):
    a, b = drawn(seed, levels)
    want = rdm_compare(a, b, method, implementation=implementation)
    got = rdm_compare(a.astype(np.float64) * 2.0**power, b, method, implementation=implementation)
    assert got == pytest.approx(want, abs=tolerance(a, b, "spearman", implementation))


@every
@settings(max_examples=12, deadline=None)
@given(seed=seeds, levels=ties, order=st.permutations(range(SIZE)))
def test_reordering_the_images_of_both_changes_nothing(method, implementation, seed, levels, order):
    a, b = (squareform(x) for x in drawn(seed, levels))
    want = rdm_compare(a, b, method, implementation=implementation)
    at = np.ix_(order, order)
    bound = 2 * tolerance(upper_triangle(a), upper_triangle(b), method, implementation)
    assert rdm_compare(a[at], b[at], method, implementation=implementation) == pytest.approx(want, abs=bound)


@pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
@settings(max_examples=12, deadline=None)
@given(seed=seeds, shift=st.integers(-20, 20))
def test_corr_ignores_an_offset_and_cosine_does_not(implementation, seed, shift):
    a, b = drawn(seed, 30)
    moved = a + np.float32(shift)
    bound = tolerance(a, b, "corr", implementation) + tolerance(moved, b, "corr", implementation)
    got = rdm_compare(moved, b, "corr", implementation=implementation)
    assert got == pytest.approx(rdm_compare(a, b, "corr", implementation=implementation), abs=bound)
    if shift:
        assert abs(direct(moved, b, "cosine") - direct(a, b, "cosine")) > 1e-6
        got = rdm_compare(moved, b, "cosine", implementation=implementation)
        assert got == pytest.approx(direct(moved, b, "cosine"), abs=tolerance(moved, b, "cosine", implementation))


# Noise ceiling ------------------------------------------------------------------------------------------------------


def noisy_subjects(s: int, n_images: int, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, s, n_images])
    n = n_images * (n_images - 1) // 2
    return rng.gamma(2.0, size=n) + noise * rng.gamma(2.0, size=(s, n))


def own_pool(rdms: list[np.ndarray], method: str) -> np.ndarray:
    if method == "cosine":
        rdms = [x / np.sqrt(np.mean(x**2)) for x in rdms]
    elif method == "corr":
        rdms = [stats.zscore(x) for x in rdms]
    else:
        rdms = [stats.rankdata(x) for x in rdms]
    return sum(rdms) / len(rdms)


@methods
@pytest.mark.parametrize("s", [2, 3, 6])
def test_noise_ceiling_equals_a_loop_over_subjects(s, method):
    rdms = noisy_subjects(s, 9, 1.0)
    lower, upper = noise_ceiling(rdms, method)
    everyone = own_pool(list(rdms), method)
    want_upper = np.mean([direct(x, everyone, method) for x in rdms])
    want_lower = np.mean(
        [direct(rdms[i], own_pool([x for j, x in enumerate(rdms) if j != i], method), method) for i in range(s)]
    )
    assert lower == pytest.approx(want_lower, abs=1e-12)
    assert upper == pytest.approx(want_upper, abs=1e-12)


@methods
def test_noise_ceiling_of_equal_subjects_is_1_and_falls_with_noise(method):
    same = np.repeat(noisy_subjects(1, 10, 0.0), 4, axis=0)
    np.testing.assert_allclose(noise_ceiling(same, method), 1, atol=1e-12)
    levels = [noise_ceiling(noisy_subjects(5, 20, noise), method) for noise in (0.1, 0.5, 2.0)]
    assert levels[0][0] > levels[1][0] > levels[2][0]
    assert all(lower < upper for lower, upper in levels)


@methods
def test_no_rdm_beats_the_upper_bound_of_corr_cosine_and_spearman(method, rng):
    """The pool is the maximiser of the mean similarity for these three (Nili et al. 2014); rho-a and tau-a nearly."""
    rdms = noisy_subjects(4, 8, 1.0)
    upper = noise_ceiling(rdms, method)[1]
    slack = 1e-12 if method in ("corr", "cosine", "spearman", "rho-a") else 0.02
    centre = own_pool(list(rdms), method)
    for _ in range(50):
        guess = centre + 0.3 * centre.std() * rng.normal(size=rdms.shape[1])
        if method in RANKS:
            guess = stats.rankdata(guess)
        assert np.mean([direct(x, guess, method) for x in rdms]) <= upper + slack


def test_upper_bound_of_pure_noise_is_about_one_over_root_s():
    rng = np.random.default_rng(5)
    for s in (4, 16):
        lower, upper = noise_ceiling(rng.normal(size=(s, 4950)), "corr")
        # each correlation has standard error 1 / sqrt(4,950) = 0.014; 4 of them
        assert upper == pytest.approx(1 / np.sqrt(s), abs=0.057)
        assert lower == pytest.approx(0, abs=0.057)


@methods
def test_pool_weighs_subjects_alike_whatever_their_scale(method):
    rdms = noisy_subjects(3, 8, 1.0)
    scaled = rdms * np.array([[1.0], [1000.0], [0.001]])
    np.testing.assert_allclose(pool(scaled, method), pool(rdms, method), rtol=1e-12)


@pytest.mark.parametrize("s", [0, 1])
def test_noise_ceiling_needs_two_subjects(s):
    with pytest.raises(ValueError, match=f"{s} subjects, at least 2"):
        noise_ceiling(np.ones((s, 3)), "corr")


@methods
def test_noise_ceiling_of_rdms_with_nan_is_an_error_and_not_0(method):
    rdms = noisy_subjects(3, 6, 1.0)
    rdms[1, 4] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        noise_ceiling(rdms, method)
