"""`rdm`: both implementations against formulas written out pair by pair, and the laws each metric obeys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform

from sbm_jax.kernels import rdm
from sbm_jax.kernels.rdm.api import IMPLEMENTATIONS, METRICS

EPS = {"xla": np.finfo(np.float32).eps, "reference": np.finfo(np.float64).eps}
SHAPES = [(2, 2), (3, 1), (5, 7), (17, 33), (64, 8), (40, 300), (1, 6)]

every = pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
metrics = pytest.mark.parametrize("metric", METRICS)


def tolerance(x: np.ndarray, metric: str, implementation: str) -> float:
    """A dot product of d terms is off by a few sqrt(d) eps of the product of the norms.

    correlation: removing the mean costs the ratio of the norms before and after. euclidean: squares of the patterns
    around the mean pattern, added and subtracted.
    """
    x = np.asarray(x, np.float64)
    rounding = EPS[implementation] * (4 * np.sqrt(x.shape[1]) + 8)
    if metric == "euclidean":
        # The reference subtracts pairs; XLA removes the mean pattern first, in float32 (rounding of |x| itself).
        spread = np.square(x - x.mean(axis=0)).sum(axis=1).max() + np.square(x).sum(axis=1).max() * EPS["xla"]
        return rounding * 4 * spread / x.shape[1] + 1e-30
    if metric == "cosine":
        return rounding
    norm, centred = np.linalg.norm(x, axis=1), np.linalg.norm(x - x.mean(axis=1, keepdims=True), axis=1)
    real = centred > 1e-6 * norm
    return rounding * max(1.0, (norm[real] / centred[real]).max(initial=1.0))


def direct(x: np.ndarray, metric: str) -> np.ndarray:
    """SciPy's distances: another author's code."""
    x = np.asarray(x, np.float64)
    distances = pdist(x, {"correlation": "correlation", "euclidean": "sqeuclidean", "cosine": "cosine"}[metric])
    return squareform(distances, checks=False) / (x.shape[1] if metric == "euclidean" else 1)


def patterns(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, n, d])
    return (rng.normal(size=(n, d)) * rng.uniform(0.1, 10, size=(n, 1)) + rng.normal(size=d)).astype(np.float32)


@every
@metrics
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] > 1], ids=str)
def test_equals_scipy(shape, metric, implementation):
    x = patterns(*shape)
    got = rdm(x, metric, implementation=implementation)
    assert got.shape == (shape[0],) * 2
    np.testing.assert_allclose(got, direct(x, metric), atol=tolerance(x, metric, implementation), rtol=0)


@metrics
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_xla_equals_reference(shape, metric):
    x = patterns(*shape, seed=1)
    want = rdm(x, metric, implementation="reference")
    np.testing.assert_allclose(
        rdm(x, metric, implementation="xla"), want, atol=tolerance(x, metric, "xla"), rtol=0, equal_nan=True
    )


@every
def test_euclidean_is_the_mean_squared_difference(implementation):
    x = np.array([[0, 0, 0], [3, 0, 0], [1, 2, 2]], np.float32)
    want = np.array([[0, 9, 9], [9, 0, 12], [9, 12, 0]]) / 3
    np.testing.assert_allclose(rdm(x, "euclidean", implementation=implementation), want, atol=1e-6)


@every
def test_known_angles(implementation):
    x = np.array([[1, 0], [0, 1], [-1, 0], [1, 1]], np.float32)
    half = 1 - np.sqrt(0.5)
    want = [[0, 1, 2, half], [1, 0, 1, half], [2, 1, 0, 2 - half], [half, half, 2 - half, 0]]
    np.testing.assert_allclose(rdm(x, "cosine", implementation=implementation), want, atol=4e-7)


@every
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -12345.678, 1e-6, 3e6])
@pytest.mark.parametrize("d", [3, 7, 100])
def test_a_constant_pattern_has_no_correlation(value, d, implementation):
    x = patterns(5, d)
    x[2] = value
    got = rdm(x, "correlation", implementation=implementation)
    expected = np.zeros((5, 5), bool)
    expected[2], expected[:, 2] = True, True
    np.fill_diagonal(expected, False)
    np.testing.assert_array_equal(np.isnan(got), expected)
    assert (np.diag(got) == 0).all()


@every
def test_a_zero_pattern_has_no_cosine_but_a_constant_one_has(implementation):
    x = patterns(4, 6)
    x[0], x[3] = 0, 2
    got = rdm(x, "cosine", implementation=implementation)
    np.testing.assert_array_equal(np.isnan(got[0]), [False, True, True, True])
    assert np.isfinite(got[1:, 1:]).all() and (np.diag(got) == 0).all()


@every
def test_constant_patterns_have_euclidean_distances(implementation):
    x = np.repeat(np.array([[1.0], [1.0], [4.0]], np.float32), 5, axis=1)
    want = [[0, 0, 9], [0, 0, 9], [9, 9, 0]]
    np.testing.assert_allclose(rdm(x, "euclidean", implementation=implementation), want, atol=1e-5)


@every
def test_equal_patterns_far_from_zero_have_a_distance_near_zero(implementation):
    """Around the mean pattern the products are small: 1e4 in the patterns must not cost 1e8 eps in the distances."""
    x = patterns(6, 20) + np.float32(1e4)
    got = rdm(x, "euclidean", implementation=implementation)
    # float32 holds 1e4 to 1e-3, and the mean pattern is rounded alike; the distances themselves are of order 1 to 100.
    spread = np.square(x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)).sum(axis=1).max() / 20
    np.testing.assert_allclose(got, direct(x, "euclidean"), atol=1e-5 * spread + 1e-3, rtol=0)


@every
@metrics
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_input_names_the_channel(metric, implementation, bad):
    x = patterns(5, 4)
    x[3, 2] = bad
    with pytest.raises(ValueError, match="image 3, channel 2"):
        rdm(x, metric, implementation=implementation)


@pytest.mark.parametrize(
    ("x", "metric", "message"),
    [
        (np.zeros(4), "correlation", r"\[n, d\], found shape \(4,\)"),
        (np.zeros((2, 3, 4)), "correlation", "found shape"),
        (np.zeros((0, 3)), "cosine", "found shape"),
        (np.zeros((3, 0)), "cosine", "found shape"),
        (np.ones((3, 2)), "mahalanobis", "unknown metric 'mahalanobis'"),
    ],
)
def test_bad_arguments(x, metric, message):
    with pytest.raises(ValueError, match=message):
        rdm(x, metric)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="no implementation 'gpu'"):
        rdm(np.eye(3), implementation="gpu")


@every
@metrics
def test_integer_patterns_are_taken_as_numbers(metric, implementation, rng):
    x = rng.integers(-9, 9, size=(6, 5))
    want = direct(x, metric)
    np.testing.assert_allclose(rdm(x, metric, implementation=implementation), want, atol=tolerance(x, metric, "xla"))


def test_the_input_is_left_alone(rng):
    x = rng.normal(size=(4, 3))
    before = x.copy()
    for metric in METRICS:
        for implementation in IMPLEMENTATIONS:
            rdm(x, metric, implementation=implementation)
    np.testing.assert_array_equal(x, before)


# One shape for all examples: compiled once.
laws = pytest.mark.parametrize(("metric", "implementation"), [(m, i) for m in METRICS for i in IMPLEMENTATIONS])


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(9, 12)).astype(np.float32)


@laws
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_symmetric_with_zero_diagonal_and_in_range(metric, implementation, seed):
    got = rdm(drawn(seed), metric, implementation=implementation)
    eps = EPS[implementation] * (4 * np.sqrt(12) + 8)
    np.testing.assert_allclose(got, got.T, atol=eps if implementation == "reference" else 0, rtol=0)
    assert (np.diag(got) == 0).all()
    assert got.min() >= -eps and (metric == "euclidean" or got.max() <= 2 + eps)


@laws
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), power=st.integers(-50, 50))
def test_scale(metric, implementation, seed, power):
    """Powers of two are exact: cosine and correlation must not change at all, squared distances by the square."""
    x = drawn(seed)
    factor = np.float32(2.0**power)
    want = rdm(x, metric, implementation=implementation) * (factor**2 if metric == "euclidean" else 1)
    got = rdm(x * factor, metric, implementation=implementation)
    np.testing.assert_allclose(got, want, rtol=4 * EPS[implementation], atol=0)


@laws
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), order=st.permutations(range(9)))
def test_reordering_the_images_reorders_the_matrix(metric, implementation, seed, order):
    x = drawn(seed)
    order = list(order)
    want = rdm(x, metric, implementation=implementation)[np.ix_(order, order)]
    got = rdm(x[order], metric, implementation=implementation)
    np.testing.assert_allclose(got, want, atol=tolerance(x, metric, implementation), rtol=0)


@pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), shift=st.integers(-100, 100), row=st.integers(0, 8))
def test_correlation_ignores_an_offset_and_a_gain_of_one_pattern(implementation, seed, shift, row):
    x = drawn(seed)
    moved = x.copy()
    moved[row] = 4 * moved[row] + shift
    assume(np.ptp(x[row]) > 0.5)
    want = rdm(x, "correlation", implementation=implementation)
    got = rdm(moved, "correlation", implementation=implementation)
    # The shifted float32 pattern is itself rounded; it is rounded the same for both implementations.
    bound = tolerance(moved, "correlation", "xla")
    np.testing.assert_allclose(got, want, atol=bound, rtol=0)


@pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_euclidean_obeys_the_triangle_inequality_of_its_root(implementation, seed):
    x = drawn(seed)
    root = np.sqrt(rdm(x, "euclidean", implementation=implementation).astype(np.float64))
    detour = (root[:, :, None] + root[None]).min(axis=1)
    # d(sqrt(s)) = ds / (2 sqrt(s)); distances of 12 normal channels stay above 0.1
    assert (root <= detour + tolerance(x, "euclidean", implementation) / 0.2).all()
