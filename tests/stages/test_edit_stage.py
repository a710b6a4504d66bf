"""The edit stage: matched controls, effects against loops, a planted network whose answer is known, and the tiny run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.config_meaning import EditConfig
from sbm_jax.errors import UserError
from sbm_jax.stages.edit_cases import trials_of
from sbm_jax.stages.edit_effects import Effects, Outcomes
from sbm_jax.stages.edit_inputs import Selected
from sbm_jax.stages.exemplar_lists import Firing
from sbm_jax.stages.matched_units import firing_profile, matched_units
from sbm_jax.stages.readouts import Readout


def firing(u: int, seed: int) -> Firing:
    rng = np.random.default_rng(seed)
    rate, energy = np.exp(rng.normal(-4, 2, u)), np.exp(rng.normal(0, 2, u))
    rate[rng.random(u) < 0.1] = 0
    return Firing(rate, rate, rate, rate, np.where(rate > 0, energy, 0))


@settings(max_examples=40, deadline=None)
@given(u=st.integers(2, 300), wanted=st.integers(1, 40), seed=st.integers(0, 5))
def test_controls_are_other_units_none_twice(u, wanted, seed):
    profile = firing_profile(firing(u, seed))
    targets = np.random.default_rng(seed).choice(u, min(wanted, u), replace=False)
    found = matched_units(targets, profile, [seed])
    assert len(set(found)) == len(found) == min(len(targets), u - len(targets))
    assert not set(found) & set(targets)
    np.testing.assert_array_equal(found, matched_units(targets, profile, [seed]))


def test_controls_fire_like_their_targets_where_random_units_do_not():
    """Frequent, strong targets: the mean profile of every draw of controls is near, that of random units far; draws differ."""
    profile = firing_profile(firing(1000, 0))
    targets = np.argsort(-profile.sum(axis=1))[20:120:4]
    draws = [matched_units(targets, profile, [0, draw]) for draw in range(5)]
    gaps = [np.abs(profile[draw].mean(axis=0) - profile[targets].mean(axis=0)).max() for draw in draws]
    rng = np.random.default_rng(1)
    random = [
        np.abs(profile[rng.choice(1000, 25, False)].mean(axis=0) - profile[targets].mean(axis=0)).max()
        for _ in range(5)
    ]
    assert max(gaps) < 0.15 < 0.5 < min(random)
    assert len({tuple(sorted(draw)) for draw in draws}) == 5


@pytest.fixture
def outcomes(rng):
    """3 cases of 40 images with 3 categories; case 1 takes category 0 away, case 2 does nothing."""
    labels = np.arange(40) % 4 - 1  # a quarter without a label
    readout = Readout(("a", "b", "c"), np.eye(3), np.zeros(3), cosine=False)
    embeddings = rng.normal(size=(40, 3)) + 3 * np.eye(4, 3)[labels]
    removed = embeddings.copy()
    removed[:, 0] -= 4
    return Outcomes.of(np.stack([embeddings, removed, embeddings]), readout, labels), labels, embeddings, removed


def test_effects_are_those_of_a_loop(outcomes):
    found, labels, before, after = outcomes
    effects = Effects(found, labels, 0, 200, 0)
    margin = lambda x, c: x[c] - max(x[k] for k in range(3) if k != c)  # noqa: E731
    on = [n for n in range(40) if labels[n] == 0]
    off = [n for n in range(40) if labels[n] > 0]
    told = effects.describe(1)
    assert told["on"]["margin"][0] == pytest.approx(np.mean([margin(after[n], 0) - margin(before[n], 0) for n in on]))
    assert told["on"]["margin"][0] == pytest.approx(-4)
    expected = np.mean([(after[n].argmax() == labels[n]) - int(before[n].argmax() == labels[n]) for n in off])
    assert told["off"]["accuracy"][0] == pytest.approx(expected)
    expected = np.mean([int(after[n].argmax() == 0) - int(before[n].argmax() == 0) for n in off])
    assert told["off"]["claimed"][0] == pytest.approx(expected)
    cosine = [before[n] @ after[n] / np.linalg.norm(before[n]) / np.linalg.norm(after[n]) for n in range(40)]
    assert told["distance"][0] == pytest.approx(1 - np.mean(cosine))
    for part in told["on"].values():
        assert part[1] <= part[0] <= part[2]


def test_no_change_has_no_effect_and_differences_are_paired(outcomes):
    found, labels, *_ = outcomes
    effects = Effects(found, labels, 0, 200, 0)
    nothing = effects.describe(2)
    assert nothing["on"]["margin"] == [0, 0, 0] and nothing["distance"][0] == pytest.approx(0, abs=1e-12)
    chosen = labels == 0
    assert effects.against(1, [2, 2], "margin", chosen) == effects.change(1, "margin", chosen)
    assert effects.against(1, [1], "margin", chosen) == [0, 0, 0]


def test_without_labels_or_categories_embeddings_alone_are_compared(outcomes):
    found, _, before, after = outcomes
    bare = Outcomes.of(np.stack([before, after]), None, None)
    assert (bare.answer == -1).all() and np.isnan(bare.margin).all()
    np.testing.assert_allclose(bare.cosine, found.cosine[:2])
    assert set(Effects(bare, None, None, 50, 0).describe(1)) == {"distance"}


def test_trials_of_a_set():
    units = {hook: {"cls": (1, 2), "patch": (3, 4, 5)} for hook in ("block00.resid", "block01.resid")}
    chosen = Selected("subj01", "floc-faces", "face", units, "block01.resid")
    profiles = {
        ("cls", "block01.resid"): firing_profile(firing(50, 1)),
        ("patch", "block01.resid"): firing_profile(firing(60, 2)),
    }
    config = EditConfig(draws=3, doses=[2.0], drive=[0.5, 1.5])
    trials = trials_of(chosen, 0, config, profiles)
    own = [(t.what, t.hook, t.how, t.value) for t in trials if t.draw is None]
    assert own == [
        ("remove", "block00.resid", "zero", 0.0),
        ("remove", "block01.resid", "zero", 0.0),
        ("dose", "block01.resid", "scale", 2.0),
        ("drive", "block01.resid", "clamp", 0.5),
        ("drive", "block01.resid", "clamp", 1.5),
    ]
    controls = [t for t in trials if t.draw is not None]
    assert [(t.what, t.draw) for t in controls] == [(w, d) for d in range(3) for w in ("remove", "drive")]
    for t in controls:
        assert t.hook == "block01.resid" and len(t.units["patch"]) == 3 and not set(t.units["patch"]) & {3, 4, 5}
        assert t.what == "remove" or t.value == 1.5


def test_the_tiny_run(stores):
    """Every set of units is there, with its numbers again from the stored answers; embeddings moved; no whole network broke."""
    found = stores.document("edit", "edit.json")
    rows, labels = stores.array("edit", "rows"), stores.array("edit", "labels")
    assert len(rows) == found["images"] == 12 and len(set(rows)) == 12
    table = stores.table("images.csv")
    assert (table["shared"][rows] == "1").all(), "held-out images alone"
    assert found["sets"] and {s["concept"] for s in found["sets"]} <= {"face", "body", "place", "word", "food"}
    for record in found["sets"]:
        base = f"{record['subject']}/{record['roi'].replace('/', '.')}"
        margin, answer = stores.array("edit", f"{base}/margin"), stores.array("edit", f"{base}/answer")
        cosine = stores.array("edit", f"{base}/cosine")
        cases = len(record["cases"]) + len(record["controls"])
        assert margin.shape == answer.shape == cosine.shape == (1 + cases, 12)
        np.testing.assert_allclose(cosine[0], 1, atol=1e-6)
        own = labels == found["categories"].index(record["concept"])
        for e, case in enumerate(record["cases"], start=1):
            if own.any():
                assert case["on"]["margin"][0] == pytest.approx((margin[e] - margin[0])[own].mean(), abs=1e-4)
        roi = stores.array("roi", f"patch_mean/{base}/contrast_units")
        hooks = found["hooks"]
        for hook, kinds in record["units"].items():
            np.testing.assert_array_equal(kinds["patch"], roi[hooks.index(hook), :6])
        assert {c["draw"] for c in record["controls"]} == {0, 1}
        assert len(record["voxels"]["rois"]) == len(record["voxels"]["removed"]["all"])
    assert set(found["rebuilt"]) == set(hooks)
    moved = np.concatenate(
        [stores.array("edit", f"{s['subject']}/{s['roi'].replace('/', '.')}/cosine")[1:] for s in found["sets"]]
    )
    assert moved.min() < 0.999 and moved.max() <= 1 + 1e-6


def test_the_summary_and_page_have_the_edits(tiny):
    summary = json.loads((tiny.out / "summary.json").read_text())
    assert summary["edit"]["sets"] and "units" not in summary["edit"]["sets"][0]
    page = (tiny.out / "report.html").read_text(encoding="utf-8")
    assert "Units of an ROI, removed" in page and "Dose and response" in page


def test_hooks_off_the_residual_stream_are_refused(tiny, program):
    done = program(
        "edit", "--config", tiny.config, "--out", tiny.out, "--set", "edit.hooks=[block01.mlp_hidden]", code=2
    )
    assert "residual-stream" in done.stderr


def test_a_head_that_is_not_there_is_refused(tiny, program):
    done = program("edit", "--config", tiny.config, "--out", tiny.out, "--set", "edit.head=nowhere.safetensors", code=2)
    assert "segmentation-head" in done.stderr and UserError.__name__ not in done.stderr
