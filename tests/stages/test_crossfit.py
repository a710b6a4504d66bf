"""Cross-fitted selection and score against a plain float64 loop over folds, and what the score estimates."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.config import AlignConfig
from sbm_jax.errors import UserError
from sbm_jax.kernels import SparseCodes
from sbm_jax.kernels.cosine_topk import cost
from sbm_jax.mesh import make_mesh
from sbm_jax.stages.crossfit import CrossFit
from sbm_jax.stages.image_sets import autoencoder_sets, deal, fixed_sets, image_sets, telling
from sbm_jax.stages.null import KEPT, Null
from sbm_jax.stages.ranking import Engine
from sbm_jax.stages.search import Search

TOLERANCE = 2e-6  # float32 sums over at most 60 images
CLOSE = 1e-5  # similarities nearer than this may change places


def crossfit(layers, y_nv, folds_n, *, k_voxel=2, blocks=1, devices=1, left_out=(), order=None):
    """The cross-fit of all layers' codes, in blocks of voxels; the voxels `left_out` have no control."""
    n_voxels = y_nv.shape[1]
    units = layers[0].n_units if isinstance(layers[0], SparseCodes) else layers[0].shape[1]
    mesh = make_mesh({"units": 1, "voxels": devices}, jax.devices()[:devices]) if devices > 1 else None
    order = np.random.default_rng(9).permutation(len(y_nv)) if order is None else order
    taken = ~np.isin(np.arange(n_voxels), left_out)
    fit = CrossFit(folds_n, len(layers), units, k_voxel, Engine(mesh, 1 << 26), taken, order)
    for voxels in np.array_split(np.arange(n_voxels), blocks):
        fit.start(voxels, y_nv[:, voxels])
        for i, layer in enumerate(layers):
            fit.piece(i, 0, layer)
    return fit.results()


def _standard(x_n: np.ndarray) -> np.ndarray:
    centred = x_n - x_n.mean()
    norm = np.linalg.norm(centred)
    return centred / norm if norm > 1e-6 * np.linalg.norm(x_n) else np.zeros_like(centred)


def specification(layers_lnu: np.ndarray, y_nv: np.ndarray, folds_n: np.ndarray) -> tuple[np.ndarray, ...]:
    """[f, v, l x u] similarities on the images outside (constant units -2) and inside of every fold, one pair at a time."""
    flat = layers_lnu.transpose(1, 0, 2).reshape(layers_lnu.shape[1], -1).astype(np.float64)
    out = []
    for inside in (False, True):
        s = np.zeros((folds_n.max() + 1, y_nv.shape[1], flat.shape[1]))
        for f in range(len(s)):
            rows = (folds_n == f) == inside
            for v in range(s.shape[1]):
                for u in range(s.shape[2]):
                    a, y = _standard(flat[rows, u]), _standard(y_nv[rows, v].astype(np.float64))
                    s[f, v, u] = a @ y if inside or (a.any() and y.any()) else -2
        out.append(s)
    return tuple(out)


def _small(seed: int = 0):
    """Two layers of 12 units over 26 images: unit 3 is a copy of unit 2, 4 fires on one image alone, 5 never, 6 always the
    same, 7 is silent in fold 0, 8 and 9 fire on fold 1 alone; voxel 4 is constant in fold 2, voxel 5 a multiple of unit 0.
    """
    rng = np.random.default_rng(seed)
    folds = deal(26, 4, seed)
    dense = rng.random((2, 26, 12)) * (rng.random((2, 26, 12)) < 0.5)
    dense[:, :, 3] = dense[:, :, 2]
    dense[:, :, 4:6] = 0
    dense[0, 5, 4], dense[1, 9, 4] = 1.5, 0.5
    dense[:, :, 6] = 0.75
    dense[:, folds == 0, 7] = 0
    dense[:, folds != 1, 8:10] = 0
    y = rng.standard_normal((26, 9))
    y[folds == 2, 4] = 1.0
    y[:, 5] = 2 * dense[0, :, 0] - 1
    return dense.astype(np.float32), y.astype(np.float32), folds


