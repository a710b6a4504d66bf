"""Ridge by one decomposition against the normal equations in float64, in the primal and in the dual form."""

from __future__ import annotations

import numpy as np
import pytest

from sbm_jax.kernels import ridge

PENALTIES = [1000.0, 1.0, 0.001]


def _normal_equations(x_np, z_mp, y_n, penalty):
    """Predictions [m]: (X'X / n + penalty I) w = X'y / n, features of variance 1 on the n images, constant ones left out."""
    x, z, y = (np.asarray(part, np.float64) for part in (x_np, z_mp, y_n))
    real = np.ptp(x, axis=0) > 0
    mean, deviation = x[:, real].mean(axis=0), x[:, real].std(axis=0)
    x, z = (x[:, real] - mean) / deviation, (z[:, real] - mean) / deviation
    n, p = x.shape
    return z @ np.linalg.solve(x.T @ x / n + penalty * np.eye(p), x.T @ (y - y.mean()) / n)


def _pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    return x @ y / norm if norm > 1e-9 else 0.0


@pytest.mark.parametrize(("n", "m", "p", "v"), [(30, 7, 5, 3), (17, 2, 40, 1), (20, 11, 20, 9), (3, 3, 1, 2)], ids=str)
def test_against_the_normal_equations(n, m, p, v, rng):
    """A constant feature, a copy, one that fires on a single image; a constant response."""
    x, z = (rng.gamma(1.0, size=(rows, p)).astype(np.float32) for rows in (n, m))
    if p > 3:
        x[:, 0], x[:, 1], z[:, 1] = 0.3, x[:, 2], z[:, 2]
        x[:, 3] = np.where(np.arange(n) == 2, 4.0, 0.0)
    y, t = (rng.standard_normal((rows, v)).astype(np.float32) + 5 for rows in (n, m))
    if v > 2:
        y[:, 2] = 0.7
    spectrum = ridge.spectrum(x, z)
    assert spectrum.score_mq.shape == (m, min(n, p))
    found = ridge.path(spectrum, y, t, np.array(PENALTIES))
    expected = [[_pearson(_normal_equations(x, z, y[:, i], s), t[:, i]) for i in range(v)] for s in PENALTIES]
    # float32 with coefficients that grow like 1 / sqrt(penalty)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    own = np.array([PENALTIES[i % 3] for i in range(v)])
    np.testing.assert_allclose(ridge.score(spectrum, y, t, own), [found[i % 3, i] for i in range(v)], atol=1e-6)
    if v > 2:
        assert not found[:, 2].any()


def test_primal_and_dual_are_one(rng):
    """The same features twice over change a dual into a primal problem with half the penalty per copy."""
    x, z = rng.standard_normal((12, 10)), rng.standard_normal((9, 10))
    y, t = (rng.standard_normal((rows, 4)).astype(np.float32) for rows in (12, 9))
    one = ridge.path(ridge.spectrum(x, z), y, t, np.array([0.5]))
    two = ridge.path(ridge.spectrum(np.tile(x, 2), np.tile(z, 2)), y, t, np.array([1.0]))
    np.testing.assert_allclose(one, two, atol=1e-5)
