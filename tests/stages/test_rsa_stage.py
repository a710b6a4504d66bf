"""RDM comparisons and voxel-structure scores of the tiny run against np.corrcoef and SciPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

SUBJECTS = ("subj01", "subj02")
MODES = ("cls", "patch_mean", "patch_max", "raw", "random")
MIN_VOXELS = 5


def _rdm(patterns_nd: np.ndarray) -> np.ndarray:
    """1 - r of every pair of patterns, strict upper triangle; NaN for a constant pattern."""
    x = patterns_nd - patterns_nd.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    x = np.divide(x, norm, out=np.full_like(x, np.nan), where=norm > 1e-9)
    # Equal patterns have distance 0; rounding must not rank them.
    return np.round((1 - x @ x.T)[np.triu_indices(len(x), 1)], 9)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    return float(stats.spearmanr(a[both], b[both]).statistic)


def _rounding(*rdms: np.ndarray) -> float:
    """How far float32 distances (1 - r, rounded at about 1e-6) may move a Spearman correlation: two neighbours in rank that
    lie closer than that may change places, which moves it by at most 12 (m - 1) / (m (m^2 - 1)) for m pairs.
    """
    total = 1e-6
    for x in rdms:
        m = np.isfinite(x).sum()
        close = int((np.diff(np.sort(x[np.isfinite(x)])) < 1e-6).sum())
        total += close * 12 / (m * (m + 1))
    return total


@pytest.fixture(scope="module")
def brains(stores):
    """ROI -> subject -> RDM over the shared images, for regions with enough responsive voxels."""
    out: dict[str, dict[str, np.ndarray]] = {}
    for subject in SUBJECTS:
        brain = stores.brain(subject)
        _, y = brain.part("held_out")
        for roi, mask in stores.rois(subject).items():
            inside = mask & brain.responsive
            if inside.sum() >= MIN_VOXELS:
                out.setdefault(roi, {})[subject] = _rdm(y[:, inside])
    return out


def test_image_rsa(stores, brains):
    found = stores.document("rsa", "rsa.json")["images"]
    assert found["n_images"] == 24
    assert list(found["rois"]) == sorted(brains)
    rows = stores.brain("subj01").part("held_out")[0]
    models = {mode: [_rdm(layer[rows]) for layer in stores.codes(mode)] for mode in MODES}
    for roi, by_subject in brains.items():
        for subject, brain in by_subject.items():
            record = found["rois"][roi]["subjects"][subject]
            for mode in MODES:
                for layer, model in enumerate(models[mode]):
                    # CLS pairs without a common unit are exact ties, which float32 may break.
                    limit = 2e-3 if mode == "cls" else _rounding(model, brain)
                    found_here = record[mode][layer]
                    assert found_here == pytest.approx(_spearman(model, brain), abs=limit), (roi, subject, mode, layer)


def test_noise_ceiling(stores, brains):
    """Lower: each subject with the other; upper: each with the mean of ranks."""
    found = stores.document("rsa", "rsa.json")["images"]["rois"]
    for roi, by_subject in brains.items():
        first, second = (by_subject[s] for s in SUBJECTS)
        ranks = [stats.rankdata(x) for x in (first, second)]
        assert found[roi]["ceiling"]["lower"] == pytest.approx(_spearman(first, second), abs=1e-4)
        upper = np.mean([_spearman(np.mean(ranks, axis=0), x) for x in ranks])
        assert found[roi]["ceiling"]["upper"] == pytest.approx(upper, abs=1e-4)


def test_bootstrap_intervals_are_around_the_means_over_subjects(stores):
    """The centre of every interval is the comparison without drawing; ceilings are those of the whole data."""
    found = stores.document("rsa", "rsa.json")["images"]["rois"]
    inside = total = 0
    for record in found.values():
        drawn = record["bootstrap"]
        assert set(drawn["modes"]) == set(MODES)
        if drawn["n_images"] == 24 and len(record["subjects"]) == 2:
            np.testing.assert_allclose(
                [row[0] for row in drawn["ceiling"]], list(record["ceiling"].values()), atol=1e-4
            )
        for mode, layers in drawn["modes"].items():
            for layer, (mean, low, high) in enumerate(layers):
                assert -1 <= low < high <= 1
                inside, total = inside + (low <= mean <= high), total + 1
                if drawn["n_images"] == 24:
                    of_subjects = np.mean([scores[mode][layer] for scores in record["subjects"].values()])
                    assert mean == pytest.approx(of_subjects, abs=2e-3 if mode == "cls" else 1e-4)
    assert total == len(found) * len(MODES) * len(layers) and inside > 0.8 * total


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("mode", MODES)
def test_voxel_structure(stores, subject, mode):
    found = stores.document("rsa", "rsa.json")["structure"][subject]
    brain = stores.brain(subject)
    responsive = np.flatnonzero(brain.responsive)
    voxels = np.sort(np.random.default_rng([0, len(responsive)]).permutation(responsive)[:100])
    assert found["n_voxels"] == 100
    codes = stores.codes(mode)
    flat = codes.transpose(1, 0, 2).reshape(codes.shape[1], -1)
    chosen = {
        "": stores.array("align", f"{mode}/voxel_units", subject)[voxels, 0],
        "shuffled_": stores.array("align", f"{mode}/shuffled_units", subject)[0, voxels],
    }
    for prefix, units in chosen.items():
        for part, key in (("select", "in_sample"), ("held_out", "held_out")):
            rows, y = brain.part(part)
            assigned = flat[rows][:, units].T
            real = np.ptp(assigned, axis=1) > 0
            expected = _spearman(_rdm(assigned[real]), _rdm(y[:, voxels].T[real]))
            # Voxels with one unit are exact ties, which float32 may break; CLS units often fire on one image alone.
            assert found[mode][f"{prefix}{key}"] == pytest.approx(expected, abs=5e-3 if mode == "cls" else 1e-4)