def _sparse(dense_nu: np.ndarray) -> SparseCodes:
    units = np.argsort(dense_nu == 0, axis=1, kind="stable")
    width = int((dense_nu != 0).sum(axis=1).max())
    return SparseCodes(
        np.take_along_axis(dense_nu, units, 1)[:, :width], units[:, :width].astype(np.int32), dense_nu.shape[1]
    )


@pytest.mark.parametrize("how", ["dense", "blocks", "sparse"])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_the_loop(how, seed, monkeypatch):
    """Dense codes, sparse codes in dense blocks, sparse codes by their entries."""
    monkeypatch.setattr(cost, "sparse_wins", lambda *_: how == "sparse")
    dense, y, folds = _small(seed)
    layers = list(dense) if how == "dense" else [_sparse(layer) for layer in dense]
    found = crossfit(layers, y, folds, k_voxel=3)
    outside, inside = specification(dense, y, folds)
    n_folds, n_voxels, _ = outside.shape
    for f in range(n_folds):
        for v in range(n_voxels):
            unit, best = found["fold_units"][f, v], outside[f, v].max()
            assert outside[f, v, unit] >= best - CLOSE
            equal = np.flatnonzero(outside[f, v] == best)
            if len(equal) == 1 and np.sort(outside[f, v])[-2] < best - CLOSE:
                assert unit == equal[0]
            assert unit % 12 not in (3, 5, 6), "a copy of a unit before it, or a constant, was chosen"
            assert found["fold_held_out"][f, v] == pytest.approx(inside[f, v, unit], abs=TOLERANCE)
    np.testing.assert_allclose(found["held_out"][:, 0], found["fold_held_out"].mean(axis=0), atol=TOLERANCE)
    # Ranks and layers, where nothing is near enough to change places.
    order = np.argsort(-outside, axis=2, kind="stable")
    ranked = -np.sort(-outside, axis=2)
    checked = 0
    for v in range(n_voxels):
        for rank in range(3):
            near = np.abs(np.diff(ranked[:, v, : rank + 2], axis=1))
            if (near > CLOSE).all():
                expected = np.mean([inside[f, v, order[f, v, rank]] for f in range(n_folds)])
                assert found["held_out"][v, rank] == pytest.approx(expected, abs=TOLERANCE)
                checked += 1
        for layer in range(2):
            part = slice(12 * layer, 12 * layer + 12)
            top = -np.sort(-outside[:, v, part], axis=1)
            if (top[:, 0] - top[:, 1] > CLOSE).all():
                chosen = outside[:, v, part].argmax(axis=1)
                expected = np.mean([inside[f, v, part][chosen[f]] for f in range(n_folds)])
                assert found["layer_held_out"][layer, v] == pytest.approx(expected, abs=TOLERANCE)
                checked += 1
    assert checked > 15


def test_a_unit_that_is_silent_in_a_fold_scores_nothing_there():
    dense, _, folds = _small()
    y = np.repeat(dense[0, :, 7:8], 2, axis=1)
    found = crossfit(list(dense), y, folds)
    assert (found["fold_units"] == 7).all()
    np.testing.assert_allclose(found["fold_held_out"], np.array([0, 1, 1, 1])[:, None] * np.ones(2), atol=TOLERANCE)
    np.testing.assert_allclose(found["held_out"][:, 0], 0.75, atol=TOLERANCE)


def test_the_control_is_the_same_with_images_permuted():
    dense, y, folds = _small()
    order = np.random.default_rng(4).permutation(26)
    found = crossfit(list(dense), y, folds, order=order, left_out=(1, 8))
    permuted = crossfit(list(dense), y[order], folds)
    taken = np.setdiff1d(np.arange(9), [1, 8])
    np.testing.assert_allclose(found["shuffled_held_out"][0, taken], permuted["held_out"][taken, 0], atol=TOLERANCE)
    np.testing.assert_array_equal(found["shuffled_fold_units"][:, taken], permuted["fold_units"][:, taken])
    assert (
        np.isnan(found["shuffled_held_out"][0, [1, 8]]).all() and (found["shuffled_fold_units"][:, [1, 8]] == -1).all()
    )


