"""Joint models of simulated voxels whose truth is known: what is recovered, what noise scores, and what is chosen where."""

from __future__ import annotations

import numpy as np
import pytest

from sbm_jax.config import AlignConfig, JointConfig
from sbm_jax.errors import UserError
from sbm_jax.kernels import SparseCodes
from sbm_jax.stages.image_sets import image_sets
from sbm_jax.stages.joint import fit_mode
from sbm_jax.stages.joint_models import Pool, splits, strongest
from sbm_jax.stages.ranking import Engine

N, SHARED, UNITS, LAYERS = 400, 100, 60, 2
MEMORY = 1 << 26


def _fit(layers, y_nv, config, *, select="shared", p=30, by_layer=False, memory=MEMORY, sign="signed"):
    units = layers[0].n_units if isinstance(layers[0], SparseCodes) else layers[0].shape[1]
    sets = image_sets(
        AlignConfig.model_validate({"select": select, "folds": 4}), "subj01", np.arange(len(y_nv)) < SHARED
    )
    parts = splits(sets, config, "subj01")
    return fit_mode(
        Pool(layers, units),
        lambda at: y_nv[:, at],
        y_nv.shape[1],
        parts,
        config,
        p,
        by_layer,
        Engine(None, memory, sign == "absolute"),
    )


def _codes(rng: np.random.Generator) -> np.ndarray:
    """Codes that fire on a third of the images, [l, n, u]."""
    return ((rng.random((LAYERS, N, UNITS)) < 0.33) * rng.gamma(4.0, size=(LAYERS, N, UNITS))).astype(np.float32)


def _sparse(dense_nu: np.ndarray) -> SparseCodes:
    order = np.argsort(dense_nu == 0, axis=1, kind="stable")
    return SparseCodes(np.take_along_axis(dense_nu, order, 1), order.astype(np.int32), dense_nu.shape[1])


@pytest.fixture(scope="module")
def planted():
    """60 voxels that are the sum of three of 24 units, of weights 1, 0.8 and 0.6, and noise of as much variance."""
    rng = np.random.default_rng(3)
    codes = _codes(rng)
    flat = codes.transpose(1, 0, 2).reshape(N, -1)
    standard = (flat - flat.mean(axis=0)) / flat.std(axis=0)
    taken = rng.permutation(LAYERS * UNITS)[:24]
    wired = np.stack([rng.permutation(taken)[:3] for _ in range(60)])
    signal = np.einsum("nvk,k->nv", standard[:, wired], np.array([1, 0.8, 0.6]))
    y = signal + signal.std(axis=0) * rng.standard_normal(signal.shape)
    return codes, y.astype(np.float32), wired


@pytest.mark.parametrize("select", ["shared", "kfold"])
def test_three_planted_units_are_found(planted, select):
    codes, y, wired = planted
    found = _fit([_sparse(layer) for layer in codes], y, JointConfig(atoms=6), select=select)
    exact = [set(row[:3]) == set(truth) for row, truth in zip(found["omp_units"], wired, strict=True)]
    assert np.mean(exact) > 0.95
    assert (found["omp_units"][:, 0] == wired[:, 0]).mean() > 0.8
    curve = found["omp_held_out"].mean(axis=1)
    # shares 1, .64 and .36 of the signal's variance 2, and noise of as much: r of .5, .64 and .71 with one, two, three
    np.testing.assert_allclose(curve[:3], np.sqrt(np.cumsum([1, 0.64, 0.36]) / 4), atol=0.03)
    assert (np.diff(curve[:3]) > 0.04).all() and (np.abs(np.diff(curve[2:])) < 0.02).all()
    assert curve[3:].max() < curve[2]  # atoms of noise cost a little
    assert np.median(found["omp_atoms"]) == 3 and abs(found["omp_chosen"].mean() - curve[2]) < 0.02
    in_sample = found["omp_in_sample"].mean(axis=1)
    assert (np.diff(in_sample) > 0).all() and in_sample[5] > curve[2]
    assert set(wired.ravel()) <= set(found["ridge_units"])
    assert curve[0] + 0.1 < found["ridge_held_out"].mean() < found["omp_chosen"].mean()


@pytest.mark.parametrize("select", ["shared", "kfold"])
def test_noise_scores_nothing(select):
    """Voxels of pure noise: every held-out score has mean 0 within its standard error, however much was chosen in sample.

    The voxels share the codes, so that the error is that of the mean over runs with codes of their own.
    """
    means = []
    for seed in range(12):
        rng = np.random.default_rng([7, seed])
        y = rng.standard_normal((N, 100)).astype(np.float32)
        config = JointConfig(atoms=4, candidates=10, lambdas=[0.01, 1], seed=seed)
        found = _fit(list(_codes(rng)), y, config, select=select, by_layer=True)
        keys = ("omp_chosen", "ridge_held_out", "ridge_layer_held_out")
        means.append([*found["omp_held_out"].mean(axis=1), *(found[key].mean() for key in keys)])
        assert found["omp_in_sample"][3].mean() > 0.2
        assert (found["omp_atoms"] == 1).mean() > 0.2
    mean, error = np.mean(means, axis=0), np.std(means, axis=0, ddof=1) / np.sqrt(len(means))
    assert error.max() < 0.01
    assert (np.abs(mean) < 4 * error).all()


