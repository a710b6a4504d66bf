"""Bootstrap intervals of RDM comparisons in the stages: which images take part, and how often they cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from sbm_jax.config import RsaConfig
from sbm_jax.kernels.rdm_compare.bootstrap import bootstrap
from sbm_jax.stages.resampled import resampled


def vectors(rng: np.random.Generator, count: int, n: int, d: int = 12) -> np.ndarray:
    return np.stack([pdist(rng.normal(size=(n, d)), "correlation") for _ in range(count)])


def test_images_without_a_pattern_are_left_out(rng):
    models, brains = vectors(rng, 3, 12), vectors(rng, 2, 12)
    rows, columns = np.triu_indices(12, 1)
    for rdms, image in ((models[:1], 4), (brains[1:], 9)):
        rdms[:, (rows == image) | (columns == image)] = np.nan
    config = RsaConfig(bootstrap=30, method="corr", seed=5)
    (found,) = resampled(models, brains[None], config)
    keep = np.setdiff1d(np.arange(12), [4, 9])

    def smaller(rdms: np.ndarray) -> np.ndarray:
        return np.stack([squareform(squareform(x, checks=False)[np.ix_(keep, keep)], checks=False) for x in rdms])

    direct = bootstrap(smaller(models), smaller(brains)[None], "corr", draws=30, seed=5)
    assert found.n_images == 10
    bound = 100 * np.finfo(float).eps  # sums over the pairs, in whatever order
    np.testing.assert_allclose(found.scores[:, 0], direct.estimate.scores_rm[0], atol=bound)
    ends = np.nanpercentile(direct.scores_brm[:, 0], [2.5, 97.5], axis=0)
    np.testing.assert_allclose(found.scores[:, 1:].T, ends, atol=bound)
    assert found.ceiling.shape == (2, 3) and (found.ceiling[:, 1] < found.ceiling[:, 2]).all()


def test_one_subject_has_scores_and_no_ceiling(rng):
    (found,) = resampled(vectors(rng, 2, 10), vectors(rng, 1, 10)[None], RsaConfig(bootstrap=20))
    assert np.isfinite(found.scores).all() and np.isnan(found.ceiling).all()


def test_no_draws_and_too_few_images_give_nothing(rng):
    assert resampled(vectors(rng, 2, 10), vectors(rng, 2, 10)[None], RsaConfig(bootstrap=0)) == []
    assert resampled(vectors(rng, 2, 4), vectors(rng, 2, 4)[None], RsaConfig()) == []


def test_rois_in_one_pass_are_rois_alone(rng):
    models, brains = vectors(rng, 2, 11), np.stack([vectors(rng, 3, 11) for _ in range(2)])
    together = resampled(models, brains, RsaConfig(bootstrap=25))
    for found, brain in zip(together, brains, strict=True):
        (alone,) = resampled(models, brain[None], RsaConfig(bootstrap=25))
        np.testing.assert_array_equal(found.scores, alone.scores)
        np.testing.assert_array_equal(found.ceiling, alone.ceiling)


@pytest.mark.slow
def test_intervals_cover_the_similarity_of_the_population():
    """Brain patterns are model patterns plus noise that is fixed per image. 200 experiments of 40 images, 200 draws of images:
    an interval of 95 % should cover the value of 1,500 images in 95 %; a count below 0.90 or above 0.995 has probability
    below 1e-3.
    """
    d, rng = 8, np.random.default_rng(11)

    def experiment(n: int) -> tuple[np.ndarray, np.ndarray]:
        model = rng.normal(size=(n, d))
        return pdist(model, "sqeuclidean"), pdist(model + rng.normal(size=(n, d)), "sqeuclidean")

    truth = np.mean([np.corrcoef(*experiment(1500))[0, 1] for _ in range(3)])
    hits = 0
    for seed in range(200):
        model, brain = experiment(40)
        (found,) = resampled(model[None], brain[None, None], RsaConfig(bootstrap=200, method="corr", seed=seed))
        hits += found.scores[0, 1] <= truth <= found.scores[0, 2]
    assert 0.90 <= hits / 200 <= 0.995