@pytest.mark.parametrize("how", [{"devices": 8}, {"blocks": 2, "devices": 8}], ids=str)
@pytest.mark.parametrize("sparse", [False, True])
def test_it_does_not_depend_on_how_it_is_cut(sparse, how):
    """Blocks of voxels, eight devices: the same units and, but for rounding, the same scores."""
    dense, y, folds = _small(7)
    layers = [_sparse(layer) for layer in dense] if sparse else list(dense)
    one, other = crossfit(layers, y, folds), crossfit(layers, y, folds, **how)
    for key, value in one.items():
        if value.dtype.kind == "i":
            np.testing.assert_array_equal(value, other[key], err_msg=key)
        else:
            np.testing.assert_allclose(value, other[key], atol=TOLERANCE, err_msg=key)


def _searched(layers, y_nv, shuffles, *, seed=0):
    """The search over all images, without held-out ones."""
    n, n_voxels = y_nv.shape
    null = Null(np.ones(n_voxels, bool), n, 0, shuffles=shuffles, seed=seed)
    search = Search(n_voxels, len(layers), layers[0].shape[1], 1, 1, Engine(None, 1 << 26), null)
    while search.begin():
        search.start(np.arange(n_voxels), y_nv)
        for i, layer in enumerate(layers):
            search.piece(i, 0, layer)
        search.end()
    return search.results()


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_noise_scores_nothing_and_selection_in_sample_does(seed):
    """n = 60 images in 5 folds, 40 units and 300 voxels of independent noise. The held-out score of a voxel has mean 0; its
    standard error is measured over voxels that share the codes, which five of them bound. The best in sample is near its
    expectation sqrt(2 ln 40 / 60) = .35.
    """
    rng = np.random.default_rng(seed)
    codes, y = (rng.standard_normal((60, m)).astype(np.float32) for m in (40, 300))
    held_out = crossfit([codes], y, deal(60, 5, seed))["held_out"][:, 0]
    assert abs(held_out.mean()) < 5 * held_out.std() / np.sqrt(len(held_out))
    out = _searched([codes], y, 1)
    assert 0.25 < out["voxel_values"][:, 0].mean() < 0.35
    assert np.isnan(out["held_out"]).all() and np.isnan(out["layer_held_out"]).all() and np.isfinite(out["p"]).all()
    assert out["shuffled_held_out"].shape == (1, 300) and np.isnan(out["shuffled_held_out"]).all()


def test_p_belong_to_the_search_over_all_images():
    """The null of the dictionary's search: one order of all images for all units, from (seed, n, 0); no held-out control."""
    dense, y, _ = _small(3)
    out = _searched(dense, y, 19, seed=5)
    codes = np.concatenate(list(dense), axis=1)

    def best(order: np.ndarray) -> np.ndarray:
        a, b = (np.stack([_standard(x.astype(np.float64)) for x in z.T]) for z in (codes[order], y))
        return np.max(np.where(a.any(axis=1, keepdims=True), a @ b.T, -2.0), axis=0)

    observed = best(np.arange(26))
    null = np.stack([best(np.random.default_rng([5, 26, 0, b]).permutation(26)) for b in range(19)])
    np.testing.assert_allclose(out["voxel_values"][:, 0], observed, atol=TOLERANCE)
    np.testing.assert_allclose(out["shuffled_values"], null[:KEPT], atol=TOLERANCE)
    np.testing.assert_allclose(out["null_max"], null.max(axis=1), atol=TOLERANCE)
    for found, reference in ((out["p"], null), (out["p_fwe"], null.max(axis=1, keepdims=True))):
        least, most = ((1 + (reference >= observed + e).sum(axis=0)) / 20 for e in (CLOSE, -CLOSE))
        assert ((found >= least) & (found <= most)).all()
    assert out["p"][5] == 0.05


