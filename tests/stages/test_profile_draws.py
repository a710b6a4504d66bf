"""Bootstrap of layer profiles against redrawn images written out in float64, and how often its intervals cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.stages.profile_draws import block_voxels, draw_weights, from_the_median, profile_draws
from sbm_jax.statistics import percentile_interval

# float32 sums over at most 60 images, one difference of two numbers of the size of a variance
TOLERANCE = 2e-5


def indices(weights_bn: np.ndarray) -> list[np.ndarray]:
    """The images of every draw, written out."""
    n = weights_bn.shape[1]
    return [np.repeat(np.arange(n), np.rint(row * n).astype(int)) for row in weights_bn]


def correlation(a: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r in float64; 0 where either is constant."""
    return 0.0 if np.ptp(a) == 0 or np.ptp(y) == 0 else float(np.corrcoef(a, y)[0, 1])


def written_out(a_lnv: np.ndarray, y_nv: np.ndarray, weights_bn: np.ndarray) -> np.ndarray:
    """r of every layer, draw and voxel, float64 [l, b, v]."""
    a, y = a_lnv.astype(np.float64), y_nv.astype(np.float64)
    return np.array(
        [[[correlation(x[i, v], y[i, v]) for v in range(y.shape[1])] for i in indices(weights_bn)] for x in a]
    )


def drawn(a_lnv: np.ndarray, y_nv: np.ndarray, weights_bn: np.ndarray, *, masks=None, block: int = 10**6, voxels=None):
    voxels = np.arange(y_nv.shape[1]) if voxels is None else voxels
    return profile_draws(
        lambda layer, some: a_lnv[layer][:, some],
        lambda some: y_nv[:, some],
        weights_bn,
        voxels,
        len(a_lnv),
        y_nv.shape[1],
        masks or {},
        block,
    )


@pytest.fixture(scope="module")
def profiles():
    """Three layers, 41 images, 14 voxels. Voxel 0: units that fire on one image, on two, on none; 1: far from 0 beside their
    spread; 2: one huge code among small ones; 3: a copy of the response, its negative, all equal; 4 constant response; 5: tiny
    codes; 6: mostly one non-zero value.
    """
    rng = np.random.default_rng(4)
    y = rng.standard_normal((41, 14)).astype(np.float32)
    a = rng.random((3, 41, 14)) * (rng.random((3, 41, 14)) < 0.3)
    a[:, :, 0] = 0
    a[0, 5, 0], a[1, [7, 30], 0] = 2, (1, 3)
    a[:, :, 1] = 1000 + rng.standard_normal((3, 41))
    a[:, 11, 2] = 500
    a[:, :, 3] = np.stack([y[:, 3], -y[:, 3], np.full(41, 0.7)])
    y[:, 4] = 1.25
    a[:, :, 5] *= 1e-12
    a[:, :, 6] = np.where(rng.random((3, 41)) < 0.8, 0.3, 0.9)
    a[0, :, 8] = y[:, 8] + rng.standard_normal(41)
    return a.astype(np.float32), y


def test_against_draws_written_out(profiles):
    a, y = profiles
    weights = draw_weights(41, 60, 3)
    masks = {"some": np.arange(14) % 2 == 0, "one": np.arange(14) == 8}
    found, r = drawn(a, y, weights, masks=masks), written_out(a, y, weights)
    low, high = np.percentile(r, [2.5, 97.5], axis=1)
    np.testing.assert_allclose(found.low, low, atol=TOLERANCE)
    np.testing.assert_allclose(found.high, high, atol=TOLERANCE)
    best = np.where(r.max(axis=0) > 0, r.argmax(axis=0), -1)
    share = np.array([(best == layer).mean(axis=0) for layer in range(3)])
    np.testing.assert_allclose(found.best_share, share, atol=1e-6)
    weight = np.maximum(r, 0)
    with np.errstate(invalid="ignore"):
        depth = (np.arange(3)[:, None, None] * weight).sum(axis=0) / weight.sum(axis=0)
    steady = (r.max(axis=0) > 1e-3).all(axis=0)  # elsewhere depth is a ratio of rounding errors in some draw
    assert steady.sum() >= 5
    ends = np.nanpercentile(depth[:, steady], [2.5, 97.5], axis=0)
    np.testing.assert_allclose([found.depth_low[steady], found.depth_high[steady]], ends, atol=1e-3)
    for name, mask in masks.items():
        mean = r[:, :, mask].mean(axis=2)
        expected = np.percentile(mean, [2.5, 97.5], axis=1).T
        np.testing.assert_allclose(found.rois[name].profile, expected, atol=TOLERANCE)
        expected = np.nanpercentile(np.nanmean(depth[:, mask], axis=1), [2.5, 97.5])
        np.testing.assert_allclose(found.rois[name].depth, expected, atol=1e-3)
    # Draws that leave out the one image a unit fires on are there, and score 0.
    assert (r[0, :, 0] == 0).any() and (r[0, :, 0] != 0).any()
    assert np.isnan([found.depth_low[4], found.depth_high[4]]).all()


