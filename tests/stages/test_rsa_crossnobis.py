"""Cross-validated brain RDMs: against the definition in float64, without bias, and in the tiny run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from sbm_jax.brain.dataset import Subject
from sbm_jax.brain.responses import NpyResponses
from sbm_jax.brain.spaces import UnplacedSpace
from sbm_jax.config import Config, load_config
from sbm_jax.errors import UserError
from sbm_jax.stages import repeats
from sbm_jax.store.spec import StoreSpec


def subject_of(folder: Path, x_tv: np.ndarray, image_t: np.ndarray, session_t: np.ndarray, **more) -> Subject:
    np.save(folder / "x.npy", x_tv.astype(np.float32))
    responses = NpyResponses(folder / "x.npy", *x_tv.shape)
    run = np.ones(len(x_tv), np.int64)
    return Subject("subj01", responses, image_t, session_t, run, UnplacedSpace("none", x_tv.shape[1]), {}, **more)


def definition(x_mnv: np.ndarray) -> np.ndarray:
    """Per fold A the mean of the others, B the fold, K = A B^T: (K_ii + K_jj - K_ij - K_ji) / v; mean over folds. Condensed."""
    x = x_mnv.astype(np.float64)
    out = 0.0
    for fold in range(len(x)):
        k = np.delete(x, fold, axis=0).mean(axis=0) @ x[fold].T
        out = out + (np.diag(k)[:, None] + np.diag(k) - k - k.T) / x.shape[2]
    return (out / len(x))[np.triu_indices(x.shape[1], 1)]


def in_sessions(x_tv: np.ndarray, session_t: np.ndarray) -> np.ndarray:
    z = x_tv.astype(np.float64)
    for session in np.unique(session_t):
        part = z[session_t == session]
        z[session_t == session] = (part - np.nanmean(part, axis=0)) / np.nanstd(part, axis=0)
    return z


@pytest.mark.parametrize("zscore", ["session", "none"])
@pytest.mark.parametrize("memory", [1, 1 << 20], ids=["two voxels at a time", "all"])
def test_equals_the_definition_over_repeats_that_all_used_images_have(rng, tmp_path, monkeypatch, zscore, memory):
    """Images 3 and 8 are shown once, the others 2 to 4 times; a trial of voxel 4 and a session of voxel 9 have no value."""
    monkeypatch.setattr(repeats, "_AT_ONCE", 7)
    image = rng.permutation(np.repeat(np.arange(10), [2, 3, 4, 1, 3, 3, 2, 3, 1, 4]))
    session = np.arange(len(image)) // 9
    x = 5 + rng.standard_normal((10, 23))[image] + rng.standard_normal((len(image), 23)) * np.linspace(0.5, 3, 23)
    x = x.astype(np.float32)
    x[np.flatnonzero(image == 5)[1], 4] = np.nan
    stored = x.copy()
    stored[session == 1, 9] = 0
    subject = subject_of(tmp_path, stored, image, session)
    subject.responses.zero_is_missing = True
    rois = {name: np.zeros(23, bool) for name in ("most", "few", "none")}
    rois["most"][:20] = rois["few"][[1, 4, 22]] = True
    rows = np.array([1, 2, 3, 5, 6, 8, 9])
    found = repeats.crossnobis_rdms(subject, rows, rois, zscore, memory)

    z = x.copy() if zscore == "none" else in_sessions(x, session)
    z[session == 1, 9] = np.nan
    used = [1, 2, 5, 6, 9]
    folds = np.stack([z[[np.flatnonzero(image == i)[r] for i in used]] for r in range(2)])
    whole = np.isfinite(folds).all(axis=(0, 1))
    assert not whole[[4, 9]].any()
    both = np.isin(rows, used)
    a, b = np.triu_indices(len(rows), 1)
    there = both[a] & both[b]
    for name in ("most", "few"):
        want, got = definition(folds[:, :, rois[name] & whole]), found[name]
        assert (got.images, got.repeats, got.voxels) == (5, 2, (rois[name] & whole).sum())
        assert np.isnan(got.rdm[~there]).all()
        # float32 products of values of about 8, after the mean pattern is taken off
        np.testing.assert_allclose(got.rdm[there], want, atol=2e-5 * np.square(z[:, whole]).max())
    assert found["none"].voxels == 0 and np.isnan(found["none"].rdm).all()


def test_no_bias_with_and_without_signal(rng, tmp_path):
    """80 ROIs of independent voxels: mean distance within 4 standard errors of the truth, 0 for noise alone. The squared
    distance of averages is too large by 2 / 3 of the noise variance."""
    n, m, rois, each = 12, 3, 80, 15
    image = np.concatenate([rng.permutation(n) for _ in range(m)])
    truth = rng.standard_normal((n, each)) * 0.5
    noise = rng.standard_normal((n * m, rois * each))
    masks = {str(i): np.arange(rois * each) // each == i for i in range(rois)}
    a, b = np.triu_indices(n, 1)
    for size in (0.0, 1.0):
        x = noise + size * np.tile(truth, rois)[image]
        subject = subject_of(tmp_path, x, image, np.ones(len(image), np.int64))
        found = repeats.crossnobis_rdms(subject, np.arange(n), masks, "none", 1 << 26)
        means = np.array([one.rdm.mean() for one in found.values()])
        error = means.std(ddof=1) / np.sqrt(rois)
        expected = size**2 * np.square(truth[a] - truth[b]).mean()
        assert abs(means.mean() - expected) < 4 * error < 0.1
        if not size:
            assert min(one.rdm.min() for one in found.values()) < 0
        averages = np.stack([x[image == i].mean(axis=0) for i in range(n)])
        assert np.square(averages[a] - averages[b]).mean() == pytest.approx(expected + 2 / 3, abs=0.05)


def test_repeats_of_images_never_or_once_shown():
    used, trials = repeats.repeated_trials(np.array([4, 2, 4, 7, 2, 4]), np.array([2, 3, 4, 7]))
    np.testing.assert_array_equal(used, [True, False, True, False])
    np.testing.assert_array_equal(trials, [[1, 0], [4, 2]])
    used, trials = repeats.repeated_trials(np.array([4, 2]), np.array([2, 4]))
    assert not used.any() and trials.size == 0


def test_what_is_missing_is_named(rng, tmp_path):
    def context(keep: bool):
        config = Config.model_validate({**load_config(None).model_dump(), "betas": {"keep_trials": keep}})
        specs = SimpleNamespace(
            trials={"subj01": StoreSpec("trials", 1, {}, {})}, betas={"subj01": StoreSpec("betas", 1, {}, {})}
        )
        return SimpleNamespace(config=config, specs=specs, stores=tmp_path, has=lambda spec: False)

    image = np.array([0, 1, 2, 3, 0, 1, 2])
    x = rng.standard_normal((7, 2))
    ones = np.ones(7, np.int64)
    subject = subject_of(tmp_path, x, image, ones)
    assert repeats.single_trials(context(False), subject, np.arange(4)) is subject
    with pytest.raises(UserError, match=r"subj01 saw twice or more; 2 of 3 are repeated.*rsa.brain_metric: same"):
        repeats.single_trials(context(False), subject, np.array([0, 1, 3]))
    with pytest.raises(UserError, match="brings averages over repeats"):
        repeats.single_trials(context(False), subject_of(tmp_path, x, image, ones, averaged=True), np.arange(4))
    subject.responses.by_voxel = False
    with pytest.raises(UserError, match=r"Set betas.keep_trials: true; or"):
        repeats.single_trials(context(False), subject, np.arange(4), stored=False)
    with pytest.raises(
        UserError, match=r"Set betas.keep_trials: true, delete .*betas-.* and run `sbm-jax betas` again"
    ):
        repeats.single_trials(context(True), subject, np.arange(4))
    assert repeats.single_trials(context(True), subject, np.arange(4), stored=False) is subject


def test_the_default_has_the_name_it_had(tiny):
    settings = json.loads((tiny.store("rsa") / "spec.json").read_text())["settings"]["rsa"]
    assert set(settings) == {"metric", "method", "bootstrap", "structure_voxels", "seed"}


def test_the_tiny_run_by_the_command_line(tiny, program, stores, tmp_path):
    """RDMs of V1 made here from the dataset's trials give the scores and the ceiling of rsa.json."""
    out = shutil.copytree(tiny.out, tmp_path / "run", symlinks=True)
    words = ("--config", tiny.config, "--set", "rsa.brain_metric=crossnobis", "--set", "rsa.metric=euclidean")
    program("rsa", *words, "--out", out)
    (made,) = (p for p in (out / "stores").glob("rsa-*") if "crossnobis" in (p / "spec.json").read_text())
    found = json.loads((made / "rsa.json").read_text())["images"]
    roi, min_voxels = "prf-visualrois/V1", 5
    rdms = {}
    for name in ("subj01", "subj02"):
        brain, trials = stores.brain(name), stores.table(f"{name}/trials.csv")
        ids = stores.table("images.csv")["image_id"]
        rows = brain.part("held_out")[0]
        x = np.load(stores.data / name / "responses.npy").astype(np.float64)
        z = in_sessions(x, trials["session"])
        at = [np.flatnonzero(trials["image_id"] == ids[row]) for row in rows]
        inside = stores.rois(name)[roi] & brain.responsive
        assert inside.sum() >= min_voxels
        m = min(len(one) for one in at)
        rdms[name] = definition(np.stack([z[[one[r] for one in at]][:, inside] for r in range(m)]))
        used = found["rois"][roi]["crossnobis"][name]
        assert used == {"images": 24, "repeats": m, "voxels": inside.sum()} and m > 1
    model = stores.codes("raw")[1][rows]
    a, b = np.triu_indices(len(rows), 1)
    distances = np.square(model[a] - model[b]).mean(axis=1)
    for name, rdm in rdms.items():
        score = stats.spearmanr(distances, rdm).statistic
        assert found["rois"][roi]["subjects"][name]["raw"][1] == pytest.approx(score, abs=1e-3)
    lower = stats.spearmanr(*rdms.values()).statistic
    assert found["rois"][roi]["ceiling"]["lower"] == pytest.approx(lower, abs=1e-3)
    assert found["rois"][roi]["bootstrap"]["n_images"] == 24