@pytest.mark.parametrize("sparse", [False, True])
def test_a_wired_brain_scores_its_true_correlation(sparse):
    """Voxels that follow one of 200 units with a known correlation, 1,000 images: every fold finds the unit, and the mean
    score is the correlation but for the bias of r over the n = 200 images of a fold, r (1 - r^2) / (2 n) for normal codes.
    Rare codes vary in strength from fold to fold, which costs more: r is then at most 0.01 too small.
    """
    rng = np.random.default_rng(11)
    n, u, repeats = 1000, 200, 100
    dense = rng.standard_normal((n, u)).astype(np.float32)
    if sparse:
        dense = ((rng.random((n, u)) < 0.1) * rng.gamma(4.0, size=(n, u))).astype(np.float32)
    standard = (dense - dense.mean(axis=0)) / dense.std(axis=0)
    truth = np.repeat([0.3, 0.5, 0.8], repeats)
    wired = rng.integers(0, u, len(truth))
    y = truth * standard[:, wired] + np.sqrt(1 - truth**2) * rng.standard_normal((n, len(truth)))
    found = crossfit([_sparse(dense) if sparse else dense], y.astype(np.float32), deal(n, 5, 0))
    assert (found["fold_units"] == wired).mean() > 0.999
    for r, mine in zip((0.3, 0.5, 0.8), found["held_out"][:, 0].reshape(3, repeats), strict=True):
        error, deviation = mine.mean() - r, 4 * mine.std() / np.sqrt(repeats)
        if sparse:
            assert -0.01 - deviation < error < deviation
        else:
            assert abs(error + r * (1 - r**2) / (2 * n / 5)) < deviation
    assert abs(found["shuffled_held_out"].mean()) < 0.02


# Sets of images ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 300), folds=st.integers(2, 40), seed=st.integers(0, 2**31))
def test_folds_are_even_and_decided_by_the_seed(n, folds, seed):
    dealt = deal(n, folds, seed)
    sizes = np.bincount(dealt, minlength=folds)
    assert sizes.sum() == n and sizes.max() - sizes.min() <= 1 and len(sizes) == folds
    np.testing.assert_array_equal(dealt, deal(n, folds, seed))
    if n >= 60:
        assert (dealt != deal(n, folds, seed + 1)).any()


def _shared(n: int, count: int) -> np.ndarray:
    return np.arange(n) < count


def test_sets_of_every_setting():
    shared = _shared(20, 8)
    sets = image_sets(AlignConfig(), "subj01", shared)
    assert sets.held_out is not None and sets.folds is None
    np.testing.assert_array_equal(sets.select, ~shared)
    np.testing.assert_array_equal(sets.held_out, shared)
    sets = image_sets(AlignConfig(select="kfold", folds=6, seed=3), "subj01", shared)
    assert sets.folds is not None and sets.held_out is None and sets.select.all()
    np.testing.assert_array_equal(sets.folds, deal(20, 6, 3))
    sets = image_sets(AlignConfig(select="none"), "subj01", shared)
    assert sets.select.all() and sets.held_out is None and sets.folds is None
    known = (fixed_sets(AlignConfig(select=s), shared).held_out is not None for s in ("shared", "kfold", "none"))
    assert list(known) == [True, True, False]
    assert fixed_sets(AlignConfig(select="kfold"), _shared(20, 2)).held_out is None
    np.testing.assert_array_equal(telling(shared), shared)
    assert telling(_shared(20, 2)).all()
    for count in (0, 20):
        assert all(len(rows) == 20 for rows in autoencoder_sets(_shared(20, count)))
    train, measured = autoencoder_sets(shared)
    np.testing.assert_array_equal(train, np.arange(8, 20))
    np.testing.assert_array_equal(measured, np.arange(8))


@pytest.mark.parametrize(
    ("settings", "n", "shared", "parts"),
    [
        ({}, 20, 0, ["subj01 saw 0 shared and 20 unique", "align.select: kfold", "data.hold_out"]),
        ({}, 20, 18, ["subj01 saw 18 shared and 2 unique", "align.select: kfold"]),
        ({"select": "kfold", "folds": 5}, 14, 0, ["saw 14 images", "align.folds = 5", "that is 15", "to at most 4"]),
        ({"select": "kfold", "folds": 30}, 20, 5, ["saw 20 images", "align.folds = 30", "to at most 6"]),
        ({"select": "kfold", "folds": 2}, 5, 0, ["saw 5 images", "that is 6", "Leave the subject out"]),
        ({"select": "none"}, 2, 0, ["saw 2 images"]),
    ],
)
def test_too_few_images(settings, n, shared, parts):
    with pytest.raises(UserError) as error:
        image_sets(AlignConfig(**settings), "subj01", _shared(n, shared))
    for part in parts:
        assert part in str(error.value)