@pytest.mark.parametrize("block", [1, 5, 14])
def test_blocks_and_voxels_left_out_change_nothing(profiles, block):
    a, y = profiles
    weights, voxels = draw_weights(41, 25, 0), np.array([0, 2, 3, 7, 8, 9, 12])
    masks = {"all": np.ones(14, bool), "empty": np.arange(14) == 1}
    whole = drawn(a, y, weights)
    found = drawn(a, y, weights, voxels=voxels, block=block, masks=masks)
    rest = np.setdiff1d(np.arange(14), voxels)
    for name in ("low", "high", "depth_low", "depth_high", "best_share"):
        got, expected = getattr(found, name), getattr(whole, name)
        np.testing.assert_allclose(got[..., voxels], expected[..., voxels], atol=TOLERANCE, err_msg=name)
        assert np.isnan(got[..., rest]).all()
    mean = written_out(a, y, weights)[:, :, voxels].mean(axis=2)
    expected = np.percentile(mean, [2.5, 97.5], axis=1).T
    np.testing.assert_allclose(found.rois["all"].profile, expected, atol=TOLERANCE)
    assert np.isnan(found.rois["empty"].profile).all() and np.isnan(found.rois["empty"].depth).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(-50, 50), st.floats(0.01, 100), st.floats(-50, 50))
def test_scale_and_origin_do_not_matter(seed, origin, scale, base):
    rng = np.random.default_rng(seed)
    a, y = rng.random((1, 23, 6)), rng.standard_normal((23, 6))
    weights = draw_weights(23, 20, seed)
    plain = drawn(a.astype(np.float32), y.astype(np.float32), weights)
    moved = drawn((scale * a + origin * scale).astype(np.float32), (y + base).astype(np.float32), weights)
    bound = TOLERANCE * (1 + abs(origin) + abs(base))  # what rounding to float32 far from 0 leaves of a column
    np.testing.assert_allclose(plain.low, moved.low, atol=bound)
    np.testing.assert_allclose(plain.high, moved.high, atol=bound)


def test_weights_are_multinomial_and_follow_the_seed():
    weights = draw_weights(30, 4000, 1)
    counts = weights * 30
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-5)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    # a count is binomial (30, 1/30): mean 1, variance 29/30; the mean square of 120,000 counts has a standard error near .005
    assert np.mean((counts - 1) ** 2) == pytest.approx(29 / 30, abs=0.03)
    np.testing.assert_array_equal(weights, draw_weights(30, 4000, 1))
    assert (weights != draw_weights(30, 4000, 2)).any()


def test_sparse_columns_keep_their_zeros():
    a = np.zeros((9, 2), np.float32)
    a[2, 0], a[:, 1] = 4, np.arange(9)
    shifted = from_the_median(a)
    assert (shifted[np.arange(9) != 2, 0] == 0).all() and shifted[2, 0] == 1
    np.testing.assert_allclose(shifted[:, 1], (np.arange(9) - 4) / 4)


def test_blocks_follow_the_budget():
    assert block_voxels(1, 1000, 100, 200) == 1
    assert 2 * block_voxels(1 << 28, 1000, 100, 200) == pytest.approx(block_voxels(1 << 29, 1000, 100, 200), rel=0.01)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6), st.sampled_from([0.5, 0.9, 0.95]))
def test_percentiles_are_numpys(b, seed, confidence):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((b, 3, 2))
    x[rng.random(x.shape) < 0.3] = np.nan
    tail = (1 - confidence) / 2
    for found, q in zip(percentile_interval(x, confidence), (tail, 1 - tail), strict=True):
        for at in np.ndindex(3, 2):
            column = x[(slice(None), *at)]
            known = column[~np.isnan(column)]
            expected = np.quantile(known, q) if len(known) else np.nan
            np.testing.assert_allclose(found[at], expected, atol=1e-12)
