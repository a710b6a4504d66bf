"""Bootstrap against samples written out with their copies, coverage of its intervals, and ranks under weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import squareform

from sbm_jax.kernels import rdm_compare
from sbm_jax.kernels.rdm_compare.api import METHODS, upper_triangle
from sbm_jax.kernels.rdm_compare.bootstrap import bootstrap, draw_weights, evaluate
from sbm_jax.kernels.rdm_compare.ceiling import noise_ceiling
from sbm_jax.kernels.rdm_compare.prepared import compare_prepared, prepare_rdm
from sbm_jax.kernels.rdm_compare.ranks import average_ranks, sort_values
from sbm_jax.kernels.rdm_compare.whitened import WHITENED

methods = pytest.mark.parametrize("method", METHODS + WHITENED)
N = 8


def data(r: int = 2, s: int = 3, m: int = 3, n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, n])
    pairs = n * (n - 1) // 2
    truth = rng.gamma(2.0, size=(r, 1, pairs))
    models = np.concatenate([truth[:, 0], rng.gamma(2.0, size=(m, pairs))])[:m]
    return np.round(models, 1), np.round(truth + rng.gamma(2.0, size=(r, s, pairs)), 1)


def copies(rdm: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Condensed RDM of images with repeats; NaN between copies."""
    square = squareform(rdm)
    np.fill_diagonal(square, np.nan)
    return upper_triangle(square[np.ix_(images, images)])


@methods
def test_equals_samples_written_out(method):
    models, brains = data()
    found = bootstrap(models, brains, method, draws=5, seed=3)
    for draw in range(5):
        weights, counts = draw_weights(N, 3, 3, draw)
        images = np.repeat(np.arange(N), weights)
        for roi, subjects in enumerate(brains):
            sampled = {s: copies(subjects[s], images) for s in range(3)}
            for m, model in enumerate(models):
                one = [rdm_compare(copies(model, images), x, method) for x in sampled.values()]
                want = np.dot(one, counts) / counts.sum()
                assert found.scores_brm[draw, roi, m] == pytest.approx(want, abs=1e-6)
            if (counts > 0).all():  # no subject twice: the ceiling is the plain one
                holes = np.stack(list(sampled.values()))
                want_ceiling = noise_ceiling(holes, method, np.isfinite(holes[0]))
                got = (found.lower_br[draw, roi], found.upper_br[draw, roi])
                assert got == pytest.approx(want_ceiling, abs=1e-10)


@methods
def test_without_resampling_it_is_the_comparison_and_the_ceiling(method):
    models, brains = data(r=3, s=4, m=2, n=12)
    found = evaluate(models, brains, method)
    for roi, subjects in enumerate(brains):
        want = [np.mean([rdm_compare(model, x, method) for x in subjects]) for model in models]
        np.testing.assert_allclose(found.scores_rm[roi], want, atol=1e-6)
        np.testing.assert_allclose(
            [found.lower_r[roi], found.upper_r[roi]], noise_ceiling(subjects, method), atol=1e-11
        )


@methods
def test_a_roi_and_a_model_do_not_depend_on_what_is_beside_them(method):
    models, brains = data()
    together = bootstrap(models, brains, method, draws=3)
    alone = bootstrap(models[1:2], brains[1:2], method, draws=3)
    np.testing.assert_allclose(alone.scores_brm[:, 0, 0], together.scores_brm[:, 1, 1], atol=1e-12)
    np.testing.assert_allclose(alone.lower_br[:, 0], together.lower_br[:, 1], atol=1e-12)


def test_draws_depend_on_the_seed_and_their_number_alone():
    models, brains = data()
    long, short = (bootstrap(models, brains, "corr", draws=k, seed=5) for k in (6, 2))
    np.testing.assert_array_equal(long.scores_brm[:2], short.scores_brm)
    other = bootstrap(models, brains, "corr", draws=2, seed=6)
    assert (other.scores_brm != short.scores_brm).any()


def test_images_or_subjects_alone():
    models, brains = data()
    only_images = bootstrap(models, brains, "corr", draws=3, subjects=False)
    only_subjects = bootstrap(models, brains, "corr", draws=3, images=False)
    assert (draw_weights(N, 3, 0, 1, subjects=False)[1] == 1).all()
    for draw in range(3):
        counts = draw_weights(N, 3, 0, draw)[1]
        want = [np.dot([np.corrcoef(models[0], x)[0, 1] for x in roi], counts) / 3 for roi in brains]
        np.testing.assert_allclose(only_subjects.scores_brm[draw, :, 0], want, atol=1e-12)
    assert (only_images.scores_brm != only_subjects.scores_brm).all()


def test_draws_of_fewer_than_3_images_are_left_out():
    models, brains = data(n=3)
    found = bootstrap(models, brains, "cosine", draws=40)
    few = [np.count_nonzero(draw_weights(3, 3, 0, draw)[0]) < 3 for draw in range(40)]
    assert 0 < sum(few) < 40
    np.testing.assert_array_equal(np.isnan(found.scores_brm[:, 0, 0]), few)
    assert all(np.isfinite(x).all() for x in found.interval().values())


def test_one_subject_has_no_ceiling():
    models, brains = data(s=1)
    for method in ("corr", "spearman"):
        found = bootstrap(models, brains, method, draws=2)
        assert np.isnan(found.lower_br).all() and np.isfinite(found.scores_brm).all()