@pytest.mark.parametrize("select", ["shared", "kfold", "none"])
def test_scores_depend_on_nothing_that_scores(planted, select):
    """Other responses on the held-out images change no unit, number or penalty; none has no score at all."""
    codes, y, _ = planted
    config = JointConfig(atoms=3, candidates=6, lambdas=[0.1, 10])
    found = _fit(list(codes), y, config, select=select, by_layer=True)
    if select == "shared":
        changed = y.copy()
        changed[:SHARED] = np.random.default_rng(0).standard_normal((SHARED, y.shape[1]))
        other = _fit(list(codes), changed, config, select=select, by_layer=True)
        for key in ("omp_units", "omp_atoms", "omp_in_sample", "ridge_units", "ridge_lambda", "ridge_layer"):
            np.testing.assert_array_equal(found[key], other[key], err_msg=key)
        assert (other["omp_held_out"][0] < found["omp_held_out"][0]).mean() > 0.95
    for key in ("omp_held_out", "omp_chosen", "ridge_held_out", "ridge_layer_held_out"):
        assert np.isnan(found[key]).all() == (select == "none"), key
    assert set(np.unique(found["ridge_lambda"])) <= {np.float32(0.1), np.float32(10)}
    assert np.isfinite(found["omp_in_sample"]).all() and set(found["ridge_layer"]) == {0, 1}


def test_it_does_not_depend_on_how_it_is_cut(planted):
    """Blocks of voxels by memory; sparse codes and dense ones."""
    codes, y, _ = planted
    y = np.tile(y, 6)  # 360 voxels: two blocks of the search
    config = JointConfig(atoms=3, candidates=6, lambdas=[0.1, 10])
    one = _fit(list(codes), y, config)
    other = _fit([_sparse(layer) for layer in codes], y, config, memory=1 << 20)
    assert (one["omp_units"] == other["omp_units"]).mean() > 0.99
    for key in ("omp_held_out", "omp_chosen", "ridge_held_out"):
        assert (np.abs(one[key] - other[key]) < 1e-4).mean() > 0.99, key
    np.testing.assert_array_equal(one["ridge_units"], other["ridge_units"])


def test_the_layer_of_all_neurons_is_chosen_where_it_is(rng):
    """Voxels that mix every neuron of one layer: ridge on that layer is chosen and scores higher than fewer neurons of both."""
    layers = [rng.standard_normal((N, 12)).astype(np.float32) for _ in range(2)]
    y = np.concatenate([x @ rng.standard_normal((12, 30)) for x in layers], axis=1)
    y = (y + y.std(axis=0) * rng.standard_normal(y.shape)).astype(np.float32)
    found = _fit(layers, y, JointConfig(), p=12, by_layer=True)
    assert (found["ridge_layer"] == np.repeat([0, 1], 30)).mean() > 0.95
    assert len(found["ridge_units"]) == 12
    assert found["ridge_layer_held_out"].mean() > 0.65 > 0.55 > found["ridge_held_out"].mean()


def test_a_unit_that_silences_is_found_by_absolute_similarity(planted):
    """A voxel that follows one unit upside down: its weight is negative, and the prediction correlates positively."""
    codes, y, _ = planted
    y = -3 * codes[1, :, [7, 20]].T + y[:, :2]
    config = JointConfig(atoms=2, candidates=6, lambdas=[1])
    found = {sign: _fit(list(codes), y, config, sign=sign) for sign in ("signed", "absolute")}
    np.testing.assert_array_equal(found["absolute"]["omp_units"][:, 0], [UNITS + 7, UNITS + 20])
    assert (found["absolute"]["omp_held_out"][0] > 0.9).all()
    assert (found["signed"]["omp_held_out"][0] < 0.7).all()


def test_predictors_are_the_strongest():
    np.testing.assert_array_equal(strongest(np.array([0, 0.3, 0.1, 0.3, 0, 9]), 3), [1, 3, 5])
    np.testing.assert_array_equal(strongest(np.array([0, 3, 3, 3]), 2), [1, 2])
    np.testing.assert_array_equal(strongest(np.array([0, 0, 2]), 3), [2])


def test_splits():
    """Every image has one part; nothing that scores is fitted on; fixed by the seed; too few images are refused."""
    config = JointConfig(validation=0.25)
    for select, count in (("shared", 1), ("kfold", 5), ("none", 1)):
        sets = image_sets(AlignConfig.model_validate({"select": select, "folds": 4}), "subj01", np.arange(40) < 10)
        parts = splits(sets, config, "subj01")
        assert len(parts) == count
        for split in parts:
            assert not (split.inner & split.validation).any()
            np.testing.assert_array_equal(split.inner | split.validation, split.fit)
            assert split.validation.sum() == round(0.25 * split.fit.sum())
            if split.score is not None:
                assert not (split.score & split.fit).any() and (split.score | split.fit).all()
        assert (parts[0].score is None) == (select != "shared")
        again = splits(sets, config, "subj01")
        assert all((a.validation == b.validation).all() for a, b in zip(parts, again, strict=True))
        other = splits(sets, JointConfig(validation=0.25, seed=1), "subj01")
        assert any((a.validation != b.validation).any() for a, b in zip(parts, other, strict=True))
    with pytest.raises(UserError, match=r"subj01: 5 images are left.*joint\.modes"):
        splits(image_sets(AlignConfig(), "subj01", np.arange(9) < 4), config, "subj01")
