"""Depth of voxels and recovery of the planted truth, recomputed from alignment, tables and codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sbm_jax.config import load_config
from sbm_jax.stages import layers
from sbm_jax.stages.context import Context
from sbm_jax.store.store import Store

SUBJECTS = ("subj01", "subj02")
DRAWS = 40
CLOSE = 1e-5  # similarities nearer than this may change places
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


@pytest.fixture(scope="module", params=[("cls", "subj01"), ("patch_max", "subj02"), ("raw", "subj02")])
def redrawn(request, stores) -> tuple[str, str, np.ndarray]:
    """Mode, subject, and r [l, b, v] of responsive voxels for images drawn as the stage draws them, written out in float64."""
    mode, subject = request.param
    rows, y = stores.brain(subject).part("held_out")
    alive = stores.brain(subject).responsive
    units = stores.array("align", f"{mode}/layer_units", subject)[:, alive] % stores.codes(mode).shape[2]
    n = len(rows)
    counts = np.random.default_rng([0, n]).multinomial(n, np.full(n, 1 / n), DRAWS)
    r = np.zeros((2, DRAWS, alive.sum()))
    for b, count in enumerate(counts):
        drawn = np.repeat(np.arange(n), count)
        for layer in (0, 1):
            a, z = stores.codes(mode)[layer, rows][:, units[layer]][drawn], y[:, alive][drawn]
            varies = (np.ptp(a, axis=0) > 0) & (np.ptp(z, axis=0) > 0)
            a, z = a - a.mean(axis=0), z - z.mean(axis=0)
            scale = np.sqrt((a**2).sum(axis=0) * (z**2).sum(axis=0))
            r[layer, b] = np.where(varies, (a * z).sum(axis=0) / np.where(varies, scale, 1), 0)
    return mode, subject, r


def test_intervals_of_voxels(stores, redrawn):
    mode, subject, r = redrawn
    alive = stores.brain(subject).responsive
    low, high, share = (
        stores.array("layers", f"{mode}/{subject}/{key}") for key in ("profile_low", "profile_high", "best_layer_share")
    )
    assert np.isnan([x[:, ~alive] for x in (low, high, share)]).all()
    expected = np.percentile(r, [2.5, 97.5], axis=1)
    np.testing.assert_allclose([low[:, alive], high[:, alive]], expected, atol=2e-5)
    # Units of two layers that fire on one and the same image tie, up to rounding.
    least, most = (((r[0] - r[1] > bound) & (r[0] > bound)).mean(axis=0) for bound in (CLOSE, -CLOSE))
    assert ((share[0, alive] > least - 1e-6) & (share[0, alive] < most + 1e-6)).all() and (least == most).any()
    least, most = ((r.max(axis=0) > bound).mean(axis=0) for bound in (CLOSE, -CLOSE))
    total = share[:, alive].sum(axis=0)
    assert ((total > least - 1e-6) & (total < most + 1e-6)).all()
    weight = np.maximum(r, 0)
    with np.errstate(invalid="ignore"):
        depth = weight[1] / weight.sum(axis=0)
    steady = (weight.sum(axis=0) > 1e-3).all(axis=0)  # elsewhere a draw's depth may be a ratio of rounding errors
    assert steady.any()
    ends = [stores.array("layers", f"{mode}/{subject}/depth_{end}")[alive] for end in ("low", "high")]
    expected = np.percentile(depth[:, steady], [2.5, 97.5], axis=0)
    np.testing.assert_allclose([end[steady] for end in ends], expected, atol=2e-3)


def test_intervals_of_regions(stores, redrawn):
    mode, subject, r = redrawn
    alive = stores.brain(subject).responsive
    found = stores.document("layers", "profiles.json")[mode][subject]
    assert len(found) > 3
    for roi, mask in {"all responsive": alive, **stores.rois(subject)}.items():
        if roi in found:
            mean = r[:, :, mask[alive]].mean(axis=2)
            expected = np.percentile(mean, [2.5, 97.5], axis=1)
            np.testing.assert_allclose([found[roi]["held_out_low"], found[roi]["held_out_high"]], expected, atol=2e-5)
            assert found[roi]["mean_depth_low"] < found[roi]["mean_depth_high"]


@pytest.mark.parametrize("mode", MODES)
def test_significance_cannot_be_reached_with_two_permutations(stores, mode):
    for subject in SUBJECTS:
        mask = stores.array("layers", f"{mode}/{subject}/significant")
        assert mask.dtype == bool and not mask.any()
        assert np.nanmin(stores.array("align", f"{mode}/p", subject)) < 0.5


def rerun(tiny, folder: Path, *overrides: str) -> Store:
    """The stage again, over the finished stores of the tiny run, with other settings."""
    (folder / "stores").mkdir()
    for store in (tiny.out / "stores").iterdir():
        if not store.name.startswith(("layers-", "report-")):
            (folder / "stores" / store.name).symlink_to(store)
    return layers.run(Context(load_config(tiny.config, overrides), folder))


@pytest.mark.parametrize(("p_fdr", "significant"), [(0.05, True), (0.0501, False)])
def test_significance_is_of_responsive_voxels_at_most_alpha(tiny, stores, tmp_path, monkeypatch, p_fdr, significant):
    read = Store.read

    def replaced(store: Store, name: str, *rest) -> np.ndarray:
        return read(store, name, *rest) * 0 + p_fdr if name.endswith("/p_fdr") else read(store, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", replaced)
        store = rerun(tiny, tmp_path, "layers.bootstrap=0")
    for subject in SUBJECTS:
        expected = stores.brain(subject).responsive & significant
        np.testing.assert_array_equal(store.read(f"cls/{subject}/significant"), expected)


def test_without_draws_there_are_no_intervals(tiny, stores, tmp_path):
    store = rerun(tiny, tmp_path, "layers.bootstrap=0")
    notes = store.json("intervals.json")
    assert notes["subj01"]["none"] == "layers.bootstrap is 0" and notes["subj01"]["images"] == 24
    assert not (store.path / "cls" / "subj01" / "profile_low").exists()
    record = store.json("profiles.json")["cls"]["subj01"]["all responsive"]
    assert record["held_out_low"] is None and record["mean_depth_high"] is None
    before = stores.document("layers", "profiles.json")["cls"]["subj01"]["all responsive"]
    assert record["mean_depth"] == before["mean_depth"]


def test_intervals_carry_the_sign_of_the_selection(tiny, stores, tmp_path, monkeypatch):
    """An alignment by absolute similarity in which every unit was chosen for a negative one: the interval turned over."""
    read, document = Store.read, Store.json

    def negative(store: Store, name: str, *rest) -> np.ndarray:
        if name.endswith("/layer_signs"):
            return np.full(read(store, name.replace("signs", "units")).shape, -1, np.int8)
        return read(store, name, *rest)

    def absolute(store: Store, name: str) -> dict:
        return document(store, name) | ({"sign": "absolute"} if name == "index.json" else {})

    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", negative)
        patch.setattr(Store, "json", absolute)
        store = rerun(tiny, tmp_path, f"layers.bootstrap={DRAWS}")
    for ours, theirs in (("low", "high"), ("high", "low")):
        expected = -stores.array("layers", f"raw/subj01/profile_{theirs}")
        np.testing.assert_allclose(store.read(f"raw/subj01/profile_{ours}"), expected, atol=2e-5)


def test_small_budgets_give_the_same_intervals(tiny, stores, tmp_path):
    """16 MiB, the least, are several blocks; float32 sums may be in another order."""
    store = rerun(tiny, tmp_path, "align.memory_mb=16", f"layers.bootstrap={DRAWS}")
    for name in ("profile_low", "profile_high"):
        expected = stores.array("layers", f"patch_mean/subj01/{name}")
        np.testing.assert_allclose(store.read(f"patch_mean/subj01/{name}"), expected, atol=2e-5)


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
