"""Z-scoring, averaging, ncsnr, noise ceilings and split halves against direct computation and simulation."""

import numpy as np
import pytest

from sbm_jax.brain import betas, reliability
from sbm_jax.brain.dataset import Subject
from sbm_jax.brain.responses import NpyResponses
from sbm_jax.brain.spaces import UnplacedSpace
from sbm_jax.errors import UserError


def simulate(rng, n_images, repeats, snr_v, n_sessions=3):
    """Trials with a known ratio of signal to noise SD and session drifts: x_tv, image_t, session_t."""
    image_t = rng.permutation(np.repeat(np.arange(n_images), repeats))
    session_t = np.arange(len(image_t)) * n_sessions // len(image_t) + 1
    signal = rng.standard_normal((n_images, len(snr_v))) * snr_v
    x = signal[image_t] + rng.standard_normal((len(image_t), len(snr_v)))
    drift = rng.standard_normal((n_sessions, len(snr_v)))
    return (
        (x * np.exp(0.2 * drift[session_t - 1]) + 3 * drift[session_t - 1]).astype(np.float32),
        image_t,
        session_t,
    )


def make_subject(folder, x_tv, image_t, session_t):
    np.save(folder / "responses.npy", x_tv)
    n = x_tv.shape[1]
    ones = np.ones(len(image_t), dtype=np.int64)
    responses = NpyResponses(folder / "responses.npy", len(image_t), n)
    return Subject("subj01", responses, image_t, session_t, ones, UnplacedSpace("nowhere", n), {})


def test_zscore_matches_numpy(rng):
    x, _, session = simulate(rng, 20, 3, np.linspace(0.2, 1, 5))
    x[4, 1] = np.nan
    z = betas.zscore_sessions(x, session)
    for s in (1, 2, 3):
        rows = session == s
        part = x[rows].astype(np.float64)
        direct = (part - np.nanmean(part, axis=0)) / np.nanstd(part, axis=0)
        np.testing.assert_allclose(z[rows], direct, rtol=1e-5, atol=1e-6)
    assert np.isnan(z).sum() == 1


def test_constant_session_is_missing(rng):
    x, _, session = simulate(rng, 20, 3, np.ones(4))
    x[session == 2, 0] = 0
    x[session == 1, 1] = 0.1  # its float64 mean is not exactly 0.1
    x[session == 3, 2] = np.nan
    missing = np.isnan(betas.zscore_sessions(x, session))
    for voxel, bad in ((0, 2), (1, 1), (2, 3)):
        np.testing.assert_array_equal(missing[:, voxel], session == bad)
    assert not missing[:, 3].any()


def test_average_and_counts_match_nanmean(rng):
    image = rng.permutation(np.repeat(np.arange(10), [1, 2, 3, 3, 3, 2, 1, 3, 3, 4]))
    z = rng.standard_normal((len(image), 6)).astype(np.float32)
    z[rng.random(z.shape) < 0.2] = np.nan
    z[image == 0] = np.nan
    mean, count = reliability.average_repeats(z, image, 10)
    for i in range(10):
        there = ~np.isnan(z[image == i])
        np.testing.assert_array_equal(count[i], there.sum(axis=0))
        total = np.where(there, z[image == i], 0).sum(axis=0)
        expected = np.divide(total, there.sum(axis=0), out=np.full(6, np.nan), where=there.any(axis=0))
        np.testing.assert_allclose(mean[i], expected, rtol=1e-5, atol=1e-6)


def test_ncsnr_is_nsd_formula_for_equal_repeats(rng):
    z = rng.standard_normal((60, 4)).astype(np.float32)
    image = np.tile(np.arange(20), 3)
    z += 0.8 * rng.standard_normal((20, 4)).astype(np.float32)[image]
    z /= z.std(axis=0)
    repeats_rnv = z.reshape(3, 20, 4).astype(np.float64)
    v = np.sqrt(repeats_rnv.var(axis=0, ddof=1).mean(axis=0))
    expected = np.sqrt(np.maximum(0, 1 - v**2)) / v
    assert (expected > 0).any()
    np.testing.assert_allclose(reliability.ncsnr(z, image), expected, rtol=1e-5)


def test_ncsnr_pools_unequal_repeats_and_missing_values(rng):
    image = np.repeat(np.arange(30), np.arange(30) % 4 + 1)
    z = rng.standard_normal((len(image), 3)).astype(np.float32) * 0.6
    z[rng.random(z.shape) < 0.1] = np.nan
    squares, freedom = np.zeros(3), np.zeros(3)
    for i in range(30):
        for v in range(3):
            x = z[image == i, v].astype(np.float64)
            x = x[~np.isnan(x)]
            if len(x) >= 2:
                squares[v] += ((x - x.mean()) ** 2).sum()
                freedom[v] += len(x) - 1
    expected = reliability.ncsnr_from_noise_variance(squares / freedom)
    np.testing.assert_allclose(reliability.ncsnr(z, image), expected, rtol=1e-5)
    assert np.isnan(reliability.ncsnr(z[:2], np.array([0, 1]))).all()


def test_ncsnr_recovers_the_simulated_ratio(rng):
    truth = np.repeat([0.0, 0.35, 0.6, 1.0], 50)
    x, image, session = simulate(rng, 600, 3, truth)
    estimate = reliability.ncsnr(betas.zscore_sessions(x, session), image).reshape(4, 50)
    np.testing.assert_allclose(estimate[1:].mean(axis=1), [0.35, 0.6, 1.0], atol=0.02)
    assert estimate[0].mean() < 0.1
    assert (estimate[0] == 0).mean() > 0.25  # without signal about half of the estimates are exactly 0


