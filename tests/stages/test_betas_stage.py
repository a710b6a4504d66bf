"""Betas of the tiny run against plain NumPy on responses.npy."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(params=("subj01", "subj02"))
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


def _trials(stores, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """Z-scored responses float64 [trials, voxels] and the image row of each trial."""
    raw = np.load(stores.data / subject / "responses.npy").astype(np.float64)
    trials, ids = stores.table(f"{subject}/trials.csv"), stores.table("images.csv")["image_id"].tolist()
    z = np.empty_like(raw)
    for session in np.unique(trials["session"]):
        mine = trials["session"] == session
        z[mine] = (raw[mine] - raw[mine].mean(axis=0)) / raw[mine].std(axis=0)
    return z, np.array([ids.index(i) for i in trials["image_id"]])


def test_betas(stores, subject):
    z, image = _trials(stores, subject)
    brain = stores.brain(subject)
    np.testing.assert_array_equal(brain.rows, np.unique(image))
    expected = np.stack([z[image == row].mean(axis=0) for row in brain.rows], axis=1)
    np.testing.assert_allclose(brain.betas_vn, expected, atol=2e-6)
    flags = stores.table("images.csv")["shared"][brain.rows] == "1"
    np.testing.assert_array_equal(brain.shared, flags)
    assert (flags.sum(), (~flags).sum()) == (24, 36)


def test_reliability(stores, subject):
    """ncsnr from the variance of single trials about their image's mean (Allen et al. 2022), ceiling for three repeats."""
    z, image = _trials(stores, subject)
    brain = stores.brain(subject)
    noise = np.mean([z[image == row].var(axis=0, ddof=1) for row in brain.rows], axis=0)
    ncsnr = np.sqrt(np.maximum(0, 1 - noise) / noise)
    np.testing.assert_allclose(brain.ncsnr, ncsnr, atol=2e-3)
    np.testing.assert_allclose(brain.ncsnr**2, ncsnr**2, atol=1e-5)
    ceiling = stores.array("betas", "noise_ceiling", subject)
    np.testing.assert_allclose(ceiling, ncsnr**2 / (ncsnr**2 + 1 / 3), atol=1e-4)
    assert 0 < brain.responsive.sum() < len(ncsnr)


def test_every_voxel_of_the_demo_is_usable(stores, subject):
    dropped = stores.document("betas", "dropped.json", subject)
    nothing = {"voxels": [], "missing_trials": [], "incomplete": 0, "below": {}, "notes": []}
    assert dropped == {**nothing, "n_voxels": 20_484}
    assert stores.brain(subject).usable.all()
