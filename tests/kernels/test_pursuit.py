"""Batched matching pursuit against plain least squares in float64, at awkward shapes and with copies among the candidates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.kernels.pursuit import reference, xla

TOLERANCE = 2e-5  # float32 Gram matrices of at most 70 images, scaled by at most 1 / sqrt(DEPENDENT) = 32 per atom
CLOSE = 1e-4  # correlations with the residual nearer than this may change places


def _sets(n: int, score: int) -> tuple[np.ndarray, np.ndarray]:
    held_out = np.arange(n) < score
    return ~held_out, held_out


def _both(columns_wn, y_vn, place_vk, fit, score, atoms, memory_bytes=1 << 26):
    found = xla.pursue(columns_wn, y_vn, place_vk, fit, score, atoms, memory_bytes)
    rows = [reference.pursue(columns_wn[p].T, y, fit, score, atoms) for p, y in zip(place_vk, y_vn, strict=True)]
    return found, tuple(np.stack(parts) for parts in zip(*rows, strict=True))


SHAPES = [(50, 20, 13, 11, 7, 5), (3, 2, 1, 1, 1, 3), (9, 3, 8, 3, 7, 8), (31, 5, 6, 8, 4, 2), (17, 17, 12, 5, 3, 4)]


@pytest.mark.parametrize(("fit", "score", "w", "v", "k", "atoms"), SHAPES, ids=str)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_against_least_squares(fit, score, w, v, k, atoms, seed):
    """Sparse columns, of which some are empty, constant, copies of others, or fire on one image alone."""
    rng = np.random.default_rng(seed)
    n = fit + score
    columns = (rng.gamma(2.0, size=(w, n)) * (rng.random((w, n)) < 0.4)).astype(np.float32)
    columns[rng.random(w) < 0.15] = 0.75
    columns[rng.random(w) < 0.3] = columns[0]
    columns[-1] = np.where(np.arange(n) == n - 1, 2.0, 0.0)
    y = (rng.standard_normal((v, w)) @ columns + 3 * rng.standard_normal((v, n)) + 1).astype(np.float32)
    y[0] = 1.5
    place = np.stack([rng.permutation(w)[:k] for _ in range(v)])
    found, expected = _both(columns, y, place, *_sets(n, score), atoms, memory_bytes=4 * n * k * 3)
    same = (found[0] == expected[0]).cumprod(axis=1).astype(bool)
    assert (found[0][0] == -1).all() and not found[2][0].any()
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        # the in-sample r of few images is near 1, where a square root magnifies rounding
        np.testing.assert_allclose(mine[same], theirs[same], atol=50 * TOLERANCE)
    for row, known, p, response in zip(found[0], same, place, y, strict=True):
        if not known.all():  # a tie, or a candidate at the edge of being dropped
            _near(
                columns[p], response, fit_n=_sets(n, score)[0], chosen=row[: known.argmin()], other=row[known.argmin()]
            )


def _near(columns_kn, y_n, fit_n, chosen, other):
    """The other choice is as good as the reference's but for rounding, or stands at one of the two limits."""
    a = columns_kn[:, fit_n].astype(np.float64)
    a -= a.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(a, axis=1, keepdims=True)
    a = np.where(norm > 0, a / np.where(norm > 0, norm, 1), 0)
    y = y_n[fit_n] - y_n[fit_n].mean(dtype=np.float64)
    y = y / np.linalg.norm(y)
    basis = np.linalg.qr(a[chosen].T)[0]
    left = (a**2).sum(axis=1) - ((a @ basis) ** 2).sum(axis=1)
    likeness = np.abs(a @ (y - basis @ (basis.T @ y)))
    likeness[chosen] = 0
    usable = left > reference.DEPENDENT + 1e-4
    edge = np.abs(left - reference.DEPENDENT).min() < 1e-4
    best = likeness[usable].max(initial=0)
    assert edge or (other < 0 and best < CLOSE) or (other >= 0 and likeness[other] > best - CLOSE)


def test_copies_and_near_copies_are_dropped(rng):
    """Of six candidates four say the same: three copies of one, and one that is a copy but for rounding."""
    n = 60
    first, second, third = rng.standard_normal((3, n)).astype(np.float32)
    columns = np.stack([first, first, 3 * first + 7, first * (1 + 1e-6) + 1e-4, second, third])
    y = (first + 0.5 * second + 0.2 * third + 0.01 * rng.standard_normal(n))[None].astype(np.float32)
    place = np.arange(6)[None]
    fit, score = _sets(n, 15)
    (units, in_sample, held_out), expected = _both(columns, y, place, fit, score, 6)
    np.testing.assert_array_equal(units, [[0, 4, 5, -1, -1, -1]])
    np.testing.assert_array_equal(units, expected[0])
    np.testing.assert_allclose(in_sample, expected[1], atol=TOLERANCE)
    np.testing.assert_allclose(held_out, expected[2], atol=TOLERANCE)
    assert (held_out[0, 2:] == held_out[0, 2]).all() and held_out[0, 2] > 0.999
    assert (np.diff(in_sample[0]) >= 0).all() and in_sample.max() <= 1


def test_units_of_one_image_tie_and_the_first_is_taken():
    """Units that fire on the same single image have one and the same column, whatever their size."""
    n = 40
    columns = np.zeros((4, n), np.float32)
    columns[:, 20] = [1, 0.3, 5, 2]
    y = np.zeros((1, n), np.float32)
    y[0, 20], y[0, 30] = 1, -0.5
    units, _, held_out = xla.pursue(columns, y, np.arange(4)[None], *_sets(n, 10), 3, 1 << 20)
    np.testing.assert_array_equal(units, [[0, -1, -1]])
    assert np.isfinite(held_out).all() and not held_out.any()  # silent on the images that score


@pytest.mark.parametrize("memory_bytes", [1, 5_000, 1 << 26])
def test_it_does_not_depend_on_how_it_is_cut(rng, memory_bytes):
    columns, y = (rng.standard_normal((m, 50)).astype(np.float32) for m in (9, 21))
    place = np.stack([rng.permutation(9)[:4] for _ in range(21)])
    fit, score = _sets(50, 20)
    one = xla.pursue(columns, y, place, fit, score, 3, 1 << 30)
    other = xla.pursue(columns, y, place, fit, score, 3, memory_bytes)
    np.testing.assert_array_equal(one[0], other[0])
    for a, b in zip(one[1:], other[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE)
