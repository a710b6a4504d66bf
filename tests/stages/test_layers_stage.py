"""Depth of voxels and recovery of the planted truth, recomputed from alignment, tables and codes."""

from __future__ import annotations

import numpy as np
import pytest

SUBJECTS = ("subj01", "subj02")
MODES = ("cls", "patch_mean", "patch_max", "raw", "random")


def _depth(stores, mode: str, subject: str) -> np.ndarray:
    weight = np.maximum(stores.array("align", f"{mode}/layer_held_out", subject).astype(np.float64), 0)
    with np.errstate(invalid="ignore"):
        return weight[1] / weight.sum(axis=0)  # layers 0 and 1


def _best_layer(stores, mode: str, subject: str) -> np.ndarray:
    return stores.array("align", f"{mode}/voxel_units", subject)[:, 0] // stores.codes(mode).shape[2]


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("mode", MODES)
def test_layer_of_every_voxel(stores, mode, subject):
    best = stores.array("layers", f"{mode}/{subject}/best_layer")
    np.testing.assert_array_equal(best, _best_layer(stores, mode, subject))
    assert set(np.unique(best)) == {0, 1}
    depth = stores.array("layers", f"{mode}/{subject}/depth")
    expected = _depth(stores, mode, subject)
    np.testing.assert_allclose(depth, expected, atol=1e-6)
    assert np.isnan(expected).any() and np.isfinite(expected).any()


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("mode", MODES)
def test_profiles(stores, mode, subject):
    found = stores.document("layers", "profiles.json")[mode][subject]
    brain = stores.brain(subject)
    scores = stores.array("align", f"{mode}/layer_held_out", subject)
    best, depth = _best_layer(stores, mode, subject), _depth(stores, mode, subject)
    masks = {"all responsive": np.ones(len(best), bool), **stores.rois(subject)}
    for roi, mask in masks.items():
        inside = mask & brain.responsive
        if inside.sum() < 5:
            assert roi not in found
            continue
        record = found[roi]
        assert record["voxels"] == inside.sum()
        np.testing.assert_allclose(record["held_out"], scores[:, inside].mean(axis=1, dtype=np.float64), atol=1e-6)
        np.testing.assert_allclose(record["best_layer_share"], [np.mean(best[inside] == i) for i in (0, 1)])
        assert record["mean_depth"] == pytest.approx(np.nanmean(depth[inside]), abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_recovery(stores, correlation, mode):
    names, extents = stores.extents()
    found = stores.document("recovery", "recovery.json")["modes"][mode]
    totals: dict[str, list[tuple[int, float, float]]] = {}
    for subject in SUBJECTS:
        truth, brain = stores.table(f"truth/{subject}.csv"), stores.brain(subject)
        weight = truth["weight"].astype(float)
        rows, _ = brain.part("held_out")
        codes = stores.codes(mode)
        flat = codes.transpose(1, 0, 2).reshape(codes.shape[1], -1)[rows]
        follows = np.where(np.ptp(flat, axis=0) > 0, correlation(flat, extents[rows]).argmax(axis=1), -1)
        best, held_out = (stores.array("align", f"{mode}/{key}", subject)[:, 0] for key in ("voxel_units", "held_out"))
        shuffled = stores.array("align", f"{mode}/shuffled_units", subject)
        driven = brain.responsive & (weight != 0)
        for c, name in enumerate(names):
            mine = driven & (truth["concept"] == name)
            if not mine.any():
                assert name not in found["subjects"][subject]["concepts"]
                continue
            record = found["subjects"][subject]["concepts"][name]
            assert record["vertices"] == mine.sum()
            # A unit with two equally good concepts may count either way.
            assert record["found"] == pytest.approx(np.mean(follows[best[mine]] == c), abs=0.02)
            assert record["shuffled"] == pytest.approx(np.mean(follows[shuffled[:, mine]] == c), abs=0.02)
            assert record["held_out"] == pytest.approx(held_out[mine].mean(dtype=np.float64), abs=1e-5)
            totals.setdefault(name, []).append((int(mine.sum()), record["found"], record["shuffled"]))
        for key, mine in (("early", truth["concept"] == "early"), ("category", np.isin(truth["concept"], names))):
            mine = mine & driven
            record = found["subjects"][subject]["depth"][key]
            assert record["vertices"] == mine.sum() > 0
            assert record["best_layer"] == pytest.approx(_best_layer(stores, mode, subject)[mine].mean())
            assert record["centre_of_mass"] == pytest.approx(np.nanmean(_depth(stores, mode, subject)[mine]), abs=1e-5)
        silent = weight == 0
        record = found["subjects"][subject]["silent"]
        assert record["vertices"] == silent.sum() > 0
        assert record["held_out"] == pytest.approx(held_out[silent].mean(dtype=np.float64), abs=1e-5)
        assert record["above_0.1"] == pytest.approx(np.mean(held_out[silent] > 0.1))
    for name, parts in totals.items():
        n = sum(part[0] for part in parts)
        pooled = found["all"]["concepts"][name]
        assert pooled["vertices"] == n
        assert pooled["found"] == pytest.approx(sum(part[0] * part[1] for part in parts) / n)
        assert pooled["shuffled"] == pytest.approx(sum(part[0] * part[2] for part in parts) / n)
    assert found["all"]["category"]["vertices"] == sum(p["vertices"] for p in found["all"]["concepts"].values())