def test_noise_ceiling_formulas():
    # NSD's published medians of ncsnr and the ceilings for three repeats
    medians = np.array([0.490, 0.510, 0.431, 0.392, 0.542, 0.439, 0.371, 0.323])
    published = np.array([41.9, 43.8, 35.8, 31.6, 46.9, 36.6, 29.2, 23.8])
    np.testing.assert_allclose(100 * reliability.noise_ceiling(medians, np.full(9, 3)), published, atol=0.15)
    a, b, c = 5, 3, 2
    counts = np.repeat([3, 2, 1, 0], [a, b, c, 4])
    expected = 0.25 / (0.25 + (a / 3 + b / 2 + c) / (a + b + c))
    np.testing.assert_allclose(reliability.noise_ceiling(np.array([0.5]), counts), [expected])
    per_voxel = np.stack([counts, np.full(14, 3)], axis=1)
    np.testing.assert_allclose(
        reliability.noise_ceiling(np.array([0.5, 0.5]), per_voxel), [expected, 0.25 / (0.25 + 1 / 3)]
    )
    np.testing.assert_array_equal(reliability.noise_ceiling(np.array([0.0, np.inf]), np.array([3])), [0, 1])
    assert reliability.r_max(np.array([0.25]))[0] == 0.5


def test_ceiling_is_what_a_perfect_model_reaches(rng):
    repeats = rng.integers(1, 4, 3000)
    image = np.repeat(np.arange(3000), repeats)
    signal = rng.standard_normal((3000, 1)) * 0.7
    z = (signal[image] + rng.standard_normal((len(image), 40))).astype(np.float32)
    mean, counts = reliability.average_repeats(z, image, 3000)
    reached = np.mean([np.corrcoef(mean[:, v], signal[:, 0])[0, 1] for v in range(40)])
    limit = reliability.r_max(reliability.noise_ceiling(np.array([0.7]), counts[:, :1]))[0]
    assert reached == pytest.approx(limit, abs=0.01)


@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_split_half_estimates_the_ceiling(rng, repeats):
    x, image, session = simulate(rng, 500, repeats, np.full(60, 0.6))
    estimate = reliability.split_half(betas.zscore_sessions(x, session), image)
    expected = reliability.noise_ceiling(np.array([0.6]), np.full(1, repeats))[0]
    assert estimate.mean() == pytest.approx(expected, abs=0.02)


def test_split_half_is_one_of_the_possible_splits(rng):
    image = rng.permutation(np.repeat(np.arange(6), 2))
    z = (rng.standard_normal(6)[image] + rng.standard_normal(12)).astype(np.float32)[:, None]
    pairs = np.stack([z[image == i, 0] for i in range(6)]).astype(np.float64)
    possible = []
    for code in range(64):
        first = np.array([code >> i & 1 for i in range(6)])
        r = np.corrcoef(pairs[np.arange(6), first], pairs[np.arange(6), 1 - first])[0, 1]
        possible.append(2 * r / (1 + r))
    estimates = [reliability.split_half(z, image, seed=s)[0] for s in range(20)]
    assert len(set(np.round(estimates, 6))) > 1
    for estimate in estimates:
        assert np.min(np.abs(np.array(possible) - estimate)) < 1e-5
    assert np.isnan(reliability.split_half(z[:3], np.arange(3))).all()


def test_stream_equals_direct_and_does_not_depend_on_memory(tmp_path, rng):
    x, image, session = simulate(rng, 40, 3, np.linspace(0, 1, 11))
    x[7, 3] = np.nan
    x[session == 2, 5] = 0
    subject = make_subject(tmp_path, x, image + 2, session)
    z = betas.zscore_sessions(x, session)
    mean, counts = reliability.average_repeats(z, image, 40)
    for memory in (1, 40_000, 10**9):
        blocks = list(betas.stream_betas(subject, memory_bytes=memory))
        assert [b.voxels.start for b in blocks][1:] == [b.voxels.stop for b in blocks][:-1]
        np.testing.assert_array_equal(np.concatenate([b.betas_nv for b in blocks], axis=1), mean)
        np.testing.assert_array_equal(np.concatenate([b.counts_nv for b in blocks], axis=1), counts)
        np.testing.assert_array_equal(np.concatenate([b.ncsnr_v for b in blocks]), reliability.ncsnr(z, image))
        np.testing.assert_array_equal(np.concatenate([b.missing_v for b in blocks]), np.isnan(z).sum(axis=0))
    assert len(list(betas.stream_betas(subject, memory_bytes=1))) == 6
    some = next(betas.stream_betas(subject, np.array([30, 2, 17])))
    np.testing.assert_array_equal(some.betas_nv, mean[[28, 0, 15]])
    with pytest.raises(ValueError, match="did not see"):
        next(betas.stream_betas(subject, np.array([1])))


def test_infinite_response_is_named(tmp_path, rng):
    x, image, session = simulate(rng, 10, 3, np.ones(6))
    x[4, 5] = np.inf
    x[2, 5] = np.nan
    subject = make_subject(tmp_path, x, image, session)
    with pytest.raises(UserError, match=r"responses\.npy: the response of trial 5 .* in voxel 6 .* infinite"):
        list(betas.stream_betas(subject, memory_bytes=1))
