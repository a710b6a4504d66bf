"""Top units of regions and their exemplars, from every unit x every voxel in float64."""

from __future__ import annotations

import numpy as np
import pytest

SUBJECTS = ("subj01", "subj02")
TOLERANCE = 2e-6
KNOWN_FOR = {
    "floc-faces": "face",
    "floc-bodies": "body",
    "floc-places": "place",
    "floc-words": "word",
    "food": "food",
}


@pytest.fixture(scope="module", params=[(s, m) for s in SUBJECTS for m in ("cls", "patch_mean")])
def case(request, stores, correlation):
    """Subject, mode, and s(l, u, v) over responsive voxels for both parts; dead units have similarity 0."""
    subject, mode = request.param
    brain = stores.brain(subject)
    alive = np.flatnonzero(brain.responsive)
    s = {}
    for part in ("select", "held_out"):
        rows, y = brain.part(part)
        s[part] = [correlation(layer[rows], y[:, alive]) for layer in stores.codes(mode)]
    return subject, mode, alive, s


def test_rankings(stores, case):
    subject, mode, alive, similarity = case
    found = 0
    for roi, mask in stores.rois(subject).items():
        inside = mask[alive]
        if inside.sum() < 5:
            continue
        for ranking in ("mean", "contrast"):
            base = f"{mode}/{subject}/{roi.replace('/', '.')}/{ranking}"
            units, scores = (stores.array("roi", f"{base}_{key}") for key in ("units", "scores"))
            for layer in range(2):
                for column, part in enumerate(("select", "held_out")):
                    s = similarity[part][layer]
                    value = s[:, inside].mean(axis=1)
                    if ranking == "contrast":
                        value = value - s[:, ~inside].mean(axis=1)
                    np.testing.assert_allclose(scores[layer, :, column], value[units[layer]], atol=TOLERANCE)
                    if part == "select":
                        np.testing.assert_allclose(scores[layer, :, 0], -np.sort(-value)[:10], atol=TOLERANCE)
                assert len(set(units[layer].tolist())) == 10
            found += 1
    assert found >= 10
    assert stores.document("roi", "rois.json")[subject]["voxels"] == {
        roi: int(mask[alive].sum()) for roi, mask in stores.rois(subject).items()
    }


@pytest.mark.parametrize("mode", ["cls", "patch_mean"])
def test_exemplars(stores, mode):
    """The five images that drive each unit most, strongest first, over all images."""
    exemplars = stores.array("roi", f"{mode}/exemplars")
    for layer, codes in enumerate(stores.codes(mode)):
        chosen = np.take_along_axis(codes, exemplars[layer].T, axis=0)
        np.testing.assert_array_equal(chosen, -np.sort(-codes, axis=0)[:5])
        assert all(len(set(row)) == 5 for row in exemplars[layer].tolist())


@pytest.mark.parametrize("mode", ["cls", "patch_mean"])
def test_concept_of_a_unit(stores, correlation, mode):
    """The concept whose extent over the shared images the unit's code follows best."""
    _, extents = stores.extents()
    shared = np.flatnonzero(stores.table("images.csv")["shared"] == "1")
    found = stores.array("roi", f"{mode}/concepts")
    for layer, codes in enumerate(stores.codes(mode)):
        r = correlation(codes[shared], extents[shared])
        constant = np.ptp(codes[shared], axis=0) == 0
        ordered = -np.sort(-r, axis=1)
        clear = (ordered[:, 0] - ordered[:, 1] > 1e-5) & ~constant
        assert (found[layer][constant] == -1).all() and clear.any()
        np.testing.assert_array_equal(found[layer][clear], r.argmax(axis=1)[clear])


def test_functional_alignment(stores, case):
    """Stable: more than two of five exemplars show one concept; aligned: that concept is the region's own."""
    subject, mode, _, _ = case
    names, extents = stores.extents()
    groups = np.where(extents.max(axis=1) > 0, extents.argmax(axis=1), -1)
    record = stores.document("roi", "alignment.json")
    for c, name in enumerate(names):
        assert record["base_rate"][name] == pytest.approx(np.mean(groups == c))
    exemplars = stores.array("roi", f"{mode}/exemplars")
    rois = record["modes"][mode][subject]
    assert set(rois) <= set(KNOWN_FOR) and len(rois) >= 4
    stable_in_all = 0
    for roi, by_ranking in rois.items():
        assert by_ranking["concept"] == KNOWN_FOR[roi]
        own = names.index(KNOWN_FOR[roi])
        for ranking in ("mean", "contrast"):
            units = stores.array("roi", f"{mode}/{subject}/{roi}/{ranking}_units")
            for layer in range(2):
                stable = aligned = 0
                for unit in units[layer]:
                    counts = [int((groups[exemplars[layer, unit]] == c).sum()) for c in range(len(names))]
                    stable += max(counts) > 2
                    aligned += max(counts) > 2 and counts[own] == max(counts)
                found = {key: by_ranking[ranking][key][layer] for key in ("stable", "aligned", "rate")}
                assert found == {"stable": stable, "aligned": aligned, "rate": aligned / stable if stable else None}
                stable_in_all += stable
    assert stable_in_all > 0
