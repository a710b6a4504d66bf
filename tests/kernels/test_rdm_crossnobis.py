"""`crossnobis`: both implementations against a loop over pairs of images and folds, and that it has no bias."""

from __future__ import annotations

import numpy as np
import pytest

from sbm_jax.kernels.rdm.api import CROSSNOBIS, crossnobis, rdm

every = pytest.mark.parametrize("implementation", list(CROSSNOBIS))
EPS = {"xla": np.finfo(np.float32).eps, "reference": np.finfo(np.float64).eps}


def measured(m: int, n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, m, n, d])
    return (rng.normal(size=(n, d)) + rng.normal(size=(m, n, d))).astype(np.float32)


def precision_of(d: int, seed: int = 0) -> np.ndarray:
    a = np.random.default_rng([seed, d]).normal(size=(d, 2 * d))
    return a @ a.T / (2 * d)


def by_pairs(x_mnd: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Mean over ordered pairs of different folds of (x_i - x_j)^T P (x_i - x_j) / d: what leaving out a fold amounts to."""
    x = x_mnd.astype(np.float64)
    m, n, d = x.shape
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            delta = x[:, i] - x[:, j]
            products = delta @ precision @ delta.T
            out[i, j] = (products.sum() - np.trace(products)) / (m * (m - 1) * d)
    return out


@every
@pytest.mark.parametrize("shape", [(2, 4, 3), (5, 7, 12), (3, 1, 4), (2, 6, 1)], ids=str)
@pytest.mark.parametrize("whitened", [False, True])
def test_equals_a_loop_over_pairs_of_folds(shape, whitened, implementation):
    x = measured(*shape)
    precision = precision_of(shape[2]) if whitened else None
    want = by_pairs(x, np.eye(shape[2]) if precision is None else precision)
    # sums of m d products of patterns of norm sqrt(d)
    bound = 64 * EPS[implementation] * np.sqrt(shape[0] * shape[2]) * np.square(x).max() * 4
    np.testing.assert_allclose(crossnobis(x, precision, implementation=implementation), want, atol=bound, rtol=0)


@every
def test_equal_folds_are_the_euclidean_distance(implementation):
    x = measured(1, 6, 9)
    got = crossnobis(np.repeat(x, 3, axis=0), implementation=implementation)
    np.testing.assert_allclose(got, rdm(x[0], "euclidean", implementation="reference"), atol=2e-5)


@every
def test_no_signal_has_mean_0_and_signal_its_own_distance(implementation):
    """400 experiments; the plain distance of the averages is biased upwards by 2 / m."""
    rng = np.random.default_rng(3)
    m, d, repeats = 3, 20, 400
    truth = np.zeros((2, d))
    found = {}
    for name, size in (("none", 0.0), ("some", 1.0)):
        truth[1] = size
        x = (truth + rng.normal(size=(repeats, m, 2, d))).astype(np.float32)
        values = np.array([crossnobis(one, implementation=implementation)[0, 1] for one in x])
        plain = np.square(x.mean(axis=1)[:, 0] - x.mean(axis=1)[:, 1]).mean()
        error = values.std() / np.sqrt(repeats)
        assert abs(values.mean() - size**2) < 4 * error, name
        assert plain - size**2 == pytest.approx(2 / m, abs=0.1)
        found[name] = values
    assert 0.3 < np.mean(found["none"] < 0) < 0.7 and found["some"].mean() > 0.5


@every
def test_a_baseline_of_a_fold_cancels(implementation):
    x = measured(4, 5, 8)
    moved = x + 100 * np.random.default_rng(0).normal(size=(4, 1, 8)).astype(np.float32)
    np.testing.assert_allclose(crossnobis(moved, implementation=implementation), crossnobis(x), atol=2e-3)


@every
def test_symmetric_with_zero_diagonal(implementation):
    got = crossnobis(measured(3, 8, 5), precision_of(5), implementation=implementation)
    np.testing.assert_allclose(got, got.T, atol=1e-12 if implementation == "reference" else 0)
    assert (np.diag(got) == 0).all()


@pytest.mark.parametrize(
    ("x", "precision", "message"),
    [
        (np.zeros((3, 4)), None, r"\[folds, n, d\], found shape \(3, 4\)"),
        (np.zeros((1, 3, 4)), None, "1 fold, at least 2"),
        (np.zeros((2, 3, 4)), np.eye(3), r"precision must be \(4, 4\)"),
        (np.zeros((2, 3, 2)), np.array([[1.0, 1], [0, 1]]), "not symmetric"),
        (np.stack([np.zeros((3, 2)), np.full((3, 2), np.nan)]), None, "fold 1"),
    ],
)
def test_bad_arguments(x, precision, message):
    with pytest.raises(ValueError, match=message):
        crossnobis(x, precision)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="no implementation 'gpu'"):
        crossnobis(np.zeros((2, 3, 2)), implementation="gpu")
