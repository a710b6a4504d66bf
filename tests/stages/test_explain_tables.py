"""Tables of regions against plain loops, on simulated units whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from sbm_jax.stages.exemplar_lists import Exemplars
from sbm_jax.stages.explain_names import Judged, canonical, roi_concept
from sbm_jax.stages.explain_tables import Units, control_table, group_record, roi_tables
from sbm_jax.stages.judging import ImageJudge, name_units, resampling

CONCEPTS = ("face", "place", "word")


def simulated(seed: int, planted: dict[int, int], w: int = 60, strength: float = 0.8) -> tuple[Units, Exemplars]:
    """Units 0, 2, 4, ... of which some show their concept in most exemplars; the last 20 are controls."""
    rng = np.random.default_rng(seed)
    shows = np.eye(4, dtype=bool)[rng.integers(0, 4, 500)][:, :3]
    judge = ImageJudge("labels", "", CONCEPTS, shows, np.ones(500, bool), True)
    images = np.empty((w, 20), np.int32)
    for u in range(w):
        own = rng.permutation(np.flatnonzero(shows[:, planted[u]]))[:20] if u in planted else None
        any_ = rng.permutation(500)[:20]
        images[u] = any_ if own is None else np.where(rng.random(20) < strength, own, any_)
    units = 2 * np.arange(w, dtype=np.int32)
    exemplars = Exemplars(units, np.ones(w, np.uint8), images, np.ones((w, 20), np.float32), None)
    counts = judge.count(exemplars)
    n = name_units(judge, counts, 10)
    said = Judged(
        CONCEPTS, n.concept, n.count, n.stable, n.effect, n.effect_low, n.effect_high, n.p, counts.shown, counts.judged
    )
    return Units(units, said, judge.base_c, np.arange(w - 20, w)), exemplars


def test_planted_regions_are_found_and_controls_are_not():
    planted = {u: u % 3 for u in range(30)}
    units, exemplars = simulated(0, planted)
    faces, places = (2 * np.array([[u for u in range(30) if u % 3 == c]]) for c in (0, 1))
    early = np.array([[62, 64, 66]])
    ranked = {
        "floc-faces": {"contrast": faces},
        "floc-places/PPA": {"contrast": places},
        "prf-visualrois/V1": {"contrast": early},
    }
    table = roi_tables([units], CONCEPTS, ranked, resampling(500, 0))
    assert set(table) == {"floc-faces", "floc-places/PPA"}
    for roi, concept in (("floc-faces", 0), ("floc-places/PPA", 1)):
        assert table[roi]["concept"] == CONCEPTS[concept]
        record = table[roi]["contrast"]
        rows = ranked[roi]["contrast"][0] // 2
        stable = aligned = 0
        for row in rows:
            groups = [int((exemplars.images[row][:, None] == np.flatnonzero(_shows(0)[:, c])).sum()) for c in range(3)]
            stable += max(groups) > 10
            aligned += max(groups) > 10 and int(np.argmax(groups)) == concept
        assert record["units"] == [10] and record["stable"] == [stable] and record["aligned"] == [aligned]
        assert stable >= 9 and record["rate"] == [aligned / stable] and record["rate_low"][0] <= aligned / stable
        assert record["effect_low"][0] < record["effect"][0] < record["effect_high"][0]
        assert record["gain_low"][0] > 0.4
        assert record["others"]["units"] == [10] and record["others"]["aligned"] == [0]
        assert record["random"]["units"] == [20] and record["random"]["aligned"][0] <= 1
        assert abs(record["random"]["effect"][0]) < 0.06
    control = control_table([units], CONCEPTS)
    assert control["units"] == [20] and control["stable"][0] <= 1  # 11 of 20 by chance: 1 unit in 60
    assert control["concepts"]["face"]["effect"] == table["floc-faces"]["contrast"]["random"]["effect"]


def _shows(seed: int) -> np.ndarray:
    return np.eye(4, dtype=bool)[np.random.default_rng(seed).integers(0, 4, 500)][:, :3]


def test_units_that_were_not_looked_at_are_left_out():
    units, _ = simulated(1, {})
    rows = units.rows(np.array([1, 4, 5, 118, 119, 400]))
    assert units.units[rows].tolist() == [4, 118]
    record = group_record(units, rows[:0], 0)
    assert record["units"] == 0 and np.isnan(record["rate"]) and np.isnan(record["effect"])
    table = roi_tables([units], CONCEPTS, {"floc-faces": {"mean": np.array([[1, 3]])}}, resampling(10, 0))
    assert table["floc-faces"]["mean"]["units"] == [0] and np.isnan(table["floc-faces"]["mean"]["gain_low"][0])
    assert table["floc-faces"]["mean"]["others"]["units"] == [0]


def test_intervals_of_gains_cover():
    """Gain of 30 units over 20 random ones, with units of very different strength (simulated; nominal 95 %)."""
    draw, hit, runs = resampling(400, 1), 0, 200
    for seed in range(runs):
        rng = np.random.default_rng([7, seed])
        w, e = 50, 20
        rate = np.where(np.arange(w) < 30, rng.beta(2, 3, w), 0.2)  # mean .4
        counts = rng.binomial(e, rate)[:, None]
        nothing = np.zeros(w, np.float32)
        said = Judged(("face",), counts[:, 0], counts[:, 0], counts[:, 0] > 10, *[nothing] * 4, counts, np.full(w, e))
        units = Units(np.arange(w), said, np.array([0.2]), np.arange(30, 50))
        record = roi_tables([units], ("face",), {"floc-faces": {"mean": np.arange(30)[None]}}, draw)["floc-faces"][
            "mean"
        ]
        hit += record["gain_low"][0] <= 0.2 <= record["gain_high"][0]
    assert 0.90 <= hit / runs <= 0.985


@pytest.mark.parametrize(
    ("roi", "concepts", "found"),
    [
        ("floc-faces", ("bodies", "Faces"), 1),
        ("floc-words/VWFA-1", ("face", "word"), 1),
        ("food", ("food",), 0),
        ("floc-faces", ("person",), None),
        ("prf-visualrois/V1", ("face",), None),
    ],
)
def test_concepts_of_regions(roi, concepts, found):
    assert roi_concept(roi, concepts) == found


def test_one_spelling_of_concepts():
    assert [canonical(x) for x in (" Faces ", "face", "glass", "Words")] == ["face", "face", "glass", "word"]