def test_interval_is_of_percentiles():
    models, brains = data(n=12)
    found = bootstrap(models, brains, "cosine", draws=99)
    got = found.interval(0.9)
    assert got["scores"].shape == (2, 2, 3) and got["lower"].shape == (2, 2)
    np.testing.assert_allclose(got["scores"][0], np.percentile(found.scores_brm, 5, axis=0))
    np.testing.assert_allclose(got["upper"][1], np.percentile(found.upper_br, 95, axis=0))


def test_the_interval_over_subjects_covers_the_expected_score():
    """Subjects are independent draws around one RDM. A percentile interval of 95 % over 12 subjects is a little narrow, by
    sqrt(11 / 12) and t against normal: 91 % expected; 3 standard errors of 150 experiments are 7 %."""
    rng = np.random.default_rng(2)
    n, s, experiments = 10, 12, 150
    pairs = n * (n - 1) // 2
    truth = rng.gamma(2.0, size=pairs)
    many = truth + rng.normal(0, 2.0, size=(4000, pairs))
    expected = np.mean([np.corrcoef(truth, x)[0, 1] for x in many])
    inside = 0
    for seed in range(experiments):
        brains = truth + rng.normal(0, 2.0, size=(1, s, pairs))
        low, high = bootstrap(truth[None], brains, "corr", draws=100, images=False, seed=seed).interval()["scores"][
            :, 0, 0
        ]
        inside += low <= expected <= high
    assert 0.84 <= inside / experiments <= 0.99


@pytest.mark.parametrize(
    ("models", "brains", "options", "message"),
    [
        (np.ones((2, 3)), np.ones((1, 2, 6)), {}, "found"),
        (np.ones(3), np.ones((1, 2, 3)), {}, "models must be"),
        (np.ones((1, 1)), np.ones((1, 2, 1)), {}, "3 images"),
        (np.ones((1, 4)), np.ones((1, 2, 4)), {}, "4 entries are no"),
        (np.full((1, 3), np.nan), np.ones((1, 2, 3)), {}, "NaN"),
        (np.ones((1, 3)), np.ones((1, 2, 3)), {"images": False, "subjects": False}, "neither"),
    ],
)
def test_bad_arguments(models, brains, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(models, brains, "corr", **options)


def test_unknown_method():
    with pytest.raises(ValueError, match="unknown method 'tau-b'"):
        bootstrap(*data(), "tau-b")


# Ranks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), levels=st.sampled_from([1, 3, 20, 10**6]), count=st.integers(1, 80))
def test_ranks_equal_scipy_also_under_weights(dtype, seed, levels, count):
    rng = np.random.default_rng(seed)
    x = ((rng.integers(0, levels, count) - levels // 2) * 0.37).astype(dtype)
    x[rng.random(count) < 0.1] = -0.0  # equal to 0
    np.testing.assert_array_equal(average_ranks(x), stats.rankdata(x))
    weights = rng.integers(0, 4, count)
    if weights.any():
        got = sort_values(x).ranks(weights)
        np.testing.assert_array_equal(np.repeat(got, weights), stats.rankdata(np.repeat(x, weights)))


def test_ranks_of_the_whole_range_of_float32():
    x = np.array([3e38, -3e38, 1e-45, -1e-45, 0, 1, -1, 5e-39], np.float32)
    np.testing.assert_array_equal(average_ranks(x), stats.rankdata(x))


# Prepared -----------------------------------------------------------------------------------------------------------


@methods
def test_prepared_rdms_compare_over_the_pairs_that_both_have(method):
    models, brains = data(n=10)
    a, b = models[0], brains[0, 0]
    want = rdm_compare(a, b, method)
    assert compare_prepared(prepare_rdm(a, method), prepare_rdm(squareform(b), method)) == pytest.approx(want, abs=1e-6)
    a, b = a.copy(), b.copy()
    a[3], b[7] = np.nan, np.nan
    both = a + 0 * b
    want = rdm_compare(both, np.where(np.isnan(both), np.nan, b), method)
    assert compare_prepared(prepare_rdm(a, method), prepare_rdm(b, method)) == want


def test_prepared_for_different_methods_is_an_error_and_nothing_in_common_nan():
    a, b = np.array([1.0, 2, 3]), np.array([np.nan, np.nan, 1])
    with pytest.raises(ValueError, match="a is made for corr, b for spearman"):
        compare_prepared(prepare_rdm(a, "corr"), prepare_rdm(a, "spearman"))
    assert np.isnan(compare_prepared(prepare_rdm(a, "corr"), prepare_rdm(b, "corr")))


# Noise ceiling with missing pairs -------------------------------------------------------------------------------------


@methods
def test_noise_ceiling_leaves_out_an_image_that_no_subject_has(method):
    _, brains = data(r=1, s=4, n=9)
    squares = np.stack([squareform(x) for x in brains[0]])
    keep = np.delete(np.arange(9), 2)
    want = noise_ceiling(np.stack([upper_triangle(x[np.ix_(keep, keep)]) for x in squares]), method)
    squares[:, 2], squares[:, :, 2] = np.nan, np.nan
    holes = np.stack([upper_triangle(x) for x in squares])
    got = noise_ceiling(holes, method, np.isfinite(holes).all(axis=0))
    np.testing.assert_allclose(got, want, atol=1e-12)
